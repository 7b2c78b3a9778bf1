"""Damage to a file: its bytes, its lines, and the JSON, YAML or arrays in it, from a seed."""

import io
import json
import random
import struct
import zipfile

import numpy as np
import yaml

#: Values that a reader does not expect where it reads them.
ODD = [
    None, True, False, 0, -1, 1, 2, 10**9, 10**30, -(2**63), 1e308, -1e-300, float("nan"), float("inf"), "", "x", "0",
    "os:system", "a" * 500, "\x1b[31m", "\u202e", "../..", "\0", [], {}, [[]], [None], {"kind": "gmm"},
    {"kind": "os:system"},
    [1, 2, 3], [[0, 1]], {"a": 1},
]  # fmt: skip


def deep(levels):
    """A list in a list in a list."""
    value = []
    for _ in range(levels):
        value = [value]
    return value


def mutate(content, name, draw):
    """Damaged copy of a file's bytes; ``name`` tells what is in it, ``draw`` is a `random.Random`."""
    structured = {
        ".json": in_json,
        ".jsonl": in_lines,
        ".yaml": in_yaml,
        ".npz": in_arrays,
        ".npy": in_array,
        ".uqb": in_model,
    }
    suffix = name[name.rfind(".") :] if "." in name else ""
    ways = [in_bytes, structured.get(suffix, in_text), structured.get(suffix, in_text)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(ways)(content, draw)
    return content


def in_bytes(content, draw):
    data = bytearray(content)
    at = draw.randrange(len(data) + 1)
    way = draw.randrange(6)
    if way == 0 and data:
        for _ in range(draw.choice((1, 1, 4, 16))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif way == 1:
        del data[at:]
    elif way == 2:
        data[at:at] = draw.randbytes(draw.choice((1, 8, 64)))
    elif way == 3:
        del data[at : at + draw.choice((1, 8, 64))]
    elif way == 4:
        data[at:at] = data[at : at + draw.choice((8, 64, 512))] * draw.choice((1, 2, 50))
    else:
        data[at : at + 8] = draw.choice((b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7))
    return bytes(data)


def in_text(content, draw):
    """Words and lines of a table exchanged, doubled, dropped, or made odd."""
    lines = content.decode(errors="replace").split("\n")
    at = draw.randrange(len(lines))
    words = lines[at].split(" ")
    place = draw.randrange(len(words))
    way = draw.randrange(6)
    if way == 0:
        words[place] = draw.choice([*map(str, ODD), "1e999", "-1e999", "1_0", "0x1", "९", "nan", "1e15"])
    elif way == 1:
        del words[place]
    elif way == 2:
        words[place:place] = [words[place]] * draw.choice((1, 3, 1000))
    lines[at] = " ".join(words)
    if way == 3:
        del lines[at]
    elif way == 4:
        lines[at:at] = [lines[at]] * draw.choice((1, 100))
    elif way == 5:
        other = draw.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return "\n".join(lines).encode(errors="surrogatepass")


def places(value, path=()):
    """Paths of everything in nested lists and mappings; of long lists the first few."""
    yield path
    if isinstance(value, dict):
        for key, entry in list(value.items()):
            yield from places(entry, (*path, key))
    elif isinstance(value, list):
        for key, entry in enumerate(value[:6]):
            yield from places(entry, (*path, key))


def in_value(value, draw):
    """Put something odd somewhere, drop or double an entry."""
    path = draw.choice(list(places(value)))
    way = draw.randrange(8)
    if not path:
        return draw.choice(ODD) if way == 0 else value
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder[:] = holder * draw.choice((2, 50))
    elif way == 2 and isinstance(holder, dict):
        holder[draw.choice(("", "x", "kind", "\x1b[2J", key + key))] = holder[key]
    elif way == 3:
        holder[key] = deep(draw.choice((30, 150, 150, 5000 if draw.random() < 0.1 else 150)))
    elif way == 4 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * draw.choice((-1, 0, 2, 10**3, 10**7, 10**12)) + draw.choice((0, 1))
    elif way == 5:
        holder[key] = str(holder[key])[:1000]
    else:
        holder[key] = draw.choice(ODD)
    return value


def to_json(value):
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def in_json(content, draw):
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return in_bytes(content, draw)
    text = to_json(in_value(value, draw))
    # A key given twice.
    return text.replace(b"{", b'{"kind": 1, "step": [], ', 1) if draw.random() < 0.05 else text


def in_lines(content, draw):
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = in_json(lines[at], draw)
    return b"\n".join(lines)


def in_yaml(content, draw):
    if draw.random() < 0.5:
        return in_text(content, draw)
    try:
        value = in_value(yaml.safe_load(content), draw)
        return yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass")
    except Exception:
        return in_text(content, draw)


def in_arrays(content, draw):
    """Arrays of other shapes and types, with odd numbers, missing or renamed; headers that claim more than there is."""
    try:
        with np.load(io.BytesIO(content)) as held:
            arrays = dict(held)
        name = draw.choice(list(arrays))
        way = draw.randrange(9)
        if way == 0:
            del arrays[name]
        elif way == 1:
            arrays[draw.choice(("x", "bias.0.hills", "7.x", name + "x"))] = arrays.pop(name)
        elif name == "manifest":
            arrays[name] = np.array(in_json(str(arrays[name]).encode(), draw).decode())
        elif way < 7:
            arrays[name] = other_array(arrays[name], draw)
        stream = io.BytesIO()
        np.savez(stream, **arrays)
    except Exception:
        return in_bytes(content, draw)
    return stream.getvalue() if way < 7 else with_claim(stream, f"{name}.npy", str(arrays[name].shape).encode(), draw)


def in_array(content, draw):
    """An array of another shape or type, or a header that claims more than there is."""
    stream = io.BytesIO()
    try:
        array = np.load(io.BytesIO(content))
        if draw.random() < 0.2:
            return content.replace(str(array.shape).encode(), draw.choice((b"(10**13,)", b"(-1, 2)", b"(9, 9)")))
        np.save(stream, other_array(array, draw))
    except Exception:
        return in_bytes(content, draw)
    return stream.getvalue()


def other_array(array, draw):
    """An array in place of another."""
    way = draw.randrange(4)
    if way == 0:
        return np.full(draw.choice(((), (0,), (1,), (2, 2), (0, 3), array.shape[1:], (*array.shape, 1))), 1.0)
    if way == 1:
        return array.astype(draw.choice(("U3", "c16", "i1", "f2", "?", "M8[s]", "S4")))
    if way == 2 and array.ndim:
        return array[: len(array) // 2]
    changed = array.copy()
    odd = (np.nan, np.inf, -1e300, 1e18, -1.0, 0.0) if array.dtype.kind == "f" else (0, 1, 100)
    changed.reshape(-1)[draw.randrange(array.size)] = draw.choice(odd)
    return changed


def with_claim(stream, name, shape, draw):
    """An archive in which the header of an array claims another shape, with a right checksum."""
    result = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry == name:
                claim = draw.choice((b"(99999999999,)", b"(-1,)", b"(10**9,)", b"(1, 2, 3, 4, 5)", b"None", b"(9,9)"))
                claim = claim[: len(shape)].ljust(len(shape)) if draw.random() < 0.3 else claim
                # Padding of the header makes room for it.
                grown = len(claim) - len(shape)
                data = data.replace(shape, claim, 1)
                data = data.replace(b" " * grown + b"\n", b"\n", 1) if grown > 0 else data
            new.writestr(entry, data)
    return result.getvalue()


def in_model(content, draw):
    """A manifest that is changed and carries the right hash, or a header of tensors that claims other things."""
    from safetensors.torch import load, save

    from uqbias.model.manifest import digest

    try:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
        tensors = load(content)
        manifest = json.loads(header["__metadata__"]["manifest"])
    except Exception:
        return in_bytes(content, draw)
    if draw.random() < 0.2:
        text = to_json(in_value(header, draw))
        return struct.pack("<Q", len(text)) + text + content[8 + size :]
    if draw.random() < 0.2:
        name = draw.choice(list(tensors))
        kept = tensors.pop(name)
        other = (kept.double(), kept.bfloat16(), kept.int(), kept.new_zeros(3), kept[..., None], kept * float("nan"))
        if draw.random() < 0.8:
            tensors[name] = draw.choice(other).contiguous()
    else:
        manifest = in_value(manifest, draw)
    if isinstance(manifest, dict):
        manifest.pop("sha256", None)
        try:
            manifest["sha256"] = digest(manifest, tensors)
        except Exception:
            manifest["sha256"] = "0"
    return save(tensors, metadata={"manifest": to_json(manifest).decode()})


def damaged(content, name, seed):
    """`mutate` from a seed that is text."""
    return mutate(content, name, random.Random(seed))
