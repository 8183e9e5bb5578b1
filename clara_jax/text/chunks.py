"""Long texts in pieces that fit, cut at ends of sentences."""

import re
from collections.abc import Callable, Iterator, Sequence

from clara_jax.text import sentences

_STEP = 4096  # characters of a sentence that are measured at first

Fits = Callable[[str], bool]


def whole(title: str, text: str) -> str:
    """A text with its title as the first line, if it has one, as the model reads them."""
    return f"{title}\n{text}" if title else text


def pieces(
    title: str, text: str, size: Callable[[str], int], limit: int
) -> tuple[str, Iterator[str]]:
    """A document as pieces which, with its title as their first line, are within the limit.

    Args:
        title: may be empty.
        text: without the title.
        size: of a text.
        limit: of it.

    Returns:
        The title, shortened where it would take more than half of the limit, and the pieces.
    """
    if title and size(title) > limit // 2:
        title = title[: cut(title, 0, len(title), lambda t: size(t) <= limit // 2)].strip()
    return title, chunk(text, lambda piece: size(whole(title, piece)) <= limit)


def chunk(text: str, fits: Fits) -> Iterator[str]:
    """Pieces of a text that fit, cut at ends of sentences; in a long one at words.

    A piece is as the text has it, without the blanks around it.
    """
    ends, start, i = sentences.ends(text), 0, 0
    while start < len(text):
        end = near = start
        while i < len(ends):
            near = _near(text, start, ends[i], fits)
            if near < ends[i] or not fits(text[start:near].strip()):
                break
            end, i = near, i + 1
        if end == start:
            end = cut(text, start, near, fits)
        if piece := text[start:end].strip():
            yield piece
        start = end
        while start < len(text) and text[start].isspace():
            start += 1


def _near(text: str, start: int, end: int, fits: Fits) -> int:
    """The end, or a nearer one behind what fits: a text far too long is not measured whole."""
    near = start + _STEP
    while near < end and fits(text[start:near].strip()):
        near += near - start
    return min(near, end)


def cut(text: str, start: int, end: int, fits: Fits) -> int:
    """Where the longest piece that fits ends: behind a word, or inside one that is too long."""
    words = [start + match.end() for match in re.finditer(r"\S+", text[start:end])]
    for places in (words, range(start + 1, end + 1)):
        if found := _longest(text, start, places, fits):
            return found
    return start + 1  # one character is more than the limit: nothing can be done


def _longest(text: str, start: int, places: Sequence[int], fits: Fits) -> int:
    """The last of the places up to which the text fits, or 0; few are tried."""
    low, high = 0, 1
    while high <= len(places) and fits(text[start : places[high - 1]].strip()):
        low, high = high, 2 * high
    high = min(high, len(places) + 1)
    while high - low > 1:
        middle = (low + high) // 2
        fit = fits(text[start : places[middle - 1]].strip())
        low, high = (middle, high) if fit else (low, middle)
    return places[low - 1] if low else 0
