"""Which of a question's candidates are found, and how it is answered from them.

Candidates are ranked by the query reasoner and by BM25. Under each condition the prompt is the same
but for what stands for the documents:

    reasoner     memories of the reasoner's first k, read by the trained generator: the model itself
    bm25         memories of BM25's first k
    gold         memories of the documents that hold the answer: a reasoner that never errs
    no_document  nothing, read by the plain base
    gold_text    the text of those that hold the answer, read by the plain base
    no_document_trained  nothing, read by the trained generator: how much is only form
    all          memories of all documents, as the instruct stage gives them to the generator
    reasoner_text  the text of the reasoner's first k, read by the plain base
    constant     the same answer to every question, the one that most of them accept; no model

Those with gold documents take place if all questions name theirs. `config.eval.conditions` names
those that are wanted; if it is empty, all that come before `all`, and `constant`. k is
`config.eval.k`, or as in training.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clara_jax.corpus.search import words
from clara_jax.corpus.store import open_store
from clara_jax.data import prompts, sources
from clara_jax.data.prompts import FRAME
from clara_jax.data.records import QaRecord, digest
from clara_jax.errors import UserError
from clara_jax.evaluation import metrics, results, retrieval
from clara_jax.evaluation.answer_losses import Labelled, cross_entropies
from clara_jax.evaluation.journal import Journal, Piece
from clara_jax.inference import answers as answers_lib
from clara_jax.inference import encode, rank
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model
from clara_jax.training.inputs import compute_memories


@dataclasses.dataclass(frozen=True)
class Condition:
    """Which documents (a ranking's, gold, none, all), in which form, which adapter reads them."""

    documents: str
    docs: str
    role: str | None
    default: bool = True


CONDITIONS = {
    "reasoner": Condition("reasoner", "memory", "generator"),
    "bm25": Condition("bm25", "memory", "generator"),
    "gold": Condition("gold", "memory", "generator"),
    "no_document": Condition("none", "text", None),
    "gold_text": Condition("gold", "text", None),
    "no_document_trained": Condition("none", "text", "generator"),
    "all": Condition("all", "memory", "generator", default=False),
    "reasoner_text": Condition("reasoner", "text", None, default=False),
}
CONSTANT = "constant"
SHOWN = 300  # characters of a chosen document that are kept for people


def evaluate(
    model: Model,
    trees: Trees,
    source: sources.Source | Sequence[QaRecord],
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Evaluates on questions with candidates; `model.config.eval` says how many and how.

    Memories are read from the store `config.eval.store`, or from `config.data.memories`, and added
    there, if the run has such a folder.

    Args:
        model: the model.
        trees: its weights.
        source: records of the qa form.
        journal: keeps what is finished, for a run that is killed.

    Returns:
        `records`, `questions`, `candidates` (mean), `documents_cut`, `memory_tokens`,
        `compression_rate` (realised), `retrieval` (numbers of both rankings by `retrieval.values`,
        if questions name their gold documents), `conditions` (numbers of each), `intervals` (95 %,
        of rankings and conditions), `seconds` and `predictions`, one a question.

    Raises:
        UserError: there is no such condition, or no question.
    """
    options = model.config.eval
    k = options.k or model.config.select.k
    journal = journal or Journal(None, {})
    begun = time.monotonic()
    count = min(options.records or len(source), len(source))
    records = [source[i] for i in range(count)]
    found = _compress(model, trees, records)
    ranked = {
        "reasoner": _ranked(_reasoner_scores(model, trees, records, found.memories)),
        "bm25": _ranked(
            words.bm25_scores([r.question for r in records], [r.choice for r in records])
        ),
    }
    golds = [r.gold for r in records]
    # A document set for each question, by the name that a condition gives it.
    chosen = {name: [order[:k] for order in orders] for name, orders in ranked.items()}
    chosen |= {"gold": [list(gold[:k]) for gold in golds], "none": [[] for _ in records]}
    chosen["all"] = [list(range(len(r.choice))) for r in records]
    names = _names(model, trees, all(golds))
    accepted = [r.answers for r in records]
    modelled = [name for name in names if name != CONSTANT]
    report, close = results.reporter(2 * len(modelled) * len(records))
    conditions, intervals, predictions = {}, {}, {}
    for name in modelled:
        condition = CONDITIONS[name]
        picked = chosen[condition.documents]
        pieces = [
            journal.piece(piece_name(name, records[part], picked[part]), functools.partial(
                _evaluate_condition, model, trees, records[part], condition, picked[part],
                found.memories, report,
            ))
            for part in results.pieces(len(records), options.batch)
        ]  # fmt: skip
        conditions[name], intervals[name], predictions[name] = results.together(pieces, accepted)
    close()
    if CONSTANT in names:
        predictions[CONSTANT] = [metrics.best_constant(accepted)] * len(records)
        scored = metrics.values(predictions[CONSTANT], accepted)
        conditions[CONSTANT] = {n: float(np.mean(values)) for n, values in scored.items()}
        intervals[CONSTANT] = results.intervals(scored)
    rankings = {name: retrieval.values(orders, golds) for name, orders in ranked.items()}
    intervals |= {f"retrieval {n}": results.intervals(each) for n, each in rankings.items() if each}
    return {
        "step": model.step,
        "records": count,
        "questions": count,
        "candidates": float(np.mean([len(r.choice) for r in records])),
        "documents_cut": found.cut,
        "memory_tokens": len(model.extra.memory),
        "compression_rate": found.rate,
        "retrieval": {
            name: {metric: float(np.mean(values)) for metric, values in each.items()}
            for name, each in rankings.items()
            if each
        },
        "conditions": conditions,
        "intervals": intervals,
        "seconds": time.monotonic() - begun,
        "predictions": [
            {
                "origin": record.origin,
                "question": record.question,
                "answer": record.answers[0],
                "answers": list(record.answers),
                "pos_index": list(record.gold),
                "chosen": chosen["reasoner"][i],
                "documents": [record.documents[n][:SHOWN] for n in chosen["reasoner"][i]],
                "ranked": {name: orders[i] for name, orders in ranked.items()},
                **{name: texts[i] for name, texts in predictions.items()},
            }
            for i, record in enumerate(records)
        ],
    }


def piece_name(condition: str, records: Sequence[QaRecord], picked: Sequence[Sequence[int]]) -> str:
    """Of questions with the documents that stand in their prompts (`results.piece_name`)."""
    asked = [
        (record.question, record.answers, [record.documents[i] for i in numbers])
        for record, numbers in zip(records, picked, strict=True)
    ]
    return results.piece_name(condition, asked)


def _names(model: Model, trees: Trees, gold_known: bool) -> list[str]:
    """The conditions that take place."""
    options = model.config.eval
    possible = [n for n, c in CONDITIONS.items() if gold_known or c.documents != "gold"]
    if "generator" not in trees:
        possible.remove("no_document_trained")  # without adapters it is no_document
    if options.conditions.strip() == results.EVERY:
        return [*possible, CONSTANT]
    if options.conditions:
        names = results.named(options.conditions, (*CONDITIONS, CONSTANT))
        for name in names:
            if name != CONSTANT and CONDITIONS[name].documents == "gold" and not gold_known:
                raise UserError(f"config.eval.conditions: {name} needs pos_index in every record")
        return names
    if not options.baselines:
        return ["reasoner"]
    return [*(name for name in possible if CONDITIONS[name].default), CONSTANT]


@dataclasses.dataclass(frozen=True)
class _Compressed:
    memories: Any  # [M, D] by the digest of a document's text
    cut: int
    rate: float


def _compress(model: Model, trees: Trees, records: Sequence[QaRecord]) -> _Compressed:
    documents = list(dict.fromkeys(d for record in records for d in record.documents))
    if model.config.eval.store:
        memories = _stored(model, trees, documents)
    elif model.config.data.memories:
        memories = compute_memories(model, trees, documents)
    else:
        vectors = encode.compress(model, trees, documents, model.config.eval.batch).memories
        memories = dict(zip(map(digest, documents), vectors, strict=True))
    M = len(model.extra.memory)
    fed = [model.layout.document_ids(d) for d in documents]
    text = sum(len(ids) - M - FRAME for ids, _ in fed)
    return _Compressed(memories, sum(cut for _, cut in fed), text / (M * len(fed)))


def _stored(model: Model, trees: Trees, documents: Sequence[str]) -> dict[bytes, np.ndarray]:
    """Memories that a store holds, of the first piece of documents that are longer than one."""
    store = open_store(model.config.eval.store)
    store.check(model, trees)
    rows = store.find([digest(document).hex() for document in documents])
    chunks = store.take(rows, ["chunk"])["chunk"].to_numpy()
    vectors = store.memories(np.array(rows)[chunks == 0])
    return dict(zip(map(digest, documents), vectors, strict=True))


def _reasoner_scores(
    model: Model, trees: Trees, records: Sequence[QaRecord], memories: Any
) -> list[np.ndarray]:
    """Scores of each question's candidates by the query reasoner."""
    queries = encode.encode_query(
        model, trees, [r.question for r in records], model.config.eval.batch
    )
    return [
        rank.scores(query_MD, _stack(memories, record.choice), model.config.select.score)
        for query_MD, record in zip(queries, records, strict=True)
    ]


def _stack(memories: Any, documents: Sequence[str]) -> np.ndarray:
    """Memories [n, M, D] of n documents, in float32."""
    return np.stack([np.asarray(memories[digest(d)], np.float32) for d in documents])


def _ranked(scores: Sequence[np.ndarray]) -> list[list[int]]:
    return [retrieval.ranking(row) for row in scores]


def _evaluate_condition(
    model: Model,
    trees: Trees,
    records: Sequence[QaRecord],
    condition: Condition,
    chosen: Sequence[Sequence[int]],
    memories: Any,
    report: Callable[[int], None],
) -> Piece:
    begun = time.monotonic()
    options = model.config.eval
    given, rows = [], []
    for record, picked in zip(records, chosen, strict=True):
        documents = [record.documents[i] for i in picked]
        is_memory = condition.docs == "memory" and documents
        heads = [model.layout.head(d) for d in documents]  # what the compressor sees
        given.append(_stack(memories, documents) if is_memory else heads)
    asked = answers_lib.answer_prompts(model, [r.question for r in records], given)
    told = answers_lib.answer_prompts(
        model, [r.question for r in records], given, [r.answers[0] for r in records]
    )
    for opened, whole in zip(asked, told, strict=True):
        start = prompts.common(opened.tokens, whole.tokens)
        rows.append(Labelled(whole, answer=slice(start, len(whole.tokens))))
    answers = answers_lib.answers(
        model, trees, asked, options.max_new_tokens,
        role=condition.role, stop="", batch=options.batch, report=report,
    )  # fmt: skip
    nats, tokens = cross_entropies(model, trees, rows, condition.role, report)
    seconds = time.monotonic() - begun
    return {"answers": answers, "nats": nats, "tokens": tokens, "seconds": seconds}
