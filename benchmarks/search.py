"""Search among many documents, in time and recall: `python -m benchmarks.speed search`.

The memories are made up, like those of a trained model in their spectrum. On 4,308 passages that
SmolLM2 compressed 16 times (M * D = 9,216) the mean has a norm of 0.77 beside unit vectors, the
principal components hold 51 %, 63 %, 74 % and 83 % of the rest in 64, 128, 256 and 512 numbers
(participation ratio 106), and the nearest other document has a cosine of 0.80, the median 0.60.
Here a document is

    mean + topic + own          topic and own from a power law of variances over DIRECTIONS
    + noise                     isotropic in all M * D numbers

of TOPICS topics; half of the variance of a document is its topic's. A query is a document of the
corpus with as much noise of its own as makes the cosine of the two COSINE: the nearest documents
of a query are its topic's, which differ little, and not only the one that it was made of.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from clara_jax import config as config_lib
from clara_jax.corpus.format import StorePart
from clara_jax.corpus.search.keys import Recall
from clara_jax.corpus.search.search import Search

M, D = 16, 576
DIRECTIONS = 1024  # of the documents' differences, beside the noise
DECAY = 0.5  # of the power law: the n-th direction's standard deviation is n ** -DECAY
TOPICS = 2000
MEAN = 0.77  # norm of the mean, over that of a document
NOISE = 0.1  # share of a document's variance about the mean that is noise in all numbers
COSINE = 0.85  # of a query and the document that it was made of
BATCH = 8  # queries
RUNS = 30
_BLOCK = 2048


class RamStore:
    """What `Search` needs of a store to search by keys, with memories in main memory.

    Args:
        path: folder for the keys.
        memories_RMD: of all documents, bfloat16.
    """

    def __init__(self, path: str, memories_RMD: np.ndarray):
        self.path, self._memories = path, memories_RMD
        self.rows, self.alive_R = len(memories_RMD), np.ones(len(memories_RMD), bool)
        self.parts = (StorePart("00000", self.rows, self.rows, 0, 0, 0),)
        os.makedirs(os.path.join(path, "parts", "00000"), exist_ok=True)

    def memories(self, rows: Sequence[int]) -> np.ndarray:
        """Float32 [n, M, D]."""
        return self._memories[np.asarray(rows, int)].astype(np.float32)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """All memories in order, bfloat16 [b, M, D], with the first row of each block."""
        for first in range(0, self.rows, size):
            yield first, self._memories[first : first + size]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Made-up memories and queries (module docstring)."""

    memories_RMD: np.ndarray  # bfloat16
    queries_nMD: np.ndarray  # float32
    sources_n: np.ndarray  # rows that the queries were made of


