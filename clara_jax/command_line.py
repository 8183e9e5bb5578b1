"""What all modes of the command line share: their flags, parsing, the log.

Which mode takes which flag is said in main.py.
"""

import dataclasses
import logging as stdlib_logging
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from clara_jax import config_help
from clara_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mode:
    """What a mode runs: `function(**flags)` of a module of ours, which returns the exit code.

    It gets the flags that it `needs` and `may` have, named with blanks between, `config` frozen.
    `groups`: of options that count for it, with blanks between; empty: all of them. `defaults`: the
    config of this package whose options are changed where no file is named; empty: the run's own.
    `on_devices`: it runs here.
    """

    module: str
    function: str
    needs: str
    may: str = ""
    groups: str = ""
    defaults: str = ""
    on_devices: bool = True


# The flags of all modes, for absl.
config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, with a model as argument (a stage for quickstart.py and "
    "smollm2.py): configs/scp.py:mistral_7b. --config.group.option=value overrides; "
    "clara_jax/config.py lists all options.",
)
flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints.")
flags.DEFINE_string("source", None, "Checkpoint to import: a directory or owner/name[/subfolder].")
flags.DEFINE_string("output", None, "Folder that is made, or a run's file.")
_FORMATS = ["release", "peft", "merged", "native", "faiss"]
flags.DEFINE_enum("format", None, _FORMATS, "What to export to. faiss: search keys of a --store.")
flags.DEFINE_string(
    "documents", None, "Documents: .jsonl, .parquet, a BEIR folder, or paragraphs of text."
)
flags.DEFINE_string("store", None, "Folder of documents compressed once (--mode=compress).")
flags.DEFINE_string("delete", None, "Ids of documents, with commas, or a file of ids, one a line.")
flags.DEFINE_bool("compact", None, "Write a store again without what was deleted.")
flags.DEFINE_bool("verify", None, "Read all files of a store, and look for damage.")
flags.DEFINE_string("shard", None, "Share of the documents, i/n with i from 0: one worker's of n.")
flags.DEFINE_string("join", None, "Stores to make a new one of, with commas between.")
flags.DEFINE_string(
    "fit",
    None,
    "Questions with their documents, .jsonl or a BEIR folder[:split], to fit search to.",
)
flags.DEFINE_string(
    "questions", None, "Questions to search for, with their documents, in the forms of --fit."
)
flags.DEFINE_string("base", None, "The base model, if it is not where the run found it.")
flags.DEFINE_string("question", None, "What to ask. Without it, standard input is read.")
flags.DEFINE_integer(
    "rate", None, "Compression rate of the memories in the prompt. By default as they are kept."
)
flags.DEFINE_integer("top_k", None, "Documents to answer from. By default as in training.")
flags.DEFINE_integer("max_new_tokens", None, "Most tokens of an answer. 32 by default.")
flags.DEFINE_float("temperature", None, "Of the draws of tokens. 0, the default, is greedy.")
flags.DEFINE_float("top_p", None, "Share of probability that tokens are drawn from. 1 by default.")
flags.DEFINE_string("topology", None, "TPUs to compile for, as v5e:4x4. By default these devices.")
flags.DEFINE_bool("dry_run", None, "Only count documents, and estimate requests and cost.")
flags.DEFINE_integer(
    "preview", None, "Number of documents whose records are made and printed alone."
)
_PROGRAMS = ["train", "prefill", "decode", "compress", "search"]
flags.DEFINE_enum("program", None, _PROGRAMS, "What to compile.")

_PATHS = {"workdir", "documents", "base", "source", "output", "store", "fit", "questions"}


CONFIGS = pathlib.Path(__file__).parent / "configs"


def packaged(value: str) -> str:
    """The file of a config that is named without one: `scp:mistral_7b` of this package's.

    Raises:
        UserError: there is no such file, and no such config.
    """
    path, colon, argument = value.partition(":")
    if path.endswith(".py") or "/" in path or not path:
        return value
    names = sorted(file.stem for file in CONFIGS.glob("*.py"))
    if path not in names:
        raise UserError(
            f"--config={value}: no such config; give a file, or one of {', '.join(names)}"
        )
    return f"{CONFIGS / path}.py{colon}{argument}"


