"""Batches of documents for the encoder."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class EncoderBatch:
    """One document a row, int32.

    Attributes:
        tokens: [B, T].
        segments: [B, T], 1 at a document's tokens and 0 at padding, which fills whole rows at the
            end of the last batch.
        positions: [B, T].
        index: [n <= B], which document each of the first n rows holds.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    index: np.ndarray


def encoder_batches(
    documents: Sequence[Sequence[int]], batch: int, bucket: int = 64
) -> list[EncoderBatch]:
    """Batches of documents of like length, for compressing without training.

    Args:
        documents: ids of each (data/prompts.py, `document_ids`).
        batch: documents of a batch; the last one is filled with padding.
        bucket: lengths are rounded up to a multiple of it, so that few shapes occur.
    """
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    batches = []
    for start in range(0, len(by_length), batch):
        index = by_length[start : start + batch]
        length = -(-len(documents[index[-1]]) // bucket) * bucket
        tokens, segments = np.zeros((2, batch, length), np.int32)
        for row, i in enumerate(index):
            tokens[row, : len(documents[i])] = documents[i]
            segments[row, : len(documents[i])] = 1
        positions = np.arange(length, dtype=np.int32) * segments
        batches.append(EncoderBatch(tokens, segments, positions, np.array(index, np.int32)))
    return batches
