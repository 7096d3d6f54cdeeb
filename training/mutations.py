"""Ways to spoil a checkpoint or an ONNX file, for `python -m training.fuzz`. Those that know the format put it together
again with right checksums and lengths, so that what they changed is reached."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from training import hostile

Mutator = Callable[[random.Random, bytes], bytes]

INTEGERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, -(2**31), 2**62, -(2**62))
STRINGS = (
    "",
    "x",
    ".",
    "..",
    "/",
    "../../secret",
    "a" * 300,
    "\x00",
    "\n",
    "\x1b[2J",
    "é",
    "日",
    "\u202e",
    "[/]",
    "\ud800",
    "{}",
    "0",
)
KEYS = (
    "weight_ih_l0",
    "rnn.weight_hh_l0",
    "rnn.weight_ih_l7",
    "rnn.weight_hr_l0",
    "rnn.bias_ih_l0",
    "head.weight",
    "embedding.weight",
    "state_dict",
    "model",
    "format",
    "network",
    "rnn.weight_ih_l0_reverse",
    "x_g",
    "x_v",
)


@dataclass(frozen=True)
class Seed:
    """A whole file to start from. kind: archive, script, older, safetensors or onnx."""

    name: str
    kind: str
    content: bytes


def bits(rng: random.Random, content: bytes) -> bytes:
    """One to sixteen bits turned over."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def noise(rng: random.Random, content: bytes) -> bytes:
    """A stretch of random bytes, zeros or ones."""
    start, length = rng.randrange(len(content)), rng.randrange(1, 65)
    fill = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    return content[:start] + fill + content[start + length :]


def truncate(rng: random.Random, content: bytes) -> bytes:
    """A beginning of the file, or its end."""
    cut = rng.randrange(1, len(content))
    return content[:cut] if rng.random() < 0.8 else content[cut:]


def append(rng: random.Random, content: bytes) -> bytes:
    """Bytes after the end, or the file twice."""
    return content + rng.choice((rng.randbytes(rng.randrange(1, 200)), bytes(50), content, content[-30:]))


def splice(rng: random.Random, content: bytes) -> bytes:
    """A stretch taken out, doubled, or put elsewhere."""
    a, b = sorted(rng.randrange(len(content)) for _ in range(2))
    part = content[a : min(b, a + 500)]
    place = rng.randrange(len(content))
    rest = content[:a] + content[a + len(part) :]
    return rng.choice((rest, content[:a] + part + content[a:], rest[:place] + part + rest[place:]))


def entries(content: bytes) -> dict[str, bytes]:
    """Name → bytes of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {entry.filename: file.read(entry) for entry in file.infolist()}


def _with_pickle(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another data.pkl; the older format with another first stretch."""
    if not content.startswith(b"PK"):
        return change(content)
    held = entries(content)
    key = next(name for name in held if name.endswith("data.pkl"))
    return hostile.archive(held | {key: change(held[key])})


def _opcodes(content: bytes) -> list[bytes]:
    places, stream = [], io.BytesIO(content)
    try:
        while stream.tell() < len(content):
            places += [place for _, _, place in pickletools.genops(stream) if place is not None]
    except ValueError:  # what follows in the older format is no pickle
        pass
    return [content[a:b] for a, b in zip(places, [*places[1:], len(content)], strict=True)]


def _value(rng: random.Random) -> bytes:
    picked = rng.randrange(8)
    if picked < 3:
        return hostile.number(rng.choice(INTEGERS))
    if picked < 5:
        return hostile.text(rng.choice(STRINGS + KEYS))
    return rng.choice((b"N", b"]", b"}", b")", b"\x88", b"G\x7f\xf8\0\0\0\0\0\0", b"h\x00", b"h\x05", b"(", b"t", b"R"))


def opcodes(rng: random.Random, content: bytes) -> bytes:
    """Opcodes of the pickle dropped, doubled, swapped or made up."""

    def change(pickle: bytes) -> bytes:
        parts = _opcodes(pickle)
        for _ in range(rng.choice((1, 1, 2, 3))):
            place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
            how = rng.randrange(5)
            if how == 0:
                parts[place] = b""
            elif how == 1:
                parts[place] += parts[other]
            elif how == 2:
                parts[place], parts[other] = parts[other], parts[place]
            elif how == 3:
                parts[place] = _value(rng)
            else:
                parts[place] += _value(rng)
        return b"".join(parts)

    return _with_pickle(content, change)


