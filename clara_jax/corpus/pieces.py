"""Documents as the rows of a store: laid out for the compressor, long ones in several pieces."""

import dataclasses

from clara_jax.data import records
from clara_jax.data.documents import Document, whole
from clara_jax.runs.setup import Model
from clara_jax.text import chunks


@dataclasses.dataclass(frozen=True)
class Row:
    """A document or a piece of it; fields beside `ids` are columns of the store's table.

    Attributes:
        id: of the row.
        parent: of the document.
        chunk: which piece, from 0.
        title: of the document, shortened if it is very long.
        text: without the title.
        tokens: that are read.
        cut: tokens that are not.
        digest: of the whole document.
        ids: the compressor's input.
    """

    id: str
    parent: str
    chunk: int
    title: str
    text: str
    tokens: int
    cut: int
    digest: bytes
    ids: list[int]


def digest(document: Document) -> bytes:
    """What tells two documents of the same id apart."""
    return records.digest(document.whole)


def rows(model: Model, document: Document) -> list[Row]:
    """A document as it is if it is within the limit, else in pieces that end with sentences."""
    limit = model.config.data.document_length
    first = _row(model, document, "", 0, document.title, document.text)
    if not first.cut:
        return [first]

    def size(text: str) -> int:
        return len(model.tokenizer.encode(text))

    title, pieces = chunks.pieces(document.title, document.text, size, limit)
    found = [
        _row(model, document, f"#{number}", number, title, piece)
        for number, piece in enumerate(pieces)
    ]
    if title != document.title and found:
        lost = size(document.title) - size(title)
        found[0] = dataclasses.replace(found[0], cut=found[0].cut + lost)
    return found or [first]  # a long title without text


def _row(model: Model, document: Document, suffix: str, chunk: int, title: str, text: str) -> Row:
    tokenizer = model.tokenizer
    ids, is_cut = model.layout.document_ids(whole(title, text))
    around = [1, tokenizer.bos_id is not None, tokenizer.eos_id is not None and not is_cut]
    tokens = len(ids) - len(model.extra.memory) - sum(around)
    cut = len(tokenizer.encode(whole(title, text))) - tokens if is_cut else 0
    return Row(
        document.id + suffix, document.id, chunk, title, text, tokens, cut, digest(document), ids
    )
