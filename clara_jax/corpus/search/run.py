"""`--mode=search`: a store searched for questions, as a TREC run and as metrics.

The run's lines are `question Q0 document rank 1/rank clara`, by the ids of questions and documents,
for trec_eval and what is like it.
"""

import numpy as np

from clara_jax import distributed, files
from clara_jax.config import Config
from clara_jax.corpus.search import fit, retrieval
from clara_jax.corpus.search.search import find, of_model
from clara_jax.corpus.store import open_store
from clara_jax.data import judged
from clara_jax.runs.load import load_setup

KS = (1, 5, 10)


def run(
    store: str,
    workdir: str,
    questions: str,
    base: str | None = None,
    config: Config | None = None,
    output: str | None = None,
) -> int:
    """Searches, prints metrics and writes the run.

    Args:
        store: its folder.
        workdir: of the run whose model made it.
        questions: file or folder for `judged.read`. Of their documents those that the store has
            are to be found.
        base: the base model, as for `api.load`.
        config: its `search` counts; None: the run's own.
        output: file of the run; None: none is written.

    Returns:
        The exit code, 0.

    Raises:
        UserError: model, store or questions cannot be used.
    """
    given, _ = judged.read(questions)
    opened, (model, trees) = open_store(store), load_setup(workdir, base)
    opened.check(model, trees)
    search = of_model(opened, model, trees, config.search if config else None)
    hits = find(model, trees, search, [one.question for one in given], search.options.candidates)
    rankings = [
        list(dict.fromkeys(document.parent for document in opened.documents([h.row for h in own])))
        for own in hits
    ]
    values = retrieval.values(rankings, fit.golds(opened, given), KS)
    if distributed.is_first():
        print(f"{len(given)} questions, {search.describe()}")
        print(" ".join(f"{name} {np.mean(each):.4f}" for name, each in values.items()))
        if output is not None:
            lines = (
                f"{one.id} Q0 {name} {rank} {1 / rank} clara\n"
                for one, ranked in zip(given, rankings, strict=True)
                for rank, name in enumerate(ranked, 1)
            )
            files.write(output, "".join(lines))
    return 0
