"""Which of a question's candidates are found, and how it is answered from them.

Candidates are ranked by the query reasoner, by BM25, and by both together as a search in a store
ranks them. Under each condition the prompt is the same but for what stands for the documents:

    reasoner     memories of the reasoner's first k, read by the trained generator: the model itself
    bm25         memories of BM25's first k
    gold         memories of the documents that hold the answer: a reasoner that never errs
    no_document  nothing, read by the plain base
    gold_text    the text of those that hold the answer, read by the plain base
    no_document_trained  nothing, read by the trained generator: how much is only form
    all          memories of all documents, as the instruct stage gives them to the generator
    reasoner_text  the text of the reasoner's first k, read by the plain base
    reasoner+words  memories of the first k by both scores together (corpus/search/combine.py)
    constant     the same answer to every question, the one that most of them accept; no model

Those with gold documents take place if all questions name theirs. `config.eval.conditions` names
those that are wanted; if it is empty, all that come before `all`, and `constant`. k is
`config.eval.k`, or as in training.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from clara_jax.corpus.search import combine, retrieval, words
from clara_jax.corpus.store import open_store
from clara_jax.data import sources
from clara_jax.data.prompts import FRAME
from clara_jax.data.records import QaRecord, digest
from clara_jax.errors import UserError
from clara_jax.evaluation import asking, driver, metrics, results
from clara_jax.evaluation.answer_losses import Labelled
from clara_jax.evaluation.driver import Condition, Example, Result
from clara_jax.evaluation.journal import Journal
from clara_jax.inference import encode, rank
from clara_jax.inference.generate import Prompt
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model
from clara_jax.training.inputs import compute_memories

CONDITIONS = {
    "reasoner": Condition("reasoner", "memory", "generator"),
    "bm25": Condition("bm25", "memory", "generator"),
    "gold": Condition("gold", "memory", "generator"),
    "no_document": Condition("none", "text", None),
    "gold_text": Condition("gold", "text", None),
    "no_document_trained": Condition("none", "text", "generator"),
    "all": Condition("all", "memory", "generator", default=False),
    "reasoner_text": Condition("reasoner", "text", None, default=False),
    "reasoner+words": Condition("reasoner+words", "memory", "generator", default=False),
}
CONSTANT = "constant"
SHOWN = 300  # characters of a chosen document that are kept for people


def evaluate(
    model: Model,
    trees: Trees,
    source: sources.Source[QaRecord] | Sequence[QaRecord],
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
        `driver.Result` as a dictionary.

    Raises:
        UserError: there is no such condition, or no question.
    """
    options = model.config.eval
    k = options.k or model.config.select.k
    begun = time.monotonic()
    count = min(options.records or len(source), len(source))
    records = [source[i] for i in range(count)]
    memories, cut, rate = _compress(model, trees, records)
    questions = [r.question for r in records]
    queries = encode.encode_query(model, trees, questions, options.batch)
    scores = {
        "reasoner": [
            rank.scores(query_MD, _stack(memories, r.choice), model.config.select.score)
            for query_MD, r in zip(queries, records, strict=True)
        ],
        "bm25": words.bm25_scores(questions, [r.choice for r in records]),
    }
    store = open_store(options.store) if options.store else None
    alpha = combine.with_alpha(model.config.search, store, model, trees).alpha
    pairs = zip(scores["reasoner"], scores["bm25"], strict=True)
    scores["reasoner+words"] = [combine.combined(*pair, alpha) for pair in pairs]
    ranked = {name: [retrieval.ranking(row) for row in rows] for name, rows in scores.items()}
    golds = [r.gold for r in records]
    # A document set for each question, by the name that a condition gives it.
    chosen = {name: [order[:k] for order in orders] for name, orders in ranked.items()}
    chosen |= {"gold": [list(gold[:k]) for gold in golds], "none": [[] for _ in records]}
    chosen["all"] = [list(range(len(r.choice))) for r in records]

    def examples(condition: Condition) -> list[Example]:
        pairs = zip(records, chosen[condition.documents], strict=True)
        return [_example(model, condition, memories, *pair) for pair in pairs]

    names = _names(model, trees, all(golds))
    modelled = {name: CONDITIONS[name] for name in names if name != CONSTANT}
    accepted = [r.answers for r in records]
    report, close = driver.reporter(2 * len(modelled) * len(records))
    conditions, intervals, answers = driver.ask(
        model, trees, modelled, examples, accepted, None, journal, report
    )
    close()
    if CONSTANT in names:
        answers[CONSTANT] = [metrics.best_constant(accepted)] * len(records)
        scored = metrics.values(answers[CONSTANT], accepted)
        conditions[CONSTANT], intervals[CONSTANT] = results.means(scored), results.intervals(scored)
    rankings = {name: retrieval.values(orders, golds) for name, orders in ranked.items()}
    rankings = {name: values for name, values in rankings.items() if values}
    intervals |= {f"retrieval {n}": results.intervals(values) for n, values in rankings.items()}
    return Result(
        step=model.step,
        records=count,
        questions=count,
        candidates=float(np.mean([len(r.choice) for r in records])),
        documents_cut=cut,
        memory_tokens=len(model.extra.memory),
        compression_rate=rate,
        retrieval={name: results.means(values) for name, values in rankings.items()},
        conditions=conditions,
        intervals=intervals,
        seconds=time.monotonic() - begun,
        predictions=[
            {
                "origin": record.origin,
                "question": record.question,
                "answer": record.answers[0],
                "answers": list(record.answers),
                "pos_index": list(record.gold),
                "chosen": chosen["reasoner"][i],
                "documents": [record.documents[n][:SHOWN] for n in chosen["reasoner"][i]],
                "ranked": {name: orders[i] for name, orders in ranked.items()},
                **{name: texts[i] for name, texts in answers.items()},
            }
            for i, record in enumerate(records)
        ],
    ).as_dict()


