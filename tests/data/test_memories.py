"""Memories in a folder: damage to them is told, and what a kill left is written over."""

import numpy as np
import pytest

from clara_jax.data.memories import MemoryFile
from clara_jax.data.records import digest
from clara_jax.errors import UserError

TEXTS = ["a", "b", "c"]
VECTORS = np.arange(24, dtype=np.float32).reshape(3, 4, 2)


def opened(folder) -> MemoryFile:
    return MemoryFile(str(folder), {"fingerprint": {}}, 4, 2, "bfloat16")


def test_a_flipped_byte_is_told_for_its_own_document(tmp_path):
    opened(tmp_path).append(TEXTS, VECTORS)
    path = tmp_path / "vectors.bin"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    file = opened(tmp_path)
    for i in (0, 2):
        np.testing.assert_array_equal(file[digest(TEXTS[i])], VECTORS[i])
    with pytest.raises(UserError, match=r"vectors\.bin is damaged; remove the folder"):
        file[digest("b")]


def test_a_folder_of_an_earlier_version_is_continued(tmp_path):
    opened(tmp_path).append(TEXTS[:2], VECTORS[:2])
    (tmp_path / "sums.bin").unlink()
    file = opened(tmp_path)
    file[digest("a")]
    file.append(TEXTS, VECTORS)
    for text, vectors in zip(TEXTS, VECTORS, strict=True):
        np.testing.assert_array_equal(opened(tmp_path)[digest(text)], vectors)
    assert (tmp_path / "sums.bin").stat().st_size == 12
