"""Rows of the first stage, from sources to batches of fixed shape, with Grain.

source -> tokenise -> stream's share -> seeded shuffle -> repeat -> pack -> batch

What a batch holds is said in `batches.BATCH`. The iterator's `get_state` and `set_state` resume
exactly: what is read ahead is never counted.
"""

import dataclasses
import functools
from typing import Any

import grain
import numpy as np
from absl import logging

from clara_jax.config import Config, with_options
from clara_jax.data import packing, prompts, sources
from clara_jax.data.batches import Batch, whole_batches
from clara_jax.data.packing import RowLengths
from clara_jax.data.prompts import TextLayout
from clara_jax.data.reader import Reader
from clara_jax.errors import UserError
from clara_jax.stages import STAGES

SAMPLE = 1024  # records that are measured before training
_DECODER = ("tokens", "targets", "positions", "parts", "slots")  # of `Turns`, packed alike


def open_data(config: Config) -> sources.Source[Any]:
    """The side `config.data.split` of the sources that the config names, or a part of it."""
    source = sources.open_sources(
        config.data.sources,
        split=config.data.split,
        holdout=config.data.holdout,
        tfds_dir=config.data.tfds_dir,
        form=STAGES[config.stage].records,
    )
    if not 0 < config.data.records < len(source):
        return source
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: config.data.records]
    return sources.Subset(source, np.sort(chosen))


def open_dev(config: Config) -> sources.Source[Any]:
    """What to evaluate on: all of `config.eval.sources`, or else the dev side of the training data.

    Raises:
        UserError: nothing was held out and no other source is named, or one cannot be opened.
    """
    if config.eval.sources:
        return sources.open_sources(
            config.eval.sources, tfds_dir=config.data.tfds_dir, form=STAGES[config.stage].records
        )
    if not config.data.holdout:
        raise UserError(
            "nothing to evaluate on: name config.eval.sources, or train with config.data.holdout"
        )
    return open_data(with_options(config, {"data.split": "dev", "data.records": 0}))


def row_lengths(reader: Reader) -> RowLengths:
    """The shapes of a row: those of the config, or measured where it says 0.

    The sample is the same on every host and for every seed. Logs what of it was cut or skipped.

    Raises:
        UserError: the encoder's row is too short for the longest possible document, or no prompt
            of the sample leaves room for an answer.
    """
    data, source = reader.config.data, reader.source
    smallest = packing.smallest_row(data, reader.layout)
    decoder_row = data.decoder_row or packing.LONGEST
    measuring = reader.measuring()
    order = np.random.default_rng(0).permutation(len(source))[:SAMPLE].tolist()
    examples = [e for e in (measuring.example(i, decoder_row) for i in order) if e is not None]
    if not examples:
        raise UserError(
            f"config.data.decoder_row={decoder_row}: no prompt of {len(order)} records leaves "
            "room for an answer; make the row longer or the rate higher"
        )
    measured = np.array([(len(e.enc_tokens), len(e.turns.tokens)) for e in examples])
    lengths = packing.choose(measured, data, smallest)
    logging.info(
        "data: of %d records, of which %d were looked at: %d skipped (the prompt fills the row), "
        "%d documents cut to %d tokens, %d answers cut to a row of %d",
        len(source),
        len(order),
        measuring.skipped,
        sum(e.document_cut for e in examples),
        data.document_length,
        sum(e.turns.cut or len(e.turns.tokens) > lengths.decoder for e in examples),
        lengths.decoder,
    )
    return lengths


def make_dataset(
    reader: Reader, lengths: RowLengths, *, stream: int = 0, streams: int = 1
) -> grain.IterDataset:
    """Rows of one stream's share of the source, one after the other, not yet batched.

    The instruction and all else about an example depend on its position in the source alone, so
    that neither the order nor the number of streams changes it.
    """
    data = reader.config.data
    examples = shuffled(reader, stream, streams).map(
        functools.partial(_sides, reader=reader, decoder_row=lengths.decoder)
    )
    examples = examples.to_iter_dataset(packing.READ)
    sides = {"enc": lengths.encoder} | dict.fromkeys(_DECODER, lengths.decoder)
    if data.pack:
        packed = grain.experimental.FirstFitPackIterDataset(
            examples,
            length_struct=sides,
            num_packing_bins=data.packing_bins,
            max_sequences_per_bin=data.row_examples,
            seed=reader.config.seed,
        )
    else:
        packed = examples.map(functools.partial(pad_example, lengths=sides))
    return packed.map(functools.partial(finish_row, layout=reader.layout, most=data.row_examples))


