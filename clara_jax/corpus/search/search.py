"""Search in a store: candidates by keys and by words, re-scored exactly, in one hop or two.

    search = Search(open_store("store"), config.search, model.mesh, config.select.score)
    find(model, trees, search, ["who wrote it ?"], top_k=5)  # [[Hit(row=17, score=0.83), …]]

Candidates are the documents whose keys (keys.py) are nearest to the question's, those that share
its words (words.py), or both lists fused by reciprocal ranks. The trained score, of all numbers of
their memories, then decides; with `config.search.rescore=False` it is only reported, as a small
model may rank worse than words do.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clara_jax import config as config_lib
from clara_jax import sharding
from clara_jax.corpus.search import build
from clara_jax.corpus.search.build import SearchableStore
from clara_jax.corpus.search.keys import Basis
from clara_jax.corpus.search.nearest import Nearest
from clara_jax.corpus.search.words import Words
from clara_jax.inference import rank
from clara_jax.inference.encode import encode_query
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model

_RRF = 60  # added to ranks before they are inverted, as is usual


@dataclasses.dataclass(frozen=True)
class Hit:
    """A document that was found: its row, its trained score, and what had it as a candidate."""

    row: int
    score: float
    by: str  # keys, bm25 or both


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    """A store and what was made of its rows; replaced as a whole, so that threads may search."""

    store: SearchableStore
    alive_R: np.ndarray
    info: dict[str, Any] | None  # of the keys, see build.describe
    nearest: Nearest | None
    words: Words | None


class Search:
    """Finds documents of a store; may be used by several threads, of one process.

    Args:
        store: an open `store.Store`. Keys and BM25 that it does not hold are computed and kept
            there.
        options: `config.search`.
        mesh: devices for the keys; None: all of this process.
        score: `config.select.score` of the model.

    Raises:
        UserError: the store has no document.
    """

    def __init__(
        self,
        store: SearchableStore,
        options: config_lib.Search,
        mesh: Mesh | None = None,
        score: str = "cosine",
    ):
        self.options, self._score = options, score
        whole = config_lib.Mesh(data=1, fsdp=-1, tensor=1)
        self._mesh = sharding.make_mesh(whole, jax.local_devices()) if mesh is None else mesh
        self._snapshot = self._open(store)

    @property
    def store(self) -> SearchableStore:
        """The store that is searched."""
        return self._snapshot.store

    def describe(self) -> str:
        """What is searched by, and the recall of keys as it was measured when they were made."""
        info = self._snapshot.info
        keys = "" if info is None else f"keys: {build.describe(info)}"
        return " | ".join(filter(None, (keys, "BM25" if self._snapshot.words else "")))

    def candidates(self, queries_nMD: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """Rows int [n, C] of documents to score, the likeliest first; -1 where there are fewer.

        Args:
            queries_nMD: questions as `api.Clara.encode_query` gives them.
            questions: their texts, for BM25.
        """
        candidates = self._candidates(self._snapshot, queries_nMD, questions)
        rows_nC = np.full((len(questions), self.options.candidates), -1)
        for rows_C, by in zip(rows_nC, candidates, strict=True):
            rows_C[: len(by)] = list(by)
        return rows_nC

    def search(
        self,
        queries_nMD: np.ndarray,
        questions: Sequence[str],
        top_k: int,
        encode: Callable[[list[str]], np.ndarray] | None = None,
    ) -> list[list[Hit]]:
        """The `top_k` candidates of each question that the trained score likes best.

        Without `config.search.rescore` the first `top_k` candidates, with their trained scores.
        With `config.search.hops=2` the second question is the first one and the text of its best
        document. Half of the documents, rounded up, are the best for the question; after them come
        the best others for the second question, with their scores for that.

        Args:
            queries_nMD: as for `candidates`.
            questions: as for `candidates`.
            top_k: documents of each.
            encode: texts of questions to memories [n, M, D], for the second hop.
        """
        snapshot = self._snapshot
        first = self._best(snapshot, queries_nMD, questions, top_k)
        if self.options.hops == 1:
            return first
        texts = iter(snapshot.store.documents([hits[0].row for hits in first if hits]))
        more = [
            f"{question}\n{next(texts).whole}" if hits else question
            for question, hits in zip(questions, first, strict=True)
        ]
        assert encode is not None  # by whoever asks for two hops
        second = self._best(snapshot, encode(more), more, top_k)
        return [_both(one, two, top_k) for one, two in zip(first, second, strict=True)]

    def refresh(self, store: SearchableStore) -> None:
        """Searches what is now in a store, to which documents were added, or some deleted.

        The basis stays, and BM25 as long as little is added; after `store.compact`, which gives
        rows other numbers, keys are computed again.
        """
        old = self._snapshot
        if list(store.parts[: len(old.store.parts)]) != list(old.store.parts):  # compacted
            self._snapshot = self._open(store)
            return
        nearest, words = old.nearest, old.words
        grown = store.rows != old.store.rows
        if nearest is not None:
            nearest = (
                self._nearest(store, nearest.basis) if grown else nearest.masked(store.alive_R)
            )
        if words is not None and grown:
            serves = words.can_take(store.rows)
            words = build.update_words(words, store) if serves else build.open_words(store)
        self._snapshot = _Snapshot(store, store.alive_R.copy(), old.info, nearest, words)

    def _open(self, store: SearchableStore) -> _Snapshot:
        build.not_empty(store)
        info = nearest = words = None
        if self.options.by != "bm25":
            basis, info = build.open_or_build(store, self._score, self.options)
            nearest = self._nearest(store, basis)
        if self.options.by != "keys":
            words = build.open_words(store)
        return _Snapshot(store, store.alive_R.copy(), info, nearest, words)

    def _nearest(self, store: SearchableStore, basis: Basis) -> Nearest:
        return Nearest(self._mesh, basis, build.keys_of(store, basis), store.alive_R)

    def _candidates(
        self, snapshot: _Snapshot, queries_nMD: np.ndarray, questions: Sequence[str]
    ) -> list[dict[int, str]]:
        """Rows of each question's candidates, the likeliest first, and what they were found by."""
        lists, most = {}, self.options.candidates
        if snapshot.nearest is not None:
            lists["keys"] = snapshot.nearest.search(queries_nMD, most)
        if snapshot.words is not None:
            lists["bm25"] = snapshot.words.search(questions, most, snapshot.alive_R)
        return [
            fused({by: rows_nC[i] for by, rows_nC in lists.items()}, most)
            for i in range(len(questions))
        ]

    def _best(
        self, snapshot: _Snapshot, queries_nMD: np.ndarray, questions: Sequence[str], top_k: int
    ) -> list[list[Hit]]:
        candidates = self._candidates(snapshot, queries_nMD, questions)
        if not self.options.rescore:
            candidates = [dict(list(by.items())[:top_k]) for by in candidates]
        rows = sorted(set().union(*candidates))  # a document of several questions is read once
        place = {row: i for i, row in enumerate(rows)}
        memories_UMD = snapshot.store.memories(rows)
        best = []
        for query_MD, by in zip(queries_nMD, candidates, strict=True):
            own, hits = list(by), []
            if own:
                memories_CMD = memories_UMD[[place[row] for row in own]]
                scores_C = rank.scores(query_MD, memories_CMD, self._score)
                chosen = rank.best(scores_C, top_k) if self.options.rescore else range(len(own))
                hits = [Hit(own[i], float(scores_C[i]), by[own[i]]) for i in chosen]
            best.append(hits)
        return best


