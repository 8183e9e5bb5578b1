"""Which passages were nearly seen before, and which stand in evaluation files."""

import functools
import hashlib
import sqlite3
from collections.abc import Iterable

import numpy as np

from clara_jax.errors import UserError

_PERMUTATIONS = 128
_SHINGLE = 3  # words
LEAK = 13  # words that two passages must share in a row to be of one source
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def grams(words: list[str], n: int) -> np.ndarray:
    """Hashes of all runs of n words; of the whole, where it is shorter."""
    hashes = np.array([_hash(word) for word in words], np.uint64)
    size = max(min(n, len(words)), 1)
    total = np.zeros(max(len(words) - size + 1, 0), np.uint64)
    with np.errstate(over="ignore"):
        for i in range(size):
            total = total * _PRIME + hashes[i : i + len(total)]
        total ^= total >> np.uint64(29)  # the low half, which shingles are, takes part of the high
    return np.unique(total)


class Near:
    """Passages so far, for finding near copies.

    MinHash with banding proposes, the exact Jaccard similarity of word shingles decides. They are
    kept in a temporary file, as datasketch's own index takes 5 KB of memory a passage.

    Args:
        threshold: similarity from which a passage is a copy.
    """

    def __init__(self, threshold: float):
        try:
            import datasketch
        except ImportError as e:
            raise UserError(
                "config.synthesis.near_duplicates: needs pip install 'clara-jax[synthesis]', or 1"
            ) from e
        self._threshold = threshold
        # A wrong proposal costs one comparison, a missed one lets a copy through.
        bands = datasketch.MinHashLSH(threshold, _PERMUTATIONS, weights=(0.1, 0.9))
        self._bands, self._rows = bands.b, bands.r
        self._empty = datasketch.MinHash(_PERMUTATIONS, seed=1, hashfunc=int)
        self._store = sqlite3.connect("", isolation_level=None)  # a file that goes when closed
        self._store.executescript(
            "pragma journal_mode=off; pragma synchronous=off; pragma cache_size=-65536;"
            "create table bands (key integer, passage integer);"
            "create index by_key on bands (key);"
            "create table passages (id integer primary key, shingles blob); begin;"
        )
        self._count = 0

    def add(self, words: list[str]) -> bool:
        """Whether a passage is new; a copy is not kept."""
        shingles = np.unique(grams(words, _SHINGLE).astype(np.uint32))
        signature = self._empty.copy()
        signature.update_batch(shingles.tolist())
        parts = np.asarray(signature.hashvalues, np.uint64)[: self._bands * self._rows]
        keys = [
            _int64(bytes([band]) + part.tobytes())
            for band, part in enumerate(parts.reshape(self._bands, self._rows))
        ]
        marks = ",".join("?" * len(keys))
        proposed = self._store.execute(
            "select shingles from passages where id in "
            f"(select passage from bands where key in ({marks}))",
            keys,
        )
        for (blob,) in proposed:
            other = np.frombuffer(blob, np.uint32)
            common = len(np.intersect1d(shingles, other, assume_unique=True))
            if common >= self._threshold * (len(shingles) + len(other) - common):
                return False
        self._store.execute("insert into passages values (?, ?)", (self._count, shingles.tobytes()))
        rows = [(key, self._count) for key in keys]
        self._store.executemany("insert into bands values (?, ?)", rows)
        self._count += 1
        return True


class Leaks:
    """Passages of evaluation files, by every run of `LEAK` words in them.

    Args:
        passages: the words of each.
    """

    def __init__(self, passages: Iterable[list[str]]):
        runs = [grams(words, LEAK) for words in passages]
        self._known = np.unique(np.concatenate(runs)) if runs else np.zeros(0, np.uint64)

    def holds(self, words: list[str]) -> bool:
        """Whether a passage shares a run of words with one of them, or is all of a shorter one."""
        runs = grams(words, LEAK)
        if not len(self._known) or not len(runs):
            return False
        places = np.minimum(np.searchsorted(self._known, runs), len(self._known) - 1)
        return bool((self._known[places] == runs).any())


def _int64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


@functools.lru_cache(maxsize=65536)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
