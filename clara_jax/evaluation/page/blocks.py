"""What a report is made of, as HTML that needs no other file and as Markdown."""

import dataclasses
import html
from collections.abc import Sequence

from clara_jax.evaluation.page import chart

STYLE = """
:root { --ink: #1c1c1c; --paper: #fff; --faint: #5c6066; --line: #d5d8dc; --raised: #f5f6f8;
  --right: #00664a; --wrong: #a83a00; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e3; --paper: #16181b; --faint: #a5abb3;
  --line: #3a3f46; --raised: #1f2226; --right: #58d9b0; --wrong: #ff9a6b; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif;
  max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem;
  border-bottom: 1px solid var(--line); } p { max-width: 46rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 0.8rem 0;
  font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; } th { color: var(--faint); }
td { white-space: nowrap; }
table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
table.words th { text-align: left; }
figure { margin: 1rem 0.5rem 1rem 0; display: inline-block; width: 30rem;
  max-width: 100%; }
article { background: var(--raised); border-left: 4px solid var(--line);
  padding: 0.6rem 1rem; margin: 0.8rem 0; break-inside: avoid; }
article.right { border-color: var(--right); } article.wrong { border-color: var(--wrong); }
article h3 { margin: 0 0 0.3rem; font-size: 1rem; } article ol { margin: 0.4rem 0 0;
  padding-left: 1.4rem; color: var(--faint); font-size: 0.85rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 0.9rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.gold { color: var(--right); font-weight: 600; }
@media print { :root { --ink: #000; --paper: #fff; --faint: #444; --line: #999; --raised: #fff;
    --right: #00664a; --wrong: #a83a00; }
  body { font-size: 10pt; padding: 0; max-width: none; } .wide { overflow: visible; }
  table { font-size: 8pt; } th, td { padding: 0.15rem 0.4rem; } h2, p { break-after: avoid; }
  figure { width: 46%; } figure, tr { break-inside: avoid; } }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """Opens a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; numbers, or words, which are set to the left."""

    head: Sequence[str]
    cells: Sequence[Sequence[str]]
    words: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A picture; in Markdown a file of this name."""

    name: str
    title: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A question with what was answered.

    Attributes:
        right: whether the model's own answer is accepted.
        question: its text.
        facts: names and texts, such as the answers under each condition.
        documents: texts of those that were chosen, and whether each is gold.
    """

    right: bool
    question: str
    facts: Sequence[tuple[str, str]]
    documents: Sequence[tuple[str, bool]]


Block = Heading | Text | Table | Chart | Example


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """A whole page."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{chart.STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def to_markdown(title: str, blocks: Sequence[Block], folder: str) -> str:
    """The same; charts are files in the folder."""
    return "\n\n".join([f"# {title}", *(_markdown(block, folder) for block in blocks)]) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Chart):
        return f"<figure>{block.svg}</figure>"
    if isinstance(block, Example):
        return _html_example(block)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in block.cells
    )
    kind = ' class="words"' if block.words else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _html_example(block: Example) -> str:
    kind, mark = ("right", "✓") if block.right else ("wrong", "✗")
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in block.facts
    )
    documents = "".join(
        "<li>" + '<span class="gold">gold</span> ' * gold + f"{html.escape(text)}</li>"
        for text, gold in block.documents
    )
    documents = f"<ol>{documents}</ol>" if documents else ""
    question = html.escape(block.question)
    return (
        f'<article class="{kind}"><h3>{mark} {question}</h3><dl>{facts}</dl>{documents}</article>'
    )


def _markdown(block: Block, folder: str) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Chart):
        return f"![{block.title}]({folder}/{block.name}.svg)"
    if isinstance(block, Example):
        lines = [f"**{'✓' if block.right else '✗'} {_line(block.question)}**", ""]
        lines += [f"- {name}: {_line(text)}" for name, text in block.facts]
        for number, (text, gold) in enumerate(block.documents, 1):
            lines.append(f"  {number}. {'**gold** ' * gold}{_line(text)}")
        return "\n".join(lines)
    side = "---" if block.words else "---:"
    rows = [block.head, ["---", *[side] * (len(block.head) - 1)], *block.cells]
    return "\n".join("| " + " | ".join(_line(cell) for cell in row) + " |" for row in rows)


def _line(text: str) -> str:
    """A text that breaks neither a line nor a table."""
    return " ".join(text.split()).replace("|", "\\|")
