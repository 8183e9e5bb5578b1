"""Records read and tokenised, for both forms of them."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from absl import logging

from clara_jax.config import Config
from clara_jax.data import prompts
from clara_jax.data.prompts import FRAME, Example, TextLayout
from clara_jax.data.records import QaRecord
from clara_jax.data.sources import Source
from clara_jax.stages import STAGES


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads and tokenises the record at a position; processes that prepare data get copies."""

    source: Source[Any]  # records of the form that the stage reads
    layout: TextLayout  # of texts
    config: Config  # of the run
    # to train on in place of the records' own, by position; None: their own
    answers: Sequence[str] | None = None
    _skipped: set[int] = dataclasses.field(default_factory=set)
    _counts: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """Records whose prompt left no label."""
        return len(self._skipped)

    def measuring(self) -> "Reader":
        """The same reader with counts of its own, to look at a sample before training."""
        return dataclasses.replace(self, _skipped=set(), _counts={})

    def example(self, index: int, decoder_row: int) -> Example | None:
        """The SCP example, or None (and a warning, once) if its prompt leaves no label."""
        try:
            return self.layout.scp_example(self.source[index], decoder_row, index)
        except prompts.NoLabelError as e:
            self.skip(index, str(e))
            return None

    def picked(self, index: int) -> QaRecord:
        """The question at a position with the documents that are used alone."""
        record, shuffle = self.source[index], None
        if STAGES[self.config.stage].instructs:  # so that the gold one is not always the first
            shuffle = random.Random(f"{self.config.seed} {index}")
        return restrict(record, pick(record, self.config.places, shuffle))

    def query_ids(self, question: str, row: int) -> list[int]:
        """The reasoner's input for a question: laid out as a document, in a row of `row` tokens."""
        length = min(row - FRAME - len(self.layout.tail), self.layout.document_length)
        ids, is_cut = self.layout.document_ids(question, length)
        if is_cut:
            self.count("questions were longer than their row and cut")
        return ids

    def dialogues(self, index: int, record: QaRecord) -> list[tuple[list[int], int]]:
        """Ids of prompt and answer at each rate, and where the answer starts."""
        answer = record.answers[0] if self.answers is None else self.answers[index]
        given = self.layout.at_rates(min(self.config.select.k, len(record.documents)))
        return [self.layout.answer_prompt(docs, record.question, answer) for docs in given]

    def count(self, what: str) -> None:
        """Warns of what happens to some records, at the first and then ever more rarely."""
        self._counts[what] = self._counts.get(what, 0) + 1
        if self._counts[what] in (1, 10, 100, 1000, 10000):
            logging.warning("so far %d %s", self._counts[what], what)

    def skip(self, index: int, why: str) -> None:
        """Warns, once, that a record gives no example."""
        if index not in self._skipped:
            self._skipped.add(index)
            logging.warning("record skipped, number %d: %s", len(self._skipped), why)


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
    scores = record.teacher_scores
    return dataclasses.replace(
        record,
        documents=tuple(record.documents[i] for i in positions),
        gold=tuple(n for n, i in enumerate(positions) if i in record.gold),
        teacher_scores=tuple(scores[i] for i in positions) if scores else (),
    )
