"""The one exception for what a user can mend, and how a command tells it."""

import functools
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in an input: its message is one line that says what, where and how to mend it.

    The command line prints it alone and exits with code 2.
    """


def reason(error: BaseException) -> str:
    """What a library says of an error, in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Makes a user's mistake in a command one line on standard error, and exit code 2."""

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except (UserError, OSError, KeyboardInterrupt) as e:
            return tell(e)

    return run


def tell(error: BaseException) -> int:
    """Prints the line of a user's mistake; returns exit code 2, or 0 where it is none.

    Ctrl-C has a line as well, and the code that shells give it.
    """
    if isinstance(error, KeyboardInterrupt):
        print("clara_jax: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError):
        message = f"{error.filename or 'input or output'}: {error.strerror or error}"
    else:
        return 0
    print(f"clara_jax: {message}", file=sys.stderr)
    return 2
