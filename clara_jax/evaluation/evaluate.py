"""How well questions are answered from memories, beside no document and the full text.

Every question of an SCP record is one example. Under each condition the prompt is the same but for
what stands for the document, and the assistant's turn is opened with the question, so that the
cross-entropies of the answers compare:

    memory               the compressed document, read by the trained generator
    no_document          nothing, read by the plain base
    full_text            the document's text, read by the plain base
    no_document_trained  nothing, read by the trained generator: how much of the gain is only form
"""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from clara_jax import sharding
from clara_jax.config import Config
from clara_jax.data import pipeline, prompts, sources
from clara_jax.data.records import ScpRecord
from clara_jax.data.tokenizer import Parts
from clara_jax.errors import UserError
from clara_jax.evaluation import metrics
from clara_jax.evaluation.answer_losses import cross_entropies, labelled_rows
from clara_jax.inference import engine
from clara_jax.inference.generate import Prompt
from clara_jax.progress import Progress
from clara_jax.training import setup as setup_lib
from clara_jax.training.setup import Setup


@dataclasses.dataclass(frozen=True)
class Condition:
    """What stands for the document (memory, nothing, text) and which adapter reads it."""

    docs: str
    role: str | None


CONDITIONS = {
    "memory": Condition("memory", "generator"),
    "no_document": Condition("nothing", None),
    "full_text": Condition("text", None),
    "no_document_trained": Condition("nothing", "generator"),
}
# What the gap between the baselines is taken of, and whether more of it is better.
GAPS = {"answer_ce": False, "f1": True}
SMALLEST_GAP = 1e-6
COLUMNS = {
    "turn_ce": "turn CE",
    "answer_ce": "answer CE",
    "exact_match": "EM",
    "f1": "F1",
    "cover_exact_match": "cover EM",
    "seconds": "seconds",
}


def evaluate(setup: Setup, source: sources.Source | Sequence[ScpRecord]) -> dict[str, Any]:
    """Evaluates on the qa records of a source; `setup.config.eval` says how many and how.

    Args:
        setup: the model.
        source: records; those that are not qa, or are read as text, are passed over.

    Returns:
        `records`, `questions`, `documents_cut`, `memory_tokens`, `compression_rate` (realised),
        `conditions` {name: {turn_ce, answer_ce, exact_match, f1, cover_exact_match, seconds}},
        `gap_closed` {answer_ce, f1} (see `gap_closed`), `predictions`. `turn_ce` is nats a labelled
        token of the whole assistant turn with all questions of a record, the training loss;
        `answer_ce` those a token of an answer, given its question.

    Raises:
        UserError: the source has no qa record.
    """
    options = setup.config.eval
    begun = time.monotonic()
    records = list(itertools.islice(_qa_records(source), options.records or None))
    if not records:
        raise UserError(f"{source!r}: there is no qa record to evaluate on")
    names = [n for n in CONDITIONS if n == "memory" or options.baselines]
    if "generator" not in setup.trees and "no_document_trained" in names:
        names.remove("no_document_trained")  # without adapters it is no_document
    questions = sum(len(record.questions) for record in records)
    # Losses have a row for each record and, where it has several, for each question but one.
    report, close = _reporter(len(records) + len(names) * 2 * questions)
    compressed = engine.compress(setup, [r.document for r in records], options.batch, report)
    conditions, predictions = {}, {}
    for condition in names:
        conditions[condition], predictions[condition] = _evaluate_condition(
            setup, records, CONDITIONS[condition], compressed.memories, report
        )
    close()
    return {
        "step": setup.step,
        "records": len(records),
        "questions": questions,
        "documents_cut": compressed.cut,
        "memory_tokens": len(setup.extra.memory),
        "compression_rate": compressed.rate,
        "conditions": conditions,
        "gap_closed": _gaps(conditions) if options.baselines else {},
        "seconds": time.monotonic() - begun,
        "predictions": [
            {"origin": record.origin, "question": question, "answer": answer}
            | {condition: next(texts) for condition, texts in predictions.items()}
            for record in records
            for question, answer in zip(record.questions, record.answers, strict=True)
        ],
    }


def gap_closed(
    no_document: float, memory: float, full_text: float, more_is_better: bool
) -> float | None:
    """Share of the way from no document to the full text that the memory goes.

    0 is no better than no document and 1 as good as the text; it may be negative or above 1. None
    where the text is no better than nothing: there is no gap to close, and the quotient would be
    huge or have the wrong sign.
    """
    gap = full_text - no_document if more_is_better else no_document - full_text
    if gap < SMALLEST_GAP:
        return None
    return (memory - no_document if more_is_better else no_document - memory) / gap


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"step {result['step']}: {result['questions']} questions on {result['records']} documents, "
        f"compressed {result['compression_rate']:.1f}x into {result['memory_tokens']} vectors "
        f"({result['documents_cut']} documents cut), {result['seconds']:.0f} s",
        " ".join([f"{'':20}", *(f"{title:>10}" for title in COLUMNS.values())]),
    ]
    for name, values in result["conditions"].items():
        cells = (f"{values[key]:10.3f}" for key in COLUMNS)
        lines.append(" ".join([f"{name.replace('_', ' '):20}", *cells]))
    for key, share in result["gap_closed"].items():
        text = "no gap, the text does not help" if share is None else f"{share:.1%}"
        lines.append(f"share of the gap (no document to full text) closed, {COLUMNS[key]}: {text}")
    return "\n".join(lines)


