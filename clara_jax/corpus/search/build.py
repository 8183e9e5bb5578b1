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
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.corpus.search import keys
from clara_jax.corpus.search.keys import Basis, Recall
from clara_jax.corpus.search.words import DAMAGED, Words
from clara_jax.errors import UserError
from clara_jax.progress import Progress

SAMPLE = 8  # documents that a basis is fitted on, for one of its components
HELD = 64  # documents that recall is measured with, not of the sample
BEST = 20  # documents that should be among the candidates
_GROWN = 2  # times the documents of a basis: it is fitted anew, if more would have been sampled
_NUMBERS = ("rows", "sampled", "variance", "recall", "held", "candidates", "time")  # search.json's
_ROWS = 1024  # documents whose memories are in memory at once


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the rows of a part are: its name, first row, how many, and what else is known of it.

    Names may come again after a store was compacted, with other documents.
    """

    name: str
    first: int
    rows: int
    part: tuple[Any, ...]


def places(store: Any) -> list[Place]:
    """The parts of a store in order."""
    found, first = [], 0
    for part in store.manifest.parts:
        found.append(Place(part.name, first, part.rows, dataclasses.astuple(part)))
        first += part.rows
    return found


def not_empty(store: Any) -> None:
    """Raises a UserError for a store without documents."""
    if not store.alive_R.any():
        raise UserError(f"{store.path}: holds no document; add some with --mode=compress")


def open_basis(store: Any, score: str, key: int) -> tuple[Basis, dict[str, Any]] | None:
    """The newest basis of a store for a score and so many numbers, and what is known of it.

    None where there is none, or one of far fewer documents than there are now.
    """
    for info, place in reversed(_bases(store, score, key)):
        if store.rows > _GROWN * info["rows"] and info["sampled"] < SAMPLE * key:
            return None
        try:
            return Basis.unpack((place / "basis.npz").read_bytes()), info
        except DAMAGED:
            continue  # damaged
    return None


def open_or_build(
    store: Any, score: str, options: config_lib.Search
) -> tuple[Basis, dict[str, Any]]:
    """The basis that a store has for a score and `config.search`, or a new one."""
    found = open_basis(store, score, options.key)
    if found is None:
        return build(store, score, options.key, options.candidates)
    logging.info("search keys: %s", describe(found[1]))
    return found


def build(store: Any, score: str, key: int, candidates: int) -> tuple[Basis, dict[str, Any]]:
    """Fits a basis, writes the keys of all documents and measures their recall.

    Held documents are the queries of it: share of the 20 documents that score best by all numbers
    of the memories that are among the candidates by keys.
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
        "score": score, "key": key, "rows": store.rows, "sampled": len(sample),
        "variance": basis.variance, "recall": recall.of(best_nC), "held": len(held),
        "candidates": candidates, "time": time.time(),
    }  # fmt: skip
    folder = files.path(store.path) / "search" / basis.name
    with _kept(store):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "basis.npz").write_bytes(basis.pack())
        files.write(folder / "search.json", json.dumps(info, indent=2))
        _forget(store, basis, score, key)
    logging.info("search keys: %s, in %.0f s", describe(info), time.perf_counter() - start)
    return basis, info


def describe(info: dict[str, Any]) -> str:
    """What a basis is and finds, in a few words."""
    return (
        f"{info['key']} numbers a document keep {info['variance']:.0%} of the variance; of the "
        f"{BEST} documents that score best {info['recall']:.1%} are among {info['candidates']} "
        f"candidates ({info['held']} documents as queries, {info['rows']} rows)"
    )


def keys_of(store: Any, basis: Basis, recall: Recall | None = None) -> np.ndarray:
    """Keys float16 [rows, K] of all rows; those of parts that have none are computed and kept.

    Args:
        store: the store.
        basis: of the keys.
        recall: is given all documents; then all keys are computed.
    """
    keys_RK = np.zeros((store.rows, basis.key), np.float16)
    every = places(store)
    missing = [
        place
        for place in every
        if recall is not None
        or not _read(_keys_file(store, basis.name, place), _of(keys_RK, place))
    ]
    if not missing:
        return keys_RK
    progress, done = Progress(sum(place.rows for place in missing), "search keys"), 0
    for start, memories_bMD in _memories(store, missing, whole=len(missing) == len(every)):
        stop = start + len(memories_bMD)
        keys_RK[start:stop] = basis.documents(memories_bMD)
        if recall is not None:
            recall.add(start, memories_bMD, store.alive_R[start:stop])
        done += len(memories_bMD)
        progress.update(done)
    progress.close()
    with _kept(store):
        for place in missing:
            file = io.BytesIO()
            np.save(file, _of(keys_RK, place))
            final = _keys_file(store, basis.name, place)
            unfinished = final.parent / f"{final.name}.tmp"
            unfinished.write_bytes(file.getvalue())
            unfinished.replace(final)
    return keys_RK