def constants(rng: random.Random, content: bytes) -> bytes:
    """Numbers, names, dtypes and globals of the pickle replaced by others of their kind."""

    def change(pickle: bytes) -> bytes:
        parts = _opcodes(pickle)
        for place in rng.sample(range(len(parts)), len(parts)):
            code = parts[place][:1]
            if code in b"KMJ\x8a" and code:
                parts[place] = hostile.number(rng.choice(INTEGERS))
            elif code == b"X":
                parts[place] = hostile.text(rng.choice(STRINGS + KEYS))
            elif code == b"c":
                kinds = (
                    "DoubleStorage",
                    "HalfStorage",
                    "LongStorage",
                    "BoolStorage",
                    "QInt8Storage",
                    "ComplexFloatStorage",
                    "Tensor",
                    "Size",
                    "float64",
                    "UntypedStorage",
                    "BFloat16Storage",
                )
                parts[place] = hostile.name("torch", rng.choice(kinds))
            else:
                continue
            if rng.random() < 0.7:
                break
        return b"".join(parts)

    return _with_pickle(content, change)


def rename(rng: random.Random, content: bytes) -> bytes:
    """Letters of the keys changed."""

    def change(pickle: bytes) -> bytes:
        parts = _opcodes(pickle)
        keys = [index for index, part in enumerate(parts) if part[:1] == b"X" and len(part) > 8]
        for place in rng.sample(keys, min(len(keys), rng.choice((1, 2, 5)))):
            name = parts[place][5:].decode(errors="replace")
            cut = rng.randrange(len(name))
            parts[place] = hostile.text(name[:cut] + rng.choice(("", ".", "_", "0", "9", "x.", "é")) + name[cut + 1 :])
        return b"".join(parts)

    return _with_pickle(content, change)


def rezip(rng: random.Random, content: bytes) -> bytes:
    """Entries dropped, renamed, shortened, lengthened, compressed, or doubled; with right checksums."""
    held = entries(content)
    name = rng.choice(list(held))
    how = rng.randrange(7)
    if how == 0:
        del held[name]
    elif how == 1:
        other = rng.choice(
            (f"../../{name}", f"/tmp/{name}", name.upper(), f"{name}/", "a\\b", "x/data.pkl", "", "x/.npy")
        )
        held = {(other if key == name else key): value for key, value in held.items()}
    elif how == 2:
        held[name] = held[name][: rng.randrange(len(held[name]) + 1)]
    elif how == 3:
        held[name] += rng.randbytes(rng.randrange(1, 100))
    elif how == 4:
        return hostile.archive(held, zipfile.ZIP_DEFLATED)
    elif how == 5:
        held[name] = noise(rng, held[name] or b"\0")
    else:
        held |= {rng.choice(("x/code/a.py", "x/.data/extern_modules", "x/version", "y/data.pkl")): held[name]}
    return hostile.archive(held)


def directory(rng: random.Random, content: bytes) -> bytes:
    """Sizes, offsets and counts of the archive's directory changed."""
    changed = bytearray(content)
    places = [
        place for place in _all(content, b"PK\x01\x02") + _all(content, b"PK\x05\x06") + _all(content, b"PK\x03\x04")
    ]
    place = rng.choice(places) + rng.randrange(4, 46, 2)
    value = struct.pack("<I", rng.choice(INTEGERS) & 0xFFFFFFFF)
    changed[place : place + 4] = value
    return bytes(changed[: len(content)])


def _all(content: bytes, part: bytes) -> list[int]:
    return (
        [place for place in range(len(content)) if content.startswith(part, place)] if len(content) < 200_000 else [0]
    )


def zip_bomb(rng: random.Random, content: bytes) -> bytes:
    """Megabytes of zeros, compressed, as a weight or as the pickle."""
    held = entries(content)
    held[rng.choice(list(held))] = bytes(rng.choice((1, 4)) << 20)
    return hostile.archive(held, zipfile.ZIP_DEFLATED)


