"""Keys for FAISS: the file by its bytes, and by FAISS where it is installed."""

import json
import struct
import types

import numpy as np
import pytest

from clara_jax import config as config_lib
from clara_jax.corpus.format import StorePart
from clara_jax.corpus.search.faiss import export
from clara_jax.corpus.search.keys import Basis
from clara_jax.errors import UserError

M, D, ROWS = 2, 8, 25
OPTIONS = config_lib.Search(key=6)


class Memories:
    def __init__(self, path):
        self.path, self.rows = str(path / "store"), ROWS
        self.values = 1 + np.random.default_rng(0).standard_normal((ROWS, M, D), np.float32)
        self.alive_R = np.arange(ROWS) % 5 != 2
        self.parts = (StorePart("0", ROWS, ROWS, 0, 0, 0),)
        (path / "store" / "parts" / "0").mkdir(parents=True)

    def memories(self, rows):
        return self.values[np.asarray(rows, int)]

    def blocks(self, size):
        yield 0, self.values

    def documents(self, rows):
        return [types.SimpleNamespace(id=f"id {r}\n") for r in rows]


@pytest.fixture
def exported(tmp_path):
    store = Memories(tmp_path)
    export(store, OPTIONS, "cosine", str(tmp_path / "out"))
    return store, tmp_path / "out"


def test_bytes_and_ids(exported):
    store, folder = exported
    data, n = (folder / "keys.faiss").read_bytes(), int(store.alive_R.sum())
    assert data[:4] == b"IxFI" and struct.unpack("<iq", data[4:16]) == (6, n)
    basis = Basis.unpack((folder / "basis.npz").read_bytes())
    keys = np.frombuffer(data[-n * 6 * 4 :], "<f4").reshape(n, 6)
    np.testing.assert_allclose(keys, basis.documents(store.values)[store.alive_R], atol=1e-3)
    ids = [json.loads(line) for line in (folder / "ids.jsonl").read_text().splitlines()]
    assert ids == [f"id {r}\n" for r in np.flatnonzero(store.alive_R)]
    with pytest.raises(UserError, match="is there already"):
        export(store, OPTIONS, "cosine", str(folder))


def test_faiss_reads_it(exported):
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    store, folder = exported
    index = faiss.read_index(str(folder / "keys.faiss"))
    assert isinstance(index, faiss.IndexFlatIP) and (index.ntotal, index.d) == (20, 6)
    basis = Basis.unpack((folder / "basis.npz").read_bytes())
    queries = basis.queries(store.values[:3])
    _, found = index.search(queries, 4)
    products = queries @ basis.documents(store.values)[store.alive_R].T
    np.testing.assert_array_equal(found, np.argsort(-products, 1)[:, :4])
