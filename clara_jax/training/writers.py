"""metrics.jsonl, and TensorBoard on request; process 0 alone writes."""

import contextlib
import json
import os
from typing import Any

import jax

from clara_jax import files, ledger
from clara_jax.errors import UserError
from clara_jax.ledger import Ledger


class MetricWriter:
    """Appends one JSON object a line to `workdir/metrics.jsonl`, opened at the first line.

    Raises:
        UserError: TensorBoard is asked for and tensorboardX is not installed.
    """

    def __init__(self, workdir: str, tensorboard: bool = False):
        self._path = os.path.join(workdir, "metrics.jsonl")
        self._file: Ledger | None = None
        self._board = None
        if tensorboard and jax.process_index() == 0:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as e:
                raise UserError(
                    "config.train.tensorboard needs the package tensorboardX: "
                    "pip install 'clara-jax[tensorboard]'"
                ) from e
            self._board = SummaryWriter(os.path.join(workdir, "tensorboard"))

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes scalars of one step.

        Raises:
            UserError: they cannot be written, such as on a full disk.
        """
        if jax.process_index() != 0:
            return
        advice = "; make room and run the same command to resume"
        with files.writing(f"{self._path}:", advice):
            if self._file is None:
                self._file = Ledger(self._path)
            self._file.append({"step": step, **metrics})
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Sees that all lines are kept, also on gs://, before a checkpoint that follows them."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Closes the files."""
        for sink in (self._file, self._board):
            if sink is not None:
                with contextlib.suppress(OSError):  # a full disk, which `write` has reported
                    sink.close()


def truncate(workdir: str, step: int) -> None:
    """Drops lines after `step`, which a run that resumes from there will write again."""
    path = os.path.join(workdir, "metrics.jsonl")
    if jax.process_index() != 0 or not files.path(path).exists():
        return
    kept = []

    def take(line: ledger.Entry, _: int) -> None:
        if line["step"] <= step:
            kept.append(json.dumps(line) + "\n")

    ledger.read(path, take, lambda problem: None)  # without lines that are none of ours
    files.write(path, "".join(kept))
