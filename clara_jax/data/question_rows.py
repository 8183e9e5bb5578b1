"""Rows of the later stages: one question each, with its candidates, its prompt and its answer.

A batch is a dict of arrays; B questions, N candidates, and int32 where nothing else is said:
    doc_valid   [B, N]        1 at candidates, 0 at padding
    doc_gold    [B, N]        1 at those that hold the answer
    doc_teacher [B, N]        float32, a reranker's distribution over them; zero where unknown
    memories    [B, N, M, D]  what the compressor made of them; or else, to be compressed,
    enc_tokens, enc_segments, enc_positions  [B, G, T]  their texts, packed into G rows a question
    doc_first   [B, N]        position of the first memory token among the question's G * T
    qry_tokens, qry_segments, qry_positions  [B, T]  what the query reasoner reads
    dec_tokens, dec_segments, dec_positions, dec_targets  [B, T]  prompt and answer
    dec_slots   [B, T]        which of the K * M vectors of the documents chosen fills this slot
"""

import dataclasses
import random
from collections.abc import Sequence

import grain
import numpy as np
from absl import logging

from clara_jax.config import Config
from clara_jax.data import packing, prompts
from clara_jax.data.memories import MemoryFile
from clara_jax.data.prompts import FRAME
from clara_jax.data.records import QaRecord, digest
from clara_jax.data.sources import Source
from clara_jax.data.tokenizer import Tokenizer
from clara_jax.errors import UserError
from clara_jax.models.config import ExtraTokens
from clara_jax.stages import STAGES

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Lengths of a question's rows.

    Attributes:
        groups: rows of documents, G.
        encoder: tokens of each.
        query: tokens of the question by itself.
        decoder: tokens of prompt and answer.
    """

    groups: int
    encoder: int
    query: int
    decoder: int


def pick(record: QaRecord, most: int, shuffle: random.Random | None = None) -> list[int]:
    """Positions of the documents that are used: gold ones first, then the others in order.

    Args:
        record: the question.
        most: how many.
        shuffle: puts those that are used in random order; None: they keep the record's.
    """
    rest = [i for i in range(len(record.documents)) if i not in record.gold]
    chosen = sorted([*dict.fromkeys(record.gold), *rest][:most])
    if shuffle is not None:
        shuffle.shuffle(chosen)
    return chosen


def restrict(record: QaRecord, positions: Sequence[int]) -> QaRecord:
    """The record with its documents at these positions alone, in this order."""
    return dataclasses.replace(
        record,
        documents=tuple(record.documents[i] for i in positions),
        gold=tuple(n for n, i in enumerate(positions) if i in record.gold),
        teacher_scores=tuple(record.teacher_scores[i] for i in positions)
        if record.teacher_scores
        else (),
    )


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads and lays out the question at a position; processes that prepare data get copies.

    Attributes:
        source: records of the qa form.
        tokenizer: of the base model.
        extra: ids beyond the vocabulary.
        config: of the run; its stage says what is laid out.
        shapes: of the rows.
        memories: of all documents of the source; None: they are compressed in the step.
        answers: to train on in place of the records' own, by position.
    """

    source: Source
    tokenizer: Tokenizer
    extra: ExtraTokens
    config: Config
    shapes: Shapes
    memories: MemoryFile | None = None
    answers: Sequence[str] | None = None
    skipped: set[int] = dataclasses.field(default_factory=set)
    cut: dict[str, int] = dataclasses.field(default_factory=dict)

    def picked(self, index: int) -> QaRecord:
        """The record at a position with the documents that are used alone."""
        record, shuffle = self.source[index], None
        if STAGES[self.config.stage].instructs:  # so that the gold document is not always the first
            shuffle = random.Random(f"{self.config.seed} {index}")
        return restrict(record, pick(record, self.config.places, shuffle))

    def document_ids(self, document: str) -> list[int]:
        """The compressor's input for a document."""
        length = self.config.data.document_length
        return prompts.document_ids(self.tokenizer, self.extra, document, length)[0]

    def query_ids(self, question: str, row: int) -> list[int]:
        """The reasoner's input for a question: laid out as a document, in a row of `row` tokens."""
        length = min(row - FRAME - len(self.extra.memory), self.config.data.document_length)
        ids, is_cut = prompts.document_ids(self.tokenizer, self.extra, question, length)
        if is_cut:
            self._count("questions were longer than their row and cut")
        return ids

    def dialogue(self, index: int, record: QaRecord) -> tuple[list[int], int]:
        """Ids of prompt and answer, and where the answer starts."""
        answer = record.answers[0] if self.answers is None else self.answers[index]
        slots = prompts.slots(self.extra, min(self.config.select.k, len(record.documents)))
        return prompts.answer_prompt(
            self.tokenizer, self.config.prompts, slots, record.question, answer
        )

    def __call__(self, index: int) -> Batch | None:
        """One row, without the batch's axis; None (and a warning, once) if no label is left."""
        sides, record = STAGES[self.config.stage].sides, self.picked(index)
        out: Batch = {}
        if self.memories is not None:
            found = np.stack([self.memories[digest(d)] for d in record.documents])
            out["memories"] = np.zeros((self.config.places, *found.shape[1:]), found.dtype)
            out["memories"][: len(found)] = found
        else:
            record = self._pack(record, out)
        if "qry" in sides:
            _row("qry", self.query_ids(record.question, self.shapes.query), self.shapes.query, out)
        if "dec" in sides:
            whole, start = self.dialogue(index, record)
            if start >= self.shapes.decoder:
                self._skip(index, record.origin, start)
                return None
            _row("dec", whole[: self.shapes.decoder], self.shapes.decoder, out)
            self._labels(start, out)
        valid, gold = np.zeros((2, self.config.places), np.int32)
        valid[: len(record.documents)], gold[list(record.gold)] = 1, 1
        teacher = np.zeros(self.config.places, np.float32)
        if record.teacher_scores:
            scores = np.array(record.teacher_scores) / self.config.select.teacher_temperature
            odds = np.exp(scores - scores.max())
            teacher[: len(scores)] = odds / odds.sum()
        return out | {"doc_valid": valid, "doc_gold": gold, "doc_teacher": teacher}

    def _pack(self, record: QaRecord, out: Batch) -> QaRecord:
        """Adds the documents' texts; gives the record with those that fit into the rows."""
        shape = (self.shapes.groups, self.shapes.encoder)
        tokens, segments, positions = np.zeros((3, *shape), np.int32)
        used, last = np.zeros(shape[0], int), {}
        encoded = [self.document_ids(document) for document in record.documents]
        # Gold ones first, then longest first, which wastes least; what fits nowhere is left out.
        order = range(len(encoded))
        for n in sorted(order, key=lambda n: (n not in record.gold, -len(encoded[n]))):
            fits = np.flatnonzero(used + len(encoded[n]) <= shape[1])
            if len(fits):
                row = int(fits[0])
                place = slice(used[row], used[row] + len(encoded[n]))
                tokens[row, place] = encoded[n]
                positions[row, place] = np.arange(len(encoded[n]))
                segments[row, place] = segments[row].max() + 1
                used[row] = place.stop
                last[n] = row * shape[1] + place.stop
        kept = sorted(last)
        if len(kept) < len(encoded):
            self._count("questions lost documents, which did not fit into their rows")
        first = np.zeros(self.config.places, np.int32)
        first[: len(kept)] = [last[n] - len(self.extra.memory) for n in kept]
        out |= {"enc_tokens": tokens, "enc_segments": segments, "enc_positions": positions}
        out["doc_first"] = first
        return restrict(record, kept)

    def _labels(self, start: int, out: Batch) -> None:
        tokens = out["dec_tokens"]
        targets = np.full_like(tokens, prompts.NO_LABEL)
        targets[start - 1 : -1] = tokens[start:]
        targets[:-1][out["dec_segments"][1:] == 0] = prompts.NO_LABEL
        slots = np.full_like(tokens, -1)
        places = np.flatnonzero(self.extra.is_memory(tokens))
        slots[places] = np.arange(len(places))
        out |= {"dec_targets": targets, "dec_slots": slots}

    def _count(self, what: str) -> None:
        """Warns of what happens to some records, at the first and then ever more rarely."""
        self.cut[what] = self.cut.get(what, 0) + 1
        if self.cut[what] in (1, 10, 100, 1000, 10000):
            logging.warning("so far %d %s", self.cut[what], what)

    def _skip(self, index: int, origin: str, start: int) -> None:
        if index not in self.skipped:
            self.skipped.add(index)
            logging.warning(
                "record skipped, number %d: %s: the prompt has %d tokens and leaves no label in a "
                "row of %d; set config.data.decoder_row to %d or more",
                len(self.skipped), origin, start, self.shapes.decoder, start + 1,
            )  # fmt: skip


