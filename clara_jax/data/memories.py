"""Memories of documents, computed once and kept in a folder for the runs that read them.

The folder holds `manifest.json` (who made them), `vectors.bin` (M * D numbers a document),
`sums.bin` (their CRC-32, or 0 where an earlier version made them) and `digests.bin` (16 bytes a
document, of its text). Documents are only ever appended, digests when all else is on disk, so that
a run that was killed resumes where it stopped.
"""

import json
import os
import zlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from clara_jax import files
from clara_jax.data.records import digest
from clara_jax.errors import UserError

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_DIGEST = 16  # bytes


class MemoryFile:
    """Memories [M, D] by the digest of a document's text; can be pickled.

    Args:
        directory: where they are kept; made if there is none.
        maker: what they depend on, such as `{"fingerprint": …}`; must be equal to continue.
        memory_tokens: M.
        d_model: D.
        dtype: float32 or bfloat16.

    Raises:
        UserError: the folder holds memories of another maker or shape, or cannot be used.
    """

    def __init__(
        self, directory: str, maker: dict[str, Any], memory_tokens: int, d_model: int, dtype: str
    ):
        self._directory = directory
        self._shape, self._dtype = (memory_tokens, d_model), np.dtype(_DTYPES[dtype])
        manifest = {**maker, "memory_tokens": memory_tokens, "d_model": d_model, "dtype": dtype}
        try:
            os.makedirs(directory, exist_ok=True)
            path = self._path("manifest.json")
            if not os.path.exists(path):
                files.write(path, json.dumps(manifest, indent=2))
            there = json.loads(files.read(path))
            for name in ("digests.bin", "sums.bin", "vectors.bin"):
                open(self._path(name), "ab").close()
        except (OSError, ValueError, RecursionError) as e:
            raise UserError(
                f"config.data.memories={directory}: cannot be used ({e}); if manifest.json in it "
                "is damaged, remove the folder to have the memories made again"
            ) from e
        if there != manifest:
            there = there if isinstance(there, dict) else {}
            other = [key for key in manifest if there.get(key) != manifest[key]]
            raise UserError(
                f"config.data.memories={directory} holds memories of another model "
                f"({', '.join(other)} differ); name another folder or remove this one"
            )
        self._open()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: bytes) -> np.ndarray:
        row = self._rows[key]
        vectors = np.array(self._vectors[row])
        if row < len(self._sums) and self._sums[row] not in (0, zlib.crc32(vectors.tobytes())):
            raise UserError(
                f"config.data.memories={self._directory}: vectors.bin is damaged; remove the "
                "folder to have the memories made again"
            )
        return vectors

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_vectors": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def missing(self, documents: Sequence[str]) -> list[str]:
        """Those of the documents, each once, that are not here yet."""
        return [text for text in dict.fromkeys(documents) if digest(text) not in self._rows]

    def append(self, documents: Sequence[str], memories: np.ndarray) -> None:
        """Adds memories [n, M, D] of n documents.

        Raises:
            UserError: they cannot be written, such as on a full disk.
        """
        advice = "; make room and run the same command to go on"
        with files.writing(f"{self._directory}: memories", advice):
            with files.lock(self._path(".lock"), "", wait=True):  # another run may write here too
                self._open()
                new = [i for i, text in enumerate(documents) if digest(text) not in self._rows]
                vectors = np.asarray(memories, self._dtype)[new]
                digests = b"".join(digest(documents[i]) for i in new)
                # What a kill left behind the last whole document is written over.
                count = len(self._rows)
                self._write("vectors.bin", count * self._bytes, vectors.tobytes())
                sums = np.array([zlib.crc32(each.tobytes()) for each in vectors], np.uint32)
                self._write("sums.bin", count * sums.itemsize, sums.tobytes())
                self._write("digests.bin", count * _DIGEST, digests)
        self._open()

    def _write(self, name: str, start: int, data: bytes) -> None:
        with open(self._path(name), "r+b") as f:
            f.seek(start)
            f.write(data)
        files.sync(self._path(name))

    @property
    def _bytes(self) -> int:
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _open(self) -> None:
        """Looks at the whole documents that are there now."""
        digests = np.fromfile(self._path("digests.bin"), f"V{_DIGEST}").tolist()
        count = min(len(digests), os.path.getsize(self._path("vectors.bin")) // self._bytes)
        self._sums = np.fromfile(self._path("sums.bin"), np.uint32)
        self._rows = {digest: row for row, digest in enumerate(digests[:count])}
        shape = (count, *self._shape)
        if count:  # an empty file cannot be mapped
            self._vectors = np.memmap(self._path("vectors.bin"), self._dtype, "r", shape=shape)
        else:
            self._vectors = np.zeros(shape, self._dtype)
