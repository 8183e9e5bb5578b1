r"""Synthetic against human questions on the same documents, and what a model learns from each.

    python -m benchmarks.human_questions --human=squad.jsonl --output=runs/compare \
        --base_url=http://127.0.0.1:8000/v1 --model=NAME \
        --train=configs/smollm2.py --set=model.base=MODEL --dev=dev.jsonl

reads records with questions that people asked, lets the endpoint ask about their documents
(`--synthetic=FILE` takes questions that it asked before), and compares: answer coverage, kinds of
questions, overlap. With `--train` it trains one run on each, from as many pairs about the same
documents, and evaluates both on the human questions of `--dev`.
"""

import argparse
import collections
import dataclasses
import os
import random
import re
import runpy
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Config, Synthesis
from clara_jax.data import records
from clara_jax.data.records import ScpRecord
from clara_jax.data.sources import JsonlSource
from clara_jax.errors import UserError, command
from clara_jax.evaluation import evaluate
from clara_jax.evaluation.metrics import f1
from clara_jax.runs.workdir import newest_evaluation
from clara_jax.synthesis import run as synthesis
from clara_jax.text import markdown
from clara_jax.text.normalise import normalise
from clara_jax.training.train import train

_KINDS = "how many,how much,how long,how,who,whose,when,where,which,what,why".split(",")
_AUXILIARIES = frozenset(
    "is are was were do does did has have had can could will would should may might".split()
)

Asked = dict[str, list[tuple[str, str]]]  # question and answer pairs by document


def kind(question: str) -> str:
    """What a question asks for, by the question word in it that is first of `_KINDS`."""
    words = normalise(question)
    if words.split(" ")[0] in _AUXILIARIES:
        return "yes or no"
    matches = [(m.start(), k) for k in _KINDS if (m := re.search(rf"\b{k}\b", words))]
    return min(matches, key=lambda pair: (pair[0], -len(pair[1])))[1] if matches else "other"


def by_document(given: Iterable[ScpRecord], documents: Sequence[str] | None = None) -> Asked:
    """Pairs of the qa records by document.

    Args:
        given: records of any type.
        documents: those to file them under, where the records' own may be pieces of one; what is of
            none of these is left out. None: the records' own.
    """
    grouped: Asked = collections.defaultdict(list)
    homes: dict[str, str | None] = {}
    plain = {_plain(document): document for document in documents or ()}
    for record in given:
        if record.data_type != "qa":
            continue
        document = record.document
        if documents is not None and document not in homes:
            text = _plain(document.split("\n", 1)[-1])
            whole = plain.get(_plain(document))
            homes[document] = whole or next((d for p, d in plain.items() if text in p), None)
        home = document if documents is None else homes[document]
        if home is not None:
            grouped[home] += zip(record.questions, record.answers, strict=True)
    return dict(grouped)


def _plain(text: str) -> str:
    return " ".join(text.split())


def describe(human: Asked, synthetic: Asked) -> dict[str, dict[str, float]]:
    """Numbers of both sets, and of how they meet on the documents that both have.

    Returns:
        By set ("human", "synthetic"): documents, pairs a document, words a question and an answer,
        `answers found` (share of the other set's answers that its questions and answers mention),
        `question overlap` (mean F1 of the other set's questions with the nearest of its own),
        `answer overlap`, and the share of each kind of question as `kind: who`.
    """
    both = [document for document in human if document in synthetic]
    out = {}
    for name, own, other in (("human", human, synthetic), ("synthetic", synthetic, human)):
        pairs = [pair for found in own.values() for pair in found]
        kinds = collections.Counter(kind(question) for question, _ in pairs)
        out[name] = {
            "documents": len(own),
            "pairs a document": len(pairs) / max(len(own), 1),
            "words a question": _mean(len(q.split()) for q, _ in pairs),
            "words an answer": _mean(len(a.split()) for _, a in pairs),
            "answers found": _mean(
                float(normalise(answer) in normalise(" ".join(f"{q} {a}" for q, a in own[d])))
                for d in both
                for _, answer in other[d]
            ),
            "question overlap": _mean(
                max(f1(question, q) for q, _ in own[d]) for d in both for question, _ in other[d]
            ),
            "answer overlap": _mean(
                max(f1(answer, a) for _, a in own[d]) for d in both for _, answer in other[d]
            ),
            **{f"kind: {k}": n / max(len(pairs), 1) for k, n in kinds.most_common()},
        }
    return out


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(numbers) if (numbers := list(values)) else float("nan")


def equal(human: Asked, synthetic: Asked, seed: int = 0) -> tuple[Asked, Asked]:
    """As many pairs of each, drawn by the seed, about every document that both have."""
    rng, out = random.Random(seed), ({}, {})
    for document in human:
        if document in synthetic:
            n = min(len(human[document]), len(synthetic[document]))
            for target, source in zip(out, (human, synthetic), strict=True):
                target[document] = rng.sample(source[document], n)
    return out


