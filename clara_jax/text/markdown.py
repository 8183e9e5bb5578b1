"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; its first column is of words."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