@contextlib.contextmanager
def _kept(store: Any) -> Iterator[None]:
    """Goes on where what was made cannot be kept: a store may be read-only, or its disk full."""
    try:
        yield
    except OSError as e:
        logging.warning(
            "%s: what it is searched by cannot be kept there (%s) and will be made anew",
            store.path, e.strerror or e,
        )  # fmt: skip


def _memories(store: Any, missing: list[Place], whole: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of the memories of some parts, or of all, with their first rows."""
    if whole:
        yield from store.blocks(_ROWS)
        return
    for place in missing:
        for start in range(place.first, place.first + place.rows, _ROWS):
            yield start, store.memories(range(start, min(start + _ROWS, place.first + place.rows)))


def _of(keys_RK: np.ndarray, place: Place) -> np.ndarray:
    return keys_RK[place.first : place.first + place.rows]


def _keys_file(store: Any, basis: str, place: Place) -> Any:
    return files.path(store.path) / "parts" / place.name / f"keys-{basis}.npy"


def _read(place: Any, own_rK: np.ndarray) -> bool:
    """Reads the keys of a part; False where there are none, or others."""
    try:
        with place.open("rb") as f:
            found = np.lib.format.read_array(f)
    except DAMAGED:
        return False
    if (found.shape, found.dtype) != (own_rK.shape, own_rK.dtype):
        return False
    own_rK[:] = found
    return True


def open_words(store: Any) -> Words:
    """BM25 of all rows of a store; built, and kept there, where there is none that serves."""
    now = [list(place.part) for place in places(store)]
    newest = sorted((p for p in _folders(store) if p.name.startswith("words-")), reverse=True)
    for place in newest:
        found = Words.load(str(place))
        known = found[1].get("parts") if found else None
        if known and known == now[: len(known)] and found[0].can_take(store.rows):
            return update_words(found[0], store)
    start = time.perf_counter()
    words = Words.build(store.texts())
    # Nanoseconds, so that no two have the same name.
    folder = files.path(store.path) / "search" / f"words-{time.time_ns()}"
    with _kept(store):
        words.save(str(folder), {"parts": now})
        for place in newest:
            place.rmtree()
    logging.info("BM25 of %d documents, in %.0f s", words.rows, time.perf_counter() - start)
    return words


def update_words(words: Words, store: Any) -> Words:
    """The index with the rows that it does not know yet; the same if it knows all."""
    if words.rows == store.rows:
        return words
    return words.extended(itertools.islice(store.texts(), words.rows, None))


def _folders(store: Any) -> Iterator[Any]:
    place = files.path(store.path) / "search"
    yield from sorted(place.iterdir(), key=lambda one: one.name) if place.exists() else ()


def _bases(store: Any, score: str, key: int) -> list[tuple[dict[str, Any], Any]]:
    """What is known of each basis for a score and so many numbers, and its folder; newest last."""
    found = []
    for place in _folders(store):
        try:
            info = json.loads((place / "search.json").read_text())
            numbers = [info[name] for name in _NUMBERS]
            if (info["score"], info["key"]) == (score, key) and sum(numbers) >= 0:
                found.append((info, place))
        except DAMAGED:
            continue  # not whole
    return sorted(found, key=lambda one: one[0]["time"])


def _forget(store: Any, basis: Basis, score: str, key: int) -> None:
    """Removes earlier bases of the same kind, and their keys."""
    for _, place in _bases(store, score, key):
        if place.name != basis.name:
            for part in places(store):
                _keys_file(store, place.name, part).unlink(missing_ok=True)
            place.rmtree()
