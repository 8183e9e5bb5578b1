"""`--mode=evaluate`: answers, numbers and baselines of a run on held-out records.

What is asked depends on the stage: one document in evaluation/scp.py, many candidates in
evaluation/joint.py.
"""

import dataclasses
import os
from typing import Any

from clara_jax import distributed, sharding
from clara_jax.config import Config, with_options
from clara_jax.corpus.store import open_store
from clara_jax.evaluation import candidates, joint, results, scp
from clara_jax.evaluation.environment import environment
from clara_jax.evaluation.journal import Journal
from clara_jax.runs import fingerprint
from clara_jax.runs import setup as setup_lib
from clara_jax.stages import STAGES

# By the form of the records that the stage reads.
EVALUATIONS = {"scp": scp.evaluate, "qa": joint.evaluate}


def run(config: Config, workdir: str, base: str | None = None) -> int:
    """Evaluates a run, prints the result and writes it to its workdir; returns the exit code.

    Args:
        config: its `eval`, `mesh`, sources, folder of memories, `model.attention` and, if it is
            int8, `model.param_dtype` are used; all else of a trained model is as it was trained.
            With `eval.untrained`, the model before any training, as `config` makes it.
        workdir: of the run.
        base: where its base model is now; None: where the run found it.

    Raises:
        UserError: there is no such run, or nothing to evaluate on.
    """
    if config.eval.untrained:
        if base:
            config = with_options(config, {"model.base": base})
        model, trees = setup_lib.start(config)
    else:
        model, trees = setup_lib.restore(
            workdir,
            sharding.make_mesh(config.mesh),
            base=base,
            attention=config.model.attention,
            param_dtype="int8" if config.model.param_dtype == "int8" else None,
        )
        # Which documents were held out is the run's to say; `sources` may be some of its own.
        named = {"data.sources": config.data.sources, "data.memories": config.data.memories}
        named = {name: value for name, value in named.items() if value}
        config = with_options(model.config, {**named, "eval": config.eval})
        model = dataclasses.replace(model, config=config)
    settings: dict[str, Any] = {"sources": config.data.sources, "holdout": config.data.holdout}
    if config.model.param_dtype == "int8":  # not what the same settings give otherwise
        settings["param_dtype"] = "int8"
    settings |= dataclasses.asdict(config.eval)
    weights = fingerprint.model_hash(model, trees)
    basis: dict[str, Any] = {"step": model.step, "model": weights, **settings}
    if config.eval.store:  # another may be in its place by now
        basis["manifest"] = dataclasses.asdict(open_store(config.eval.store).manifest)
    journal = Journal(os.path.join(workdir, "eval"), basis)
    source = candidates.open_questions(config)
    result = EVALUATIONS[STAGES[config.stage].records](model, trees, source, journal)
    if distributed.is_first():
        print(results.table(result))
        basis = {"model": weights, "settings": settings, "environment": environment()}
        results.write(result | basis, workdir)
    journal.close()
    return 0
