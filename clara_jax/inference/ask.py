"""`--mode=ask`: questions answered from a file of documents, which is compressed once."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clara_jax.errors import UserError
from clara_jax.inference import engine
from clara_jax.inference.documents import read_documents
from clara_jax.inference.engine import Answer, Clara
from clara_jax.progress import Progress

_SHOWN = 80  # characters of a document


def run(
    workdir: str,
    documents: str,
    base: str | None = None,
    question: str | None = None,
    **options: Any,
) -> int:
    """Prints the answer to each question and the documents that it was read from.

    Args:
        workdir: of a run, or a directory in the layout of the PyTorch release.
        documents: file for `read_documents`; all of its documents are ranked.
        base: the base model, as for `engine.load`.
        question: the only question; None reads them from standard input, one a line.
        **options: `top_k`, `max_new_tokens`, `temperature`, `top_p` of `Clara.ask`.

    Returns:
        The exit code, 0.

    Raises:
        UserError: model, documents, question or options cannot be used, or there is no question.
    """
    if question is not None and not question.strip():
        raise UserError("--question is empty; leave it out to read questions from standard input")
    texts = read_documents(documents)
    clara = engine.load(workdir, base)
    clara.ask([], [], **options)  # so that a wrong option is told before any work
    memories = _compress(clara, texts)
    asked = False
    for line in _lines() if question is None else [question]:
        if line.strip():
            asked = True
            (answer,) = clara.ask([line.strip()], [memories], **options)
            print(show(answer, texts), flush=True)
    if not asked and not sys.stdin.isatty():
        raise UserError("standard input holds no question; write one a line, or give --question")
    return 0


def show(answer: Answer, texts: Sequence[str]) -> str:
    """The answer, then a line for each selected document with its score."""
    lines = [answer.text]
    for i, score in zip(answer.indices, answer.scores, strict=True):
        start = " ".join(texts[i][: 2 * _SHOWN].split())
        lines.append(f"  {score:7.4f}  {start[:_SHOWN]}")
    return "\n".join(lines)


def _compress(clara: Clara, texts: list[str]) -> np.ndarray:
    progress, done = Progress(len(texts), "compressing"), 0

    def report(documents: int) -> None:
        nonlocal done
        done += documents
        progress.update(done)

    found = engine.compress(clara.setup, texts, clara.batch, report)
    progress.close()
    return found.memories


def _lines() -> Iterator[str]:
    """Lines of standard input; on a terminal each is asked for, until Ctrl-D or Ctrl-C."""
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
