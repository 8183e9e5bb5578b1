"""The alpha that finds most documents first, fitted for a store and a model (combine.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from clara_jax import checksums, distributed, files
from clara_jax import config as config_lib
from clara_jax.corpus import format
from clara_jax.corpus.search import combine, retrieval
from clara_jax.corpus.search.search import Search
from clara_jax.corpus.store import Store
from clara_jax.data import judged
from clara_jax.data.judged import Judged
from clara_jax.errors import UserError
from clara_jax.inference.encode import encode_query
from clara_jax.models.clara import Trees
from clara_jax.runs.setup import Model


def fit(
    store: Store, model: Model, trees: Trees, questions: str, options: config_lib.Search
) -> dict[str, Any]:
    """Fits alpha by recall@1, then by MRR, and keeps it with the store.

    Documents that no search finds count as missed. Questions are left out of whose documents the
    store has none.

    Args:
        store: the store.
        model: that made it.
        trees: its weights.
        questions: file or folder for `judged.read`.
        options: `config.search`, which says what candidates are.

    Returns:
        What alpha.json holds.

    Raises:
        UserError: the questions cannot be read, name no document of the store, or keys alone are
            searched.
    """
    if options.by == "keys":
        raise UserError("config.search.by=keys has no BM25 to combine: nothing is to be fitted")
    given, digest = judged.read(questions)
    known = [(one, gold) for one, gold in zip(given, golds(store, given), strict=True) if gold]
    if not known:
        raise UserError(f"{questions}: names no document of {store.path}")
    search = Search(store, options, model.mesh, model.config.select.score)
    queries = encode_query(model, trees, [one.question for one, _ in known])
    random = np.random.default_rng(0)
    rankings: dict[float, list[list[str]]] = {alpha: [] for alpha in combine.ALPHAS}
    for query_MD, (one, _) in zip(queries, known, strict=True):
        ((own, trained_C),) = search.scored(query_MD[None], [one.question])
        parents_C = np.array(store.take(own.rows, ["parent"])["parent"].to_pylist(), object)
        drawn_C = random.permutation(len(parents_C))  # in what order equal ones stand is chance
        for alpha, ranked in rankings.items():
            scores_C = combine.combined(trained_C, own.words_C, alpha)[drawn_C]
            documents_C = parents_C[drawn_C[retrieval.order(scores_C)]]
            ranked.append(list(dict.fromkeys(documents_C)))  # of pieces the best counts
    metrics = {}
    for alpha, ranked in rankings.items():
        values = retrieval.values(ranked, [gold for _, gold in known], ks=(1,))
        metrics[alpha] = {name: float(np.mean(values[name])) for name in ("recall@1", "mrr")}
    alpha = max(metrics, key=lambda a: (*metrics[a].values(), -a))  # of equal ones, words
    info = {
        "alpha": alpha,
        "questions": len(known),
        "left_out": len(given) - len(known),
        "digest": digest,
        "rows": store.rows,
        "model": combine.scored_by(model, trees),
        "metrics": [{"alpha": alpha, **means} for alpha, means in metrics.items()],
    }
    if distributed.is_first():
        with format.writing(store.path):
            combine.path(store.path).parent.mkdir(parents=True, exist_ok=True)
            files.write(combine.path(store.path), checksums.dumps(info))
    return info


def show(info: dict[str, Any]) -> str:
    """The alpha that was fitted, beside both scores by themselves."""
    lines = {each["alpha"]: each for each in info["metrics"]}
    best, words, trained = (lines[alpha] for alpha in (info["alpha"], 0.0, 1.0))
    return (
        f"alpha {info['alpha']:.2f}, fitted on {info['questions']} questions "
        f"({info['left_out']} left out): recall@1 {best['recall@1']:.3f}; BM25 alone "
        f"{words['recall@1']:.3f}, the trained score alone {trained['recall@1']:.3f}"
    )


def golds(store: Store, questions: Sequence[Judged]) -> list[dict[Any, int]]:
    """How good documents are for each question, by the ids of those that the store has."""
    there: dict[Any, str] = {}
    for kind, column in ((str, "parent"), (bytes, "digest")):
        names = [name for one in questions for name in one.gold if isinstance(name, kind)]
        for number in range(len(store.parts)):
            table = store.table(number)
            wanted = pyarrow.array(names, table[column].type)
            some = table.filter(pyarrow.compute.is_in(table[column], wanted))
            there |= dict(zip(some[column].to_pylist(), some["parent"].to_pylist(), strict=True))
    return [
        {there[name]: grade for name, grade in one.gold.items() if name in there}
        for one in questions
    ]