def _example(
    model: Model, condition: Condition, memories: Any, record: QaRecord, picked: Sequence[int]
) -> Example:
    documents = [record.documents[i] for i in picked]

    def prompts() -> tuple[list[Prompt], list[Labelled]]:
        if condition.form == "memory" and documents:
            given = _stack(memories, documents)
        else:  # what the compressor sees
            given = "\n\n".join(map(model.layout.head, documents))
        opened, _ = asking.prompt(model, record.question, given)
        whole, answer = asking.prompt(model, record.question, given, record.answers[0])
        return [opened], [Labelled(whole, answer=answer)]

    return Example((record.question, record.answers, documents), prompts)


def _names(model: Model, trees: Trees, gold_known: bool) -> list[str]:
    """The conditions that take place."""
    options = model.config.eval
    possible = [n for n, c in CONDITIONS.items() if gold_known or c.documents != "gold"]
    if "generator" not in trees:
        possible.remove("no_document_trained")  # without adapters it is no_document
    if options.conditions.strip() == driver.EVERY:
        return [*possible, CONSTANT]
    if options.conditions:
        names = driver.named(options.conditions, (*CONDITIONS, CONSTANT))
        for name in names:
            if name != CONSTANT and CONDITIONS[name].documents == "gold" and not gold_known:
                raise UserError(f"config.eval.conditions: {name} needs pos_index in every record")
        return names
    if not options.baselines:
        return ["reasoner"]
    return [*(name for name in possible if CONDITIONS[name].default), CONSTANT]


def _compress(model: Model, trees: Trees, records: Sequence[QaRecord]) -> tuple[Any, int, float]:
    """Memories [M, D] by the digest of a document's text, documents cut, and the realised rate."""
    documents = list(dict.fromkeys(d for record in records for d in record.documents))
    if model.config.eval.store:
        memories = _stored(model, trees, documents)
    elif model.config.data.memories:
        memories = compute_memories(model, trees, documents)
    else:
        vectors = encode.compress(model, trees, documents, model.config.eval.batch).memories
        memories = dict(zip(map(digest, documents), vectors, strict=True))
    M, tail = model.extra.memory_tokens, len(model.layout.tail)
    fed = [model.layout.document_ids(d) for d in documents]
    text = sum(len(ids) - tail - FRAME for ids, _ in fed)
    return memories, sum(cut for _, cut in fed), text / (M * len(fed))


def _stored(model: Model, trees: Trees, documents: Sequence[str]) -> dict[bytes, np.ndarray]:
    """Memories that a store holds, of the first piece of documents that are longer than one."""
    store = open_store(model.config.eval.store)
    store.check(model, trees)
    rows = store.find([digest(document).hex() for document in documents])
    chunks = store.take(rows, ["chunk"])["chunk"].to_numpy()
    vectors = store.memories(np.array(rows)[chunks == 0])
    return dict(zip(map(digest, documents), vectors, strict=True))


def _stack(memories: Any, documents: Sequence[str]) -> np.ndarray:
    """Memories [n, M, D] of n documents, in float32."""
    return np.stack([np.asarray(memories[digest(d)], np.float32) for d in documents])
