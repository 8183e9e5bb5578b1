"""Texts to memories in few shapes, all of which are compiled at the start."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clara_jax.data.prompts import FRAME
from clara_jax.inference import encode
from clara_jax.inference.generate import BUCKET, needed, put, to_host
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model
from clara_jax.serving.live_corpus import TOGETHER


def compress(model: Model, trees: Trees, texts: Sequence[str]) -> encode.Compressed:
    """As `encode.compress`, in the shapes that are compiled at the start."""
    filled = [*texts, *[texts[-1]] * (-len(texts) % TOGETHER)]
    found = encode.compress(model, trees, filled, TOGETHER)
    return dataclasses.replace(found, memories=found.memories[: len(texts)])


def warm_up(model: Model, trees: Trees) -> None:
    """Compiles what `compress` and `encode_query` run, for all lengths of texts."""
    reader = "compressor" if trees.get("reasoner") is None else "reasoner"
    spread = model.config.memory.positions == "spread"
    longest = model.config.data.document_length + FRAME + len(model.extra.memory)
    shapes = {(reader, 1), (reader, TOGETHER), ("compressor", TOGETHER)}
    for role, rows in sorted(shapes):
        for length in range(BUCKET, longest + BUCKET, BUCKET):
            tokens, positions, segments = np.zeros((3, rows, length), np.int32)
            arrays = [put(model, x) for x in (tokens, positions, segments)]
            read = needed(trees, role)
            to_host(model, encode.encode_rows(model.decoder, role, spread, read, *arrays))
