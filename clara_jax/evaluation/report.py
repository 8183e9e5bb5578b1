"""A run for people: the loss curve as a picture and a few answers beside what was expected.

    python -m clara_jax.evaluation.report WORKDIR

writes WORKDIR/loss.png from metrics.jsonl and prints answers of the newest evaluation.
"""

import argparse
import glob
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from clara_jax.errors import UserError

CURVES = {"loss": "loss", "ce_loss": "cross-entropy", "eval/ce_loss": "held-out cross-entropy"}


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    Raises:
        UserError: there are none, or one is not JSON.
    """
    path = os.path.join(workdir, "metrics.jsonl")
    try:
        with open(path, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; is this the workdir of a training run?") from e
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: a line is not JSON ({e})") from e
    if not lines:
        raise UserError(f"{path}: empty; no step has been logged yet")
    return lines


def newest_evaluation(workdir: str) -> dict[str, Any] | None:
    """The result in eval/*.json that was written last, or None.

    Raises:
        UserError: it is not JSON.
    """
    paths = glob.glob(os.path.join(workdir, "eval", "*.json"))
    if not paths:
        return None
    newest = max(paths, key=os.path.getmtime)
    try:
        with open(newest, encoding="utf-8") as f:
            return json.load(f)
    except json.JSONDecodeError as e:
        raise UserError(f"{newest}: not JSON ({e}); run --mode=evaluate again") from e


def plot(workdir: str) -> str:
    """Draws the losses over the steps, and what the newest evaluation gave for its baselines.

    Returns:
        Path of the picture.
    """
    try:
        import matplotlib
    except ImportError as e:
        raise UserError("plots need matplotlib: pip install 'clara-jax[plot]'") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(workdir)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for key, label in CURVES.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if "eval" in key else "")
    conditions = (newest_evaluation(workdir) or {"conditions": {}})["conditions"]
    for style, name in zip(
        ("--", ":", "-."), [n for n in conditions if n != "memory"], strict=False
    ):
        label = f"{name.replace('_', ' ')}, evaluated"
        axes.axhline(conditions[name]["turn_ce"], ls=style, color="grey", label=label)
    axes.set(xlabel="step", ylabel="nats a token", yscale="log", title=os.path.basename(workdir))
    axes.grid(alpha=0.3)
    axes.legend()
    path = os.path.join(workdir, "loss.png")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def samples(workdir: str, count: int) -> list[str]:
    """Lines with questions, expected answers and answers of the newest evaluation."""
    result = newest_evaluation(workdir)
    if result is None:
        return []
    predictions = result["predictions"]
    conditions = [key for key in predictions[0] if key not in ("origin", "question", "answer")]
    lines = []
    for p in predictions[:: max(1, len(predictions) // count)][:count]:
        lines.append(f"{p['question']}  expected: {p['answer']}  ({p['origin']})")
        lines += [f"    {name.replace('_', ' ')}: {p[name]}" for name in conditions]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="of a training run")
    parser.add_argument("--samples", type=int, default=5, help="questions to show")
    args = parser.parse_args(argv)
    try:
        print("\n".join(samples(os.path.normpath(args.workdir), args.samples)))
        print(f"loss curve: {plot(os.path.normpath(args.workdir))}")
    except UserError as e:
        print(f"clara_jax: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
