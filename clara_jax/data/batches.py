"""What a batch holds: every key with its axes, and batches of documents for the encoder.

Sides of a batch: `enc`, what the compressor reads; `qry`, the question by itself, which the
reasoner reads; `dec`, prompt and answer, which the generator reads. Segments count 1, 2, ... in a
row, and 0 is padding; positions restart at 0 in each. Letters: B rows (questions after scp), S
documents of a row, N candidates, M memory vectors, D model width, G rows of documents a question;
`enc`, `qry` and `dec` are the tokens of a row of that side.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from clara_jax.data.prompts import NO_LABEL, TextLayout
from clara_jax.stages import Stage

Batch = dict[str, np.ndarray]


class Key(NamedTuple):
    """An array of a batch."""

    axes: tuple[str, ...]  # names of its axes
    dtype: str = "int32"  # its own; empty: that of the model's activations
    padding: int = 0  # what a row that only fills a batch holds


def _side(side: str, *axes: str) -> dict[str, Key]:
    """Ids, segments and positions of one side."""
    return {f"{side}_{name}": Key((*axes, side)) for name in ("tokens", "segments", "positions")}


BATCH: dict[str, dict[str, Key]] = {
    # scp: documents packed as their prompts are, in the same order, of which some have none. Where
    # the states of each document's memory vectors are; and 1 at documents.
    "packed": _side("enc", "B")
    | {"doc_places": Key(("B", "S", "M")), "doc_valid": Key(("B", "S"))},
    # Later stages: the candidates' texts in G rows a question, and their memory vectors' places
    # among the question's G * enc tokens.
    "documents": _side("enc", "B", "G") | {"doc_places": Key(("B", "N", "M"))},
    # Or what the compressor made of them.
    "memories": {"memories": Key(("B", "N", "M", "D"), "")},
    # 1 at candidates; 1 at those that hold the answer; a reranker's distribution over them, zero
    # where it is unknown.
    "candidates": {
        "doc_valid": Key(("B", "N")),
        "doc_gold": Key(("B", "N")),
        "doc_teacher": Key(("B", "N"), "float32"),
    },
    "qry": _side("qry", "B") | {"qry_places": Key(("B", "M"))},
    # The token that each position must predict. Which vector fills a slot: one of the S * P of the
    # row's documents, later of the K * P of those that were chosen; P are those at all rates.
    "dec": _side("dec", "B")
    | {
        "dec_targets": Key(("B", "dec"), padding=NO_LABEL),
        "dec_slots": Key(("B", "dec"), padding=-1),
    },
}
_KEYS = {name: key for part in BATCH.values() for name, key in part.items()}


def keys(stage: Stage, memories: bool) -> dict[str, Key]:
    """The keys of a stage's batches.

    Args:
        stage: the stage.
        memories: whether candidates' memories are given, instead of their texts.
    """
    if stage.records == "scp":
        parts = ["packed", *stage.sides]
    else:
        documents = "memories" if memories and stage.ranks else "documents"
        parts = [documents, "candidates", *stage.sides]
    return {name: key for part in parts for name, key in BATCH[part].items()}


def shapes(
    stage: Stage, sizes: Mapping[str, int], memories: str = ""
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array of a stage's batches.

    Args:
        stage: the stage.
        sizes: of the axes.
        memories: dtype of the candidates' memories, where these are given instead of texts.
    """
    return {
        name: (tuple(sizes[axis] for axis in key.axes), key.dtype or memories)
        for name, key in keys(stage, bool(memories)).items()
    }


def whole_batches(rows: list[Batch], batch_rows: int) -> list[Batch]:
    """All rows in batches of one shape; the last one is filled with padding."""
    empty = {key: np.full_like(value, _KEYS[key].padding) for key, value in rows[0].items()}
    rows = rows + [empty] * (-len(rows) % batch_rows)
    return [
        {key: np.stack([row[key] for row in rows[start : start + batch_rows]]) for key in empty}
        for start in range(0, len(rows), batch_rows)
    ]


@dataclasses.dataclass(frozen=True)
class EncoderBatch:
    """One document a row, int32."""

    tokens: np.ndarray  # [B, T]
    # [B, T], 1 at a document's tokens and 0 at padding, which fills whole rows at the end of the
    # last batch
    segments: np.ndarray
    positions: np.ndarray  # [B, T]
    places: np.ndarray  # [B, M], where the memory vectors are
    index: np.ndarray  # [n <= B], which document each of the first n rows holds


def encoder_batches(
    layout: TextLayout, documents: Sequence[Sequence[int]], batch: int, bucket: int = 64
) -> list[EncoderBatch]:
    """Batches of documents of similar length, for compressing without training.

    Args:
        layout: of the texts.
        documents: ids of each (`TextLayout.document_ids`).
        batch: documents of a batch; the last one is filled with padding.
        bucket: lengths are rounded up to a multiple of it, so that few shapes occur.
    """
    by_length = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    batches = []
    for start in range(0, len(by_length), batch):
        index = by_length[start : start + batch]
        length = -(-len(documents[index[-1]]) // bucket) * bucket
        tokens, segments = np.zeros((2, batch, length), np.int32)
        places = np.zeros((batch, layout.extra.memory_tokens), np.int32)
        for row, i in enumerate(index):
            tokens[row, : len(documents[i])] = documents[i]
            segments[row, : len(documents[i])] = 1
            places[row] = layout.places(len(documents[i]))
        positions = np.arange(length, dtype=np.int32) * segments
        batches.append(EncoderBatch(tokens, segments, positions, places, np.array(index, np.int32)))
    return batches
