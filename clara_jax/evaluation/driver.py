"""One evaluation for all forms of records: what is asked, under conditions.

Conditions differ in what stands for the documents of a question, and in who reads it. Under each of
them the driver has all questions answered and the accepted answers' cross-entropies computed, piece
by piece, and keeps the pieces in a journal.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from clara_jax.data.records import digest
from clara_jax.errors import UserError
from clara_jax.evaluation import answer_losses, asking, metrics
from clara_jax.evaluation.answer_losses import Labelled
from clara_jax.evaluation.journal import Journal, Piece
from clara_jax.evaluation.results import intervals, means
from clara_jax.inference.generate import Prompt
from clara_jax.models.clara import Trees
from clara_jax.progress import Progress, doing
from clara_jax.runs.setup import Model

EVERY = "every"
_BATCHES = 4  # of a piece


@dataclasses.dataclass(frozen=True)
class Condition:
    """What stands for the documents in a prompt, and who reads it."""

    # which ones: `all`, `none`, `gold`, or the first ones of the ranking of this name
    documents: str
    form: str  # `memory` or `text`
    role: str | None  # adapter of the reader; None: the plain base
    default: bool = True  # it is evaluated where `config.eval.conditions` is empty


@dataclasses.dataclass(frozen=True)
class Example:
    """A record under a condition."""

    asked: Any  # all that its numbers depend on, beside model and condition
    # makes an open prompt for each of its questions, and the rows of the losses
    prompts: Callable[[], tuple[list[Prompt], list[Labelled]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What an evaluation found: its file's keys, in order. Those that are None are left out."""

    step: int  # training steps of the model
    records: int  # number of records
    questions: int  # number of their questions
    candidates: float | None = None  # mean number of a question's candidates
    documents_cut: int  # number of documents that were longer than the model reads
    memory_tokens: int  # vectors of a memory
    compression_rate: float  # the realised one, tokens of text over memory vectors
    # {ranking: {metric: mean}}, see `retrieval.values`; empty if no question names its gold
    # documents
    retrieval: dict[str, dict[str, float]] | None = None
    # {condition: {turn_ce, answer_ce, exact_match, f1, cover_exact_match, seconds}}. `turn_ce` is
    # nats a labelled token of the whole assistant turn with all questions of a record, the training
    # loss; `answer_ce` those a token of an answer, given its question.
    conditions: dict[str, dict[str, float]]
    # {condition or ranking: {metric: 95 % interval of its mean}}
    intervals: dict[str, dict[str, list[float]]]
    gap_closed: dict[str, float | None] | None = None  # {answer_ce, f1}, see `results.gap_closed`
    seconds: float  # of the whole evaluation
    predictions: list[dict[str, Any]]  # one a question, with the answer under each condition

    def as_dict(self) -> dict[str, Any]:
        """As its file has it."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Answered(NamedTuple):
    """What was found under conditions: numbers, their 95 % intervals, and all answers."""

    conditions: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, list[float]]]
    answers: dict[str, list[str]]


def ask(
    model: Model,
    trees: Trees,
    conditions: Mapping[str, Condition],
    examples: Callable[[Condition], Sequence[Example]],
    accepted: Sequence[Sequence[str]],
    groups: Sequence[str] | None,
    journal: Journal | None,
    report: Callable[[int], None],
) -> Answered:
    """Asks all questions under all conditions.

    Args:
        model: the model.
        trees: its weights.
        conditions: by name.
        examples: the records under a condition.
        accepted: all accepted answers of each question.
        groups: what questions are about, as for `statistics.interval`.
        journal: keeps what is finished, for a run that is killed.
        report: called with the number of prompts just finished.
    """
    journal = journal or Journal(None, {})
    out = Answered({}, {}, {})
    for name, condition in conditions.items():
        cases, done = examples(condition), []
        for part in pieces(len(cases), model.config.eval.batch):
            compute = functools.partial(_piece, model, trees, cases[part], condition.role, report)
            done.append(journal.piece(piece_name(name, [c.asked for c in cases[part]]), compute))
        answers = [answer for piece in done for answer in piece["answers"]]
        scored = metrics.values(answers, accepted)
        out.conditions[name] = {
            **_losses(done),
            **means(scored),
            "seconds": sum(piece["seconds"] for piece in done),
        }
        out.intervals[name], out.answers[name] = intervals(scored, groups), answers
    return out


def _piece(
    model: Model,
    trees: Trees,
    examples: Sequence[Example],
    role: str | None,
    report: Callable[[int], None],
) -> Piece:
    """Answers of a few examples, sums and counts of the losses of turns and answers, and time."""
    begun = time.monotonic()
    asked, rows = [], []
    for example in examples:
        prompts, labelled = example.prompts()
        asked += prompts
        rows += labelled
    answers = asking.answers_to(model, trees, asked, role, report)
    nats, tokens = answer_losses.cross_entropies(model, trees, rows, role, report)
    seconds = time.monotonic() - begun
    return {"answers": answers, "nats": nats, "tokens": tokens, "seconds": seconds}


def _losses(done: Sequence[Piece]) -> dict[str, float]:
    """Mean losses of a condition's pieces, of what has labels."""
    nats, tokens = (np.sum([piece[key] for piece in done], 0) for key in ("nats", "tokens"))
    return {
        name: float(total / count)
        for name, total, count in zip(("turn_ce", "answer_ce"), nats, tokens, strict=True)
        if count
    }


def pieces(count: int, batch: int) -> list[slice]:
    """Which examples are evaluated together, and kept together when a run is killed."""
    size = _BATCHES * batch  # of similar length, these fill their batches well
    return [slice(start, start + size) for start in range(0, count, size)]


def piece_name(condition: str, asked: Sequence[Any]) -> str:
    """By which the journal knows a piece again: its condition and all that is asked in it."""
    return f"{condition} {digest(repr(asked)).hex()}"


def named(names: str, known: Sequence[str]) -> list[str]:
    """The conditions of `config.eval.conditions`, each once; `every` is all that are known.

    Raises:
        UserError: one is not known.
    """
    if names.strip() == EVERY:
        return list(known)
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in wanted:
        if name not in known:
            raise UserError(
                f"config.eval.conditions: no condition {name!r}; there are {', '.join(known)}"
            )
    return wanted


def reporter(total: int) -> tuple[Callable[[int], None], Callable[[], None]]:
    """What to call with the number of examples just finished, and at the end."""
    progress, done, started = Progress(total, "evaluating"), 0, ExitStack()
    started.enter_context(doing("evaluating: compiling for the first examples"))

    def report(rows: int) -> None:
        nonlocal done
        started.close()
        done += rows
        progress.update(done)

    def close() -> None:
        started.close()
        progress.close()

    return report, close
