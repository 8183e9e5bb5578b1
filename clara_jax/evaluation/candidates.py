"""The paper's settings: candidates of a question by a search, with and without the gold documents.

given   the record's own
normal  the best of all distinct documents of the source by BM25
oracle  the same, the gold ones put among them in place of the worst
"""

import dataclasses
import random
from typing import Any

import numpy as np

from clara_jax.config import Config
from clara_jax.corpus.search.words import Words
from clara_jax.data import scp_rows
from clara_jax.data.records import QaRecord
from clara_jax.data.sources import Source
from clara_jax.errors import UserError
from clara_jax.stages import STAGES

SETTINGS = ("normal", "oracle")


def open_questions(config: Config) -> Source[Any]:
    """What a config evaluates on, with the candidates of its `eval.setting`.

    Raises:
        UserError: there is nothing, or it does not fit the setting.
    """
    setting = config.eval.setting
    if STAGES[config.stage].records != "qa" and setting != "given":
        raise UserError(
            f"config.eval.setting={setting} is for questions with candidates; scp has one document"
        )
    source = scp_rows.open_dev(config)
    if setting == "given":
        return source
    return Searched(source, setting, config.select.candidates, config.eval.records)


class Searched:
    """A source whose questions have other candidates.

    The documents of all of its records are searched, whatever part of these is read. Gold documents
    that `normal` does not find come after the candidates: they count as missed, and conditions
    that are told the gold documents still have them.

    Args:
        source: of records of the qa form.
        setting: normal or oracle.
        count: candidates of a question; fewer where the source has no more documents.
        records: number of records that will be read, from the start; 0 = all.

    Raises:
        UserError: `oracle` where a question that will be read has no gold document, or more than
            `count`.
    """

    def __init__(self, source: Source[QaRecord], setting: str, count: int, records: int = 0):
        if setting not in SETTINGS:
            raise ValueError(f"setting {setting!r} is not one of {', '.join(SETTINGS)}")
        self._source, self._setting, self._count = source, setting, count
        self._read = min(records or len(source), len(source))
        self.keys = source.keys[: self._read]
        texts: dict[str, None] = {}
        for i in range(len(source)):
            record = source[i]
            texts |= dict.fromkeys(text for text in record.documents if text.strip())
            if setting == "oracle" and i < self._read and not 0 < len(set(record.gold)) <= count:
                raise UserError(
                    f"{record.origin}: {len(set(record.gold))} gold documents; "
                    f"config.eval.setting=oracle needs from 1 to {count} in pos_index"
                )
        self._texts = list(texts)
        self._words = Words.build(self._texts)

    def __len__(self) -> int:
        return self._read

    def __getitem__(self, index: int) -> QaRecord:
        record = self._source[index]
        # All are ranked, since a question may share a word with too few; equal ones in order.
        order = np.argsort(-self._words.scores(record.question), kind="stable")
        hits = [self._texts[row] for row in order[: self._count]]
        gold = list(dict.fromkeys(record.documents[i] for i in record.gold))
        missed = [text for text in gold if text not in hits]
        if self._setting == "oracle" and missed:
            hits = _among(hits, gold, missed, len(hits), record.question)
            missed = []
        documents = (*hits, *missed)
        positions = tuple(documents.index(text) for text in gold)
        searched = {"documents": documents, "gold": positions, "candidates": len(hits)}
        return dataclasses.replace(record, teacher_scores=(), **searched)

    def __repr__(self) -> str:
        return f"{self._setting} candidates of {self._source!r}"


def _among(
    hits: list[str], gold: list[str], missed: list[str], count: int, question: str
) -> list[str]:
    """What was found, its worst documents that are not gold giving way to those that were missed.

    Where these come depends on the question alone, so that no place tells which are gold.
    """
    spare = [text for text in hits if text not in gold]
    dropped = set(spare[count - len(gold) :])
    kept, places = [text for text in hits if text not in dropped], random.Random(question)
    for text in missed:
        kept.insert(places.randint(0, len(kept)), text)
    return kept