def tensors_header(rng: random.Random, content: bytes) -> bytes:
    """A dtype, a shape, an offset or a name in the header of safetensors."""
    length = struct.unpack("<Q", content[:8])[0]
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry, how = header[name], rng.randrange(6)
    if how == 0:
        entry["dtype"] = rng.choice(("F16", "BF16", "F64", "I8", "I64", "BOOL", "F8_E4M3", "C64", "U16", "", None, 7))
    elif how == 1:
        entry["shape"] = [rng.choice((*entry["shape"], *INTEGERS)) for _ in range(rng.randrange(4))]
    elif how == 2:
        entry["data_offsets"] = [rng.choice((*entry["data_offsets"], *INTEGERS)) for _ in range(2)]
    elif how == 3:
        header[rng.choice(STRINGS + KEYS)] = header.pop(name)
    elif how == 4:
        header["__metadata__"] = rng.choice(({"a": 1}, "x", None, {"format": "x" * 1000}, []))
    else:
        size = max(1, entry["data_offsets"][1] - entry["data_offsets"][0]) // 4
        entry["shape"] = rng.choice(([size], [1, size], [size, 1], [2, size // 2], [size, 1, 1]))
    return hostile.safetensors(header, data, rng.choice((None, None, None, length, rng.choice(INTEGERS) % 2**64)))


def messages(rng: random.Random, content: bytes) -> bytes:
    """Fields of the ONNX model changed, cleared or doubled, wherever they are."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_field(rng, _pick(rng, model))
    return model.SerializeToString()


def _pick(rng: random.Random, message: Any) -> Any:
    """Any message in it, nested ones as likely as not."""
    while rng.random() < 0.85:
        held = [
            part
            for field, value in message.ListFields()
            if field.type == field.TYPE_MESSAGE
            for part in (rng.sample(list(value), min(3, len(value))) if _is_repeated(field, message) else [value])
        ]
        if not held:
            break
        message = rng.choice(held)
    return message


def _is_repeated(field: Any, message: Any) -> bool:
    return hasattr(getattr(message, field.name), "append")


def _change_field(rng: random.Random, message: Any) -> None:
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.7 and message.ListFields():
        field = rng.choice(message.ListFields())[0]
    value = getattr(message, field.name)
    if _is_repeated(field, message):
        _change_list(rng, field, value)
    elif field.type == field.TYPE_MESSAGE:
        message.ClearField(field.name) if rng.random() < 0.5 else value.SetInParent()
    else:
        try:
            setattr(message, field.name, _scalar(rng, field))
        except ValueError:  # beyond the field's type
            message.ClearField(field.name)


def _scalar(rng: random.Random, field: Any) -> Any:
    if field.type == field.TYPE_STRING:
        return rng.choice(
            (*STRINGS[:7], *STRINGS[8:], "LSTM", "Loop", "If", "Identity", "com.microsoft", "evil.domain", "hn")
        )
    if field.type == field.TYPE_BYTES:
        return rng.choice((b"", b"\xff", rng.randbytes(16), b"relu", bytes(1000)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    return rng.choice(INTEGERS)


def _change_list(rng: random.Random, field: Any, values: Any) -> None:
    how = rng.randrange(4)
    if how == 0 and len(values):
        del values[rng.randrange(len(values))]
    elif how == 1 and len(values):
        values.append(values[rng.randrange(len(values))])
    elif how == 2 and len(values) > 1:
        a, b = rng.sample(range(len(values)), 2)
        first, second = list(values)[a], list(values)[b]
        if field.type == field.TYPE_MESSAGE:
            held = type(first)()
            held.CopyFrom(first)
            first.CopyFrom(second)
            second.CopyFrom(held)
        else:
            values[a], values[b] = second, first
    elif field.type != field.TYPE_MESSAGE:
        try:
            values.append(_scalar(rng, field))
        except ValueError:
            del values[:]


def shapes(rng: random.Random, content: bytes) -> bytes:
    """Dims and dtypes of initializers, inputs and outputs."""
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    if rng.random() < 0.6 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        if rng.random() < 0.5:
            tensor.data_type = rng.choice((*range(24), 99))
        elif tensor.dims and rng.random() < 0.7:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((*INTEGERS, 2**40))
        else:
            tensor.dims.append(rng.choice(INTEGERS))
    else:
        tensor_type = rng.choice((*graph.input, *graph.output)).type.tensor_type
        tensor_type.elem_type = rng.choice((tensor_type.elem_type, *range(1, 24)))
        for dim in tensor_type.shape.dim:
            if rng.random() < 0.5:
                dim.dim_value = rng.choice(INTEGERS)
    return model.SerializeToString()


LOCATIONS = (
    "../secret",
    "/etc/passwd",
    "link",
    "",
    ".",
    "x.onnx",
    "a/../../secret",
    "\x00",
    "no",
    "\\\\host\\x",
    "~/x",
)


def external(rng: random.Random, content: bytes) -> bytes:
    """Weights that lie, so the file says, in other files."""
    model = onnx.ModelProto.FromString(content)
    for tensor in model.graph.initializer:
        if rng.random() < 0.5:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=rng.choice(LOCATIONS))
            for key in ("offset", "length"):
                if rng.random() < 0.5:
                    tensor.external_data.add(key=key, value=str(rng.choice((*INTEGERS, "x"))))
    return model.SerializeToString()


def properties(rng: random.Random, content: bytes) -> bytes:
    """The metadata: other JSON, or none."""
    model = onnx.ModelProto.FromString(content)
    if not model.metadata_props:
        model.metadata_props.add(key="network", value="{}")
    entry = rng.choice(model.metadata_props)
    how = rng.randrange(4)
    wild = (
        "",
        "{",
        "null",
        "[]",
        "{}",
        "NaN",
        "1e999",
        "[" * 100_000,
        "[" * 900 + "]" * 900,
        '{"a":' * 980 + "1" + "}" * 980,
        '{"a":' * 5000 + "1" + "}" * 5000,
        '"\\ud800"',
        "9" * 5000,
    )
    if how == 0:
        entry.value = rng.choice(wild)
    elif how == 1:
        entry.value = entry.value.replace(rng.choice('0123456789":,[]{}'), rng.choice(("-", "9", "null", "", "e5")), 1)
    elif how == 2:
        entry.key = rng.choice(
            ("network", "state_map", "preprocessing", "part", "versions", "checkpoint_sha256", "task")
        )
    else:
        model.metadata_props.add(key=entry.key, value=rng.choice(wild))
    return model.SerializeToString()


def nesting(rng: random.Random, content: bytes) -> bytes:
    """Graphs in attributes of nodes of graphs, or lengths that lie; in protobuf's own bytes."""
    inner = b""
    for _ in range(rng.choice((5, 20, 45, 99, 2000))):
        attribute = _field(1, b"body") + _field(6, inner) + b"\xa0\x01\x05"
        inner = _field(1, _field(4, b"Loop") + _field(5, attribute))
    whole = _field(7, inner)
    return rng.choice(
        (content + whole, b"\x08\x08" + whole, content + b"\x3a\xff\xff\xff\xff\x0f", b"\x08\x08" + b"\x3b" * 5000)
    )


def _field(number: int, value: bytes) -> bytes:
    length, encoded = len(value), bytearray()
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return bytes([number << 3 | 2]) + bytes(encoded) + value


def bombs(rng: random.Random, content: bytes) -> bytes:
    """A small graph that makes, or declares, tensors of terabytes."""
    size = rng.choice((1 << 34, 1 << 40, 1 << 62, -5))
    shape = onnx.helper.make_tensor("s", onnx.TensorProto.INT64, [2], [size, 1 << 10])
    initializers = [shape]
    node = onnx.helper.make_node("ConstantOfShape", ["s"], ["y"])
    if rng.random() < 0.5:
        initializers.append(onnx.TensorProto(name="w", data_type=1, dims=[size, 4], raw_data=bytes(16)))
        node = onnx.helper.make_node("Identity", ["w"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "g", [], [output], initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]).SerializeToString()


def hostile_pickle(rng: random.Random, content: bytes) -> bytes:
    """One of `training.hostile`'s pickles, alone or in the place of a value of a good one."""
    pickle = rng.choice(list(hostile.PICKLES.values()))
    if rng.random() < 0.5 or not content.startswith(b"PK"):
        return hostile.contained(pickle, rng.choice(hostile.CONTAINERS))
    body = pickle[2:].rstrip(b".")

    def change(held: bytes) -> bytes:
        parts = _opcodes(held)
        constants_ = [index for index, part in enumerate(parts) if part[:1] in b"KMJXN\x88\x89"]
        parts[rng.choice(constants_)] = body
        return b"".join(parts)

    return _with_pickle(content, change)


def hostile_tensors(rng: random.Random, content: bytes) -> bytes:
    """One of `training.hostile`'s safetensors."""
    return rng.choice(list(hostile.SAFETENSORS.values()))


ANY: tuple[Mutator, ...] = (bits, noise, truncate, append, splice)
_PICKLED: tuple[Mutator, ...] = (opcodes, opcodes, constants, constants, rename, hostile_pickle, hostile_pickle)
_ZIPPED: tuple[Mutator, ...] = (rezip, directory, zip_bomb)
MUTATORS: Mapping[str, tuple[Mutator, ...]] = {
    "archive": (*ANY, *_PICKLED, *_ZIPPED),
    "script": (*ANY, *_PICKLED, *_ZIPPED),
    "older": (*ANY, *_PICKLED),
    "safetensors": (*ANY, tensors_header, tensors_header, tensors_header, hostile_tensors),
    "onnx": (*ANY, messages, messages, messages, shapes, shapes, external, properties, properties, nesting, bombs),
}


def mutate(rng: random.Random, seed: Seed) -> tuple[str, bytes]:
    """The name of a way to spoil the file, and the file spoilt."""
    mutator = rng.choice(MUTATORS[seed.kind])
    spoilt = mutator(rng, seed.content)
    return mutator.__name__.replace("_", " "), spoilt or b"\0"
