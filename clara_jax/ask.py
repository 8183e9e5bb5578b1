"""`--mode=ask`: questions answered from a file of documents, compressed once, or from a store."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clara_jax import api
from clara_jax.api import Answer, Clara
from clara_jax.config import Config
from clara_jax.corpus.search.build import SearchableStore
from clara_jax.corpus.search.search import Hit, Search, find, of_model
from clara_jax.corpus.store import open_store
from clara_jax.data.documents import read_documents
from clara_jax.errors import UserError
from clara_jax.progress import Progress

_SHOWN = 80  # characters of a document


def run(
    workdir: str,
    documents: str | None = None,
    base: str | None = None,
    question: str | None = None,
    store: str | None = None,
    config: Config | None = None,
    rate: int = 0,
    **options: Any,
) -> int:
    """Prints the answer to each question and the documents that it was read from.

    Args:
        workdir: of a run, or a directory in the layout of the PyTorch release.
        documents: file for `read_documents`; all of its documents are ranked.
        base: the base model, as for `api.load`.
        question: the only question; None reads them from standard input, one a line.
        store: the folder of a store, which is searched, in place of `documents`.
        config: its `search` counts; None: the run's own.
        rate: as for `Clara.at_rate`.
        **options: `top_k`, `max_new_tokens`, `temperature`, `top_p` of `Clara.ask`.

    Returns:
        The exit code, 0.

    Raises:
        UserError: model, documents, store, question or options cannot be used, or there is no
            question.
    """
    if (documents is None) == (store is None):
        raise UserError("--mode=ask answers from --documents or from --store: give one of them")
    if question is not None and not question.strip():
        raise UserError("--question is empty; leave it out to read questions from standard input")
    if documents is not None and config is not None:
        raise UserError("--mode=ask uses --config only with --store; leave it out")
    texts = [] if documents is None else read_documents(documents)
    opened = None if store is None else open_store(store)
    clara = api.load(workdir, base).at_rate(rate)
    clara.ask([], [], **options)  # so that a wrong option is reported before any work
    if opened is None:
        memories = _compress(clara, texts)

        def answer(question: str) -> str:
            return show(clara.ask([question], [memories], **options)[0], texts)

    else:
        opened.check(clara.model, clara.trees)
        search = of_model(opened, clara.model, clara.trees, config.search if config else None)

        def answer(question: str) -> str:
            return show_hits(*from_store(clara, search, question, **options), search.store)

    is_empty = True
    for line in _lines() if question is None else [question]:
        if line.strip():
            is_empty = False
            print(answer(line.strip()), flush=True)
    if is_empty and not (sys.stdin and sys.stdin.isatty()):
        raise UserError("standard input holds no question; write one a line, or give --question")
    return 0


def from_store(
    clara: Clara, search: Search, question: str, top_k: int | None = None, **options: Any
) -> tuple[str, list[Hit]]:
    """The answer to a question from the documents that are found for it, and these."""
    top_k = clara.model.config.select.k if top_k is None else top_k
    (hits,) = find(clara.model, clara.trees, search, [question], top_k, clara.batch)
    if not hits:
        return "", hits
    memories_KMD = search.store.memories([hit.row for hit in hits])
    return clara.answer([question], [memories_KMD], **options)[0], hits


def show(answer: Answer, texts: Sequence[str]) -> str:
    """The answer, then a line for each selected document with its score."""
    rows = zip(answer.indices, answer.scores, strict=True)
    return "\n".join([answer.text, *(f"  {score:7.4f}  {_start(texts[i])}" for i, score in rows)])


def show_hits(answer: str, hits: Sequence[Hit], store: SearchableStore) -> str:
    """The answer, then a line for each document with its score, id and title or first words."""
    rows = zip(hits, store.documents([hit.row for hit in hits]), strict=True)
    lines = (f"  {hit.score:7.4f}  {d.id}  {_start(d.title or d.text)}" for hit, d in rows)
    return "\n".join([answer, *lines])


def _start(text: str) -> str:
    return " ".join(text[: 2 * _SHOWN].split())[:_SHOWN]


def _compress(clara: Clara, texts: list[str]) -> np.ndarray:
    progress, done = Progress(len(texts), "compressing"), 0

    def report(documents: int) -> None:
        nonlocal done
        done += documents
        progress.update(done)

    memories = api.compress(clara.model, clara.trees, texts, clara.batch, report).memories
    progress.close()
    return memories


def _lines() -> Iterator[str]:
    """Lines of standard input; on a terminal each is asked for, until Ctrl-D or Ctrl-C."""
    if sys.stdin is None:  # closed, as daemons do
        return
    if not sys.stdin.isatty():
        try:
            yield from sys.stdin
        except UnicodeDecodeError as e:
            raise UserError("standard input is not UTF-8; convert it") from e
        return
    while True:
        try:
            line = input("question: ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield line
