"""From sources to batches of fixed shape, with Grain.

source -> tokenise -> stream's share -> seeded shuffle -> repeat -> pack -> batch

A batch is a dict of int32 arrays; R rows, Te and Td tokens of the encoder's and the decoder's side:
    enc_tokens, enc_segments, enc_positions  [R, Te]
    dec_tokens, dec_segments, dec_positions  [R, Td]
    dec_targets [R, Td]  the token that each position must predict, -100 where there is no loss
    dec_slots   [R, Td]  position in the same row of enc_tokens of the memory token whose vector
                         fills this slot, -1 elsewhere
Segments count 1, 2, ... in a row and pair the two sides; 0 is padding. Positions restart at 0.

The iterator's `get_state` and `set_state` resume exactly: what is read ahead is never counted.
"""

import dataclasses
import functools
from typing import Any

import grain
import numpy as np
from absl import logging

from clara_jax.config import Config
from clara_jax.data import packing, prompts, sources
from clara_jax.data.packing import RowLengths
from clara_jax.data.tokenizer import Tokenizer
from clara_jax.errors import UserError
from clara_jax.models.config import ExtraTokens
from clara_jax.stages import STAGES

Batch = dict[str, np.ndarray]

SAMPLE = 1024  # records that are measured before training


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads and tokenises the record at a position; processes that prepare data get copies."""

    source: sources.Source
    tokenizer: Tokenizer
    extra: ExtraTokens
    config: Config
    decoder_row: int
    skipped: set[int] = dataclasses.field(default_factory=set)

    def example(self, index: int) -> prompts.Example | None:
        """The example, or None (and a warning, once) if its prompt leaves no label."""
        try:
            return prompts.scp_example(
                self.source[index],
                self.tokenizer,
                self.extra,
                self.config.prompts,
                document_length=self.config.data.document_length,
                decoder_row=self.decoder_row,
                seed=self.config.seed,
                index=index,
            )
        except prompts.NoLabelError as e:
            if index not in self.skipped:
                self.skipped.add(index)
                logging.warning("record skipped, number %d: %s", len(self.skipped), e)
            return None

    def __call__(self, index: int) -> Batch | None:
        """The arrays of the example that are packed."""
        example = self.example(index)
        if example is None:
            return None
        return {
            "enc": example.enc_tokens,
            "dec": example.dec_tokens,
            "targets": example.dec_targets,
        }


def finish_row(packed: dict[str, Any], *, extra: ExtraTokens) -> Batch:
    """Names the arrays of a packed row and points each slot at its memory token.

    The nth memory token of the encoder's side fills the nth slot of the decoder's side, for both
    hold the same examples in the same order.
    """
    enc, dec = packed["enc"], packed["dec"]
    enc_segments, dec_segments = packed["enc_segment_ids"], packed["dec_segment_ids"]
    is_slot = extra.is_memory(dec) & (dec_segments > 0)
    dec_slots = np.full_like(dec, -1)
    dec_slots[is_slot] = np.flatnonzero(extra.is_memory(enc) & (enc_segments > 0))
    return {
        "enc_tokens": enc,
        "enc_segments": enc_segments,
        "enc_positions": packed["enc_positions"],
        "dec_tokens": dec,
        "dec_segments": dec_segments,
        "dec_positions": packed["dec_positions"],
        "dec_targets": np.where(dec_segments > 0, packed["targets"], prompts.NO_LABEL).astype(
            np.int32
        ),
        "dec_slots": dec_slots,
    }


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


def open_data(config: Config) -> sources.Source:
    """The side `config.data.split` of the sources that the config names, or a part of it."""
    source = sources.open_sources(
        config.data.sources,
        split=config.data.split,
        holdout=config.data.holdout,
        tfds_dir=config.data.tfds_dir,
        form=form(config),
    )
    if not 0 < config.data.records < len(source):
        return source
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: config.data.records]
    return sources.Subset(source, np.sort(chosen))


def form(config: Config) -> str:
    """The form of records that the stage reads."""
    return STAGES[config.stage].records


def open_dev(config: Config) -> sources.Source:
    """What to evaluate on: all of `config.eval.sources`, or else the dev side of the training data.

    Raises:
        UserError: nothing was held out and no other source is named, or one cannot be opened.
    """
    if config.eval.sources:
        return sources.open_sources(
            config.eval.sources, tfds_dir=config.data.tfds_dir, form=form(config)
        )
    if not config.data.holdout:
        raise UserError(
            "nothing to evaluate on: name config.eval.sources, or train with config.data.holdout"
        )
    data = dataclasses.replace(config.data, split="dev", records=0)
    return open_data(dataclasses.replace(config, data=data))


def row_lengths(
    config: Config, tokenizer: Tokenizer, extra: ExtraTokens, source: sources.Source
) -> RowLengths:
    """The shapes of a row: those of the config, or measured where it says 0.

    The sample is the same on every host and for every seed. Logs what of it was cut or skipped.

    Raises:
        UserError: the encoder's row is too short for the longest possible document, or no prompt
            of the sample leaves room for an answer.
    """
    data = config.data
    smallest = data.document_length + prompts.FRAME + len(extra.memory)
    if 0 < data.encoder_row < smallest:
        raise UserError(
            f"config.data.encoder_row={data.encoder_row} is too short for a document of "
            f"config.data.document_length={data.document_length} tokens; "
            f"the smallest that fits is {smallest}"
        )
    decoder_row = data.decoder_row or packing.LONGEST
    reader = Reader(source, tokenizer, extra, config, decoder_row)
    order = np.random.default_rng(0).permutation(len(source))[:SAMPLE]
    examples = [e for e in map(reader.example, order.tolist()) if e is not None]
    if not examples:
        raise UserError(
            f"config.data.decoder_row={decoder_row}: no prompt of {len(order)} records leaves "
            "room for an answer; make the row longer or the rate higher"
        )
    measured = np.array([(len(e.enc_tokens), len(e.dec_tokens)) for e in examples])
    lengths = packing.choose(measured, data, smallest)
    logging.info(
        "data: of %d records, of which %d were looked at: %d skipped (the prompt fills the row), "
        "%d documents cut to %d tokens, %d answers cut to a row of %d",
        len(source),
        len(order),
        len(reader.skipped),
        sum(e.document_cut for e in examples),
        data.document_length,
        sum(e.answer_cut or len(e.dec_tokens) > lengths.decoder for e in examples),
        lengths.decoder,
    )
    return lengths


def make_dataset(
    config: Config,
    tokenizer: Tokenizer,
    extra: ExtraTokens,
    *,
    source: sources.Source,
    lengths: RowLengths,
    stream: int = 0,
    streams: int = 1,
) -> grain.IterDataset:
    """Rows of one stream's share of the source, one after the other, not yet batched.

    The instruction and all else about an example depend on its position in the source alone, so
    that neither the order nor the number of streams changes it.
    """
    data = config.data
    if len(source) < streams:
        raise UserError(f"{len(source)} records cannot be shared out to {streams} streams")
    examples = (
        grain.MapDataset.range(len(source))
        .slice(slice(stream, None, streams))
        .seed(config.seed)
        .shuffle()
        .repeat(data.epochs or None)
        .map(Reader(source, tokenizer, extra, config, lengths.decoder))
        .to_iter_dataset(packing.READ)
    )
    sides = {"enc": lengths.encoder, "dec": lengths.decoder, "targets": lengths.decoder}
    if data.pack:
        packed = grain.experimental.FirstFitPackIterDataset(
            examples,
            length_struct=sides,
            num_packing_bins=data.packing_bins,
            max_sequences_per_bin=data.row_examples,
            seed=config.seed,
        )
    else:
        packed = examples.map(functools.partial(pad_example, lengths=sides))
    return packed.map(functools.partial(finish_row, extra=extra))


def make_train_iterator(
    config: Config,
    tokenizer: Tokenizer,
    extra: ExtraTokens,
    *,
    source: sources.Source | None = None,
    lengths: RowLengths | None = None,
    stream: int = 0,
    streams: int = 1,
) -> grain.DatasetIterator:
    """Batches of one stream (data/streams.py): `config.train.batch_rows / streams` rows each.

    `source` and `lengths` are made by `open_data` and `row_lengths` unless they are given. Logs
    the padding of a sample of rows of the first stream.

    Raises:
        UserError: a source, a row length or the number of streams does not fit.
    """
    if source is None:
        source = open_data(config)
    if lengths is None:
        lengths = row_lengths(config, tokenizer, extra, source)
    dataset = make_dataset(
        config, tokenizer, extra, source=source, lengths=lengths, stream=stream, streams=streams
    )
    if stream == 0:
        logging.info("data: %r", source)
        logging.info("data: %s", packing.measure(dataset, config.data, extra))
    dataset = dataset.batch(config.train.batch_rows // streams, drop_remainder=True)
    return iter(packing.prefetch(dataset, config.data.workers))


def eval_batches(
    config: Config,
    tokenizer: Tokenizer,
    extra: ExtraTokens,
    *,
    source: sources.Source,
    lengths: RowLengths,
    batch_rows: int,
) -> list[Batch]:
    """Every record of a source once, in batches of one shape; the last is filled with padding.

    Args:
        config: its `epochs` and `split` are not looked at.
        tokenizer: of the base model.
        extra: ids beyond the vocabulary.
        source: records, see data/sources.py.
        lengths: of the rows, such as those of training.
        batch_rows: rows of a batch.
    """
    once = dataclasses.replace(config, data=dataclasses.replace(config.data, epochs=1))
    dataset = make_dataset(once, tokenizer, extra, source=source, lengths=lengths)
    all_rows = list(dataset)
    empty = {
        key: np.full_like(value, {"dec_targets": prompts.NO_LABEL, "dec_slots": -1}.get(key, 0))
        for key, value in all_rows[0].items()
    }
    all_rows += [empty] * (-len(all_rows) % batch_rows)
    return [
        {key: np.stack([row[key] for row in all_rows[i : i + batch_rows]]) for key in empty}
        for i in range(0, len(all_rows), batch_rows)
    ]