def make(documents: int, queries: int, seed: int = 0) -> Corpus:
    """Documents in random order of their topics, and queries."""
    rng = np.random.default_rng(seed)
    X = M * D
    # Not quite orthonormal, but random directions in so many dimensions nearly are.
    directions = rng.standard_normal((DIRECTIONS, X), np.float32) / np.sqrt(X)
    deviations = np.arange(1, DIRECTIONS + 1, dtype=np.float32) ** -DECAY
    deviations *= np.sqrt((1 - MEAN**2) * (1 - NOISE) / np.square(deviations).sum())
    mean = rng.standard_normal(X, np.float32)
    mean *= MEAN / np.linalg.norm(mean)
    noise = np.float32(np.sqrt((1 - MEAN**2) * NOISE / X))
    topics = rng.standard_normal((max(documents * TOPICS // 200_000, 1), DIRECTIONS), np.float32)
    topic_R = rng.integers(len(topics), size=documents)
    memories = np.empty((documents, X), ml_dtypes.bfloat16)
    for first in range(0, documents, _BLOCK):
        own = rng.standard_normal((min(_BLOCK, documents - first), DIRECTIONS), np.float32)
        own = np.float32(np.sqrt(0.5)) * (own + topics[topic_R[first : first + len(own)]])
        block = (own * deviations) @ directions + mean
        block += noise * rng.standard_normal(block.shape, np.float32)
        memories[first : first + len(own)] = block
    sources = rng.integers(documents, size=queries)
    x_nX = memories[sources].astype(np.float32)
    x_nX /= np.linalg.norm(x_nX, axis=1, keepdims=True)
    # Off by as random a direction as the differences of documents: seen by all components.
    off_nX = (rng.standard_normal((queries, DIRECTIONS), np.float32) * deviations) @ directions
    off_nX -= (off_nX * x_nX).sum(1, keepdims=True) * x_nX
    off_nX /= np.linalg.norm(off_nX, axis=1, keepdims=True)
    x_nX = COSINE * x_nX + np.sqrt(1 - COSINE**2).astype(np.float32) * off_nX
    return Corpus(memories.reshape(-1, M, D), x_nX.reshape(-1, M, D), sources)


def measure(documents: int, key: int, candidates: int) -> list[str]:
    """Recall and time of a search among documents, in main memory and on disk; lines."""
    corpus = make(documents, RUNS * BATCH)
    options = config_lib.Search(by="keys", key=key, candidates=candidates)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        store = RamStore(folder, corpus.memories_RMD)
        start = time.perf_counter()
        search = Search(store, options)
        lines = [f"built in {time.perf_counter() - start:.0f} s: {search.describe()}"]
        lines += _recall(corpus, store, search, candidates)
        lines.append(f"memories in main memory: {_time(corpus, search)}")
        path = os.path.join(folder, "memories.bin")
        corpus.memories_RMD.tofile(path)
        shape = corpus.memories_RMD.shape
        store._memories = np.memmap(path, ml_dtypes.bfloat16, "r", shape=shape)  # noqa: SLF001
        for name in ("read from disk for the first time", "from disk, in the cache of files"):
            with open(path, "rb") as f:
                os.fsync(f.fileno())
                if "first" in name:
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            lines.append(f"{name}: {_time(corpus, search)}")
    return lines


def _recall(corpus: Corpus, store: RamStore, search: Search, candidates: int) -> list[str]:
    queries = corpus.queries_nMD
    recall = Recall(queries, np.full(len(queries), -1), "cosine", 20)
    for first, block_bMD in store.blocks(_BLOCK):
        recall.add(first, block_bMD, store.alive_R[first : first + len(block_bMD)])
    starts = range(0, len(queries), BATCH)
    rows_nC = np.concatenate(
        [search.candidates(queries[i : i + BATCH], [""] * BATCH) for i in starts]
    )
    cosines = [f"{recall.scores_nb[:, place].mean():.3f}" for place in (0, 1, 19)]
    first_is_source = (recall.best_nb[:, 0] == corpus.sources_n).mean()
    lines = [
        f"{len(queries)} queries; exact search finds the document that a query was made of first "
        f"for {first_is_source:.1%}; mean scores of the first, second and 20th: "
        + ", ".join(cosines)
    ]
    return lines + [
        f"recall@20 among {count} candidates: {recall.of(rows_nC[:, :count]):.2%}"
        for count in sorted({20, 50, 100, candidates})
    ]


def _time(corpus: Corpus, search: Search) -> str:
    """Milliseconds of a batch from memories of queries to scored documents."""
    search.search(corpus.queries_nMD[:BATCH], [""] * BATCH, 5)  # compiles
    candidates, whole, cpu = [], [], []
    for i in range(0, len(corpus.queries_nMD), BATCH):
        queries = corpus.queries_nMD[i : i + BATCH]
        start = time.perf_counter()
        search.candidates(queries, [""] * BATCH)
        between, cores = time.perf_counter(), time.process_time()
        search.search(queries, [""] * BATCH, 5)
        candidates.append(between - start)
        whole.append(time.perf_counter() - between)
        cpu.append(time.process_time() - cores)
    p50, p95 = np.quantile(whole, [0.5, 0.95]) * 1000
    return (
        f"{BATCH} queries p50 {p50:.0f} ms, p95 {p95:.0f} ms, of which candidates "
        f"{np.quantile(candidates, 0.5) * 1000:.0f} ms; CPU time of all threads p50 "
        f"{np.quantile(cpu, 0.5) * 1000:.0f} ms ({len(whole)} batches)"
    )
