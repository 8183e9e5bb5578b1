"""Search in a store: candidates by keys and by words, re-scored exactly, in one hop or two.

    search = Search(open_store("store"), config.search, model.mesh, config.select.score)
    find(model, trees, search, ["who wrote it ?"], top_k=5)  # [[Hit(row=17, score=0.83), …]]

Candidates are the documents whose keys (keys.py) are nearest to the question's, those that
share its words (words.py), or both lists fused by reciprocal ranks. The trained score, of
all numbers of their memories, then decides, or with `config.search.rescore=False` is only told: a
small model may rank worse than words do.
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
class _State:
    """A store and what was made of its rows; replaced as a whole, so that threads may search."""

    store: Any
    alive_R: np.ndarray
    info: dict[str, Any] | None  # of the keys, see search_build.describe
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
        store: Any,
        options: config_lib.Search,
        mesh: Mesh | None = None,
        score: str = "cosine",
    ):
        self.options, self._score = options, score
        whole = config_lib.Mesh(data=1, fsdp=-1, tensor=1)
        self._mesh = sharding.make_mesh(whole, jax.local_devices()) if mesh is None else mesh
        self._state = self._open(store)

    @property
    def store(self) -> Any:
        """The store that is searched."""
        return self._state.store

    def describe(self) -> str:
        """What is searched by, and the recall of keys as it was measured when they were made."""
        info = self._state.info
        keys = "" if info is None else f"keys: {build.describe(info)}"
        return " | ".join(filter(None, (keys, "BM25" if self._state.words else "")))

    def candidates(self, queries_nMD: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """Rows int [n, C] of documents to score, the likeliest first; -1 where there are fewer.

        Args:
            queries_nMD: questions as `api.Clara.encode_query` gives them.
            questions: their texts, for BM25.
        """
        found = self._candidates(self._state, queries_nMD, questions)
        rows_nC = np.full((len(questions), self.options.candidates), -1)
        for rows_C, by in zip(rows_nC, found, strict=True):
            rows_C[: len(by)] = list(by)
        return rows_nC

    def search(
        self, queries_nMD: np.ndarray, questions: Sequence[str], top_k: int
    ) -> list[list[Hit]]:
        """The `top_k` candidates of each question that the trained score likes best.

        Without `config.search.rescore` the first `top_k` candidates, with their trained scores.
        """
        return self._best(self._state, queries_nMD, questions, top_k)

    def search_twice(
        self,
        queries_nMD: np.ndarray,
        questions: Sequence[str],
        encode: Callable[[list[str]], np.ndarray],
        top_k: int,
    ) -> list[list[Hit]]:
        """As `search`, in two hops.

        The second question is the first one and the text of the document that scores best for it.
        Half of the documents, rounded up, are the best for the question; after them come the best
        others for the second question, with their scores for that.

        Args:
            queries_nMD: as for `candidates`.
            questions: as for `candidates`.
            encode: texts of questions to memories [n, M, D].
            top_k: documents of each.
        """
        state = self._state
        first = self._best(state, queries_nMD, questions, top_k)
        texts = iter(state.store.documents([hits[0].row for hits in first if hits]))
        more = [
            f"{question}\n{next(texts).whole}" if hits else question
            for question, hits in zip(questions, first, strict=True)
        ]
        second = self._best(state, encode(more), more, top_k)
        found = []
        for one, two in zip(first, second, strict=True):
            own = one[: -(-top_k // 2)]
            rows = {hit.row for hit in own}
            others = [hit for hit in (*two, *one) if hit.row not in rows]
            unique: dict[int, Hit] = {}
            for hit in others:
                unique.setdefault(hit.row, hit)
            found.append([*own, *unique.values()][:top_k])
        return found

    def refresh(self, store: Any) -> None:
        """Searches what is now in a store, to which documents were added, or some deleted.

        The basis stays, and BM25 as long as little is added; after `store.compact`, which numbers
        rows anew, keys are computed again.
        """
        old = self._state
        kept = build.places(old.store)
        if build.places(store)[: len(kept)] != kept:  # compacted
            self._state = self._open(store)
            return
        if store.rows == old.store.rows:
            nearest = old.nearest and old.nearest.masked(store.alive_R)
            self._state = _State(store, store.alive_R.copy(), old.info, nearest, old.words)
            return
        nearest = None
        if old.nearest is not None:
            keys_RK = build.keys_of(store, old.nearest.basis)
            nearest = Nearest(self._mesh, old.nearest.basis, keys_RK, store.alive_R)
        words = old.words
        if words is not None and words.can_take(store.rows):
            words = build.update_words(words, store)
        elif words is not None:
            words = build.open_words(store)
        self._state = _State(store, store.alive_R.copy(), old.info, nearest, words)

    def _open(self, store: Any) -> _State:
        build.not_empty(store)
        info = nearest = words = None
        if self.options.by != "bm25":
            basis, info = build.open_or_build(store, self._score, self.options)
            keys_RK = build.keys_of(store, basis)
            nearest = Nearest(self._mesh, basis, keys_RK, store.alive_R)
        if self.options.by != "keys":
            words = build.open_words(store)
        return _State(store, store.alive_R.copy(), info, nearest, words)

    def _candidates(
        self, state: _State, queries_nMD: np.ndarray, questions: Sequence[str]
    ) -> list[dict[int, str]]:
        """Rows of each question's candidates, the likeliest first, and what they were found by."""
        lists, most = {}, self.options.candidates
        if state.nearest is not None:
            lists["keys"] = state.nearest.search(queries_nMD, most)
        if state.words is not None:
            lists["bm25"] = state.words.search(questions, most, state.alive_R)
        return [
            fused({by: rows_nC[i] for by, rows_nC in lists.items()}, most)
            for i in range(len(questions))
        ]

    def _best(
        self, state: _State, queries_nMD: np.ndarray, questions: Sequence[str], top_k: int
    ) -> list[list[Hit]]:
        found = self._candidates(state, queries_nMD, questions)
        if not self.options.rescore:
            found = [dict(list(by.items())[:top_k]) for by in found]
        rows = sorted(set().union(*found))  # a document of several questions is read once
        place = {row: i for i, row in enumerate(rows)}
        memories_UMD = state.store.memories(rows)
        best = []
        for query_MD, by in zip(queries_nMD, found, strict=True):
            own, chosen = list(by), []
            if own:
                memories_CMD = memories_UMD[[place[row] for row in own]]
                scores_C = rank.scores(query_MD, memories_CMD, self._score)
                chosen = rank.best(scores_C, top_k) if self.options.rescore else range(len(own))
            best.append([Hit(own[i], float(scores_C[i]), by[own[i]]) for i in chosen])
        return best


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
    queries_nMD = encode_query(model, trees, questions, batch)
    if search.options.hops == 1:
        return search.search(queries_nMD, questions, top_k)

    def encode(texts: list[str]) -> np.ndarray:
        return encode_query(model, trees, texts, batch)

    return search.search_twice(queries_nMD, questions, encode, top_k)
