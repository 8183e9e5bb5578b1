"""The runs that a run starts from, and the steps of theirs that it started at."""

import dataclasses
import json
import os

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import OPTIONS, Config
from clara_jax.config_checks import get
from clara_jax.errors import UserError
from clara_jax.interop import native
from clara_jax.runs.checkpoint import newest_step

# Options that the trees of earlier runs were trained with and that no shape gives away.
INHERITED = sorted(
    (name for name, option in OPTIONS.items() if option.inherited),
    key=lambda name: name.startswith("lora."),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose trained trees are read."""

    workdir: str  # of the run
    config: Config  # of the run
    step: int | None = None  # of the checkpoint to read; None: the newest

    @property
    def is_native(self) -> bool:
        """Whether its weights were imported or exported (interop/native.py), not trained there."""
        return bool(self.workdir) and native.is_native(self.workdir)

    @property
    def trees(self) -> tuple[str, ...]:
        """Names of the trees that it holds."""
        return native.names(self.workdir) if self.is_native else self.config.trained


def lineage(config: Config, child: str = "") -> list[Run]:
    """The runs that a run starts from, the nearest first.

    Args:
        config: of the run.
        child: its workdir, if it has been trained: its `origins.json` says which of their steps it
            started from, and a run that is not where it was is looked for beside it.

    Raises:
        UserError: one is missing, they go in a circle, or one was trained with other options that
            its trees depend on.
    """
    runs: list[Run] = []
    steps = read_origins(child)
    workdir = config.init_from
    while workdir:
        beside = os.path.join(os.path.dirname(files.absolute(child)), os.path.basename(workdir))
        if not files.path(workdir).is_dir() and child and files.path(beside).is_dir():
            workdir = beside
        if not files.path(workdir).is_dir():
            raise UserError(
                f"config.init_from={workdir}: no such folder"
                + (f"; {child} starts from it: put it back, or beside {child}" if child else "")
            )
        if any(files.absolute(workdir) == files.absolute(run.workdir) for run in runs):
            raise UserError(f"{workdir}: config.init_from leads back to itself")
        earlier = config_lib.load(os.path.join(workdir, "config.json"))
        for name in config_lib.differences(earlier, config, INHERITED):
            if earlier.train.full and name.startswith("lora."):
                continue  # it trained no adapters
            raise UserError(
                f"config.{name}={get(config, name)!r}, but config.init_from={workdir} was trained "
                f"with {get(earlier, name)!r}; set the same"
            )
        runs.append(Run(workdir, earlier, steps.get(os.path.basename(files.absolute(workdir)))))
        child, workdir = workdir, earlier.init_from
    return runs


def save_origins(workdir: str, config: Config) -> None:
    """Keeps in `origins.json` from which step of each earlier run, by its name, a run starts.

    So that it stays what it is when an earlier run is trained further.
    """
    path = os.path.join(workdir, "origins.json")
    if files.path(path).exists():
        return
    steps = {
        os.path.basename(files.absolute(run.workdir)): newest_step(run.workdir)
        for run in lineage(config)
    }
    files.write(path, json.dumps(steps))


def read_origins(workdir: str) -> dict[str, int]:
    """What `save_origins` kept; nothing for a run that has not been trained."""
    path = os.path.join(workdir, "origins.json")
    if not workdir or not files.path(path).exists():
        return {}
    try:
        origins = json.loads(files.read(path))
        return {str(name): int(step) for name, step in origins.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{path}: damaged ({e}); restore it from a copy") from e
