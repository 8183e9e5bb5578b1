"""Command line: python -m clara_jax.main --config=configs/scp.py --workdir=runs/scp [--mode=train].

    train     --config=configs/{scp,instruct,e2e,contrastive}.py:mistral_7b --workdir=… [--config…]
    evaluate  the same, with --mode=evaluate [--base=…]
    ask       --mode=ask --workdir=… --documents=… | --store=… [--config=…] [--question=…]
              [--base=…] [--rate=…] [--top_k=…] [--max_new_tokens=…] [--temperature=…]
              [--top_p=…]
    compress  --mode=compress --store=… --workdir=… --documents=… [--base=…] [--config=…]
              [--fit=QUESTIONS] [--shard=i/n], or --store=… --workdir=… --fit=QUESTIONS,
              --store=… --delete=IDS, --store=… --compact, --store=… --verify,
              --store=… --join=STORE,STORE,…
    search    --mode=search --store=… --workdir=… --questions=… [--output=RUN.trec] [--base=…]
              [--config=…], metrics and a TREC run
    serve     --mode=serve --store=… --workdir=… [--base=…] [--config=configs/serve.py]
    import    --mode=import --source=… --base=… --workdir=…, a checkpoint of the PyTorch release
    export    --mode=export --workdir=… --format=… --output=… [--base=…] [--store=…]
    compile   --mode=compile --config=… [--topology=v5e:4x4] [--program=…], without any TPU
    synthesize  --mode=synthesize --documents=… --output=… [--config=configs/synthesize.py]
              [--dry_run] [--preview=3], training data from documents by an OpenAI-like endpoint

Exit codes: 0 done, 2 a mistake that the printed line tells how to mend, 70 a bug of ours with the
file to report it with, 130 Ctrl-C, 143 SIGTERM after saving; 1 or 134 another process is gone.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence

from absl import flags

from clara_jax import command_line
from clara_jax import config as config_lib
from clara_jax.command_line import Mode
from clara_jax.errors import command

MODES = {
    "train": Mode("training.train", "train", "config workdir", defaults="scp"),
    "evaluate": Mode("evaluation.evaluate", "run", "config workdir", "base"),
    "ask": Mode(
        "ask",
        "run",
        "workdir",
        "documents store base config question rate top_k max_new_tokens temperature top_p",
        groups="search",
        defaults="serve",
    ),
    "compress": Mode(
        "corpus.compress",
        "run",
        "store",
        "workdir documents base config delete compact verify fit shard join",
        groups="store search",
        defaults="serve",
    ),
    "search": Mode(
        "corpus.search.run",
        "run",
        "store workdir questions",
        "base config output",
        groups="search",
        defaults="serve",
    ),
    "serve": Mode(
        "serving.run",
        "run",
        "store workdir",
        "base config",
        groups="serve store search",
        defaults="serve",
    ),
    "import": Mode("exchange.import_model", "run", "source workdir", "base", on_devices=False),
    "export": Mode(
        "exchange.export_model", "run", "workdir format output", "base store", on_devices=False
    ),
    "compile": Mode(
        "aot.compile", "run", "config", "topology program", defaults="scp", on_devices=False
    ),
    "synthesize": Mode(
        "synthesis.run",
        "run",
        "documents output",
        "config dry_run preview",
        groups="synthesis",
        defaults="synthesize",
        on_devices=False,
    ),
}
FLAGS = dict.fromkeys(
    name for mode in MODES.values() for name in f"{mode.needs} {mode.may}".split()
)
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")


def run() -> int:
    """Runs the chosen mode with the parsed flags; returns the exit code."""
    mode = MODES[_MODE.value]
    arguments = command_line.arguments(_MODE.value, mode, FLAGS)
    if "config" in arguments:
        arguments["config"] = config_lib.freeze(arguments["config"])
    joined = contextlib.nullcontext
    if mode.on_devices:  # imported late: --help, mistakes in flags and some modes need no JAX
        from clara_jax.distributed import joined
    with joined():
        module = importlib.import_module(f"clara_jax.{mode.module}")
        return getattr(module, mode.function)(**arguments)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv if argv is None else argv
    named = next((a.partition("=")[2] for a in argv if a.startswith("--mode=")), "")
    if {"--help", "-h", "-help"} & set(argv):
        if named in MODES:
            print(command_line.help_of(named, MODES[named]))
        else:
            print(__doc__ + "\n" + flags.FLAGS.module_help(command_line))
        return 0
    command_line.start_log()
    mode = MODES.get(named or "train")
    command_line.parse(argv if mode is None else command_line.with_file(argv, mode))
    return run()


if __name__ == "__main__":
    sys.exit(main())
