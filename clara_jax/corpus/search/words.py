"""Candidates by words: BM25 over all documents of a store.

The index is bm25s's, of the documents that were there when it was built. Documents that are added
later are scored beside it by the same formula and its statistics, until they are an eighth of it:
to build it again takes minutes at millions of documents.
"""

import collections
import logging
import math
import re
import shutil
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import regex
from etils import epath

from clara_jax import checksums, files
from clara_jax.corpus.search import retrieval

# What reading a file raises that is cut or is another one.
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, zipfile.BadZipFile)
_K1, _B = 1.5, 0.75  # bm25s's defaults, Lucene's variant
_MOST_ADDED = 8  # documents of the index for one beside it
_INFO = "words.json"  # beside the files of bm25s


WORDS = 2  # the version of `words`; an index of another finds other documents

# Scripts without blanks between words, or (Hangul) with endings on them, are read in pairs of
# characters; of Han characters each is a word as well.
_PAIRED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"([{_PAIRED}]+)|[[\w\p{{M}}]--[{_PAIRED}]]+", regex.V1)
_HAN = regex.compile(r"\p{Han}")


def words(text: str) -> list[str]:
    """Runs of word characters in lower case, in scripts without blanks their pairs of characters.

    None is left out or stemmed.
    """
    if text.isascii():  # the usual case, in a fraction of the time
        return re.findall(r"\w+", text.lower())
    found = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).lower()):
        word = match[0]
        if match[1] is None or len(word) == 1:
            found.append(word)
        else:
            found += [word[i : i + 2] for i in range(len(word) - 1)] + _HAN.findall(word)
    return found


class Words:
    """BM25 of the rows of a store, all of them in order; see `build` and `extended`."""

    def __init__(self, index: Any, documents: int, mean: float):
        self._index, self._documents, self._mean = index, documents, mean
        self._added: dict[str, list[tuple[int, float]]] = {}  # word: rows, weights of frequency
        self._rows = documents

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Words":
        """Reads all documents."""
        bm25s = _bm25s()
        ids: dict[str, int] = {}
        tokens = [[ids.setdefault(word, len(ids)) for word in words(text)] for text in texts]
        mean = sum(map(len, tokens)) / max(len(tokens), 1)
        index = bm25s.BM25(k1=_K1, b=_B)
        if mean:  # by which BM25 divides
            index.index((tokens, ids), create_empty_token=False, show_progress=False)
        return cls(index if mean else None, len(tokens), mean)

    @property
    def rows(self) -> int:
        """Documents that are known, added ones included."""
        return self._rows

    def can_take(self, rows: int) -> bool:
        """Whether the index serves for this number of documents, or should be built again."""
        return self._documents <= rows <= self._documents + self._documents // _MOST_ADDED

    def extended(self, texts: Iterable[str]) -> "Words":
        """The same index and more documents beside it, which follow on the rows there are."""
        other = Words(self._index, self._documents, self._mean)
        added = {word: list(rows) for word, rows in self._added.items()}
        row = self._rows
        for text in texts:
            own = words(text)
            length = 1 - _B + _B * len(own) / max(self._mean, 1.0)
            for word, times in collections.Counter(own).items():
                added.setdefault(word, []).append((row, times / (times + _K1 * length)))
            row += 1
        other._added, other._rows = added, row
        return other

    def scores(self, question: str) -> np.ndarray:
        """BM25 float32 [rows]; a word that the question repeats counts as often."""
        scores_R = np.zeros(self._rows, np.float32)
        asked = words(question)
        if self._index is not None:  # by ids, for `get_scores` fails on a question without words
            ids = self._index.get_tokens_ids(asked)
            scores_R[: self._documents] = self._index.get_scores_from_ids(ids)
        for word in asked:
            for row, weight in self._added.get(word, ()):
                scores_R[row] += weight * self._importance(word)
        return scores_R

    def _importance(self, word: str) -> float:
        """log(1 + (N - df + 0.5) / (df + 0.5)), as the index has it if it knows the word."""
        if self._index is not None and word in self._index.vocab_dict:
            ends, i = self._index.scores["indptr"], self._index.vocab_dict[word]
            df, N = int(ends[i + 1]) - int(ends[i]), self._documents
        else:
            df, N = len(self._added[word]), self._rows
        return math.log(1 + (N - df + 0.5) / (df + 0.5))

    def save(self, folder: epath.Path, info: dict[str, Any]) -> None:
        """Writes the index, without what was added; `load` returns `info`."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as here:
            if self._index is not None:
                self._index.save(here, show_progress=False)
            _copy(epath.Path(here), folder)
        if not files.is_remote(folder):
            checksums.seal(folder)
        content = {"documents": self._documents, "mean": self._mean, "info": info}
        files.write(folder / _INFO, checksums.dumps(content))  # last, to say that all is there

    @classmethod
    def load(cls, folder: epath.Path) -> tuple["Words", dict[str, Any]] | None:
        """An index and its `info`; None where there is none, or it is damaged."""
        try:
            content = checksums.loads((folder / _INFO).read_text())
            if checksums.damage(folder):
                return None
            index = None
            if content["mean"]:
                with tempfile.TemporaryDirectory() as here:
                    if files.is_remote(folder):
                        _copy(folder, folder := epath.Path(here))
                    index = _bm25s().BM25.load(str(folder), show_progress=False)
                if index.scores["num_docs"] != content["documents"]:
                    return None
            return cls(index, content["documents"], content["mean"]), content["info"]
        except DAMAGED:
            return None


def best(scores_R: np.ndarray, k: int, alive_R: np.ndarray) -> np.ndarray:
    """Rows of the k largest scores above 0, the best first, equal ones in order."""
    rows = np.flatnonzero(alive_R & (scores_R > 0))
    if len(rows) > k:  # equal ones at the end are sorted too
        least = -np.partition(-scores_R[rows], k - 1)[k - 1]
        rows = rows[scores_R[rows] >= least]
    return rows[retrieval.order(scores_R[rows])][:k]


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies the files of a folder."""
    for file in source.iterdir():
        with file.open("rb") as old, (target / file.name).open("wb") as new:
            shutil.copyfileobj(old, new)


def _bm25s() -> Any:
    # It runs JAX when it is imported, which settles its devices: not before a program needs it.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it lowers its own level to debugging
    return bm25s


def bm25_scores(questions: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """BM25 of every question with each of its own candidates.

    Document frequencies and the mean length are those of all distinct candidates of the call. The
    variant is bm25s's default, Lucene's with exact lengths: k1 1.5, b 0.75, a word's weight
    log(1 + (n - df + 0.5) / (df + 0.5)). Words are runs of word characters in lower case, none left
    out or stemmed; one that a question repeats counts as often.

    Args:
        questions: texts.
        candidates: texts of each question's candidates; their number may differ.

    Returns:
        A float32 vector for each question, 0 where no word is shared.

    Raises:
        ValueError: numbers of questions and of lists of candidates differ.
    """
    if len(questions) != len(candidates):
        raise ValueError(f"{len(questions)} questions have {len(candidates)} lists of candidates")
    distinct = dict.fromkeys(text for texts in candidates for text in texts)
    row_of = {text: row for row, text in enumerate(distinct)}
    index = Words.build(distinct)
    return [
        index.scores(question)[[row_of[text] for text in texts]]
        for question, texts in zip(questions, candidates, strict=True)
    ]
