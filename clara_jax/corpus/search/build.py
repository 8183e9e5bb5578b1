"""Search keys of a store, computed once and kept beside its memories.

    STORE/search/<basis>/basis.npz, search.json     the basis, and what it was measured to find
    STORE/search/words-<time>/…                     BM25 (words.py)
    STORE/parts/<part>/keys-<basis>.npy             float16 [rows, K]

Parts never change, so a part that has keys needs no others. `search.json` is written last: without
it all is made again.
"""

import contextlib
import dataclasses
import io
import itertools
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging
from etils import epath

from clara_jax import checksums, files
from clara_jax import config as config_lib
from clara_jax.corpus.format import StorePart
from clara_jax.corpus.search import keys
from clara_jax.corpus.search.keys import Basis, Recall
from clara_jax.corpus.search.words import DAMAGED, WORDS, Words
from clara_jax.corpus.store import StoredDocument
from clara_jax.errors import UserError
from clara_jax.progress import Progress

SAMPLE = 8  # documents that a basis is fitted on, for one of its components
HELD = 64  # documents that recall is measured with, not of the sample
BEST = 20  # documents that should be among the candidates
_GROWN = 2  # times the documents of a basis: it is fitted again, on a sample that may be larger
_NUMBERS = ("rows", "sampled", "variance", "recall", "held", "candidates", "time")  # search.json's
_ROWS = 1024  # documents whose memories are in memory at once


class SearchableStore(Protocol):
    """What search needs of a store, such as a `store.Store`."""

    path: str  # of a folder for the keys
    rows: int  # of all parts
    # of the rows, in order. After compaction other parts may have the same names.
    parts: tuple[StorePart, ...]

    @property
    def alive_R(self) -> np.ndarray:
        """Which rows may be found, bool [rows]."""

    def memories(self, rows: Sequence[int]) -> np.ndarray:
        """Memories float32 [n, M, D] of rows."""

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """First rows and memories [b <= size, M, D] of all blocks, in a float dtype."""

    def texts(self) -> Iterator[str]:
        """Titles and texts of all rows, in order."""

    def documents(self, rows: Sequence[int]) -> list[StoredDocument]:
        """What rows hold."""

    def find(self, ids: Sequence[str]) -> list[int]:
        """Rows of documents, each with all of its pieces."""


def not_empty(store: SearchableStore) -> None:
    """Raises a UserError for a store without documents."""
    if not store.alive_R.any():
        raise UserError(f"{store.path}: holds no document; add some with --mode=compress")


def open_basis(store: SearchableStore, score: str, key: int) -> tuple[Basis, dict[str, Any]] | None:
    """The newest basis of a store for a score and K = key, and what search.json says of it.

    None where there is none, or one of far fewer documents than there are now.
    """
    for info, folder in reversed(_bases(store, score, key)):
        if store.rows > _GROWN * info["rows"] and info["sampled"] < SAMPLE * key:
            return None
        with contextlib.suppress(*DAMAGED):
            return Basis.unpack((folder / "basis.npz").read_bytes()), info
    return None


def open_or_build(
    store: SearchableStore, score: str, options: config_lib.Search
) -> tuple[Basis, dict[str, Any]]:
    """The basis that a store has for a score and `config.search`, or a new one."""
    kept = open_basis(store, score, options.key)
    if kept is None:
        return build(store, score, options.key, options.candidates)
    logging.info("search keys: %s", describe(kept[1]))
    return kept


