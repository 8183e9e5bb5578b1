"""metrics.jsonl, and TensorBoard on request; process 0 alone writes."""

import json
import os
from typing import Any

import jax

from clara_jax.errors import UserError


class MetricWriter:
    """Appends one JSON object a line to `workdir/metrics.jsonl`."""

    def __init__(self, workdir: str, tensorboard: bool = False):
        self._file, self._board = None, None
        if jax.process_index() != 0:
            return
        self._file = open(os.path.join(workdir, "metrics.jsonl"), "a", encoding="utf-8")
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as e:
                raise UserError(
                    "config.train.tensorboard needs the package tensorboardX: "
                    "pip install 'clara-jax[tensorboard]'"
                ) from e
            self._board = SummaryWriter(os.path.join(workdir, "tensorboard"))

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes scalars of one step."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()


def truncate(workdir: str, step: int) -> None:
    """Drops lines after `step`, which a run that resumes from there will write again."""
    path = os.path.join(workdir, "metrics.jsonl")
    if jax.process_index() != 0 or not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as f:
        lines = f.readlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue  # a line that a kill cut short
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.writelines(kept)
    os.replace(path + ".tmp", path)
