"""Lengths of the rows that questions are laid out in (question_rows.py), measured on a sample."""

from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging

from clara_jax.data import packing
from clara_jax.data.packing import LONGEST, round_up
from clara_jax.data.question_rows import Shapes
from clara_jax.data.reader import Reader
from clara_jax.data.records import QaRecord
from clara_jax.errors import UserError
from clara_jax.stages import STAGES

SAMPLE = 256  # records that are measured before training


def measure(reader: Reader, *, compress: bool) -> Shapes:
    """The shapes of a question's rows: those of the config, or where it says 0 what a sample needs.

    The sample is the same on every host and for every seed. Logs what of it is padding or cut.

    Args:
        reader: of the questions.
        compress: whether documents are compressed in the step.

    Raises:
        UserError: no gold document or teacher's score is known, and the stage learns from these; or
            the encoder's row is too short for the longest possible document.
    """
    reader = reader.measuring()
    data, source = reader.config.data, reader.source
    smallest = packing.smallest_row(data, reader.layout)
    sample = np.random.default_rng(0).permutation(len(source))[:SAMPLE].tolist()
    picked = [reader.picked(i) for i in sample]
    _check_labels(reader, picked)
    groups, encoder, padding = 1, smallest, 0.0
    if compress:
        groups, encoder, padding = _documents(reader, picked, smallest)
    query = max(len(reader.query_ids(record.question, LONGEST)) for record in picked)
    turns = [reader.dialogues(i, r) for i, r in zip(sample, picked, strict=True)]
    # A row holds a prompt and its answer at every rate.
    whole = [max(len(ids) for ids, _ in dialogues) * len(dialogues) for dialogues in turns]
    # One very long answer must not make all rows long: the longest hundredth may be cut.
    decoder = data.decoder_row or round_up(int(np.quantile(whole, 0.99, method="higher")))
    shortest = min(max(start for _, start in dialogues) * len(dialogues) for dialogues in turns)
    if shortest >= decoder:
        raise UserError(
            f"config.data.decoder_row={decoder}: no prompt of {len(turns)} questions leaves room "
            f"for an answer; the shortest has {shortest} tokens"
        )
    shapes = Shapes(groups, encoder, round_up(query), decoder)
    compressed = f"compressed in {groups} rows of {encoder} ({padding:.1%} padding)"
    logging.info(
        "data: %r; of %d questions looked at, %.1f candidates each; %s; query rows of %d tokens, "
        "prompt rows of %d (%.1f%% padding, %d answers cut)",
        source,
        len(sample),
        np.mean([len(r.documents) for r in picked]),
        compressed if compress else "memories computed once",
        shapes.query,
        decoder,
        100 * (1 - np.minimum(whole, decoder).mean() / decoder),
        sum(length > decoder for length in whole),
    )
    return shapes


def _check_labels(reader: Reader, picked: Sequence[QaRecord]) -> None:
    config = reader.config
    learns_from_labels = not STAGES[config.stage].answers
    if learns_from_labels and not any(r.gold or r.teacher_scores for r in picked):
        raise UserError(
            f"config.data.sources={config.data.sources}: no question has pos_index or "
            f"teacher_scores, of which config.stage={config.stage} learns"
        )
    if config.aux_contrastive and not any(record.gold for record in picked):
        raise UserError(
            f"config.aux_contrastive={config.aux_contrastive}: no question has pos_index"
        )


def _documents(reader: Reader, picked: Sequence[QaRecord], smallest: int) -> tuple[int, int, float]:
    """Rows of documents a question, tokens of each, and the share of them that is padding."""
    row = reader.config.data.encoder_row
    lengths = [[len(reader.layout.document_ids(d)[0]) for d in r.documents] for r in picked]
    # In instruct the longest twentieth may lose a document that is not gold; where candidates are
    # ranked, all of the sample's fit.
    share = 1.0 if STAGES[reader.config.stage].ranks else 0.95
    total, encoder = min(
        (int(np.quantile([_bins(few, row) for few in lengths], share, method="higher")) * row, row)
        for row in ([row] if row else packing.steps(smallest))
    )
    padding = 1 - sum(min(sum(few), total) for few in lengths) / (total * len(lengths))
    return total // encoder, encoder, padding


def _bins(lengths: Iterable[int], size: int) -> int:
    """Rows of a size that first-fit of the longest first needs."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((i for i, left in enumerate(free) if left >= length), None)
        if place is None:
            free.append(size - length)
        else:
            free[place] -= length
    return len(free)
