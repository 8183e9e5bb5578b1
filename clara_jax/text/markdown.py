"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Arguments of `table`."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: bool = False


def table(head: Sequence[str], rows: Iterable[Sequence[object]], words: bool = False) -> str:
    """A table whose first column is of words and whose others are of numbers, set to the right.

    Args:
        head: names of the columns.
        rows: cells, in which whitespace becomes a space and `|` is escaped.
        words: the other columns are of words too.
    """
    side = "---" if words else "---:"
    lines = [map(line, head), ["---", *[side] * (len(head) - 1)]]
    lines += [map(line, row) for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def line(text: object) -> str:
    """A text that ends neither a line nor a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
