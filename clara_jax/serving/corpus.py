"""The documents that the server answers from: a store, its search, and how both change."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clara_jax.config import Config
from clara_jax.inference import store as store_lib
from clara_jax.inference import store_write
from clara_jax.inference.search import Hit, Search
from clara_jax.inference.store import StoredDocument
from clara_jax.training.setup import Setup


class Corpus:
    """A store that was made by this model.

    `find`, `add` and `delete` are for one thread, `memories` and `documents` for any: the number of
    a row means the same as long as the server runs.

    Args:
        path: of the store.
        setup: the model.
        config: `store` and `search` count.

    Raises:
        UserError: no such store, or one that another model made.
    """

    def __init__(self, path: str, setup: Setup, config: Config):
        self._setup, self._config = setup, config
        self._store = store_lib.open_store(path)
        self._store.check(setup)
        self._search = Search(self._store, config.search, setup.mesh)

    def __len__(self) -> int:
        return int(self._store.alive_R.sum())

    def find(
        self, queries_nMD: np.ndarray, questions: Sequence[str], top_k: int
    ) -> list[list[Hit]]:
        """The best documents of each question, the best first."""
        return self._search.search(queries_nMD, questions, top_k)

    def memories(self, rows: Sequence[int]) -> np.ndarray:
        """Memories float32 [n, M, D] of rows."""
        return self._store.memories(rows)

    def documents(self, rows: Sequence[int]) -> list[StoredDocument]:
        """Texts of rows."""
        return self._store.documents(rows)

    def add(self, documents: Sequence[dict[str, Any]]) -> None:
        """Compresses documents and appends them; their ids must be new.

        Raises:
            UserError: an id is there already.
        """
        options = self._config.store
        self._changed(store_write.add(self._store.path, self._setup, documents, options))

    def delete(self, ids: Sequence[str]) -> None:
        """Takes documents out.

        Raises:
            UserError: there is no document of that id.
        """
        self._changed(store_write.delete(self._store.path, ids))

    def _changed(self, store: store_lib.Store) -> None:
        self._search.refresh(store)
        self._store = store
