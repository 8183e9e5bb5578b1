"""A run for people: the loss curve as a picture and a few answers beside what was expected.

    python -m clara_jax.evaluation.report WORKDIR

writes WORKDIR/loss.png from metrics.jsonl and prints answers of the newest evaluation.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from clara_jax import files
from clara_jax.errors import UserError, command

CURVES = {"loss": "loss", "ce_loss": "cross-entropy", "eval/ce_loss": "held-out cross-entropy"}


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
        UserError: there are none, or one is not JSON.
    """
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        rows = files.read(path).splitlines()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; is this the workdir of a training run?") from e
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            line = dict(json.loads(row))
            if not all(isinstance(value, int | float) for value in (line["step"], *line.values())):
                raise ValueError("a value is no number")
            lines.append(line)
        except (ValueError, TypeError, KeyError) as e:
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
    except (OSError, ValueError, KeyError, TypeError) as e:
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


def pyplot() -> Any:
    """Matplotlib's pyplot, which draws into files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as e:
        raise UserError("plots need matplotlib: pip install 'clara-jax[plot]'") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: str) -> None:
    """Writes a picture.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with files.path(path).open("wb") as f:
            figure.savefig(f, dpi=120)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
    pyplot().close(figure)


def plot(workdir: str) -> str:
    """Draws the losses over the steps, and what the newest evaluation gave for its baselines.

    Returns:
        Path of the picture.
    """
    lines = read_metrics(workdir)
    figure, axes = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for key, label in CURVES.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if "eval" in key else "")
    conditions = (newest_evaluation(workdir) or {"conditions": {}})["conditions"]
    baselines = [n for n in conditions if n != "memory" and "turn_ce" in conditions[n]]
    for style, name in zip(("--", ":", "-."), baselines, strict=False):
        label = f"{name.replace('_', ' ')}, evaluated"
        axes.axhline(conditions[name]["turn_ce"], ls=style, color="grey", label=label)
    axes.set(xlabel="step", ylabel="nats a token", yscale="log", title=os.path.basename(workdir))
    axes.grid(alpha=0.3)
    axes.legend()
    path = os.path.join(workdir, "loss.png")
    save(figure, path)
    return path


def samples(workdir: str, count: int) -> list[str]:
    """Lines with questions, expected answers and answers of the newest evaluation."""
    result = newest_evaluation(workdir)
    if result is None:
        return []
    predictions = result["predictions"]
    conditions = [key for key in predictions[0] if key in result["conditions"]]
    lines = []
    for p in predictions[:: max(1, len(predictions) // count)][:count]:
        lines.append(f"{p['question']}  expected: {p['answer']}  ({p['origin']})")
        lines += [f"    {name.replace('_', ' ')}: {p[name]}" for name in conditions]
    return lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="of a training run")
    parser.add_argument("--samples", type=int, default=5, help="questions to show")
    args = parser.parse_args(argv)
    workdir = files.normal(args.workdir)
    if args.samples < 1:
        parser.error("--samples must be at least 1")
    for line in [*samples(workdir, args.samples), f"loss curve: {plot(workdir)}"]:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
