"""A report of evaluated runs: one HTML page that needs no other file, and Markdown beside it.

    python -m clara_jax.evaluation.page report.html runs/4x runs/16x

Tables with 95 % intervals and paired tests, quality and seconds by compression rate, training
curves, examples right and wrong with the chosen documents, hardware, versions, and the options that
the runs differ in. The Markdown's charts are in a folder beside it.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import jinja2

from clara_jax import files
from clara_jax.errors import UserError, command
from clara_jax.evaluation import efficiency_table, evaluated
from clara_jax.evaluation.page import charts, contents
from clara_jax.evaluation.page.contents import Chart, Section
from clara_jax.plotting import pyplot
from clara_jax.text import markdown


def _table(part: markdown.Table) -> str:
    return markdown.table(*part)


def render(template: str, title: str, sections: Sequence[Section], **others: str) -> str:
    """The page of a template beside this file, page.html.jinja or page.md.jinja."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=jinja2.select_autoescape(("html.jinja",), default=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(line=markdown.line, table=_table)
    return environment.get_template(template).render(title=title, sections=sections, **others)


def write(output: str, title: str, sections: Sequence[Section]) -> list[str]:
    """Writes page, Markdown and charts; returns the paths of the first two.

    Raises:
        UserError: they cannot be written.
    """
    stem = output[: -len(".html")]
    folder = f"{stem}_charts"
    drawn = [part for section in sections for part in section.parts if isinstance(part, Chart)]
    try:
        if drawn:
            files.make_folder(folder)
        for chart in drawn:
            files.write(os.path.join(folder, f"{chart.name}.svg"), charts.alone(chart.svg))
        files.write(output, render("page.html.jinja", title, sections, style=charts.STYLE))
        text = render("page.md.jinja", title, sections, folder=os.path.basename(folder))
        files.write(f"{stem}.md", text)
    except OSError as e:
        raise UserError(f"{output}: cannot be written ({e.strerror})") from e
    return [output, f"{stem}.md"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.page", description=__doc__.splitlines()[0]
    )
    parser.add_argument("output", help="the page, NAME.html; NAME.md is written beside it")
    parser.add_argument("workdirs", nargs="+", help="of evaluated runs; the first is the reference")
    parser.add_argument("--title", default="CLaRa: evaluation")
    parser.add_argument("--efficiency", default="", help="NAME.json of evaluation.efficiency")
    parser.add_argument("--examples", type=int, default=3, help="right and wrong ones of each run")
    args = parser.parse_args(argv)
    if not args.output.endswith(".html"):
        parser.error("OUTPUT must end with .html")
    if args.examples < 0:
        parser.error("--examples must not be negative")
    runs = evaluated.load([files.normal(workdir) for workdir in args.workdirs])
    rows = efficiency_table.read(args.efficiency) if args.efficiency else []
    try:
        pyplot()
        draw = True
    except UserError as e:
        draw = False
        print(f"no charts: {e}", file=sys.stderr)
    for path in write(args.output, args.title, contents.sections(runs, args.examples, rows, draw)):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
