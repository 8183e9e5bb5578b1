"""A result's numbers: means with intervals, the gap that is closed, its table and its file."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from clara_jax import files
from clara_jax.errors import UserError
from clara_jax.evaluation import predictions, statistics
from clara_jax.evaluation.statistics import Values

SMALLEST_GAP = 1e-6
# What the gap between the baselines is taken of, and whether more of it is better.
GAPS = {"answer_ce": False, "f1": True}
COLUMNS = {
    "turn_ce": "turn CE",
    "answer_ce": "answer CE",
    "exact_match": "EM",
    "f1": "F1",
    "cover_exact_match": "cover EM",
    "seconds": "seconds",
}


def gap_closed(
    no_document: float, memory: float, full_text: float, more_is_better: bool
) -> float | None:
    """Share of the way from no document to the full text that the memory goes.

    0 is no better than no document and 1 as good as the text; it may be negative or above 1. None
    where the text is no better than nothing: there is no gap to close, and the quotient would be
    huge or have the wrong sign.
    """
    gap = full_text - no_document if more_is_better else no_document - full_text
    if gap < SMALLEST_GAP:
        return None
    return (memory - no_document if more_is_better else no_document - memory) / gap


def gaps(conditions: dict[str, dict[str, float]], names: tuple[str, str, str]) -> dict[str, Any]:
    """`gap_closed` for all of GAPS, if all three conditions were evaluated.

    Args:
        conditions: numbers of each.
        names: of the conditions that stand for no document, memory and full text.
    """
    if not all(name in conditions for name in names):
        return {}
    none, memory, full = (conditions[name] for name in names)
    return {key: gap_closed(none[key], memory[key], full[key], more) for key, more in GAPS.items()}


def intervals(
    values: Mapping[str, Values], groups: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """95 % intervals of the means, by metric; `groups` as for `statistics.interval`."""
    return {name: list(statistics.interval(each, groups)) for name, each in values.items()}


def means(values: Mapping[str, Values]) -> dict[str, float]:
    """Means, by metric."""
    return {name: float(np.mean(each)) for name, each in values.items()}


def share(values: Values, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """`mean` of values and its 95 % `interval`; `groups` as for `statistics.interval`."""
    interval = list(statistics.interval(values, groups))
    return {"mean": float(np.mean(values)), "interval": interval}


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    of = {
        "documents": "on {records} documents",
        "candidates": "over {candidates:.1f} candidates each",
    }
    lines = [
        f"step {result['step']}: {result['questions']} questions "
        + of["candidates" if "candidates" in result else "documents"].format(**result)
        + f", compressed {result['compression_rate']:.1f}x into {result['memory_tokens']} vectors "
        f"({result['documents_cut']} documents cut), {result['seconds']:.0f} s"
    ]
    if rankings := result.get("retrieval"):
        golds = sum(bool(p.get("pos_index")) for p in result["predictions"])
        if golds < result["questions"]:
            lines.append(f"rankings, over the {golds} questions that name gold documents:")
        lines += _rows(rankings, {name: name for name in next(iter(rankings.values()))})
    lines += _rows(result["conditions"], COLUMNS, result.get("intervals", {}))
    for key, share in result.get("gap_closed", {}).items():
        text = "no gap, the text does not help" if share is None else f"{share:.1%}"
        lines.append(f"share of the gap (no document to full text) closed, {COLUMNS[key]}: {text}")
    return "\n".join(lines)


def _rows(
    named: dict[str, dict[str, float]],
    columns: dict[str, str],
    intervals: dict[str, dict[str, list[float]]] | None = None,
) -> list[str]:
    shown = [key for key in columns if any(key in values for values in named.values())]
    head = [f"{columns[key]:>10}" for key in shown] + ["   F1, 95 %"] * bool(intervals)
    lines = [" ".join([f"{'':20}", *head])]
    for name, values in named.items():
        cells = [f"{values[key]:10.3f}" if key in values else " " * 10 for key in shown]
        if intervals and name in intervals:
            cells.append("   {:.3f}-{:.3f}".format(*intervals[name]["f1"]))
        lines.append(" ".join([f"{name.replace('_', ' '):20}", *cells]))
    return lines


def write(result: dict[str, Any], workdir: str) -> str:
    """Writes a result to `eval/<step>.json`, or `<step>-2.json` … beside those of other settings.

    Beside it `<step>.jsonl` holds the predictions with their values (evaluation/predictions.py).

    Returns:
        The path.

    Raises:
        UserError: it cannot be written.
    """
    directory = os.path.join(workdir, "eval")
    try:
        files.make_folder(directory)
        suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        paths = (os.path.join(directory, f"{result['step']}{suffix}.json") for suffix in suffixes)
        settings = result.get("settings")
        path = next(p for p in paths if not files.path(p).exists() or _settings(p) == settings)
        if result.get("predictions"):
            predictions.write(result, f"{path}l")
        files.write(path, json.dumps(result, indent=2, ensure_ascii=False))
    except OSError as e:
        raise UserError(f"{directory}: cannot write the result ({e.strerror})") from e
    logging.info("answers and numbers: %s", path)
    return path


def _settings(path: str) -> Any:
    """The settings of an earlier result; none for a file that is damaged."""
    try:
        return json.loads(files.read(path))["settings"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
