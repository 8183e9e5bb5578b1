"""The one exception for what a user can mend, and how a command tells it and all others."""

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

BUG = 70  # exit code of a fault of ours, as in sysexits.h
_MOST = 800  # letters of a message
INTERRUPTED = 130  # 128 and the number of SIGINT

# Modules that an extra of ours brings.
_EXTRAS = {
    "serve": "fastapi prometheus_client pydantic starlette uvicorn",
    "plot": "matplotlib",
    "evaluation": "rouge_score sklearn",
    "synthesis": "datasketch json_repair openai py3langid",
    "tensorboard": "tensorboardX",
    "tpu": "libtpu",
}


class UserError(Exception):
    """A mistake in an input: its message is one line that says what, where and how to mend it.

    The command line prints it alone and exits with code 2.
    """


def reason(error: BaseException) -> str:
    """What a library says of an error, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Makes whatever ends a command one line on standard error, and an exit code (see `tell`)."""

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (Exception, KeyboardInterrupt) as e:
            return tell(e)

    return run


def tell(error: BaseException) -> int:
    """Prints the line of an error.

    Returns:
        2 for a user's mistake, INTERRUPTED for Ctrl-C, and for a fault of ours, whose traceback
        goes to a file, BUG.
    """
    code, text = 2, str(error)
    extra = _extra(error)
    if isinstance(error, KeyboardInterrupt):
        code, text = INTERRUPTED, "interrupted"
    elif isinstance(error, ImportError) and extra:
        text = f"{error.name} is not installed: pip install 'clara-jax[{extra}]'"
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        text = f"out of memory ({reason(error)}); make the batch, the lengths or the model smaller"
    elif isinstance(error, OSError):
        text = f"{error.filename or 'input or output'}: {error.strerror or error}"
    elif not isinstance(error, UserError):
        code = BUG
        text = (
            f"{reason(error)}; this is a bug in clara_jax: report it with {_log(error)}, which "
            "says where it happened"
        )
    if len(text) > _MOST:  # it quotes an input that nobody wants to see whole
        text = f"{text[: _MOST // 2]} ... {text[-_MOST // 2 :]}"
    print(f"clara_jax: {text}", file=sys.stderr)
    return code


def _extra(error: BaseException) -> str | None:
    """The extra that brings the module which an error misses."""
    missing = ((error.name or "") if isinstance(error, ImportError) else "").partition(".")[0]
    return next((extra for extra, names in _EXTRAS.items() if missing in names.split()), None)


def _log(error: BaseException) -> str:
    """Writes the traceback to a file; returns its name."""
    lines = "".join(traceback.format_exception(error))
    try:
        number, path = tempfile.mkstemp(prefix="clara_jax-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="replace") as f:
            f.write(lines)
        return path
    except OSError:  # the disk may be full
        print(lines, file=sys.stderr)
        return "the lines above"