def shuffled(reader: Reader, stream: int, streams: int) -> grain.MapDataset:
    """Positions of one stream's share of the records (data/streams.py), in seeded random order.

    Raises:
        UserError: there are fewer records than streams.
    """
    count = len(reader.source)
    if count < streams:
        raise UserError(f"{count} records cannot be shared out to {streams} streams")
    return (
        grain.MapDataset.range(count)
        .slice(slice(stream, None, streams))
        .seed(reader.config.seed)
        .shuffle()
        .repeat(reader.config.data.epochs or None)
    )


def make_train_iterator(
    reader: Reader, lengths: RowLengths, *, stream: int = 0, streams: int = 1
) -> grain.DatasetIterator:
    """Batches of one stream (data/streams.py): `config.train.batch_rows / streams` rows each.

    Logs the padding of a sample of rows of the first stream.

    Raises:
        UserError: there are fewer records than streams.
    """
    config = reader.config
    dataset = make_dataset(reader, lengths, stream=stream, streams=streams)
    if stream == 0:
        logging.info("data: %r", reader.source)
        logging.info("data: %s", packing.measure(dataset, config.data, reader.layout))
    dataset = dataset.batch(config.train.batch_rows // streams, drop_remainder=True)
    return iter(packing.prefetch(dataset, config.data.workers))


def eval_batches(reader: Reader, lengths: RowLengths, batch_rows: int) -> list[Batch]:
    """Every record once, in batches of one shape; the last is filled with padding.

    Args:
        reader: of the records; its config's `epochs` and `split` are not looked at.
        lengths: of the rows, such as those of training.
        batch_rows: rows of a batch.
    """
    once = dataclasses.replace(reader, config=with_options(reader.config, {"data.epochs": 1}))
    return whole_batches(list(make_dataset(once, lengths)), batch_rows)


def _sides(index: int, *, reader: Reader, decoder_row: int) -> Batch | None:
    """The arrays of an example that are packed."""
    example = reader.example(index, decoder_row)
    if example is None:
        return None
    return {"enc": example.enc_tokens} | {k: getattr(example.turns, k) for k in _DECODER}


def finish_row(packed: dict[str, Any], *, layout: TextLayout, most: int) -> Batch:
    """Names the arrays of a packed row, and says where its documents' memory vectors are.

    Both sides hold the same examples in the same order: the document of the nth fills slots of the
    nth alone.

    Args:
        packed: arrays of each side, with Grain's segments and positions.
        layout: of the texts.
        most: examples in a row, at most.
    """
    tokens, segments = packed["enc"], packed["enc_segment_ids"]
    row = {"enc_tokens": tokens, "enc_segments": segments}
    row["enc_positions"] = packed["enc_positions"]
    row["doc_places"] = np.zeros((most, layout.extra.memory_tokens), np.int32)
    row["doc_valid"] = np.zeros(most, np.int32)
    for segment in np.unique(segments[segments > 0]):
        (of_document,) = np.nonzero(segments == segment)
        row["doc_places"][segment - 1] = of_document[0] + layout.places(len(of_document))
        row["doc_valid"][segment - 1] = 1
    example, rates = packed["tokens_segment_ids"], len(layout.vectors)
    is_real = example > 0
    row["dec_tokens"] = packed["tokens"]
    row["dec_segments"] = np.where(is_real, (example - 1) * rates + packed["parts"] + 1, 0)
    row["dec_positions"] = packed["positions"]
    row["dec_targets"] = np.where(is_real, packed["targets"], prompts.NO_LABEL)
    filled = is_real & (packed["slots"] >= 0)
    slots = (example - 1) * sum(layout.vectors) + packed["slots"]
    row["dec_slots"] = np.where(filled, slots, -1)
    return {name: array.astype(np.int32) for name, array in row.items()}


def pad_example(example: Batch, *, lengths: dict[str, int]) -> dict[str, Any]:
    """One example as a packed row by itself."""
    packed = {}
    for name, tokens in example.items():
        padding = lengths[name] - len(tokens)
        positions = np.arange(len(tokens), dtype=np.int32)
        packed[name] = np.pad(tokens, (0, padding))
        packed[f"{name}_segment_ids"] = np.pad(np.ones_like(tokens), (0, padding))
        packed[f"{name}_positions"] = np.pad(positions, (0, padding))
    return packed
