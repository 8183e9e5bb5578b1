"""Rows of the later stages: one question each, with its candidates, its prompt and its answer.

What a batch holds is said in `batches.BATCH`.
"""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from clara_jax.data import packing
from clara_jax.data.batches import Batch, whole_batches
from clara_jax.data.memories import MemoryFile
from clara_jax.data.prompts import NO_LABEL, NoLabelError, Turns
from clara_jax.data.reader import Reader, restrict
from clara_jax.data.records import QaRecord, digest
from clara_jax.data.scp_rows import shuffled
from clara_jax.stages import STAGES


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Lengths of a question's rows."""

    groups: int  # rows of documents, G
    encoder: int  # tokens of each
    query: int  # tokens of the question by itself
    decoder: int  # tokens of prompt and answer


@dataclasses.dataclass(frozen=True)
class QuestionRows:
    """Lays out the question at a position; processes that prepare data get copies."""

    reader: Reader  # of the records
    shapes: Shapes  # of the rows
    # of all documents of the source; None: they are compressed in the step
    memories: MemoryFile | None = None

    def __call__(self, index: int) -> Batch | None:
        """One row, without the batch's axis; None (and a warning, once) if no label is left."""
        reader, shapes, select = self.reader, self.shapes, self.reader.config.select
        sides, places = STAGES[reader.config.stage].sides, reader.config.places
        record, row = reader.picked(index), {}
        if self.memories is not None:
            vectors = np.stack([self.memories[digest(d)] for d in record.documents])
            row["memories"] = np.zeros((places, *vectors.shape[1:]), vectors.dtype)
            row["memories"][: len(vectors)] = vectors
        else:
            record = self._pack(record, row)
        if "qry" in sides:
            row |= self._query(record.question)
        if "dec" in sides:
            dialogues = reader.dialogues(index, record)
            try:
                turns = reader.layout.turns(dialogues, shapes.decoder, record.origin)
            except NoLabelError as e:
                reader.skip(index, str(e))
                return None
            row |= _decoder_side(turns, shapes.decoder)
        valid, gold = np.zeros((2, places), np.int32)
        valid[: len(record.documents)], gold[list(record.gold)] = 1, 1
        teacher = np.zeros(places, np.float32)
        if record.teacher_scores:
            scores = np.array(record.teacher_scores) / select.teacher_temperature
            odds = np.exp(scores - scores.max())
            teacher[: len(scores)] = odds / odds.sum()
        return row | {"doc_valid": valid, "doc_gold": gold, "doc_teacher": teacher}

    def _pack(self, record: QaRecord, row: Batch) -> QaRecord:
        """Adds the documents' texts; gives the record with those that fit into the rows."""
        reader, shape = self.reader, (self.shapes.groups, self.shapes.encoder)
        tokens, segments, positions = np.zeros((3, *shape), np.int32)
        used, first = np.zeros(shape[0], int), {}
        encoded = [reader.layout.document_ids(document)[0] for document in record.documents]
        # Gold ones first, then longest first, which wastes least; what fits nowhere is left out.
        order = range(len(encoded))
        for n in sorted(order, key=lambda n: (n not in record.gold, -len(encoded[n]))):
            fits = np.flatnonzero(used + len(encoded[n]) <= shape[1])
            if len(fits):
                group = int(fits[0])
                place = slice(used[group], used[group] + len(encoded[n]))
                tokens[group, place] = encoded[n]
                positions[group, place] = np.arange(len(encoded[n]))
                segments[group, place] = segments[group].max() + 1
                used[group] = place.stop
                first[n] = group * shape[1] + place.start
        kept = sorted(first)
        if len(kept) < len(encoded):
            reader.count("questions lost documents, which did not fit into their rows")
        places = np.zeros((reader.config.places, reader.layout.extra.memory_tokens), np.int32)
        for place, n in enumerate(kept):
            places[place] = first[n] + reader.layout.places(len(encoded[n]))
        row |= {"enc_tokens": tokens, "enc_segments": segments, "enc_positions": positions}
        row["doc_places"] = places
        return restrict(record, kept)

    def _query(self, question: str) -> Batch:
        """The question by itself, as the reasoner reads it."""
        length = self.shapes.query
        ids = self.reader.query_ids(question, length)
        return {
            "qry_tokens": _padded(ids, length),
            "qry_segments": _padded(np.ones_like(ids), length),
            "qry_positions": _padded(np.arange(len(ids)), length),
            "qry_places": self.reader.layout.places(len(ids)),
        }


def _decoder_side(turns: Turns, length: int) -> Batch:
    columns = {
        "tokens": (turns.tokens, 0),
        "segments": (turns.parts + 1, 0),
        "positions": (turns.positions, 0),
        "targets": (turns.targets, NO_LABEL),
        "slots": (turns.slots, -1),
    }
    return {f"dec_{name}": _padded(ids, length, fill) for name, (ids, fill) in columns.items()}


def _padded(ids: Sequence[int] | np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    row = np.full(length, fill, np.int32)
    row[: len(ids)] = ids
    return row


def make_train_iterator(
    rows: QuestionRows, *, stream: int = 0, streams: int = 1
) -> grain.DatasetIterator:
    """Shuffled batches of one stream: `config.train.batch_rows / streams` questions each.

    Raises:
        UserError: there are fewer records than streams.
    """
    config = rows.reader.config
    dataset = shuffled(rows.reader, stream, streams).map(rows).to_iter_dataset(packing.READ)
    dataset = dataset.batch(config.train.batch_rows // streams, drop_remainder=True)
    return iter(packing.prefetch(dataset, config.data.workers))


def eval_batches(rows: QuestionRows, batch_rows: int) -> list[Batch]:
    """Every question once; the last batch is filled with rows that carry no label."""
    laid_out = map(rows, range(len(rows.reader.source)))
    return whole_batches([row for row in laid_out if row is not None], batch_rows)
