"""The documents that the server answers from: a store, its search, and how both change."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clara_jax.config import Config
from clara_jax.corpus import write
from clara_jax.corpus.format import Damaged
from clara_jax.corpus.search.keys import Basis
from clara_jax.corpus.search.search import Hit, of_model
from clara_jax.corpus.store import StoredDocument, open_store
from clara_jax.errors import UserError
from clara_jax.inference import rank
from clara_jax.inference.encode import encode_query
from clara_jax.inference.generate import BUCKET
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model

MOST = 50  # documents that a question may ask for, and that a search always looks for
TOGETHER = 4  # questions or texts that are encoded at once; one question alone has its own shape


class LiveCorpus:
    """A store that was made by this model.

    `add` and `delete` are for one thread, the others for any: the number of a row means the same
    as long as the server runs.

    Args:
        path: of the store.
        model: the model.
        trees: its weights.
        config: `store` and `search` count.

    Raises:
        UserError: no such store, one that another model made, or one without a document.
    """

    def __init__(self, path: str, model: Model, trees: Trees, config: Config):
        self._model, self._trees = model, trees
        # In the shapes in which the server compresses anyway.
        self._options = dataclasses.replace(config.store, batch=TOGETHER, bucket=BUCKET)
        store = open_store(path)
        store.check(model, trees)
        self._search = of_model(store, model, trees, config.search)

    @property
    def path(self) -> str:
        """Of the store."""
        return self._search.store.path

    def __len__(self) -> int:
        """Documents, or pieces of long ones."""
        return int(self._search.store.alive_R.sum())

    def warm_up(self) -> None:
        """Compiles the scores of all numbers of candidates; the first searches do the rest."""
        M, D = len(self._model.extra.memory), self._model.architecture.d_model
        most = min(self._search.options.candidates, 2 * self._search.store.rows)
        count = 1
        while count < 2 * most:
            memories = np.zeros((count, M, D), np.float32)
            score = self._model.config.select.score
            rank.scores(memories[0], memories, score)
            count *= 2
        if self._search.basis is not None:  # of embeddings
            self._search.basis.queries(np.zeros((TOGETHER, M, D), np.float32))

    @property
    def basis(self) -> Basis:
        """Of the search keys.

        Raises:
            UserError: the store is searched by words alone.
        """
        if self._search.basis is None:
            raise UserError("config.search.by=bm25: there are no search keys; set keys or both")
        return self._search.basis

    def rows(self, ids: Sequence[str]) -> list[int]:
        """Rows of documents, each with all of its pieces.

        Raises:
            UserError: there is no document of that id.
        """
        return self._search.store.find(ids)

    def find(
        self, queries_nMD: np.ndarray, questions: Sequence[str], top_k: int
    ) -> list[list[Hit]]:
        """The best documents of each question, the best first."""

        def encode(texts: list[str]) -> np.ndarray:
            return encode_query(self._model, self._trees, texts, len(texts))

        return self._search.search(queries_nMD, questions, top_k, encode)

    def memories(self, rows: Sequence[int]) -> np.ndarray:
        """Memories float32 [n, M, D] of rows."""
        return self._search.store.memories(rows)

    def documents(self, rows: Sequence[int]) -> list[StoredDocument]:
        """Texts of rows."""
        return self._search.store.documents(rows)

    def add(
        self,
        documents: Sequence[dict[str, Any]],
        report: Callable[[int], None] = lambda documents: None,
    ) -> None:
        """Compresses documents and appends them; those that are there already are left out.

        `report` is called after each batch, and may search meanwhile.

        Raises:
            UserError: another document has that id, or another process changes the store.
        """
        path = self._path()
        store = write.add(path, self._model, self._trees, documents, self._options, report)
        self._search.refresh(store)

    def delete(self, ids: Sequence[str]) -> None:
        """Takes documents out.

        Raises:
            UserError: there is no document of that id, or another process changes the store.
        """
        self._search.refresh(write.delete(self._path(), ids))

    def _path(self) -> str:
        """Of the store, if it still is the one whose rows are known."""
        old = self._search.store
        if open_store(old.path).parts[: len(old.parts)] != old.parts:
            raise Damaged(f"{old.path}: is another store now, or compacted; start the server again")
        return old.path
