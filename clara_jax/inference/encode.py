"""Texts to memory vectors: documents by the compressor, questions by the query reasoner."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clara_jax.data.batches import encoder_batches
from clara_jax.data.prompts import FRAME
from clara_jax.inference import checks
from clara_jax.inference.generate import needed, put, rows_for, to_host
from clara_jax.models import clara
from clara_jax.models.clara import MemoryLayout, Trees
from clara_jax.models.decoder import Decoder
from clara_jax.runs.setup import Model


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Texts as memories."""

    memories: np.ndarray  # float32 [n, M, D]
    cut: int  # texts that were longer than the limit
    rate: float  # tokens of text that were read, over memory vectors


def compress(
    model: Model,
    trees: Trees,
    documents: Sequence[str],
    batch: int = 16,
    report: Callable[[int], None] = lambda documents: None,
) -> Compressed:
    """Compresses documents in batches of similar length.

    Args:
        model: the model.
        trees: its weights.
        documents: texts.
        batch: documents at once.
        report: called with the number of documents finished after each batch.

    Raises:
        UserError: not a list of texts.
    """
    return _encode(model, trees, "compressor", "documents", documents, batch, report)


def encode_query(
    model: Model, trees: Trees, questions: Sequence[str], batch: int = 16
) -> np.ndarray:
    """Memory vectors float32 [n, M, D] of questions, which are laid out like documents.

    Where the model has no query reasoner yet (after scp or instruct) the compressor serves, of
    which the reasoner is a copy at the start of e2e.

    Raises:
        UserError: not a list of texts.
    """
    role = "compressor" if trees.get("reasoner") is None else "reasoner"
    return _encode(
        model, trees, role, "questions", questions, batch, lambda questions: None
    ).memories


def _encode(
    model: Model,
    trees: Trees,
    role: str,
    what: str,
    texts: Sequence[str],
    batch: int,
    report: Callable[[int], None],
) -> Compressed:
    """Reads texts with the adapter of `role`; `what` is their name in messages."""
    texts = checks.texts(what, texts)
    length = model.config.data.document_length
    M = model.extra.memory_tokens
    encoded = [model.layout.document_ids(text) for text in texts]
    memories = np.zeros((len(encoded), M, model.architecture.d_model), np.float32)
    rows = rows_for(len(encoded), batch)
    for index, memories_nMD in encode_batches(
        model, trees, role, [ids for ids, _ in encoded], rows
    ):
        memories[index] = memories_nMD
        report(len(index))
    cut = sum(is_cut for _, is_cut in encoded)
    if cut:
        logging.warning("%d of %d %s cut to %d tokens", cut, len(encoded), what, length)
    read = sum(len(ids) - len(model.layout.tail) - FRAME for ids, _ in encoded)
    return Compressed(memories, cut, read / max(M * len(encoded), 1))


def encode_batches(
    model: Model,
    trees: Trees,
    role: str,
    documents: Sequence[Sequence[int]],
    rows: int,
    bucket: int = 64,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Memories of documents in batches of similar length.

    Args:
        model: the model.
        trees: its weights.
        role: whose adapter reads them.
        documents: ids of each (`TextLayout.document_ids`).
        rows: documents of a batch.
        bucket: lengths are rounded up to a multiple of it.

    Yields:
        Positions int32 [n <= rows] among the documents, and their memories float32 [n, M, D]. All
        processes get all of them.
    """
    trees, waiting = needed(trees, role), None

    def fetched(index: np.ndarray, memories_BMD: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        return index, to_host(model, memories_BMD)[: len(index)]

    for batch in encoder_batches(model.layout, documents, rows, bucket):
        parts = batch.tokens, batch.positions, batch.segments, batch.places
        arrays = [put(model, x) for x in parts]
        begun = batch.index, encode_rows(model.decoder, role, model.memory, trees, *arrays)
        if waiting is not None:  # while the devices work on the next batch
            yield fetched(*waiting)
        waiting = begun
    if waiting is not None:
        yield fetched(*waiting)


@functools.partial(jax.jit, static_argnames=("decoder", "role", "layout"))
def encode_rows(
    decoder: Decoder,
    role: str,
    layout: MemoryLayout,
    trees: Trees,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    places_BM: jax.Array,
) -> jax.Array:
    """Memory vectors float32 [B, M, D] of rows that hold one document each; see `clara.encode`."""
    row = tokens_BT, positions_BT, segments_BT
    hidden_BTD = clara.encode(decoder, trees, *row, layout, role)
    return clara.memories(trees, hidden_BTD, places_BM[:, None])[:, 0].astype(jnp.float32)
