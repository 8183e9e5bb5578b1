"""Command line: python -m clara_jax.main --config=configs/scp.py --workdir=runs/scp [--mode=train].

    train     --config=configs/e2e.py:mistral_7b --workdir=… [--config.init_from=…]; the stages are
              configs/scp.py, instruct.py, e2e.py, contrastive.py
    evaluate  the same, with --mode=evaluate
    ask       --mode=ask --workdir=… --documents=… | --store=… [--config=…] [--question=…]
              [--base=…] [--top_k=…] [--max_new_tokens=…] [--temperature=…] [--top_p=…]
    compress  --mode=compress --store=… --workdir=… --documents=… [--base=…] [--config=…], or
              --store=… --delete=IDS, --store=… --compact
    serve     --mode=serve --store=… --workdir=… [--base=…] [--config=configs/serve.py]
    import    --mode=import --source=… --base=… --workdir=…, a checkpoint of the PyTorch release
    export    --mode=export --workdir=… --format=… --output=… [--base=…] [--store=…]
    compile   --mode=compile --config=… [--topology=v5e:4x4] [--program=…], without any TPU
    synthesize  --mode=synthesize --documents=… --output=… [--config=configs/synthesize.py]
              [--dry_run] [--preview=3], training data from documents by an OpenAI-like endpoint

Exit codes: 0 done, 2 a mistake that the printed line tells how to mend, 143 SIGTERM after saving;
1 or 134 another process is gone.
"""

import contextlib
import importlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from clara_jax import command_line
from clara_jax import config as config_lib
from clara_jax.command_line import Mode
from clara_jax.errors import command

MODES = {
    "train": Mode("training.train", "train", ("config", "workdir")),
    "evaluate": Mode("evaluation.evaluate", "run", ("config", "workdir")),
    "ask": Mode("inference.ask", "run", ("workdir",),
                ("documents", "store", "base", "config", "question", "top_k", "max_new_tokens",
                 "temperature", "top_p")),
    "compress": Mode("inference.compress", "run", ("store",),
                     ("workdir", "documents", "base", "config", "delete", "compact")),
    "serve": Mode("serving.run", "run", ("store", "workdir"), ("base", "config")),
    "import": Mode("inference.import_model", "run", ("source", "workdir"), ("base",), False),
    "export": Mode("inference.export_model", "run", ("workdir", "format", "output"),
                   ("base", "store"), False),
    "compile": Mode("aot.compile", "run", ("config",), ("topology", "program"), False),
    "synthesize": Mode("synthesis.run", "run", ("documents", "output"),
                       ("config", "dry_run", "preview"), False),
}  # fmt: skip
FLAGS = dict.fromkeys(name for mode in MODES.values() for name in (*mode.needs, *mode.may))

config_flags.DEFINE_config_file(
    "config", None, "Config file, with a model as argument (a stage for quickstart.py and "
    "smollm2.py): configs/scp.py:mistral_7b. --config.group.option=value overrides; "
    "clara_jax/config.py lists all options.",
)  # fmt: skip
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints.")
flags.DEFINE_string("source", None, "Checkpoint to import: a directory or owner/name[/subfolder].")
flags.DEFINE_string("output", None, "Folder that is made.")
_FORMATS = ["release", "peft", "merged", "native", "faiss"]
flags.DEFINE_enum("format", None, _FORMATS, "What to export to. faiss: search keys of a --store.")
flags.DEFINE_string("documents", None, "Documents: .jsonl, .parquet, or paragraphs of text.")
flags.DEFINE_string("store", None, "Folder of documents compressed once (--mode=compress).")
flags.DEFINE_string("delete", None, "Ids of documents, with commas, or a file of ids, one a line.")
flags.DEFINE_bool("compact", None, "Write a store anew without what was deleted.")
flags.DEFINE_string("base", None, "The base model, if it is not where the run found it.")
flags.DEFINE_string("question", None, "What to ask. Without it, standard input is read.")
flags.DEFINE_integer("top_k", None, "Documents to answer from. By default as in training.")
flags.DEFINE_integer("max_new_tokens", None, "Most tokens of an answer. 32 by default.")
flags.DEFINE_float("temperature", None, "Of the draws of tokens. 0, the default, is greedy.")
flags.DEFINE_float("top_p", None, "Share of probability that tokens are drawn from. 1 by default.")
flags.DEFINE_string("topology", None, "TPUs to compile for, as v5e:4x4. By default these devices.")
flags.DEFINE_bool("dry_run", None, "Only count documents, and estimate requests and cost.")
flags.DEFINE_integer("preview", None, "Only make the records of so many documents, and print.")
_PROGRAMS = ["train", "prefill", "decode", "compress", "search"]
flags.DEFINE_enum("program", None, _PROGRAMS, "What to compile.")


def run() -> int:
    """Runs the chosen mode with the parsed flags; returns the exit code."""
    mode = MODES[_MODE.value]
    arguments = command_line.arguments(_MODE.value, mode.needs, mode.may, FLAGS)
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
    if {"--help", "-h", "-help"} & set(argv):
        print(__doc__ + "\n" + flags.FLAGS.module_help(sys.modules[__name__]))
        return 0
    command_line.start_log()
    command_line.parse(argv)
    return run()


if __name__ == "__main__":
    sys.exit(main())
