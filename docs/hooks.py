"""What mkdocs puts into the pages when it builds them, where a comment asks for it.

    <!-- results: NAME -->   the table of docs/results/NAME.tsv, with where its numbers are from
    <!-- options -->         every option of clara_jax/config.py, with default and comment
    <!-- commands -->        every command of `clara`
    <!-- flags -->           which mode takes which flags, and what these mean

GitHub runs no hooks, so README.md holds its tables as text: `python docs/hooks.py` renews them.
"""

import csv
import functools
import inspect
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
_ASKED = re.compile(r"<!-- (results|options|commands|flags)(?:: (\w+))? -->\n?")
_IN_README = re.compile(r"(<!-- results: (\w+) -->\n\n)(?:(?:\|.*\n)+\n)?")
_NUMBER = re.compile(r"\**[-−]?[\d.]|$")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with its tables."""
    makers = {"results": with_origin, "options": options, "commands": commands, "flags": flags}
    return _ASKED.sub(lambda m: makers[m[1]](*filter(None, [m[2]])) + "\n", markdown)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; columns that hold numbers alone are set to the right."""
    columns = zip(*rows, strict=True)
    sides = ["---:" if all(map(_NUMBER.match, column)) else ":---" for column in columns]
    lines = [head, sides, *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def read(name: str) -> tuple[dict[str, str], list[str], list[list[str]]]:
    """What is said about a table of results, its head and its rows."""
    lines = (RESULTS / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = csv.reader((x for x in lines if not x.startswith("# ")), "excel-tab", quoting=3)
    head, *cells = rows
    return about, head, cells


def results(name: str) -> str:
    """A table of results."""
    _, head, rows = read(name)
    return table(head, rows)


def with_origin(name: str) -> str:
    """The same, and where its numbers are from."""
    about, head, rows = read(name)
    note = f"{about['note'][0].upper()}{about['note'][1:]}. " if "note" in about else ""
    origin = f"*{note}Source: {about['source']}. Renew with* `{about['renew']}`"
    return f"{table(head, rows)}\n{origin}\n"


def options() -> str:
    """The options of each group, with what the comments of their source say."""
    from clara_jax import config as config_lib
    from clara_jax import config_help

    said = functools.cache(lambda group: config_help.comments(_class(group)))
    tables: dict[str, list[list[str]]] = {}
    for name, option in config_lib.OPTIONS.items():
        group, _, last = name.rpartition(".")
        what = said(group).get(last, "")
        names = [name for allowed in option.allowed for name in allowed.names]
        if not all(name in what for name in names):
            what += f"{'; ' if what else ''}one of {', '.join(names)}"
        default = repr(option.default)
        default = "its text" if len(default) > 40 else f"`{default}`"
        tables.setdefault(group, []).append([f"`{name}`", default, _cell(what)])
    return "\n".join(
        f"## {group or 'of the run'}\n\n{inspect.getdoc(_class(group))}\n\n"
        + table(["option", "default", "what it is"], rows)
        for group, rows in tables.items()
    )


def _class(group: str) -> type:
    from clara_jax.config import Config

    return type(getattr(Config(), group) if group else Config())


def _cell(text: str) -> str:
    """A text that Markdown and HTML take as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def commands() -> str:
    """The commands of `clara`, by group."""
    from clara_jax.cli import COMMANDS

    rows = [
        [f"`clara {name}`", what, group]
        for group, found in COMMANDS.items()
        for name, (_, what) in found.items()
    ]
    return table(["command", "what it does", "for"], rows)


def flags() -> str:
    """The modes' flags."""
    from absl import flags as absl_flags

    from clara_jax.main import FLAGS, MODES

    def shown(names: str) -> str:
        return ", ".join(f"`--{name}`" for name in names.split())

    modes = [[f"`{n}`", shown(mode.needs), shown(mode.may)] for n, mode in MODES.items()]
    helps = [[f"`--{name}`", _cell(absl_flags.FLAGS[name].help)] for name in FLAGS]
    return "\n".join(
        [table(["mode", "needs", "may have"], modes), table(["flag", "what it is"], helps)]
    )


def renewed(text: str) -> str:
    """README.md with the tables of now."""
    return _IN_README.sub(lambda m: f"{m[1]}{results(m[2])}\n", text)


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
