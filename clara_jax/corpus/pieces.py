"""Documents as the rows of a store: laid out for the compressor, long ones in several pieces."""

import dataclasses

from clara_jax.corpus.store import StoredDocument
from clara_jax.data import records
from clara_jax.data.documents import Document, whole
from clara_jax.runs.setup import Model
from clara_jax.text import chunks


@dataclasses.dataclass(frozen=True)
class NewRow(StoredDocument):
    """A row that is to be stored; fields beside `ids` are columns of the store's table.

    A very long title is shortened.
    """

    cut: int  # tokens of title and text that are not read
    digest: bytes  # of the whole document
    ids: list[int]  # the compressor's input


def digest(document: Document) -> bytes:
    """What tells two documents of the same id apart."""
    return records.digest(document.whole)


def rows(model: Model, document: Document) -> list[NewRow]:
    """A document as it is if it is within the limit, else in pieces that end with sentences."""
    limit = model.config.data.document_length
    title, text, own = document.title, document.text, digest(document)
    first = _row(model, document, own, 0, title, model.tokenizer.shortened(text, limit))
    if not first.cut:
        return [first]

    def size(text: str) -> int:
        return len(model.tokenizer.encode(text))

    title, texts = chunks.pieces(document.title, document.text, size, limit)
    made = [_row(model, document, own, i, title, text, f"#{i}") for i, text in enumerate(texts)]
    if title != document.title and made:
        lost = size(document.title) - size(title)
        made[0] = dataclasses.replace(made[0], cut=made[0].cut + lost)
    # A long title without text has no piece.
    return made or [dataclasses.replace(first, text=text, cut=size(document.whole) - first.tokens)]


def _row(
    model: Model,
    document: Document,
    own: bytes,
    chunk: int,
    title: str,
    text: str,
    suffix: str = "",
) -> NewRow:
    tokenizer = model.tokenizer
    ids, is_cut = model.layout.document_ids(whole(title, text))
    around = [1, tokenizer.bos_id is not None, tokenizer.eos_id is not None and not is_cut]
    tokens = len(ids) - len(model.layout.tail) - sum(around)
    cut = len(tokenizer.encode(whole(title, text))) - tokens if is_cut else 0
    name = document.id + suffix
    return NewRow(name, document.id, chunk, title, text, tokens, cut, own, ids)
