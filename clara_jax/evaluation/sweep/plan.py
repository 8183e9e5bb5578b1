"""What a sweep is: axes of options that expand to runs, each a chain of stages.

A sweep's file (configs/sweep.py) gives a `Sweep`. Runs share what they have in common: a stage
whose options, and those of the stages before it, are the same is trained once.
"""

import dataclasses
import fnmatch
import functools
import itertools
import json
import os
import runpy
import types
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from clara_jax import config as config_lib
from clara_jax.config import Config
from clara_jax.config_checks import DRAW, METHOD, SCHEDULE
from clara_jax.data.records import digest
from clara_jax.errors import UserError, reason
from clara_jax.stages import STAGES

Options = Mapping[str, Any]
EVALUATION = "evaluate"  # in place of a stage's name
# Groups of options that a stage's weights depend on.
_DECIDING = {n.split(".")[0] for n in config_lib.tied(METHOD, DRAW, SCHEDULE)} - {"init_from"}
# What a run is comparable under, whatever it is: starts of options.
_COMPUTED = (
    "seed",
    "mesh.",
    "profile",
    "model.tokenizer",
    "model.remat",
    "model.attention",
    "data.sources",
    "data.memories",
    "data.workers",
    "data.shards",
    "eval.sources",
    "eval.batch",
    "eval.store",
    "train.accumulate",
    "train.loss_chunks",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.eval_every",
    "train.tensorboard",
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A base chain of stages, and what is varied.

    Options are named as in config.py, `data.rate`, and hold for all stages, or for one of them,
    `e2e:select.k`, or for the evaluation at the end alone, `evaluate:data.sources`. `stages` is an
    option too: names of the chain's stages that take place.
    """

    # config files by stage, in order, such as `quickstart.py:scp`, beside the sweep's
    stages: Mapping[str, str]
    # for each axis its points, and of each point the options
    axes: Mapping[str, Mapping[str, Options]]
    # of all runs, over those of the files
    options: Options = dataclasses.field(default_factory=dict)
    grids: Sequence[Sequence[str]] = ()  # axes that are crossed
    single: bool = True  # whether every axis is also varied by itself
    # numbers of the paper by a run's name and a metric
    paper: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    # whether base model, data, candidates and recipe are those of these numbers
    comparable: bool = False
    source: str = ""  # of these numbers, in words for below the table


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of a run."""

    config: Config  # with the folder of the stage before it as `init_from`
    workdir: str  # its folder


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    name: str  # `base`, `rate=4` or, in a grid, `rate=4,k=1`
    stages: tuple[Stage, ...]  # in order; the last one is evaluated
    evaluated: Config  # options of that evaluation
    key: str  # what its numbers depend on
    # its label on each axis that it is a point of, as a number where the axis is one of numbers;
    # the base is on all axes of numbers whose option tells where
    at: Mapping[str, str | float]


def load(name: str) -> tuple[Sweep, str]:
    """The sweep of a file with an argument, `configs/sweep.py:quickstart`, and the file's folder.

    Raises:
        UserError: no such file, or no sweep in it.
    """
    path, _, argument = name.partition(":")
    module = _module(path)
    if not hasattr(module, "get_sweep"):
        raise UserError(f"{path}: has no get_sweep; see configs/sweep.py")
    return _called(module.get_sweep, path, argument), os.path.dirname(os.path.abspath(path))


def expand(sweep: Sweep, folder: str, output: str, options: Options | None = None) -> list[Planned]:
    """The runs of a sweep, the base first.

    Args:
        sweep: what to vary.
        folder: where its config files are.
        output: folder of the runs.
        options: of all runs, over those of the sweep.

    Raises:
        UserError: an option, a stage or an axis is unknown, or a value cannot be meant.
    """
    places: list[dict[str, str]] = [{}]  # labels by axis, of every run
    if sweep.single:
        places += [{axis: label} for axis, values in sweep.axes.items() for label in values]
    for grid in sweep.grids:
        for axis in grid:
            if axis not in sweep.axes:
                raise UserError(f"grids: no axis {axis!r}; there are {', '.join(sweep.axes)}")
        for labels in itertools.product(*(sweep.axes[axis] for axis in grid)):
            places.append(dict(zip(grid, labels, strict=True)))
    common = {**sweep.options, **(options or {})}
    bases = {stage: _config(folder, file) for stage, file in sweep.stages.items()}
    numeric = {axis: found for axis, values in sweep.axes.items() if (found := _numeric(values))}
    planned: dict[str, Planned] = {}
    for place in places:
        name = ",".join(f"{axis}={label}" for axis, label in place.items()) or "base"
        chosen = {k: v for axis, label in place.items() for k, v in sweep.axes[axis][label].items()}
        run = _plan(name, {**common, **chosen}, bases, output)
        at: dict[str, float | str] = {
            axis: float(label) if axis in numeric else label for axis, label in place.items()
        }
        if not place:
            at = {a: float(v) for a, o in numeric.items() if (v := _value(run, o)) is not None}
        planned[name] = dataclasses.replace(run, at=at)
    return list(planned.values())


def _numeric(axis: Mapping[str, Options]) -> str:
    """The option of an axis of numbers, whose value in every point is the label; empty: no such.

    Seeds have numbers and no order.
    """
    for option in next(iter(axis.values()), {}):
        if not option.endswith("seed") and all(
            (number := _number(label)) is not None and chosen.get(option) == number
            for label, chosen in axis.items()
        ):
            return option
    return ""


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _value(run: Planned, option: str) -> Any:
    """What an option is in a run; None if the stage that it is of does not take place."""
    where, _, dotted = option.rpartition(":")
    found = [s.config for s in run.stages if s.config.stage == where or not where]
    configs = [run.evaluated] if where == EVALUATION else found
    return functools.reduce(getattr, dotted.split("."), configs[-1]) if configs else None


def comparable(sweep: Sweep, options: Options) -> bool:
    """Whether the runs compare with the paper's numbers with these options over the sweep's.

    They do as long as the options name files, devices or ways to compute the same.
    """
    return sweep.comparable and all(
        option.rpartition(":")[2].startswith(_COMPUTED) for option in options
    )


def only(planned: Sequence[Planned], patterns: str) -> list[Planned]:
    """Runs whose names fit one of the patterns with commas between, `rate=*,base`; empty: all.

    A comma within a name is matched by `?` or `*`.

    Raises:
        UserError: none fits a pattern.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatch.fnmatch(run.name, pattern) for run in planned):
            names = ", ".join(run.name for run in planned)
            raise UserError(f"--only: no run fits {pattern!r}; there are {names}")
    wanted = wanted or ["*"]
    return [r for r in planned if any(fnmatch.fnmatch(r.name, pattern) for pattern in wanted)]


def _plan(
    name: str, options: Options, bases: dict[str, ml_collections.ConfigDict], output: str
) -> Planned:
    names = options.get("stages", tuple(bases))
    if not isinstance(names, list | tuple) or not names:
        raise UserError(f"{name}: stages={names!r}: must be a list of some of {', '.join(bases)}")
    places = [place for key in options if (place := key.rpartition(":")[0]) != EVALUATION and place]
    for stage in (*names, *places):
        if stage not in tuple(bases):
            raise UserError(f"{name}: no stage {stage!r} in the sweep; it has {', '.join(bases)}")
    for key in options:
        where, _, dotted = key.rpartition(":")
        if where and dotted == "stages":
            raise UserError(f"{name}: {key}: the chain has stages, not one of them; give stages=…")
        if where == EVALUATION and dotted != "data.sources" and not dotted.startswith("eval."):
            raise UserError(f"{name}: {key}: an evaluation has eval.* and data.sources of its own")
    stages: list[Stage] = []
    key = ""
    for stage in names:
        config = bases[stage].copy_and_resolve_references()
        _set_all(config, options, ("", stage), name)
        config.init_from = stages[-1].workdir if stages else config.init_from
        if STAGES[config.stage].ranks and stages and not config.data.memories:
            # Of the same compressor they are the same: computed once for all runs of it.
            config.data.memories = os.path.join(output, "memories", key)
        frozen = config_lib.freeze(config)
        key = _key(frozen, key)
        stages.append(Stage(frozen, os.path.join(output, "runs", f"{stage}-{key}")))
    # pyrefly: ignore[unbound-name]  # there is a stage
    _set_all(config, options, (EVALUATION,), name)
    evaluated = config_lib.freeze(config)
    basis = [key, dataclasses.asdict(evaluated.eval)]
    if evaluated.data.sources != stages[-1].config.data.sources:
        basis.append(evaluated.data.sources)
    found = digest(json.dumps(basis, sort_keys=True)).hex()[:12]
    return Planned(name, tuple(stages), evaluated, found, {})


def _key(config: Config, before: str) -> str:
    """What tells a stage's training from any other."""
    tree = {k: v for k, v in dataclasses.asdict(config).items() if k in _DECIDING}
    tree["data"].pop("memories")
    if not before:
        tree["init_from"] = config.init_from
    return digest(json.dumps([before, tree], sort_keys=True)).hex()[:12]


def _set_all(
    config: ml_collections.ConfigDict, options: Options, places: Sequence[str], run: str
) -> None:
    for option, value in options.items():
        where, _, dotted = option.rpartition(":")
        if dotted != "stages" and where in places:
            _set(config, dotted, value, run)


def _set(config: ml_collections.ConfigDict, dotted: str, value: Any, run: str) -> None:
    *groups, last = dotted.split(".")
    place: Any = config
    try:
        for group in groups:
            place = place[group]
        if isinstance(place[last], ml_collections.ConfigDict):
            raise UserError(f"{run}: {dotted} is a group; set its options, as {dotted}.NAME=VALUE")
        if isinstance(place[last], float) and isinstance(value, int):
            value = float(value)
        place[last] = value
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{run}: option {dotted}={value!r}: {reason(e)}") from e


def _config(folder: str, name: str) -> ml_collections.ConfigDict:
    file, _, argument = name.partition(":")
    path = os.path.join(folder, file)
    return _called(_module(path).get_config, path, argument)


def _module(path: str) -> Any:
    try:
        return types.SimpleNamespace(**runpy.run_path(path, run_name="clara_jax_sweep"))
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file") from e
    except Exception as e:  # config files are Python
        raise UserError(f"{path}: cannot be loaded ({reason(e)})") from e


def _called(function: Any, path: str, argument: str) -> Any:
    try:
        return function(argument) if argument else function()
    except Exception as e:
        raise UserError(f"{path}:{argument}: {reason(e)}") from e
