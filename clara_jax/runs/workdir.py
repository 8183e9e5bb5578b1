"""What a workdir holds: metrics and evaluations of a run."""

import json
import os
from collections.abc import Sequence
from typing import Any

from clara_jax import files
from clara_jax.errors import UserError


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
        UserError: there are none, or one is not JSON.
    """
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        rows = files.read(path).split("\n")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; is this the workdir of a training run?") from e
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            line = dict(json.loads(row))
            if not all(isinstance(value, int | float) for value in (line["step"], *line.values())):
                raise ValueError("a value is no number")
            lines.append(line)
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            if number < len(rows):  # a kill may have cut the last one
                raise UserError(f"{path}:{number}: not a JSON object ({e})") from e
    if not lines:
        raise UserError(f"{path}: empty; no step has been logged yet")
    return lines


def newest_evaluation(workdir: str) -> dict[str, Any] | None:
    """The result in `newest_path`, or None.

    Raises:
        UserError: it is no such result.
    """
    newest = newest_path(workdir)
    return None if newest is None else read_evaluation(newest)


def read_evaluation(path: str) -> dict[str, Any]:
    """The result in a file of eval/.

    Raises:
        UserError: it is no such result.
    """
    try:
        result = json.loads(files.read(path))
        if not isinstance(result["conditions"], dict) or not result["predictions"]:
            raise ValueError("no conditions or predictions")
        return result
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: no result ({e!r}); run --mode=evaluate again") from e


def newest_path(workdir: str) -> str | None:
    """The file in eval/*.json of the latest step, of these the one written last, or None."""
    paths = list((files.path(workdir) / "eval").glob("*.json"))
    if not paths:
        return None
    return os.fspath(max(paths, key=lambda path: (_step_of(path.name), files.modified(path))))


def _step_of(name: str) -> int:
    step = name.split(".")[0].split("-")[0]
    return int(step) if step.isdecimal() else -1


def labels(workdirs: Sequence[str]) -> list[str]:
    """Names that tell runs apart: as many of the last parts of their paths as this takes."""
    parts = [files.normal(workdir).split("/") for workdir in workdirs]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(path[-depth:]) for path in parts]
        if len({*names, "BM25"}) == len(names) + 1:
            return names
    return list(workdirs)