def build(
    store: SearchableStore, score: str, key: int, candidates: int
) -> tuple[Basis, dict[str, Any]]:
    """Fits a basis, writes the keys of all documents and measures their recall.

    Recall is measured with held-out documents as queries: the share of the 20 documents that score
    best by all numbers of the memories that are among the candidates by keys.
    """
    start = time.perf_counter()
    alive = np.flatnonzero(store.alive_R)
    drawn = np.random.default_rng(0).permutation(len(alive))
    held = np.sort(alive[drawn[: min(HELD, len(alive) // 4)]])
    sample = np.sort(alive[drawn[len(held) :][: SAMPLE * key]])
    logging.info("search keys: principal components of %d documents", len(sample))
    basis = keys.fit(store.memories(sample.tolist()), score, key)
    queries_nMD = store.memories(held.tolist())
    recall = Recall(queries_nMD, held, score, BEST)
    keys_RK = keys_of(store, basis, recall)
    products_nR = basis.queries(queries_nMD) @ keys_RK.astype(np.float32).T
    products_nR[:, ~store.alive_R] = -np.inf
    products_nR[np.arange(len(held)), held] = -np.inf
    best_nC = np.argsort(-products_nR, axis=1, kind="stable")[:, :candidates]
    info = {
        "score": score,
        "key": key,
        "rows": store.rows,
        "sampled": len(sample),
        "variance": basis.variance,
        "recall": recall.of(best_nC),
        "held": len(held),
        "candidates": candidates,
        "time": time.time(),
    }
    folder = files.path(store.path) / "search" / basis.name
    with _kept(store):
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / "basis.npz", basis.pack())
        files.write(folder / "search.json", checksums.dumps(info))
        _remove_earlier(store, basis, score, key)
    logging.info("search keys: %s, in %.0f s", describe(info), time.perf_counter() - start)
    return basis, info


def describe(info: dict[str, Any]) -> str:
    """What a basis is and finds, in a few words."""
    return (
        f"{info['key']} numbers a document keep {info['variance']:.0%} of the variance; of the "
        f"{BEST} documents that score best {info['recall']:.1%} are among {info['candidates']} "
        f"candidates ({info['held']} documents as queries, {info['rows']} rows)"
    )


def keys_of(store: SearchableStore, basis: Basis, recall: Recall | None = None) -> np.ndarray:
    """Keys float16 [rows, K] of all rows; those of parts that have none are computed and kept.

    Args:
        store: the store.
        basis: of the keys.
        recall: is given all documents; then all keys are computed.
    """
    keys_RK = np.zeros((store.rows, basis.key), np.float16)
    stops = itertools.accumulate(part.rows for part in store.parts)
    spans = [(p, slice(end - p.rows, end)) for p, end in zip(store.parts, stops, strict=True)]
    missing = [
        (part, span)
        for part, span in spans
        if recall is not None or not _read(_keys_file(store, basis.name, part), keys_RK[span])
    ]
    if not missing:
        return keys_RK
    progress, done = Progress(sum(part.rows for part, _ in missing), "search keys"), 0
    blocks = store.blocks(_ROWS) if len(missing) == len(spans) else _blocks(store, missing)
    for start, memories_bMD in blocks:
        stop = start + len(memories_bMD)
        keys_RK[start:stop] = basis.documents(memories_bMD)
        if recall is not None:
            recall.add(start, memories_bMD, store.alive_R[start:stop])
        done += len(memories_bMD)
        progress.update(done)
    progress.close()
    with _kept(store):
        for part, span in missing:
            file = io.BytesIO()
            np.save(file, keys_RK[span])
            file.write(zlib.crc32(file.getvalue()).to_bytes(4, "little"))  # NumPy leaves it unread
            files.write(_keys_file(store, basis.name, part), file.getvalue())
    return keys_RK


@contextlib.contextmanager
def _kept(store: SearchableStore) -> Generator[None]:
    """Continues where what was made cannot be kept: a store may be read-only, or its disk full."""
    try:
        yield
    except OSError as e:
        logging.warning(
            "%s: what it is searched by cannot be kept there (%s) and will be made anew",
            store.path,
            e.strerror or e,
        )


def _blocks(
    store: SearchableStore, missing: Sequence[tuple[StorePart, slice]]
) -> Generator[tuple[int, np.ndarray]]:
    """`store.blocks` of some parts."""
    for _, span in missing:
        for start in range(span.start, span.stop, _ROWS):
            yield start, store.memories(range(start, min(start + _ROWS, span.stop)))


def _keys_file(store: SearchableStore, basis: str, part: StorePart) -> epath.Path:
    return files.path(store.path) / "parts" / part.name / f"keys-{basis}.npy"


def _read(file: epath.Path, own_rK: np.ndarray) -> bool:
    """Reads the keys of a part; False where there are none, or others."""
    try:
        data = file.read_bytes()
        f = io.BytesIO(data)
        keys_rK = np.lib.format.read_array(f)
    except DAMAGED:
        return False
    if (crc := f.read()) and crc != zlib.crc32(data[: -len(crc)]).to_bytes(4, "little"):
        return False
    if (keys_rK.shape, keys_rK.dtype) != (own_rK.shape, own_rK.dtype):
        return False
    own_rK[:] = keys_rK
    return True


def open_words(store: SearchableStore) -> Words:
    """BM25 of all rows of a store; built, and kept there, where there is none that serves."""
    now = [list(dataclasses.astuple(part)) for part in store.parts]
    earlier = [folder for folder in _folders(store) if folder.name.startswith("words-")]
    for folder in reversed(earlier):
        if (loaded := Words.load(folder)) is None:
            continue
        words, info = loaded
        if info.get("words") != WORDS:
            logging.warning("%s: splits words by an older rule and is built again", folder)
            continue
        known = info.get("parts")
        if known and known == now[: len(known)] and words.can_take(store.rows):
            return update_words(words, store)
    start = time.perf_counter()
    words = Words.build(store.texts())
    # Nanoseconds, so that no two have the same name.
    folder = files.path(store.path) / "search" / f"words-{time.time_ns()}"
    with _kept(store):
        words.save(folder, {"parts": now, "words": WORDS})
        for other in earlier:
            other.rmtree()
    logging.info("BM25 of %d documents, in %.0f s", words.rows, time.perf_counter() - start)
    return words


def update_words(words: Words, store: SearchableStore) -> Words:
    """The index with the rows that it does not know yet; the same if it knows all."""
    if words.rows == store.rows:
        return words
    return words.extended(itertools.islice(store.texts(), words.rows, None))


def _folders(store: SearchableStore) -> list[epath.Path]:
    folder = files.path(store.path) / "search"
    return sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.exists() else []


def _bases(store: SearchableStore, score: str, key: int) -> list[tuple[dict[str, Any], epath.Path]]:
    """search.json of each basis for a score and K = key, and its folder; newest last."""
    bases = []
    for folder in _folders(store):
        with contextlib.suppress(*DAMAGED):
            info = checksums.loads((folder / "search.json").read_text())
            numbers = [info[name] for name in _NUMBERS]
            if (info["score"], info["key"]) == (score, key) and sum(numbers) >= 0:
                bases.append((info, folder))
    return sorted(bases, key=lambda base: base[0]["time"])


def _remove_earlier(store: SearchableStore, basis: Basis, score: str, key: int) -> None:
    """Removes earlier bases of the same kind, and their keys."""
    for _, folder in _bases(store, score, key):
        if folder.name != basis.name:
            for part in store.parts:
                _keys_file(store, folder.name, part).unlink(missing_ok=True)
            folder.rmtree()
