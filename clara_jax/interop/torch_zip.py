"""Reads the tensors of a torch zip file (`torch.save`) without torch and without running anything.

Such a file is a zip of one pickle and the raw bytes of every storage. A pickle is a program, so it
is read by an unpickler that knows a few harmless names and refuses every other one; what those
names build is plain descriptions, which are checked before any byte of a storage is looked at.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import types
import zipfile
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clara_jax.errors import UserError

# Of the storages that torch has for floats.
DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
}

_PICKLE_BYTES = 2**24
_DIMENSIONS = 8  # more than any weight has
_NESTED = 8  # more than the tuples of a tensor are

_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field
_LOCAL_HEADER_BYTES = 30


class _Storage(NamedTuple):
    kind: str
    key: str


class Tensor(NamedTuple):
    """Description of one tensor: elements of a storage, by offset and strides (in elements)."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """An opened file.

    Attributes:
        content: what was saved: dicts, lists and scalars, with `Tensor` in the place of tensors.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file and reads its pickle.

        Raises:
            UserError: not a torch zip file, damaged, or with anything but tensors of floats in it.
        """
        self.path = path
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path}: not a file")  # one without end would never be read
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
                self._checked: set[str] = set()  # storages that are as they were written
                pickles = [name for name in self._entries if name.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise UserError(f"{path}: not a torch zip file (no data.pkl in it)")
                self._prefix = pickles[0].removesuffix("data.pkl")
                if self._entries[pickles[0]].file_size > _PICKLE_BYTES:
                    raise UserError(f"{path}: its data.pkl is too large to be of tensors' names")
                byteorder = self._prefix + "byteorder"
                if byteorder in self._entries and _start_of(archive, byteorder) != b"little":
                    raise UserError(f"{path}: was saved on a big-endian machine")
                content = archive.read(pickles[0])  # to its end, where zipfile checks it
                _check_tuples(content)
                self.content = _Unpickler(io.BytesIO(content)).load()
            self._bytes = np.memmap(path, mode="r")
        except UserError:
            raise
        except FileNotFoundError as e:
            raise UserError(f"{path}: no such file") from e
        except zipfile.BadZipFile as e:
            raise UserError(f"{path}: damaged, or not in torch's zip format ({e})") from e
        except pickle.UnpicklingError as e:
            raise UserError(f"{path}: {e}") from e
        except Exception as e:  # a damaged pickle can fail in any way
            raise UserError(f"{path}: not readable ({type(e).__name__}: {e})") from e

    def named(self, value: Any) -> dict[str, Any]:
        """The content, or a value in it, which must be a dict with names as keys.

        Raises:
            UserError: it is none.
        """
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{self.path}: not a dict of tensors")
        return value

    def array(self, name: str, tensor: Any) -> np.ndarray:
        """A read-only view of a tensor in the memory-mapped file.

        Args:
            name: of the tensor, for error messages.
            tensor: its description, from `content`; None if there is none.

        Raises:
            UserError: there is no such tensor, it reaches beyond its storage, or the storage is
                damaged.
        """
        where = f"{self.path}: tensor {name}"
        if tensor is None:
            raise UserError(f"{where} is missing")
        if not isinstance(tensor, Tensor):
            raise UserError(f"{self.path}: {name} is not a tensor")
        entry = self._entries.get(f"{self._prefix}data/{tensor.storage.key}")
        if entry is None:
            raise UserError(f"{where}: its storage {tensor.storage.key!r} is missing")
        dtype = np.dtype(DTYPES[tensor.storage.kind])
        numbers = (tensor.offset, *tensor.shape, *tensor.strides)
        if (
            len(tensor.shape) != len(tensor.strides)
            or len(tensor.shape) > _DIMENSIONS
            or not all(type(n) is int and 0 <= n < 2**48 for n in numbers)
            or math.prod(n or 1 for n in tensor.shape) >= 2**48
        ):
            raise UserError(f"{where}: bad shape or strides")
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, dtype)
        last = tensor.offset + sum(
            (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        if (last + 1) * dtype.itemsize > entry.file_size:
            raise UserError(f"{where}: reaches beyond its storage")
        start = self._start(entry, where)
        if entry.filename not in self._checked:
            crc = zlib.crc32(self._bytes[start : start + entry.file_size].data)
            if entry.CRC not in (0, crc):  # torch can be told to write none
                raise UserError(f"{where}: damaged, its storage differs from its checksum")
            self._checked.add(entry.filename)
        start += tensor.offset * dtype.itemsize
        values = self._bytes[start : start + (last + 1 - tensor.offset) * dtype.itemsize]
        return np.lib.stride_tricks.as_strided(
            # The memory map may start anywhere; numpy needs no alignment, only a dtype.
            values.view(dtype),
            tensor.shape,
            [stride * dtype.itemsize for stride in tensor.strides],
            writeable=False,
        )

    def _start(self, entry: zipfile.ZipInfo, where: str) -> int:
        """First byte of an entry, whose local header differs from the central one in length."""
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{where}: its storage is compressed")
        header = self._bytes[entry.header_offset : entry.header_offset + _LOCAL_HEADER_BYTES]
        if len(header) < _LOCAL_HEADER_BYTES or bytes(header[:4]) != b"PK\x03\x04":
            raise UserError(f"{where}: the file is damaged at its storage")
        start = entry.header_offset + _LOCAL_HEADER_BYTES + sum(_LOCAL_HEADER.unpack(header.data))
        if start + entry.file_size > len(self._bytes):
            raise UserError(f"{where}: the file is cut off")
        return start


def _start_of(archive: zipfile.ZipFile, name: str) -> bytes:
    """A few bytes of an entry, which may unpack to gigabytes."""
    with archive.open(name) as f:
        return f.read(16)


def _check_tuples(content: bytes) -> None:
    """Refuses a pickle whose tuples hold tuples, and these others, again and again.

    To hash or print them takes for ever, or ends the process. `torch.save` nests a few, and takes
    none twice.
    """
    depths: list[int | None] = []  # of the stack's tuples, 0 of all else, None for a mark
    memo: dict[int, int] = {}
    for op, number, _ in pickletools.genops(content):
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if number is None else int(number)] = depths[-1] or 0
            continue
        taken, below = [], [kind for kind in op.stack_before if kind is not pickletools.stackslice]
        while below:
            if below.pop() is pickletools.markobject:
                while (depth := depths.pop()) is not None:
                    taken.append(depth)
            else:
                taken.append(depths.pop() or 0)
        depth = memo.get(int(number or 0), 0) if op.name.endswith("GET") else 0
        if "TUPLE" in op.name:
            depth = 1 + max(taken, default=0)
        if op.name == "DUP" or depth > _NESTED or (depth and op.name.endswith("GET")):
            raise pickle.UnpicklingError(f"refused: {op.name} makes what plain tensors do not need")
        depths += [None if kind is pickletools.markobject else depth for kind in op.stack_after]


class _RebuildTensor:
    """Stands for torch's function of that name; without attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        if type(storage) is not _Storage:
            raise pickle.UnpicklingError("a tensor without a storage")
        if not all(type(n) is int for n in (offset, *shape, *strides)):
            raise pickle.UnpicklingError("a tensor whose shape is not of whole numbers")
        return Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    """Stands for torch's function of that name: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Dict(dict):
    """Stands for OrderedDict; attributes that a pickle sets would hide methods: dropped."""

    def __setstate__(self, state: Any) -> None:
        """Takes nothing."""


class _Unpickler(pickle.Unpickler):
    """Knows the names that `torch.save` writes for tensors of floats, and nothing else."""

    # No pickle can change these values, so none can alter what other code sees.
    _KNOWN = types.MappingProxyType(
        {
            ("collections", "OrderedDict"): _Dict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            **{("torch", name): name for name in DTYPES},
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Gives the stand-in for a name, or refuses it."""
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(
                f"refused: its pickle asks for {module}.{name}, which plain tensors do not need"
            )
        return self._KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Gives the description of a storage."""
        tag, kind, key, _location, _n = pid
        if tag != "storage" or kind not in DTYPES or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return _Storage(kind, key)
