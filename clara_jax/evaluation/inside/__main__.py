"""Looks inside the memories of a model: pictures, and the numbers behind them.

    python -m clara_jax.evaluation.inside WORKDIR --questions=facts:100:1

writes into WORKDIR/inside: slots.png, which slot carries which fact; lens.png, the words that
vectors say; counterfactual.png, whether answers follow a changed document; attention.png, where
memory tokens look; map.png, where memories lie among texts; inside.md and inside.json.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from clara_jax import files
from clara_jax.data.documents import read_documents
from clara_jax.errors import UserError, command
from clara_jax.evaluation.inside import attention, counterfactual, data, lens, slots
from clara_jax.evaluation.inside import map as map_lib
from clara_jax.evaluation.inside.data import Given
from clara_jax.models.clara import Trees
from clara_jax.plotting import pyplot, save
from clara_jax.runs import abilities
from clara_jax.runs.load import load_setup
from clara_jax.runs.setup import Loaded, Model
from clara_jax.runs.workdir import labels

# Name → heading and module, which has measure(model, trees, given), draw(found) and text(found).
PARTS: dict[str, tuple[str, ModuleType]] = {
    "slots": ("Which slot carries which fact", slots),
    "lens": ("The words that vectors say", lens),
    "counterfactual": ("Answers when a fact of the document changes", counterfactual),
    "attention": ("Where memory tokens look", attention),
    "map": ("Where memories lie among texts", map_lib),
}
OF_TEXTS = ("attention", "map")  # what needs no question


def chosen(only: str, has_questions: bool) -> list[str]:
    """Names of PARTS.

    Args:
        only: of them, with commas between; empty: all that the input allows.
        has_questions: whether the input has any.

    Raises:
        UserError: one is unknown, or needs questions.
    """
    if not only:
        return list(PARTS if has_questions else OF_TEXTS)
    names = list(dict.fromkeys(name.strip() for name in only.split(",")))
    for name in names:
        if name not in PARTS:
            raise UserError(f"--only: no {name!r}; there are {', '.join(PARTS)}")
        if not has_questions and name not in OF_TEXTS:
            raise UserError(f"--only={name} needs questions: give --questions, not --documents")
    return names


def look(
    model: Model, trees: Trees, given: Given, names: Sequence[str], output: str, strict: bool = True
) -> dict[str, Any]:
    """Measures and draws parts, and writes all into a folder.

    Args:
        model: the model.
        trees: its weights.
        given: what is looked at.
        names: of PARTS.
        output: the folder, made if it is not there.
        strict: a part that the documents do not serve is an error, when all others are written.
            In any case it is left out with a line that says why.

    Returns:
        What inside.json holds: the result of each part by its name.

    Raises:
        UserError: the model cannot compress or answer, or a file cannot be written, or see
            `strict`.
    """
    answering = not set(names) <= {*OF_TEXTS, "lens"}
    for loaded in filter(None, (Loaded(model, trees), given.other)):
        abilities.can(*loaded, "compress")
    if answering:
        abilities.can(model, trees, "answer")
    pyplot()  # a missing library is reported before any work
    files.make_folder(output)
    found: dict[str, Any] = {}
    left: list[str] = []
    lines = [f"# Inside {given.names[0]}", ""]
    for name in names:
        heading, part = PARTS[name]
        try:
            found[name] = part.measure(model, trees, given)
        except UserError as e:
            left.append(f"{name}: {str(e).removeprefix(f'{name}: ')}")
            print(f"{heading}: left out: {e}", end="\n\n", flush=True)
            lines += [f"## {heading}", "", f"Left out: {e}", ""]
            continue
        save(part.draw(found[name]), os.path.join(output, f"{name}.png"))
        text = part.text(found[name])
        print(f"{heading}\n", *text, sep="\n", end="\n\n", flush=True)
        lines += [f"## {heading}", "", f"![{heading}]({name}.png)", "", *text, ""]
    numbers = json.dumps(found, ensure_ascii=False, allow_nan=False)
    files.write(os.path.join(output, "inside.json"), numbers)
    files.write(os.path.join(output, "inside.md"), "\n".join(lines))
    if strict and left:
        raise UserError(
            f"{'; '.join(left)} (the other parts are in {output})" if found else left[0]
        )
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.inside", description=__doc__.splitlines()[0]
    )
    parser.add_argument("workdir", help="of a run, or another folder that clara_jax.load opens")
    parser.add_argument("--base", help="where the base model is, if not where the run found it")
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument(
        "--questions", help="sources (a .jsonl file, facts:100:1); by default config.eval.sources"
    )
    inputs.add_argument("--documents", help=f"a file of texts alone, for {', '.join(OF_TEXTS)}")
    parser.add_argument("--count", type=int, default=100, help="most documents and questions")
    parser.add_argument("--compare", help="another workdir (without MSE, say), for map")
    parser.add_argument(
        "--replace", choices=("mean", "zero"), help="what stands for a slot; slots: mean"
    )
    parser.add_argument("--only", default="", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--output", help="folder; by default WORKDIR/inside")
    args = parser.parse_args(argv)
    if args.count < 1:
        parser.error("--count must be at least 1")
    names = chosen(args.only, not args.documents)
    if args.compare and "map" not in names:
        raise UserError("--compare is for map, which is left out")
    if args.replace and "slots" not in names:
        raise UserError("--replace is for slots, which are left out")
    workdirs = [files.normal(w) for w in (args.workdir, args.compare) if w]
    model, trees = load_setup(workdirs[0], args.base)
    if args.documents:
        given = Given(read_documents(args.documents)[: args.count])
    else:
        sources = args.questions or model.config.eval.sources
        if not sources:
            raise UserError("give --questions or --documents: the run names no config.eval.sources")
        given = data.read(model, sources, args.count)
    other = load_setup(workdirs[1], args.base) if args.compare else None
    given = dataclasses.replace(
        given, other=other, names=labels(workdirs), replace=args.replace or "mean"
    )
    output = args.output or os.path.join(workdirs[0], "inside")
    look(model, trees, given, names, output, strict=bool(args.only))
    print(f"pictures and numbers: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
