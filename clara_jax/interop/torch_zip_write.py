"""Writes arrays as a torch zip file, as `torch.save` does, without torch.

`torch.load(path, weights_only=True)`, also with mmap=True, and `torch_zip.TorchFile` read it.
"""

import dataclasses
import math
import os
import struct
import zipfile
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from clara_jax import files
from clara_jax.interop.torch_zip import DTYPES

_STORAGES = {np.dtype(dtype).name: kind.encode() for kind, dtype in DTYPES.items()}

_ALIGNMENT = 64  # of a storage's first byte, so that it may be mapped and used in place

_HEADER_BYTES = 30 + 20 + 4  # of a local entry, its field of long sizes and that of the padding

# What readers look for beside the pickle and the storages.
_MARKS = {"byteorder": b"little", "version": b"3\n"}

_FOLDER = "archive"  # all entries are in it; what it is called does not matter


@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array that is made while it is written."""

    shape: tuple[int, ...]  # of the whole
    dtype: Any  # what its blocks are converted to
    blocks: Iterable[np.ndarray]  # parts of the first axis, in order


def write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Writes nested dicts of float arrays; all of the file or nothing.

    The same content gives the same bytes. One array object in several places is stored once, and
    torch sees tensors that share their storage.

    Args:
        path: of the file.
        content: dicts with names as keys; leaves are arrays (numpy, jax) or `Blocks`, of 64, 32 or
            16 bits.
    """
    leaves: dict[int, tuple[int, Any]] = {}
    pickled = _pickled(content, leaves)
    with files.whole_file(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _entry(archive, file, "data.pkl", [b"\x80\x02", pickled, b"."])
        for i, leaf in leaves.values():
            _entry(archive, file, f"data/{i}", _bytes(leaf))
        for name, mark in _MARKS.items():
            _entry(archive, file, name, [mark])


def _entry(archive: zipfile.ZipFile, file: IO[bytes], name: str, parts: Iterable[Any]) -> None:
    entry = zipfile.ZipInfo(f"{_FOLDER}/{name}")  # of 1980, whenever it is written
    # All entries get the header for those of any length, so that it is known where their bytes are.
    n = -(file.tell() + _HEADER_BYTES + len(entry.filename)) % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", n) + bytes(n)  # a field that nobody reads
    with archive.open(entry, "w", force_zip64=True) as out:
        for part in parts:
            out.write(part)


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _bytes(leaf: Any) -> Iterable[memoryview]:
    """The bytes of an array, block by block."""
    dtype, left = np.dtype(leaf.dtype).newbyteorder("<"), _size(leaf)
    for block in leaf.blocks if isinstance(leaf, Blocks) else [leaf]:
        part = np.ascontiguousarray(np.asarray(block), dtype).reshape(-1).view(np.uint8).data
        left -= len(part)
        yield part
    if left:
        raise ValueError(f"blocks of an array of shape {leaf.shape} differ by {left} bytes from it")


# The pickle, opcode by opcode: a program that builds dicts (`}`, filled by `u` with what follows
# the mark `(`) and calls (`R`) torch's function for tensors with tuples (`t`) of arguments.


def _pickled(value: Any, leaves: dict[int, tuple[int, Any]]) -> bytes:
    """Opcodes that build a value; its arrays get a number in `leaves`, by their identity."""
    if isinstance(value, dict):
        items = (_text(key) + _pickled(item, leaves) for key, item in value.items())
        return b"}(" + b"".join(items) + b"u"
    number, _ = leaves.setdefault(id(value), (len(leaves), value))
    strides = [math.prod(value.shape[i + 1 :]) for i in range(len(value.shape))]
    kind = np.dtype(value.dtype).name
    if kind not in _STORAGES:
        raise ValueError(f"arrays of {kind} cannot be written, only {', '.join(_STORAGES)}")
    storage = _tuple(
        _text("storage"),
        _name(b"torch", _STORAGES[kind]),
        _text(str(number)),
        _text("cpu"),
        _int(math.prod(value.shape)),
    )
    return _call(
        _name(b"torch._utils", b"_rebuild_tensor_v2"),
        storage + b"Q",  # what the reader makes of a persistent id
        _int(0),  # offset in the storage
        _tuple(*map(_int, value.shape)),
        _tuple(*map(_int, strides)),
        b"\x89",  # False: needs no gradient
        _call(_name(b"collections", b"OrderedDict")),  # no hooks
    )


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _int(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _name(module: bytes, name: bytes) -> bytes:
    return b"c" + module + b"\n" + name + b"\n"


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _call(function: bytes, *arguments: bytes) -> bytes:
    return function + _tuple(*arguments) + b"R"
