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
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from clara_jax import api
from clara_jax.data import sources
from clara_jax.data.records import ScpRecord, digest
from clara_jax.data.tokenizer import Parts
from clara_jax.errors import UserError
from clara_jax.evaluation import results
from clara_jax.evaluation.answer_losses import cross_entropies, labelled_rows
from clara_jax.evaluation.journal import Journal, Piece
from clara_jax.inference import answers
from clara_jax.inference.generate import Prompt
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model


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


def evaluate(
    model: Model,
    trees: Trees,
    source: sources.Source | Sequence[ScpRecord],
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Evaluates on the qa records of a source; `model.config.eval` says how many and how.

    Args:
        model: the model.
        trees: its weights.
        source: records; those that are not qa, or are read as text, are passed over.
        journal: keeps what is finished, for a run that is killed.

    Returns:
        `records`, `questions`, `documents_cut`, `memory_tokens`, `compression_rate` (realised),
        `conditions` {name: {turn_ce, answer_ce, exact_match, f1, cover_exact_match, seconds}},
        `intervals` {name: {metric: 95 % of its mean, documents being drawn}},
        `gap_closed` {answer_ce, f1} (see `gap_closed`), `predictions`. `turn_ce` is nats a labelled
        token of the whole assistant turn with all questions of a record, the training loss;
        `answer_ce` those a token of an answer, given its question.

    Raises:
        UserError: the source has no qa record, or there is no such condition.
    """
    options = model.config.eval
    begun = time.monotonic()
    records = list(itertools.islice(qa_records(source), options.records or None))
    if not records:
        raise UserError(f"{source!r}: there is no qa record to evaluate on")
    names = [n for n in CONDITIONS if n == "memory" or options.baselines]
    if options.conditions:
        names = results.named(options.conditions, tuple(CONDITIONS))
    elif "generator" not in trees and "no_document_trained" in names:
        names.remove("no_document_trained")  # without adapters it is no_document
    questions = sum(len(record.questions) for record in records)
    # Losses have a row for each record and, where it has several, for each question but one.
    report, close = results.reporter(len(records) + len(names) * 2 * questions)
    compressed = api.compress(model, trees, [r.document for r in records], options.batch, report)
    journal = journal or Journal(None, {})
    accepted = [texts for record in records for texts in record.accepted]
    asked = [(record.document, record.questions, record.accepted) for record in records]
    documents = [digest(r.document).hex()[:12] for r in records for _ in r.questions]
    conditions, intervals, predictions = {}, {}, {}
    for name in names:
        pieces = [
            journal.piece(results.piece_name(name, asked[part]), functools.partial(
                _evaluate_condition, model, trees, records[part], CONDITIONS[name],
                compressed.memories[part], report,
            ))
            for part in results.pieces(len(records), options.batch)
        ]  # fmt: skip
        found = results.together(pieces, accepted, documents)
        conditions[name], intervals[name], predictions[name] = found
    close()
    return {
        "step": model.step,
        "records": len(records),
        "questions": questions,
        "documents_cut": compressed.cut,
        "memory_tokens": len(model.extra.memory),
        "compression_rate": compressed.rate,
        "conditions": conditions,
        "intervals": intervals,
        "gap_closed": results.gaps(conditions, ("no_document", "memory", "full_text")),
        "seconds": time.monotonic() - begun,
        "predictions": [
            {
                "origin": record.origin,
                "document": documents[i],
                "question": question,
                "answer": texts[0],
                "answers": list(texts),
                **{name: given[i] for name, given in predictions.items()},
            }
            for i, (record, question, texts) in enumerate(
                (record, *pair)
                for record in records
                for pair in zip(record.questions, record.accepted, strict=True)
            )
        ],
    }


def _evaluate_condition(
    model: Model,
    trees: Trees,
    records: Sequence[ScpRecord],
    condition: Condition,
    memories: np.ndarray,
    report: Callable[[int], None],
) -> Piece:
    begun = time.monotonic()
    rows, asked = [], []
    for record, memory in zip(records, memories, strict=True):
        docs, vectors = _docs(model, record, condition, memory)
        rows += labelled_rows(model, record, docs, vectors)
        for question in record.questions:
            ids = model.layout.scp_question(docs, question)
            asked.append(Prompt(ids, vectors))
    options, role = model.config.eval, condition.role
    texts = answers.answers(
        model, trees, asked, options.max_new_tokens, role=role, batch=options.batch, report=report
    )
    nats, tokens = cross_entropies(model, trees, rows, role, report)
    seconds = time.monotonic() - begun
    return {"answers": texts, "nats": nats, "tokens": tokens, "seconds": seconds}


def qa_records(source: sources.Source | Sequence[ScpRecord]) -> Iterator[ScpRecord]:
    """The records that have questions about a document that is compressed."""
    for i in range(len(source)):
        record = source[i]
        if record.data_type == "qa" and record.compress:
            yield record


def _docs(
    model: Model, record: ScpRecord, condition: Condition, memory: np.ndarray
) -> tuple[Parts, np.ndarray | None]:
    """What stands for the document in a prompt, and the vectors of its slots."""
    if condition.docs == "memory":
        return model.layout.slots(), memory
    return {"text": record.document, "nothing": ""}[condition.docs], None
