"""How fast documents become a store, in batches of similar length and each padded to the limit.

python -m benchmarks.store --workdir=RUN --documents=corpus.jsonl
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from clara_jax.config import Store
from clara_jax.corpus import pieces
from clara_jax.data.batches import encoder_batches
from clara_jax.data.documents import stream
from clara_jax.errors import UserError, command
from clara_jax.inference.encode import encode_batches
from clara_jax.models.clara import Trees
from clara_jax.runs.load import load_setup
from clara_jax.runs.setup import Model

REPEATS = 5  # the median counts


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Medians of both ways."""

    documents: int  # of the sample
    tokens: float  # tokens of all documents, each padded to the limit, over those of the batches
    possible: float  # the same if no batch had padding
    # CPU seconds of the sample, in batches of similar length and padded
    seconds: tuple[float, float]
    wall: tuple[float, float]  # seconds of the clock

    @property
    def ratio(self) -> float:
        """How many times as many documents a CPU second compresses."""
        return self.seconds[1] / self.seconds[0]

    def __str__(self) -> str:
        rates = [self.documents / taken for taken in (*self.seconds, *self.wall)]
        return (
            f"{self.documents} documents, median of {REPEATS}: {rates[0]:.2f} a CPU second in "
            f"batches of similar length, {rates[1]:.2f} padded: {self.ratio:.2f}x (by the clock "
            f"{rates[2]:.2f} and {rates[3]:.2f} a second); tokens of all: {self.tokens:.2f}x, "
            f"{self.possible:.2f}x possible"
        )


def measure(
    model: Model, trees: Trees, documents: Sequence[Sequence[int]], options: Store, sample: int
) -> Speeds:
    """Compresses some of the documents both ways in turns.

    The sample is some of the batches that the whole would be compressed in, evenly spread over
    their lengths; what is padded are the same documents.

    Args:
        model: the model.
        trees: its weights.
        documents: the compressor's input of each.
        options: of a store.
        sample: documents to compress, about.
    """
    limit = model.layout.longest
    parts = [documents[i : i + options.part] for i in range(0, len(documents), options.part)]
    batches = [
        (part, b)
        for part in parts
        for b in encoder_batches(model.layout, part, options.batch, options.bucket)
    ]
    used = sum(batch.tokens.size for _, batch in batches)
    read = sum(map(len, documents))
    batches.sort(key=lambda pair: pair[1].tokens.shape[1])
    count = max(1, min(len(batches), sample // options.batch))
    places = ((np.arange(count) + 0.5) * len(batches) / count).astype(int)
    chosen = [[batches[i][0][j] for j in batches[i][1].index] for i in places]

    def bucketed() -> None:
        for texts in chosen:
            _run(model, trees, texts, options.batch, options.bucket)

    def padded() -> None:
        for texts in chosen:
            _run(model, trees, texts, options.batch, limit)

    ways, taken = (bucketed, padded), ([], [])
    for way in ways:
        way()  # compiles
    for _ in range(REPEATS):
        for way, clocks in zip(ways, taken, strict=True):
            clocks.append(_clock(way))
    medians = [[statistics.median(column) for column in zip(*c, strict=True)] for c in taken]
    return Speeds(
        sum(map(len, chosen)),
        len(documents) * limit / used,
        len(documents) * limit / read,
        (medians[0][0], medians[1][0]),
        (medians[0][1], medians[1][1]),
    )


def _run(
    model: Model, trees: Trees, texts: Sequence[Sequence[int]], batch: int, bucket: int
) -> None:
    for _ in encode_batches(model, trees, "compressor", texts, batch, bucket):
        pass


def _clock(run: Callable[[], None]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measures a run's model on a file of documents."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store",
        description=__doc__.split("\n", 1)[0],
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--base", help="the base model, if it is not where the run found it")
    parser.add_argument("--documents", required=True, help="file, as for --mode=compress")
    parser.add_argument("--batch", type=int, default=Store().batch)
    parser.add_argument("--bucket", type=int, default=Store().bucket)
    parser.add_argument("--sample", type=int, default=128, help="documents of a repeat, about")
    args = parser.parse_args(argv)
    if min(args.batch, args.bucket, args.sample) < 1:
        raise UserError("--batch, --bucket and --sample must be at least 1")
    model, trees = load_setup(args.workdir, args.base)
    rows = [row.ids for document in stream(args.documents) for row in pieces.rows(model, document)]
    print(measure(model, trees, rows, Store(batch=args.batch, bucket=args.bucket), args.sample))
    return 0


if __name__ == "__main__":
    sys.exit(main())
