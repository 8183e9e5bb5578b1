"""Every option with its default and what config.py's comments say of it, for --help."""

import inspect
import textwrap
from collections.abc import Iterator, Sequence

from clara_jax import config as config_lib

_WIDTH = 100


def comments(cls: type) -> dict[str, str]:
    """What the comments before and behind a class's fields say of them."""
    said: dict[str, str] = {}
    before: list[str] = []
    name = ""  # of the field that a line belongs to
    for line in map(str.strip, inspect.getsource(cls).splitlines()):
        if line.startswith("# "):
            before.append(line[2:])
            continue
        code, _, behind = line.partition("  # ")
        field = code.partition(":")[0]
        if field in cls.__dataclass_fields__:
            name = field
            said[name] = " ".join(before)
        if behind and name:
            said[name] = f"{said[name]} {behind}".strip()
        before = []
    return said


def lines(groups: Sequence[str]) -> Iterator[str]:
    """Options of these groups, or of all with none, each as it is given on the command line."""
    said = {"": comments(config_lib.Config)}
    for name, one in config_lib.OPTIONS.items():
        group, _, last = name.rpartition(".")
        if groups and group not in groups:
            continue
        if group not in said:
            said[group] = comments(type(getattr(config_lib.Config(), group)))
        default = one.default if isinstance(one.default, str) else repr(one.default)
        if len(default) > 40:
            default = f"{default[:40]}..."
        yield f"  --config.{name}={default}"
        yield from textwrap.wrap(
            said[group].get(last, ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
