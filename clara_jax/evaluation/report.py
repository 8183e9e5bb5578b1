"""A run for people: the loss curve as a picture and a few answers beside what was expected.

    python -m clara_jax.evaluation.report WORKDIR

writes WORKDIR/loss.png from metrics.jsonl and prints answers of the newest evaluation.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from clara_jax import files
from clara_jax.errors import command
from clara_jax.plotting import pyplot, save
from clara_jax.runs.workdir import newest_evaluation, read_metrics

CURVES = {"loss": "loss", "ce_loss": "cross-entropy", "eval/ce_loss": "held-out cross-entropy"}


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
