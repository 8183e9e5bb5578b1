"""Curves of training: what the metrics.jsonl of runs have over the steps."""

import os
from collections.abc import Iterable, Mapping, Sequence

from clara_jax import files
from clara_jax.runs.workdir import read_metrics

Points = Sequence[tuple[float, float]]


def curves(workdirs: Mapping[str, str], keys: Iterable[str]) -> dict[str, dict[str, Points]]:
    """Steps and values by key and run; without keys that no run has.

    Args:
        workdirs: of runs by label; one without metrics.jsonl, as of an imported model, has none.
        keys: of the lines of metrics.jsonl.

    Raises:
        UserError: a file is damaged.
    """
    logs = {
        label: read_metrics(workdir)
        for label, workdir in workdirs.items()
        if files.path(os.path.join(workdir, "metrics.jsonl")).exists()
    }
    found = {
        key: {label: points for label, rows in logs.items() if (points := _points(rows, key))}
        for key in keys
    }
    return {key: by_run for key, by_run in found.items() if by_run}


def _points(rows: Iterable[Mapping[str, float]], key: str) -> Points:
    return [(row["step"], row[key]) for row in rows if key in row]
