"""`clara`: every command of clara_jax by its name.

    clara train --config=scp:mistral_7b --workdir=runs/scp --config.data.sources=train.jsonl

`clara COMMAND --help` says what a command takes. The modes of `python -m clara_jax.main` are
commands, and `--config=scp:mistral_7b` is the config file of that name, with its argument.
"""

import importlib
import sys
from collections.abc import Sequence

import clara_jax
from clara_jax.errors import UserError, command

# Groups of commands: each with its module and what it is for. Those of `main` are its modes.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "train and evaluate": {
        "train": ("main", "a stage, from a config file; the same command resumes"),
        "evaluate": ("main", "the newest checkpoint of a run"),
        "report": ("evaluation.report", "text and curves of a run"),
        "compare": ("evaluation.compare", "runs, paired question by question"),
        "page": ("evaluation.page.__main__", "an HTML report of runs"),
        "sweep": ("evaluation.sweep.__main__", "a table of ablations"),
    },
    "documents and questions": {
        "compress": ("main", "documents into a store"),
        "ask": ("main", "questions, from a store or a file of documents"),
        "search": ("main", "documents for questions, with metrics and as a TREC run"),
        "serve": ("main", "answers over HTTP from a store"),
    },
    "weights": {
        "import": ("main", "a checkpoint of the PyTorch release, or an export"),
        "export": ("main", "for the release, PEFT, other engines or FAISS"),
        "compile": ("main", "programs for TPUs, without any"),
    },
    "data": {
        "synthesize": ("main", "training data from documents, by an OpenAI-like endpoint"),
        "convert": ("data.importers.convert", "public data sets to records"),
        "tfds": ("data.importers.tfds_builder", "records as a TFDS data set"),
        "narrativeqa": ("data.importers.narrativeqa", "NarrativeQA as records"),
    },
    "inside a model": {
        "fidelity": ("evaluation.fidelity.__main__", "what of a text memories keep"),
        "inside": ("evaluation.inside.__main__", "what slots, attention and queries hold"),
        "judge": ("evaluation.judge.__main__", "answers judged by another LLM"),
    },
}


def shown() -> str:
    """All commands, in groups."""
    lines = [__doc__.rstrip(), ""]
    for group, commands in COMMANDS.items():
        lines += [f"{group}:", *(f"  {name:12s}{what}" for name, (_, what) in commands.items()), ""]
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code.

    Raises:
        UserError: there is no such command.
    """
    program, *rest = sys.argv if argv is None else argv
    if not rest or rest[0] in ("--help", "-h", "help"):
        print(shown())
        return 0
    if rest[0] == "--version":
        print(clara_jax.__version__)
        return 0
    name, *rest = rest
    modules = {n: module for commands in COMMANDS.values() for n, (module, _) in commands.items()}
    if name not in modules:
        raise UserError(f"clara {name}: no such command; known: {', '.join(modules)}")
    module = importlib.import_module(f"clara_jax.{modules[name]}")
    if modules[name] == "main":
        return module.main([program, f"--mode={name}", *rest])
    sys.argv = [f"clara {name}"]  # what its usage calls it
    return module.main(rest)
