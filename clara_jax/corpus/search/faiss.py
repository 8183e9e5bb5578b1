"""`--mode=export --format=faiss`: the search keys of a store for engines of others.

    OUTPUT/keys.faiss    what faiss.read_index opens as an IndexFlatIP, float32 [n, K]
    OUTPUT/ids.jsonl     ids of its vectors, a JSON string a line
    OUTPUT/basis.npz     `components` [X, K] and `score`: a query is unit_vectors(q) @ components
                         (keys.query_keys)

Deleted rows are left out.
"""

import json
import os
import struct

import numpy as np

from clara_jax import checksums, files
from clara_jax import config as config_lib
from clara_jax.corpus.search import build
from clara_jax.corpus.search.build import SearchableStore

_BLOCK = 1 << 14  # rows in float32 at once


def export(store: SearchableStore, options: config_lib.Search, score: str, output: str) -> None:
    """Writes the three files; keys that the store does not hold yet are computed.

    Args:
        store: an open store.
        options: `config.search`.
        score: `config.select.score` of the model.
        output: a folder that is made.

    Raises:
        UserError: there is something of that name already, or it cannot be written.
    """
    build.not_empty(store)
    with files.whole_folder(output, store.path) as folder:
        basis, _ = build.open_or_build(store, score, options)
        keys_RK = build.keys_of(store, basis)
        rows = np.flatnonzero(store.alive_R)
        with open(os.path.join(folder, "keys.faiss"), "wb") as f:
            f.write(flat_header(len(rows), basis.key))
            for start in range(0, len(rows), _BLOCK):
                f.write(keys_RK[rows[start : start + _BLOCK]].astype("<f4").tobytes())
        with open(os.path.join(folder, "ids.jsonl"), "w", encoding="utf-8") as f:
            for start in range(0, len(rows), _BLOCK):
                for document in store.documents(rows[start : start + _BLOCK].tolist()):
                    f.write(json.dumps(document.id, ensure_ascii=False) + "\n")
        with open(os.path.join(folder, "basis.npz"), "wb") as f:
            f.write(basis.pack())
        checksums.seal(folder)


def flat_header(rows: int, width: int) -> bytes:
    """What stands before the float32 vectors in the file of an IndexFlatIP.

    Its mark; the index's width, vectors, two numbers that nothing reads, whether it is trained and
    its metric, 0 for inner products; and how many numbers follow.
    """
    unread = 1 << 20
    return b"IxFI" + struct.pack("<iqqqBiQ", width, rows, unread, unread, 1, 0, rows * width)
