"""Command line: python -m clara_jax.main --config=configs/scp.py --workdir=runs/scp [--mode=train].

Exit codes: 0 done, 2 a mistake that the printed line tells how to mend, 143 SIGTERM after saving.
"""

import logging as stdlib_logging
import os
import sys
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import config_flags

from clara_jax import config as config_lib
from clara_jax.errors import UserError, command

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a model as argument: configs/scp.py:mistral_7b. Options are "
    "overridden by --config.group.option=value; clara_jax/config.py lists them all.",
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")


def run() -> int:
    """Runs the chosen mode with the parsed flags; returns the exit code."""
    if _CONFIG.value is None:
        raise UserError(f"--mode={_MODE.value} needs --config, such as --config=configs/scp.py")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: name a folder for the run")
    config = config_lib.freeze(_CONFIG.value)
    # Imported late: --help and mistakes in flags need no JAX.
    import jax

    if _is_multi_process():
        jax.distributed.initialize()
    logging.info("devices: %s", jax.devices())
    if _MODE.value == "evaluate":
        from clara_jax.evaluation import evaluate

        return evaluate.run(config, _WORKDIR.value)
    from clara_jax.training import train

    return train.train(config, _WORKDIR.value)


def _is_multi_process() -> bool:
    """True where the environment says that this is one of several processes."""
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    names = ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS")
    return "," in workers or any(map(os.environ.get, names))


def parse(argv: Sequence[str]) -> None:
    """Parses flags and loads the config file.

    Raises:
        UserError: an unknown flag or option, a value of the wrong type, or a broken config file.
    """
    try:
        rest = flags.FLAGS(list(argv))[1:]
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # a file that did not load raises at its first use
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


def _is_worth_showing(record: stdlib_logging.LogRecord) -> bool:
    """Our own lines, and libraries' warnings; errors of their threads are raised to us as well."""
    warning = record.levelno > stdlib_logging.INFO and not record.exc_info
    return warning or "clara_jax" in record.pathname


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv if argv is None else argv
    if {"--help", "-h", "-help"} & set(argv):
        print(__doc__ + "\n" + flags.FLAGS.module_help(sys.modules[__name__]))
        return 0
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_worth_showing)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that it has no PyTorch
    parse(argv)
    return run()


if __name__ == "__main__":
    sys.exit(main())
