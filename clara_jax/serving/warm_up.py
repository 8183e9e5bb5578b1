"""Texts to memories in few shapes, all of which are compiled at the start."""

import dataclasses
from collections.abc import Callable, Sequence

from clara_jax.inference import encode
from clara_jax.inference.generate import BUCKET
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model
from clara_jax.serving.live_corpus import TOGETHER


def compress(
    model: Model,
    trees: Trees,
    texts: Sequence[str],
    report: Callable[[int], None] = lambda documents: None,
) -> encode.Compressed:
    """As `encode.compress`, in the shapes that are compiled at the start."""
    filled = [*texts, *[texts[-1]] * (-len(texts) % TOGETHER)]
    compressed = encode.compress(model, trees, filled, TOGETHER, report)
    return dataclasses.replace(compressed, memories=compressed.memories[: len(texts)])


def warm_up(model: Model, trees: Trees) -> None:
    """Compiles what `compress` and `encode_query` run, for all lengths of texts."""
    reader = "compressor" if trees.get("reasoner") is None else "reasoner"
    longest = model.layout.longest
    lengths = range(BUCKET, longest + BUCKET, BUCKET)
    for role, rows in sorted({(reader, 1), (reader, TOGETHER), ("compressor", TOGETHER)}):
        documents = [[0] * length for length in lengths for _ in range(rows)]
        for _ in encode.encode_batches(model, trees, role, documents, rows, BUCKET):
            pass
