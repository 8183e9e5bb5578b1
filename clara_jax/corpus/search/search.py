"""Search in a store: candidates by keys and by words, re-scored exactly, in one hop or two.

    search = of_model(open_store("store"), model, trees, config.search)
    find(model, trees, search, ["who wrote it ?"], top_k=5)  # [[Hit(row=17, score=0.83), …]]

Candidates are the documents whose keys (keys.py) are nearest to the question's, those that share
its words (words.py), or both lists fused by reciprocal ranks. The trained score, of all numbers of
their memories, and BM25 together then decide (combine.py); candidates by keys alone have no BM25.
With `config.search.rescore=False` candidates keep their order. A hit tells its trained score.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clara_jax import config as config_lib
from clara_jax import sharding
from clara_jax.corpus.search import build, combine, retrieval
from clara_jax.corpus.search.build import SearchableStore
from clara_jax.corpus.search.keys import Basis
from clara_jax.corpus.search.nearest import Nearest
from clara_jax.corpus.search.words import Words, best
from clara_jax.corpus.store import Store
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
class Candidates:
    """Rows that may answer a question, the likeliest first."""

    by: dict[int, str]  # what found each row: keys, bm25 or both
    words_C: np.ndarray | None  # BM25 of each; None where words are not searched

    @property
    def rows(self) -> list[int]:
        """The rows."""
        return list(self.by)


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
        options: `config.search`; an alpha of -1 is the default one (see `of_model`).
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
        self._alpha = options.alpha if options.alpha >= 0 else combine.DEFAULT
        whole = config_lib.Mesh(data=1, fsdp=-1, tensor=1)
        self._mesh = sharding.make_mesh(whole, jax.local_devices()) if mesh is None else mesh
        self._snapshot = self._open(store)

    @property
    def store(self) -> SearchableStore:
        """The store that is searched."""
        return self._snapshot.store

    @property
    def basis(self) -> Basis | None:
        """Of the keys; None where they are not searched."""
        nearest = self._snapshot.nearest
        return None if nearest is None else nearest.basis

    def describe(self) -> str:
        """What is searched by, and the recall of keys as it was measured when they were made."""
        info = self._snapshot.info
        keys = "" if info is None else f"keys: {build.describe(info)}"
        words = f"BM25, alpha {self._alpha:.2f}" if self._snapshot.words else ""
        return " | ".join(filter(None, (keys, words)))

    def candidates(self, queries_nMD: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """Rows int [n, C] of documents to score, the likeliest first; -1 where there are fewer.

        Args:
            queries_nMD: questions as `api.Clara.encode_query` gives them.
            questions: their texts, for BM25.
        """
        candidates = self._candidates(self._snapshot, queries_nMD, questions)
        rows_nC = np.full((len(questions), self.options.candidates), -1)
        for rows_C, own in zip(rows_nC, candidates, strict=True):
            rows_C[: len(own.by)] = own.rows
        return rows_nC

    def scored(
        self, queries_nMD: np.ndarray, questions: Sequence[str]
    ) -> list[tuple[Candidates, np.ndarray]]:
        """Candidates of each question, and their trained scores [C]; arguments as there."""
        candidates = self._candidates(self._snapshot, queries_nMD, questions)
        return list(self._scored(self._snapshot, queries_nMD, candidates))

    def search(
        self,
        queries_nMD: np.ndarray,
        questions: Sequence[str],
        top_k: int,
        encode: Callable[[list[str]], np.ndarray] | None = None,
    ) -> list[list[Hit]]:
        """The `top_k` candidates of each question that are best by both scores together.

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
    ) -> list[Candidates]:
        candidates, most = [], self.options.candidates
        nearest = snapshot.nearest
        keys_nC = None if nearest is None else nearest.search(queries_nMD, most)
        for i, question in enumerate(questions):
            lists, words_R = {}, None
            if keys_nC is not None:
                lists["keys"] = keys_nC[i]
            if snapshot.words is not None:
                words_R = snapshot.words.scores(question)
                lists["bm25"] = best(words_R, most, snapshot.alive_R)
            by = fused(lists, most)
            candidates.append(Candidates(by, None if words_R is None else words_R[list(by)]))
        return candidates

    def _scored(
        self, snapshot: _Snapshot, queries_nMD: np.ndarray, candidates: Sequence[Candidates]
    ) -> Iterator[tuple[Candidates, np.ndarray]]:
        """Each question's candidates with their trained scores [C]."""
        rows = sorted(set().union(*(own.by for own in candidates)))  # shared ones are read once
        place = {row: i for i, row in enumerate(rows)}
        memories_UMD = snapshot.store.memories(rows)
        for query_MD, own in zip(queries_nMD, candidates, strict=True):
            memories_CMD = memories_UMD[[place[row] for row in own.rows]]
            is_none = not own.by
            yield own, np.empty(0) if is_none else rank.scores(query_MD, memories_CMD, self._score)

    def _best(
        self, snapshot: _Snapshot, queries_nMD: np.ndarray, questions: Sequence[str], top_k: int
    ) -> list[list[Hit]]:
        candidates = self._candidates(snapshot, queries_nMD, questions)
        if not self.options.rescore:  # and none but these is read
            candidates = [
                Candidates(dict(list(own.by.items())[:top_k]), None) for own in candidates
            ]
        hits = []
        for own, scores_C in self._scored(snapshot, queries_nMD, candidates):
            order_C = range(len(scores_C))
            if self.options.rescore:
                order_C = retrieval.order(combine.combined(scores_C, own.words_C, self._alpha))
            rows = own.rows
            hits.append(
                [Hit(rows[i], float(scores_C[i]), own.by[rows[i]]) for i in order_C[:top_k]]
            )
        return hits


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


def of_model(
    store: Store, model: Model, trees: Trees, options: config_lib.Search | None = None
) -> Search:
    """Search in a store that a model made, by the alpha that was fitted for it.

    Args:
        store: the store.
        model: the model.
        trees: its weights.
        options: `config.search`; None: the model's own.
    """
    options = combine.with_alpha(options or model.config.search, store, model, trees)
    return Search(store, options, model.mesh, model.config.select.score)


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