def write(path: str, asked: Asked) -> None:
    """Writes records of the scp form, one a document."""
    values = (
        {
            "data_type": "qa",
            "question": [question for question, _ in pairs],
            "answers": [answer for _, answer in pairs],
            "docs": [document],
        }
        for document, pairs in asked.items()
    )
    records.write(path, values)


def train_on(path: str, workdir: str, config: Config, dev: str) -> dict[str, float]:
    """Trains a run on a file and evaluates it; answers from memories, of `evaluation.scp`."""
    values = {"data.sources": path, "data.holdout": 0.0, "eval.sources": dev}
    config = config_lib.with_options(config, values)
    code = train(config, workdir)
    if code:
        raise SystemExit(code)
    evaluate.run(config, workdir)
    result = newest_evaluation(workdir)
    return {k: v for k, v in result["conditions"]["memory"].items() if k != "seconds"}


def table(columns: dict[str, dict[str, float]]) -> str:
    """Markdown with a row for each number and a column for each set."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    cells = [
        (name, *(f"{column.get(name, 0.0):.4g}" for column in columns.values())) for name in names
    ]
    return markdown.table(("", *columns), cells)


def read_config(path: str, changes: Sequence[str]) -> Config:
    """A config file with `group.option=value` changes.

    Raises:
        UserError: there is no such file or option.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such config file")
    config = runpy.run_path(path)["get_config"]()
    for change in changes:
        name, _, value = change.partition("=")
        try:
            group, _, option = name.rpartition(".")
            target: Any = config
            for part in filter(None, group.split(".")):
                target = target[part]
            target[option] = _like(target[option])(value)
        except (KeyError, AttributeError, TypeError, ValueError) as e:
            raise UserError(f"--set={change}: no such option, or not of its type") from e
    return config_lib.freeze(config)


def _like(value: Any) -> Callable[[str], Any]:
    return (lambda text: text.lower() == "true") if isinstance(value, bool) else type(value)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.human_questions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--human", required=True, help="records with human questions (scp form)")
    parser.add_argument("--output", required=True, help="folder for tables and runs")
    parser.add_argument("--documents", type=int, default=0, help="number of documents; 0 = all")
    parser.add_argument(
        "--synthetic", default="", help="records to compare with; else they are made"
    )
    parser.add_argument("--base_url", default="", help="of the endpoint that asks")
    parser.add_argument("--model", default="", help="its name there")
    parser.add_argument("--rounds", type=int, default=Synthesis.rounds)
    parser.add_argument("--concurrency", type=int, default=Synthesis.concurrency)
    parser.add_argument("--train", default="", help="config file to train on each with")
    parser.add_argument("--set", action="append", default=[], help="group.option=value of it")
    parser.add_argument("--dev", default="", help="records to evaluate both runs on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if bool(args.train) != bool(args.dev):
        raise UserError("--train and --dev go together: what to train with, what to evaluate on")
    training = read_config(args.train, args.set) if args.train else None
    files.make_folder(args.output)
    human = by_document(JsonlSource(args.human))
    human = dict(list(human.items())[: args.documents or None])
    made = args.synthetic or _synthesize(args, list(human))
    synthetic = by_document(JsonlSource(made), list(human))
    if not synthetic:
        raise UserError(f"{made}: no question is about a document of {args.human}")
    text = table(describe(human, synthetic))
    if training is not None:
        columns = {}
        for name, asked in zip(
            ("human", "synthetic"), equal(human, synthetic, args.seed), strict=True
        ):
            path = os.path.join(args.output, f"{name}.jsonl")
            write(path, asked)
            pairs = sum(map(len, asked.values()))
            result = train_on(path, os.path.join(args.output, f"run_{name}"), training, args.dev)
            columns[name] = {"documents": len(asked), "pairs": pairs, **result}
        text += (
            f"\n\nTrained on each, evaluated on {os.path.basename(args.dev)}:\n\n{table(columns)}"
        )
    files.write(os.path.join(args.output, "comparison.md"), text + "\n")
    print(text)
    return 0


def _synthesize(args: argparse.Namespace, documents: Sequence[str]) -> str:
    """Asks about documents by the endpoint; the file of records."""
    corpus = os.path.join(args.output, "documents.jsonl")
    parts = (("\n" * ("\n" not in text) + text).split("\n", 1) for text in documents)
    records.write(corpus, ({"title": title, "text": text} for title, text in parts))
    options = Synthesis(
        base_url=args.base_url,
        model=args.model,
        rounds=args.rounds,
        concurrency=args.concurrency,
        paraphrase=False,
        near_duplicates=1.0,
    )
    config = config_lib.freeze(dataclasses.asdict(Config(synthesis=options, seed=args.seed)))
    folder = os.path.join(args.output, "synthetic")
    if code := synthesis.run(corpus, folder, config):  # it has told why
        raise SystemExit(code)
    return os.path.join(folder, "train.jsonl")


if __name__ == "__main__":
    sys.exit(main())