def with_file(argv: Sequence[str], mode: Mode) -> list[str]:
    """The arguments with a file for `--config.group.option=value` where they name none.

    It is that of the run in the workdir, if there is one, or of the mode's defaults.
    """
    given = {a.partition("=")[0]: a.partition("=")[2] for a in argv}
    if "--config" in given or not any(name.startswith("--config.") for name in given):
        return list(argv)
    workdir = os.path.expanduser(given.get("--workdir", ""))
    of_run = not mode.groups and os.path.exists(os.path.join(workdir, "config.json"))
    name = f"run:{workdir}" if of_run or not mode.defaults else mode.defaults
    return [*argv[:1], f"--config={packaged(name)}", *argv[1:]]


def parse(argv: Sequence[str]) -> None:
    """Parses flags and loads the file of `--config`.

    Raises:
        UserError: an unknown flag or option, a value of the wrong type, or a broken config file.
    """
    argv = [
        f"--config={packaged(a.partition('=')[2])}" if a.startswith("--config=") else a
        for a in argv
    ]
    try:
        rest = flags.FLAGS(argv)[1:]
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.lock()  # a file that did not load raises at its first use
    except Exception as e:  # config files are Python
        text = str(e)
        kind = "" if isinstance(e, flags.Error | OSError) else f"{type(e).__name__}: "
        if text[:1] == text[-1:] and text[:1] in ("'", '"'):  # ml_collections: quoted, escaped
            kind, text = "unknown option ", text[1:-1].replace("\\n", "\n").replace("\\'", "'")
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
        # The config loader puts the reason last; everything else puts it first.
        reason = lines[-1] if isinstance(e, OSError) else " ".join(lines[:2])
        raise UserError(f"{kind}{reason}; see --help and clara_jax/config.py") from e
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; options are --name=value")


def arguments(name: str, mode: Mode, every: Iterable[str]) -> dict[str, Any]:
    """Values of the flags that were given.

    Args:
        name: of the mode.
        mode: the mode.
        every: flags of all modes.

    Raises:
        UserError: one is missing, or is not for this mode.
    """
    given = {flag: flags.FLAGS[flag].value for flag in every}
    given = {flag: value for flag, value in given.items() if value is not None}
    for flag in _PATHS & set(given):  # after `=` shells leave a tilde as it is
        given[flag] = os.path.expanduser(given[flag])
    for flag in mode.needs.split():
        if given.get(flag) in (None, ""):
            what = flags.FLAGS[flag].help.split(". ")[0].rstrip(".")
            raise UserError(f"--mode={name} needs --{flag}: {what}")
    for flag in given:
        if flag not in f"{mode.needs} {mode.may}".split():
            raise UserError(f"--mode={name} does not use --{flag}; leave it out")
    return given


def help_of(name: str, mode: Mode) -> str:
    """What a mode takes."""
    lines = [f"{name}: python -m clara_jax.main --mode={name}, or clara {name}", ""]
    for title, names in (("needs", mode.needs), ("may have", mode.may)):
        lines += [f"  --{flag:16s}{title}: {flags.FLAGS[flag].help}" for flag in names.split()]
    if "config" in f"{mode.needs} {mode.may}".split():
        lines += ["", "Options, each with its default:"]
        lines += config_help.lines(mode.groups.split())
    return "\n".join(lines)


def start_log() -> None:
    """Shows our own lines of the log, and libraries' warnings."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_worth_showing)
    short = stdlib_logging.Formatter("%(levelname).1s %(asctime)s %(message)s", "%H:%M:%S")
    logging.get_absl_handler().setFormatter(short)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that it has no PyTorch


def _is_worth_showing(record: stdlib_logging.LogRecord) -> bool:
    """Our own lines, and libraries' warnings; errors of their threads are raised to us as well."""
    warning = record.levelno > stdlib_logging.INFO and not record.exc_info
    return warning or "clara_jax" in record.pathname
