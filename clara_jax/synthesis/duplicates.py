"""Which passages were seen before, word for word or nearly, and which stand in evaluation files."""

import functools
import hashlib
import sqlite3

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
    """Passages so far, for finding near copies; kept in a temporary file, not in memory.

    MinHash with banding proposes, the exact Jaccard similarity of word shingles decides.

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
        self._store = _table("bands (key integer, passage integer)")
        self._store.execute("create index by_key on bands (key)")
        self._store.execute("create table passages (id integer primary key, shingles blob)")
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


class Exact:
    """Keys so far, in a temporary file."""

    def __init__(self):
        self._store = _table("seen (key blob primary key) without rowid")

    def add(self, key: bytes) -> bool:
        """Whether a key is new."""
        return self._store.execute("insert or ignore into seen values (?)", (key,)).rowcount == 1


class Leaks:
    """Passages of evaluation files, known by every run of words in them."""

    def __init__(self):
        self._parts: list[np.ndarray] = []
        self._known = np.zeros(0, np.uint64)

    def add(self, words: list[str]) -> None:
        """Takes a passage of an evaluation file."""
        self._parts.append(grams(words, LEAK))

    def close(self) -> None:
        """Ends the adding."""
        self._known = np.unique(np.concatenate([self._known, *self._parts]))
        self._parts = []

    def holds(self, words: list[str]) -> bool:
        """Whether a passage shares a run of words with one of them, or is all of a shorter one."""
        found = grams(words, LEAK)
        if not len(self._known) or not len(found):
            return False
        places = np.minimum(np.searchsorted(self._known, found), len(self._known) - 1)
        return bool((self._known[places] == found).any())


def _table(layout: str) -> sqlite3.Connection:
    store = sqlite3.connect("", isolation_level=None)  # a file of its own, gone when closed
    for line in ("journal_mode=off", "synchronous=off", "cache_size=-65536"):
        store.execute(f"pragma {line}")
    store.execute(f"create table {layout}")
    store.execute("begin")
    return store


def _int64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


@functools.lru_cache(maxsize=65536)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
