"""Lengths of the rows that questions are laid out in (question_rows.py), measured on a sample."""

from collections.abc import Iterable, Sequence

import numpy as np
from absl import logging

from clara_jax.config import Config
from clara_jax.data import packing
from clara_jax.data.packing import LONGEST, round_up
from clara_jax.data.prompts import FRAME
from clara_jax.data.question_rows import Reader, Shapes
from clara_jax.data.sources import Source
from clara_jax.data.tokenizer import Tokenizer
from clara_jax.errors import UserError
from clara_jax.models.config import ExtraTokens
from clara_jax.stages import STAGES

SAMPLE = 256  # records that are measured before training


def measure(
    config: Config,
    tokenizer: Tokenizer,
    extra: ExtraTokens,
    source: Source,
    *,
    compress: bool,
    answers: Sequence[str] | None = None,
) -> Shapes:
    """The shapes of a question's rows: those of the config, or where it says 0 what a sample needs.

    The sample is the same on every host and for every seed. Logs what of it is padding or cut.

    Args:
        config: of the run.
        tokenizer: of the base model.
        extra: ids beyond the vocabulary.
        source: records of the qa form.
        compress: whether documents are compressed in the step.
        answers: see `Reader`.

    Raises:
        UserError: no gold document or teacher's score is known, and the stage learns from these; or
            the encoder's row is too short for the longest possible document.
    """
    data, M = config.data, len(extra.memory)
    smallest = data.document_length + FRAME + M
    if 0 < data.encoder_row < smallest:
        raise UserError(
            f"config.data.encoder_row={data.encoder_row} is too short for a document of "
            f"config.data.document_length={data.document_length} tokens; "
            f"the smallest that fits is {smallest}"
        )
    reader = Reader(source, tokenizer, extra, config, Shapes(1, smallest, LONGEST, LONGEST),
                    answers=answers)  # fmt: skip
    sample = np.random.default_rng(0).permutation(len(source))[:SAMPLE].tolist()
    picked = [reader.picked(i) for i in sample]
    stage = STAGES[config.stage]
    if not stage.answers and not any(r.gold or r.teacher_scores for r in picked):
        raise UserError(
            f"config.data.sources={data.sources}: no question has pos_index or teacher_scores, of "
            f"which config.stage={config.stage} learns"
        )
    if config.aux_contrastive and not any(record.gold for record in picked):
        raise UserError(
            f"config.aux_contrastive={config.aux_contrastive}: no question has pos_index"
        )
    groups, encoder, padding = 1, smallest, 0.0
    if compress:
        lengths = [[len(reader.document_ids(d)) for d in r.documents] for r in picked]
        longest = [data.encoder_row] if data.encoder_row else packing.steps(smallest)
        # In instruct the longest twentieth may lose a document that is not gold; where candidates
        # are ranked, all of the sample's fit.
        share = 1.0 if stage.ranks else 0.95
        total, encoder = min(
            (
                int(np.quantile([_bins(few, row) for few in lengths], share, method="higher"))
                * row,
                row,
            )
            for row in longest
        )
        groups = total // encoder
        padding = 1 - sum(min(sum(few), total) for few in lengths) / (total * len(lengths))
    query = max(len(reader.query_ids(record.question, LONGEST)) for record in picked)
    turns = [reader.dialogue(i, r) for i, r in zip(sample, picked, strict=True)]
    whole = [len(ids) for ids, _ in turns]
    # One very long answer must not make all rows long: the longest hundredth may be cut.
    decoder = data.decoder_row or round_up(int(np.quantile(whole, 0.99, method="higher")))
    if all(start >= decoder for _, start in turns):
        raise UserError(
            f"config.data.decoder_row={decoder}: no prompt of {len(turns)} questions leaves room "
            f"for an answer; the shortest has {min(start for _, start in turns)} tokens"
        )
    shapes = Shapes(groups, encoder, round_up(query), decoder)
    logging.info(
        "data: %r; of %d questions looked at, %.1f candidates each; %s; query rows of %d tokens, "
        "prompt rows of %d (%.1f%% padding, %d answers cut)",
        source, len(sample), np.mean([len(r.documents) for r in picked]),
        f"compressed in {groups} rows of {encoder} ({padding:.1%} padding)" if compress
        else "memories computed once",
        shapes.query, decoder, 100 * (1 - np.minimum(whole, decoder).mean() / decoder),
        sum(length > decoder for length in whole),
    )  # fmt: skip
    return shapes


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
