"""What Triton's onnxruntime backend does, by Triton's interface for backends: the rows of all requests are joined along
the first axis, the graph is run, and each request is given its rows, the state by StateNew and StateUpdate."""

import ctypes
import json
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import onnxruntime

TRITON = ctypes.CDLL(os.environ["LIBTRITONSERVER"])
TRITON.TRITONSERVER_ErrorMessage.restype = c_char_p
DTYPES = {1: np.bool_, 8: np.int32, 9: np.int64, 11: np.float32, 12: np.float64}
NUMBERS = {np.dtype(dtype): number for number, dtype in DTYPES.items()}
sessions = {}


def call(name, *arguments):
    function = getattr(TRITON, name)
    function.restype = c_void_p
    if error := function(*arguments):
        raise RuntimeError(f"{name}: {TRITON.TRITONSERVER_ErrorMessage(c_void_p(error)).decode()}")


def model_of(instance):
    """(session, state input → output, whether rows are joined) of a model's folder."""
    model, kind, folder = c_void_p(), c_int(), c_char_p()
    call("TRITONBACKEND_ModelInstanceModel", c_void_p(instance), byref(model))
    call("TRITONBACKEND_ModelRepository", model, byref(kind), byref(folder))
    place = Path(folder.value.decode())
    if place not in sessions:
        session = onnxruntime.InferenceSession(place / "1" / "model.onnx", providers=["CPUExecutionProvider"])
        states = json.loads(session.get_modelmeta().custom_metadata_map.get("state_map", "{}"))
        sessions[place] = session, states, "max_batch_size: 0" not in (place / "config.pbtxt").read_text()
    return sessions[place]


def read(request, name):
    given, label, number, shape = c_void_p(), c_char_p(), c_int(), POINTER(c_int64)()
    axes, size, buffers = c_uint32(), c_uint64(), c_uint32()
    call("TRITONBACKEND_RequestInput", c_void_p(request), name.encode(), byref(given))
    about = (label, number, shape, axes, size, buffers)
    call("TRITONBACKEND_InputProperties", given, *map(byref, about))
    content = b""
    for place in range(buffers.value):
        buffer, size, kind, device = c_void_p(), c_uint64(), c_int(0), c_int64(0)
        call("TRITONBACKEND_InputBuffer", given, c_uint32(place), *map(byref, (buffer, size, kind, device)))
        content += ctypes.string_at(buffer, size.value)
    return np.frombuffer(content, DTYPES[number.value]).reshape([shape[axis] for axis in range(axes.value)])


def give(made, buffer_of, array):
    """Have a tensor made by `made`(reference, dtype, shape, axes), and fill it."""
    array = np.ascontiguousarray(array)
    tensor, buffer, kind, device = c_void_p(), c_void_p(), c_int(0), c_int64(0)
    made(byref(tensor), c_int(NUMBERS[array.dtype]), (c_int64 * array.ndim)(*array.shape), c_uint32(array.ndim))
    call(buffer_of, tensor, byref(buffer), c_uint64(array.nbytes), byref(kind), byref(device))
    ctypes.memmove(buffer, array.ctypes.data, array.nbytes)
    return tensor


def answer(request, values, states):
    response = c_void_p()
    call("TRITONBACKEND_ResponseNew", byref(response), c_void_p(request))
    for name, array in values.items():
        label = name.encode()
        if name in states.values():
            made = lambda tensor, *how: call("TRITONBACKEND_StateNew", tensor, c_void_p(request), label, *how)  # noqa: E731, B023
            call("TRITONBACKEND_StateUpdate", give(made, "TRITONBACKEND_StateBuffer", array))
        else:
            made = lambda tensor, *how: call("TRITONBACKEND_ResponseOutput", response, tensor, label, *how)  # noqa: E731, B023
            give(made, "TRITONBACKEND_OutputBuffer", array)
    call("TRITONBACKEND_ResponseSend", response, c_uint32(1), None)
    call("TRITONBACKEND_RequestRelease", c_void_p(request), c_uint32(1))


def execute(instance, address, count):
    requests = list((c_void_p * count).from_address(address))
    session, states, joined = model_of(instance)
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    feeds = [{name: read(request, name) for name in names} for request in requests]
    if joined:
        found = session.run(outputs, {name: np.concatenate([given[name] for given in feeds]) for name in names})
        ends = np.cumsum([len(given[names[0]]) for given in feeds])[:-1]
        answers = zip(*(np.split(array, ends) for array in found), strict=True)
    else:
        answers = [session.run(outputs, given) for given in feeds]
    print("together", count, {name: list(array.shape) for name, array in feeds[0].items()}, flush=True)
    for request, values in zip(requests, answers, strict=True):
        answer(request, dict(zip(outputs, values, strict=True)), states)
