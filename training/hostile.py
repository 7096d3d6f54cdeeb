"""Checkpoints that were never saved by a trainer: pickles that would run code, and bombs. `python -m training.fuzz` and
the tests hold the readers against them. Each that would run code would make the file MARKER in the working folder.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping

MARKER = "executed"
VALUES = 64  # floats that are there, in the one storage
_PROTO = b"\x80\x02"
_SHELL = f"touch {MARKER}"
_PYTHON = f"open({MARKER!r},'w')"


def text(value: str) -> bytes:
    """A string as the opcode BINUNICODE has it."""
    raw = value.encode(errors="surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """An int of up to 255 bytes."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    """The opcode GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def called(module: str, attribute: str, *arguments: bytes) -> bytes:
    """module.attribute(*arguments)."""
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def weights(value: bytes, key: str = "rnn.weight_ih_l0") -> bytes:
    """{key: value} as a whole pickle."""
    return _PROTO + b"}q\x00" + text(key) + value + b"s."


def storage(count: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """A persistent id of `count` values."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(count) + b"tQ"


def sizes(*values: int) -> bytes:
    """A tuple of ints."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], count: int, offset: int = 0) -> bytes:
    """A tensor whose storage has `count` values, so it says."""
    hooks = called("collections", "OrderedDict")
    arguments = (storage(count), number(offset), sizes(*shape), sizes(*stride), b"\x89", hooks)
    return called("torch._utils", "_rebuild_tensor_v2", *arguments)


def _laughs(start: bytes, levels: int, width: int, dicts: bool = False) -> bytes:
    """Containers that each hold the one before `width` times."""
    parts = start + b"q\x01"
    for level in range(levels):
        again = b"h" + bytes([level + 1])
        if dicts:
            others = b"".join(text(f"k{index}") + again for index in range(1, width))
            parts = b"}(" + text("k0") + parts + others + b"u"
        else:
            parts = b"](" + parts + again * (width - 1) + b"e"
        parts += b"q" + bytes([level + 2])
    return parts


def _pickles() -> dict[str, bytes]:
    layout = called("torch.serialization", "_get_layout", text("torch.sparse_coo"))
    indices, values = tensor((1, 1), (1, 1), VALUES), tensor((1,), (1,), VALUES)
    huge = sizes(1 << 40, 1 << 20)
    meta = (name("torch", "float32"), sizes(64, 8), sizes(8, 1), b"\x89")
    quantizer = b"(" + name("torch", "per_tensor_affine") + b"G" + struct.pack(">d", 0.1) + number(0) + b"t"
    deep_tuple = b")" + b"\x85" * 400_000
    return {
        "os.system": weights(called("os", "system", text(_SHELL))),
        "posix.system": weights(called("posix", "system", text(_SHELL))),
        "subprocess": weights(called("subprocess", "getoutput", text(_SHELL))),
        "eval": weights(called("builtins", "eval", text(_PYTHON))),
        "eval of Python 2": weights(called("__builtin__", "eval", text(_PYTHON))),
        "exec": weights(called("builtins", "exec", text(_PYTHON))),
        "open": weights(called("builtins", "open", text(MARKER), text("w"))),
        "getattr chain": weights(
            called("builtins", "getattr", called("builtins", "__import__", text("os")), text("system"))
            + b"("
            + text(_SHELL)
            + b"tR"
        ),
        "stack global": b"\x80\x04}" + text("k") + text("os") + text("system") + b"\x93(" + text(_SHELL) + b"tRs.",
        "nested global": b"\x80\x04}"
        + text("k")
        + text("torch")
        + text("os.system")
        + b"\x93("
        + text(_SHELL)
        + b"tRs.",
        "dotted global": weights(called("torch", "serialization.os.system", text(_SHELL))),
        "inst": _PROTO + b"(" + text(_SHELL) + b"ios\nsystem\n.",
        "obj": _PROTO + b"(" + name("os", "system") + text(_SHELL) + b"o.",
        "newobj": weights(name("os", "system") + b"(" + text(_SHELL) + b"t\x81"),
        "extension code": _PROTO + b"\x82\x01(tR.",
        "setstate": weights(
            called("argparse", "Namespace") + b"}" + text("__setstate__") + name("os", "system") + b"sb"
        ),
        "setstate of a tensor": weights(
            tensor((1,), (1,), VALUES) + b"}" + text("__class__") + name("os", "system") + b"sb"
        ),
        "state of a parameter": weights(
            called(
                "torch._utils",
                "_rebuild_parameter_with_state",
                values,
                b"\x89",
                called("collections", "OrderedDict"),
                b"}" + text("__class__") + name("argparse", "Namespace") + b"s",
            )
        ),
        "type of a tensor": weights(
            called(
                "torch._tensor",
                "_rebuild_from_type_v2",
                name("os", "system"),
                name("argparse", "Namespace"),
                b"(" + text(_SHELL) + b"t",
                b"N",
            )
        ),
        "numpy object": weights(
            called("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), sizes(0), text("b"))
        ),
        "numpy load": weights(called("numpy", "load", text("/etc/hostname"))),
        "torch.load": weights(called("torch", "load", text("/etc/hostname"))),
        "torch.hub": weights(called("torch.hub", "load", text("a/b"), text("c"))),
        "script tag": weights(called("torch.jit._pickle", "restore_type_tag", text("x"), text("y"))),
        "a class of the script": weights(name("__torch__", "Net") + b")\x81}" + text("a") + values + b"sb"),
        "pathlib": weights(
            called("pathlib", "Path.write_text", called("pathlib", "PosixPath", text(MARKER)), text("x"))
        ),
        "persistent id of text": weights(text("storage") + b"Q"),
        "persistent id of a number": weights(number(0) + b"Q"),
        "persistent id of another kind": weights(b"(" + text("module") + name("os", "system") + b"tQ"),
        "persistent id in itself": weights(b"(" + storage(VALUES) + text("storage") + b"tQ"),
        "persistent id of the old kind": _PROTO + b"Pstorage\n.",
        "storage of another class": weights(
            b"(" + text("storage") + name("os", "system") + text("0") + text("cpu") + number(1) + b"tQ"
        ),
        "storage elsewhere": weights(storage(1, key="../../../../etc/passwd")),
        "storage on a disk": weights(
            b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cuda:99") + number(1) + b"tQ"
        ),
        "storage too large": weights(tensor((1 << 20,), (1,), 1 << 20)),
        "storage of petabytes": weights(tensor((1 << 50,), (1,), 1 << 50)),
        "storage of less than nothing": weights(tensor((4,), (1,), -4)),
        "storage of no number": weights(
            b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"NtQ"
        ),
        "offset out of it": weights(tensor((4,), (1,), VALUES, 1 << 40)),
        "negative shape": weights(tensor((-4, -4), (1, 1), VALUES)),
        "negative stride": weights(tensor((2,), (-1,), VALUES)),
        "expanded": weights(tensor((1 << 20, 1 << 20), (0, 0), VALUES)),
        "expanded to gigabytes": weights(tensor((1 << 15, 1 << 15), (0, 0), VALUES)),
        "no values": weights(tensor((1 << 40, 0, 1 << 20), (0, 0, 0), VALUES)),
        "a thousand dims": weights(tensor((1,) * 1000, (1,) * 1000, 1)),
        "tensor of a size": weights(called("torch", "Tensor", number(1 << 33))),
        "tensor of a Size": weights(called("torch", "FloatTensor", called("torch", "Size", sizes(1 << 33)))),
        "new tensor": weights(name("torch", "FloatTensor") + sizes(1 << 33) + b"\x81"),
        "new storage": weights(called("torch.storage", "UntypedStorage", number(1 << 34))),
        "bytearray": weights(called("builtins", "bytearray", number(1 << 35))),
        "bytearray of Python 2": weights(called("__builtin__", "bytearray", number(1 << 35))),
        "new bytearray": weights(name("builtins", "bytearray") + b"(" + number(1 << 35) + b"t\x81"),
        "meta": weights(called("torch._utils", "_rebuild_meta_tensor_no_storage", *meta)),
        "sparse": weights(
            called("torch._utils", "_rebuild_sparse_tensor", layout, b"(" + indices + values + huge + b"\x89t")
        ),
        "nested": weights(called("torch._utils", "_rebuild_nested_tensor", values, indices, indices, values)),
        "quantized": weights(
            called(
                "torch._utils",
                "_rebuild_qtensor",
                storage(64, "QInt8Storage"),
                number(0),
                sizes(8, 8),
                sizes(8, 1),
                quantizer,
                b"\x89",
                called("collections", "OrderedDict"),
            )
        ),
        "quantized floats": weights(
            called(
                "torch._utils",
                "_rebuild_qtensor",
                storage(VALUES),
                number(0),
                sizes(1),
                sizes(1),
                quantizer,
                b"\x89",
                called("collections", "OrderedDict"),
            )
        ),
        "complex": weights(
            called("torch._utils", "_rebuild_tensor", storage(32, "ComplexFloatStorage"), number(0), sizes(1), sizes(1))
        ),
        "wrapper": weights(
            called(
                "torch._utils",
                "_rebuild_wrapper_subclass",
                name("torch", "Tensor"),
                name("torch", "float32"),
                huge,
                sizes(1, 1),
                number(0),
                layout,
                called("torch", "device", text("cpu")),
                b"\x89",
            )
        ),
        "counter": weights(called("collections", "Counter", text("a" * 1000))),
        "complex number": weights(called("builtins", "complex", text("1j"))),
        "encode": weights(called("_codecs", "encode", text("abc"), text("rot13"))),
        "encode to zip": weights(called("_codecs", "encode", text("abc"), text("zlib"))),
        "device": weights(called("torch", "device", text("cuda:99999"))),
        "laughs of lists": weights(_laughs(b"]", 12, 100)),
        "laughs called": weights(_laughs(b"]", 12, 100) + b")R"),
        "laughs as a storage's name": weights(b"(" + _laughs(b"]", 12, 100) + b"tQ"),
        "laughs of dicts": weights(_laughs(values, 4, 300, dicts=True)),
        "laughs of many dicts": weights(_laughs(values, 30, 30, dicts=True)),
        "one tensor under many names": _PROTO
        + b"}"
        + tensor((50_000,), (1,), 50_000)
        + b"q\x01"
        + b"("
        + b"".join(text(f"rnn.weight_ih_l{index}") + b"h\x01" for index in range(3000))
        + b"u.",
        "a list in itself": weights(b"]q\x01h\x01a"),
        "a dict in itself": _PROTO + b"}q\x01" + text("model") + b"h\x01s.",
        "deep tuples": weights(deep_tuple),
        "deep tuples as a key": _PROTO + b"}" + deep_tuple + b"Ns.",
        "deep tuples in a set": _PROTO + called("builtins", "set", b"](" + deep_tuple + b"e") + b".",
        "deep lists": weights(b"]" * 200_000 + b"a" * 199_999),
        "deep dicts": _PROTO + b"}" + (text("model") + b"}") * 100_000 + b"s" * 100_000 + b".",
        "marks": _PROTO + b"(" * 1_000_000 + b".",
        "too many pops": _PROTO + b"t" * 100 + b".",
        "memo far out": _PROTO + b"}r\xff\xff\xff\xff.",
        "long string": _PROTO + b"X\xff\xff\xff\xff" + b"a" * 10,
        "long of 255 bytes": weights(b"\x8a\xff" + b"\x7f" * 255),
        "half a character": weights(b"]", "rnn.weight_ih_l0\x00\x1b[2J\u202e"),
        "a lone surrogate": _PROTO + b"}X\x03\x00\x00\x00\xed\xa0\x80" + values + b"s.",
        "name of megabytes": weights(values, "a" * 3_000_000),
        "a name of dots": weights(values, "." * 5000),
        "layer of a billion": weights(tensor((4, 1), (1, 1), VALUES), "rnn.weight_ih_l999999999"),
        "layer with other digits": weights(tensor((4, 1), (1, 1), VALUES), "rnn.weight_ih_l\u0663"),
        "number as key": _PROTO + b"}" + number(1) + values + b"s.",
        "None": _PROTO + b"N.",
        "nothing": _PROTO + b".",
        "tensor alone": _PROTO + values + b".",
        "negative zero dims": weights(tensor((), (), VALUES)),
        "empty matrices": _PROTO
        + b"}("
        + text("rnn.weight_ih_l0")
        + tensor((0, 0), (1, 1), VALUES)
        + text("rnn.weight_hh_l0")
        + tensor((0, 0), (1, 1), VALUES)
        + b"u.",
        "matrices of no columns": _PROTO
        + b"}("
        + text("rnn.weight_ih_l0")
        + tensor((4, 0), (1, 1), VALUES)
        + text("rnn.weight_hh_l0")
        + tensor((4, 1), (1, 1), VALUES)
        + b"u.",
    }


PICKLES = _pickles()
CONTAINERS = ("archive", "script", "older")


def contained(content: bytes, how: str, data: Mapping[str, bytes] | None = None) -> bytes:
    """A pickle as a whole file: an archive of torch.save's, a TorchScript archive, or the older format."""
    if how == "older":
        magic = _PROTO + number(0x1950A86A20F9469CFC6C) + b"."
        system = _PROTO + b"}(" + text("protocol_version") + b"M\xe9\x03" + text("little_endian") + b"\x88u."
        content = content.replace(b"tQ", b"NtQ")  # there a storage also says whether it is a part of another
        keys = _PROTO + (b"](" + text("0") + b"e." if text("storage") in content else b"].")
        return magic + _PROTO + b"M\xe9\x03." + system + content + keys + struct.pack("<Q", VALUES) + bytes(4 * VALUES)
    entries = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    if how == "script":
        entries |= {"code/__torch__.py": b"class Net(Module):\n  pass\n", "constants.pkl": _PROTO + b").."}
    return archive(
        {f"x/{entry}": value for entry, value in (entries | dict(data or {"data/0": bytes(4 * VALUES)})).items()}
    )


def archive(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as file:
        for entry, value in entries.items():
            file.writestr(zipfile.ZipInfo(entry), value, compression, 1)
    return buffer.getvalue()


def safetensors(header: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A safetensors file; header: an object, or its bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _entry(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes}


SAFETENSORS = {
    "shape of petabytes": safetensors(_entry(shape=[1 << 40, 1 << 20])),
    "shape that overflows": safetensors(_entry(shape=[1 << 63, 2, 1 << 63])),
    "shape with zero": safetensors(_entry(shape=[1 << 60, 0], data_offsets=[0, 0]), b""),
    "offsets beyond": safetensors(_entry(data_offsets=[0, 1 << 62])),
    "offsets backwards": safetensors(_entry(data_offsets=[64, 0])),
    "other dtype": safetensors(_entry(dtype="F128")),
    "eight-bit floats": safetensors(_entry(dtype="F8_E5M2", shape=[64])),
    "four-bit floats": safetensors(_entry(dtype="F4", shape=[128])),
    "deep JSON": safetensors(b"{" + b'"a":{' * 100_000 + b"}" * 100_001),
    "deep lists": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "names twice": safetensors(
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[14],"data_offsets":[8,64]}}'
    ),
    "huge header": safetensors(b'{"a":1}', length=(1 << 63) - 1),
    "negative shape": safetensors(_entry(shape=[-4, -4])),
    "fraction": safetensors(_entry(shape=[4.5, 4])),
    "lone surrogate": safetensors(b'{"rnn.weight_ih_l0\\ud800":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}'),
    "many empty tensors": safetensors(
        {f"rnn.weight_ih_l{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(20_000)},
        b"",
    ),
}
