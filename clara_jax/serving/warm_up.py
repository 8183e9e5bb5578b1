"""Texts to memories in few shapes, all of which are compiled at the start."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from clara_jax.data.prompts import FRAME
from clara_jax.inference import encode
from clara_jax.inference.generate import BUCKET, needed, put, to_host
from clara_jax.runs.setup import Setup
from clara_jax.serving.live_corpus import TOGETHER


def compress(setup: Setup, texts: Sequence[str]) -> encode.Compressed:
    """As `encode.compress`, in the shapes that are compiled at the start."""
    filled = [*texts, *[texts[-1]] * (-len(texts) % TOGETHER)]
    found = encode.compress(setup, filled, TOGETHER)
    return dataclasses.replace(found, memories=found.memories[: len(texts)])


def warm_up(setup: Setup) -> None:
    """Compiles what `compress` and `encode_query` run, for all lengths of texts."""
    reader = "compressor" if setup.trees.get("reasoner") is None else "reasoner"
    spread = setup.config.memory.positions == "spread"
    longest = setup.config.data.document_length + FRAME + len(setup.extra.memory)
    shapes = {(reader, 1), (reader, TOGETHER), ("compressor", TOGETHER)}
    for role, rows in sorted(shapes):
        for length in range(BUCKET, longest + BUCKET, BUCKET):
            tokens, positions, segments = np.zeros((3, rows, length), np.int32)
            arrays = [put(setup, x) for x in (tokens, positions, segments)]
            trees = needed(setup.trees, role)
            to_host(setup, encode.encode_rows(setup.decoder, role, spread, trees, *arrays))
