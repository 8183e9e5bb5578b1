"""What the runs of a sweep would cost, from shapes alone."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from clara_jax import sharding
from clara_jax.aot import programs
from clara_jax.aot.chips import CHIPS
from clara_jax.config import Config, Mesh, with_options
from clara_jax.evaluation.sweep.plan import Planned
from clara_jax.runs import setup as setup_lib
from clara_jax.text.markdown import table

UTILISATION = 0.4  # of a chip's peak, which the hours suppose


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of the training of one stage."""

    base: int  # parameters of the base model
    trained: int  # parameters that are trained
    tokens: int  # positions of all rows of all steps, padding included
    flops: float  # 2 a parameter and token forward, 2 or 4 backward (aot/programs.py)
    base_bytes: int  # that the base takes on the devices


def cost(config: Config) -> Cost:
    """The cost of a stage; of a base that is not on this machine by its preset.

    Rows whose length the config leaves to the data count as in aot/programs.py.
    """
    if config.model.base and not os.path.exists(config.model.base):
        config = with_options(config, {"model.base": ""})
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    model, trees = setup_lib.abstract(config, mesh)
    batch = programs.batch_shapes(model)
    tokens = sum(math.prod(x.shape) for name, x in batch.items() if name.endswith("_tokens"))
    steps = config.train.steps
    return Cost(
        programs.parameters(model),
        sum(_count(trees[name]) for name in config.trained if name in trees),
        steps * tokens,
        steps * programs.train_flops(model, batch),
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(trees["base"])),
    )


def cost_table(planned: Sequence[Planned], chip: str) -> str:
    """The runs with parameters and cost, as Markdown; a stage that runs share is counted once."""
    head = ["run", "stages to train", "base", "base GiB", "trained", "tokens", "PFLOP"]
    head.append(f"{chip} hours")
    cells, counted, total = [], set(), 0.0
    for run in planned:
        new = [stage for stage in run.stages if stage.workdir not in counted]
        counted |= {stage.workdir for stage in new}
        found = [cost(stage.config) for stage in new]
        last = found[-1] if found else cost(run.stages[-1].config)
        flops = sum(each.flops for each in found)
        total += flops
        cells.append(
            [
                run.name,
                ", ".join(stage.config.stage for stage in new) or "none: shared",
                _short(last.base),
                f"{last.base_bytes / 2**30:.1f}",
                _short(max((each.trained for each in found), default=last.trained)),
                _short(sum(each.tokens for each in found)),
                f"{flops / 1e15:,.3g}",
                f"{_hours(flops, chip):,.3g}",
            ]
        )
    cells.append(["all", "", "", "", "", "", f"{total / 1e15:,.3g}", f"{_hours(total, chip):,.3g}"])
    return (
        f"{table(head, cells)}\n\nTraining alone, parameters times tokens; hours of one "
        f"{chip} at {UTILISATION:.0%} of its peak. Nothing is measured."
    )


def _hours(flops: float, chip: str) -> float:
    return flops / (CHIPS[chip].flops * UTILISATION) / 3600


def _count(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _short(count: int) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
