"""What mkdocs puts into the pages when it builds them, where a comment asks for it.

    <!-- results: NAME -->   the table of docs/results/NAME.tsv, with where its numbers are from
    <!-- options -->         every option of clara_jax/config.py, with default and comment
    <!-- commands -->        every command of `clara`
    <!-- flags -->           which mode takes which flags, and what these mean

GitHub runs no hooks, so README.md holds its tables as text: `python docs/hooks.py` renews them.
"""

import ast
import csv
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
_ASKED = re.compile(r"<!-- (results|options|commands|flags)(?:: (\w+))? -->\n?")
_IN_README = re.compile(r"(<!-- results: (\w+) -->\n\n)(?:(?:\|.*\n)+\n)?")
_NUMBER = re.compile(r"\**[-−]?[\d.]|$")
# Classes of options, and the file each is in.
_SOURCES = ("clara_jax/config.py", "clara_jax/models/config.py")


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
    """The options of each group, from the source: their comments are there alone."""
    classes, files = {}, {}
    for path in _SOURCES:
        source = (ROOT / path).read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name], files[node.name] = node, source.splitlines()
    found = {"Config": ""} | {
        ast.unparse(field.annotation): f"{field.target.id}."
        for field in classes["Config"].body
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) in classes
    }
    parts = []
    for name, prefix in found.items():
        fields = [
            field
            for field in classes[name].body
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) not in found
        ]
        rows = [_option(prefix, field, files[name]) for field in fields]
        title = prefix.rstrip(".") or "of the run"
        parts.append(f"## {title}\n\n{ast.get_docstring(classes[name])}\n\n")
        parts.append(table(["option", "default", "what it is"], rows))
        parts.append("\n")
    return "".join(parts)


def _option(prefix: str, field: ast.AnnAssign, lines: list[str]) -> list[str]:
    """Name, default and comment of an option: the lines above it, and what its own lines end in."""
    value, choices = field.value, []
    if isinstance(value, ast.Call):
        if value.func.id == "choice":
            choices = [ast.literal_eval(x) for x in value.args]
        value = value.args[0]
    first = field.lineno - 1
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    comments = [line.partition("# ")[2] for line in lines[first : field.end_lineno]]
    what = " ".join(filter(None, map(str.strip, comments)))
    if not all(choice in what for choice in choices):
        what += f"{'; ' if what else ''}one of {', '.join(choices)}"
    default = ast.unparse(value)
    default = "its text" if len(default) > 40 else f"`{default}`"
    return [f"`{prefix}{field.target.id}`", default, _cell(what)]


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