def _both(first: Sequence[Hit], second: Sequence[Hit], top_k: int) -> list[Hit]:
    """Hits of two hops, each row once."""
    hits: dict[int, Hit] = {}
    for hit in (*first[: -(-top_k // 2)], *second, *first):
        hits.setdefault(hit.row, hit)
    return list(hits.values())[:top_k]


def fused(lists: dict[str, Sequence[int]], most: int) -> dict[int, str]:
    """Rows of one or two rankings, and whose they are, by the sum of reciprocal ranks.

    Args:
        lists: rows, the best first, -1 for none, by the ranking's name.
        most: rows to keep.
    """
    total, by = collections.defaultdict(float), {}
    for name, rows in lists.items():
        for place, row in enumerate(row for row in map(int, rows) if row >= 0):
            total[row] += 1 / (_RRF + 1 + place)
            by[row] = "both" if row in by else name
    return {row: by[row] for row in sorted(total, key=lambda row: (-total[row], row))[:most]}


def find(
    model: Model,
    trees: Trees,
    search: Search,
    questions: Sequence[str],
    top_k: int,
    batch: int = 16,
) -> list[list[Hit]]:
    """Documents for questions, in as many hops as `config.search.hops`.

    Args:
        model: the model, whose reasoner encodes the questions.
        trees: its weights.
        search: of a store that it made.
        questions: texts.
        top_k: documents of each, fewer where there are no more candidates.
        batch: questions at once.

    Raises:
        UserError: not a list of texts.
    """

    def encode(texts: Sequence[str]) -> np.ndarray:
        return encode_query(model, trees, texts, batch)

    return search.search(encode(questions), questions, top_k, encode)