def run(config: Config, workdir: str) -> int:
    """Evaluates a run, prints the result and writes it to its workdir; returns the exit code.

    Args:
        config: its `eval`, `mesh` and sources are used; all else of a trained model is as it was
            trained. With `eval.untrained`, the model before any training, as `config` makes it.
        workdir: of the run.

    Raises:
        UserError: there is no such run, or nothing to evaluate on.
    """
    if config.eval.untrained:
        setup = setup_lib.start(config)
    else:
        setup = setup_lib.restore(workdir, mesh=sharding.make_mesh(config.mesh))
        # Which documents were held out is the run's to say; `sources` may be some of its own.
        names = config.data.sources or setup.config.data.sources
        data = dataclasses.replace(setup.config.data, sources=names)
        config = dataclasses.replace(setup.config, data=data, eval=config.eval)
        setup = dataclasses.replace(setup, config=config)
    result = evaluate(setup, pipeline.open_dev(config))
    print(table(result))
    if jax.process_index() == 0:
        settings = {"sources": config.data.sources, "holdout": config.data.holdout}
        write({**result, "settings": {**settings, **dataclasses.asdict(config.eval)}}, workdir)
    return 0


def write(result: dict[str, Any], workdir: str) -> str:
    """Writes a result to `eval/<step>.json`, or `<step>-2.json` … beside those of other settings.

    Returns:
        The path.

    Raises:
        UserError: it cannot be written.
    """
    directory = os.path.join(workdir, "eval")
    try:
        os.makedirs(directory, exist_ok=True)
        for number in itertools.count(1):
            suffix = f"-{number}" if number > 1 else ""
            path = os.path.join(directory, f"{result['step']}{suffix}.json")
            if not os.path.exists(path) or _settings(path) == result.get("settings"):
                break
        with open(path, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=2, ensure_ascii=False)
    except OSError as e:
        raise UserError(f"{directory}: cannot write the result ({e.strerror})") from e
    logging.info("answers and numbers: %s", path)
    return path


def _settings(path: str) -> Any:
    """The settings of an earlier result; none for a file that is damaged."""
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)["settings"]
    except (ValueError, KeyError, TypeError):
        return None


def _evaluate_condition(
    setup: Setup,
    records: Sequence[ScpRecord],
    condition: Condition,
    memories: np.ndarray,
    report: Callable[[int], None],
) -> tuple[dict[str, float], Iterator[str]]:
    begun = time.monotonic()
    rows, asked = [], []
    for record, memory in zip(records, memories, strict=True):
        docs, vectors = _docs(setup, record, condition, memory)
        rows += labelled_rows(setup, record, docs, vectors)
        for question in record.questions:
            ids = prompts.scp_question(setup.tokenizer, setup.config.prompts, docs, question)
            asked.append(Prompt(ids, vectors))
    options, role = setup.config.eval, condition.role
    texts = engine.answers(
        setup, asked, options.max_new_tokens, role=role, batch=options.batch, report=report
    )
    turn_ce, answer_ce = cross_entropies(setup, rows, role, report)
    accepted = [texts for record in records for texts in record.accepted]
    values = {"turn_ce": turn_ce, "answer_ce": answer_ce, **metrics.score(texts, accepted)}
    return {**values, "seconds": time.monotonic() - begun}, iter(texts)


def _gaps(conditions: dict[str, dict[str, float]]) -> dict[str, float | None]:
    three = [conditions[name] for name in ("no_document", "memory", "full_text")]
    return {key: gap_closed(*(c[key] for c in three), more) for key, more in GAPS.items()}


def _qa_records(source: sources.Source | Sequence[ScpRecord]) -> Iterator[ScpRecord]:
    for i in range(len(source)):
        record = source[i]
        if record.data_type == "qa" and record.compress:
            yield record


def _docs(
    setup: Setup, record: ScpRecord, condition: Condition, memory: np.ndarray
) -> tuple[Parts, np.ndarray | None]:
    """What stands for the document in a prompt, and the vectors of its slots."""
    if condition.docs == "memory":
        return prompts.slots(setup.extra), memory
    return {"text": record.document, "nothing": ""}[condition.docs], None


def _reporter(total: int) -> tuple[Callable[[int], None], Callable[[], None]]:
    """What to call with the number of examples just finished, and at the end."""
    progress, done = Progress(total, "evaluating"), 0

    def report(rows: int) -> None:
        nonlocal done
        done += rows
        progress.update(done)

    return report, progress.close