def _row(side: str, ids: Sequence[int], length: int, out: Batch) -> None:
    tokens, segments, positions = np.zeros((3, length), np.int32)
    tokens[: len(ids)], segments[: len(ids)], positions[: len(ids)] = ids, 1, np.arange(len(ids))
    out |= {f"{side}_tokens": tokens, f"{side}_segments": segments, f"{side}_positions": positions}


def make_train_iterator(
    reader: Reader, batch_rows: int, *, stream: int = 0, streams: int = 1
) -> grain.DatasetIterator:
    """Shuffled batches of one stream (data/streams.py), `batch_rows / streams` questions each.

    Raises:
        UserError: there are fewer records than streams.
    """
    config, source = reader.config, reader.source
    if len(source) < streams:
        raise UserError(f"{len(source)} records cannot be shared out to {streams} streams")
    return iter(
        packing.prefetch(
            grain.MapDataset.range(len(source))
            .slice(slice(stream, None, streams))
            .seed(config.seed)
            .shuffle()
            .repeat(config.data.epochs or None)
            .map(reader)
            .to_iter_dataset(packing.READ)
            .batch(batch_rows // streams, drop_remainder=True),
            config.data.workers,
        )
    )


def eval_batches(reader: Reader, batch_rows: int) -> list[Batch]:
    """Every question once; the last batch is filled with rows that carry no label."""
    laid = [row for row in map(reader, range(len(reader.source))) if row is not None]
    empty = {key: np.zeros_like(value) for key, value in laid[0].items()}
    for key in ("dec_targets", "dec_slots"):
        if key in empty:
            empty[key] -= {"dec_targets": -prompts.NO_LABEL, "dec_slots": 1}[key]
    laid += [empty] * (-len(laid) % batch_rows)
    return [
        {key: np.stack([row[key] for row in laid[i : i + batch_rows]]) for key in empty}
        for i in range(0, len(laid), batch_rows)
    ]
