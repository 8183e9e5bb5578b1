"""The logit lens of memory vectors (paper, Fig. 4): the words that the head reads in them.

A query's vectors are near its documents', so that they show what the reasoner looks for, words of
the documents that the question does not hold among them.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax.inference.generate import needed, to_host
from clara_jax.models.clara import Trees
from clara_jax.models.config import ModelConfig
from clara_jax.models.decoder import head_logits
from clara_jax.runs.setup import Model

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word that vectors hold."""

    text: str  # the word, or the part of one that is a token
    score: float  # its largest logit over the vectors
    # it is a word of the documents, or starts one, and the question has no such
    in_documents: bool = False


def words(
    model: Model, trees: Trees, memories_nMD: np.ndarray, count: int = 12
) -> list[list[Word]]:
    """The words that score highest at any vector of each memory, the highest first.

    Args:
        model: the model.
        trees: its weights.
        memories_nMD: memories, of queries or of documents.
        count: most words of each; of tokens that differ in case or blanks alone the first counts.
    """
    trees = needed(trees, None)
    values, ids = _top(model.architecture, trees, np.asarray(memories_nMD, np.float32), count=count)
    values_nK, ids_nK = to_host(model, values), to_host(model, ids)
    return [
        _distinct(model, scores, tokens, count)
        for scores, tokens in zip(values_nK.tolist(), ids_nK.tolist(), strict=True)
    ]


def mark(words: Sequence[Word], question: str, documents: Sequence[str]) -> list[Word]:
    """The same words, with `in_documents` set."""
    in_question = {word.casefold() for word in _WORD.findall(question)}
    in_documents = {word.casefold() for text in documents for word in _WORD.findall(text)}

    def is_among(text: str, others: set[str]) -> bool:  # one letter would start too many words
        return any(word == text or (len(text) > 2 and word.startswith(text)) for word in others)

    def is_new(text: str) -> bool:
        return is_among(text, in_documents) and not is_among(text, in_question)

    return [dataclasses.replace(w, in_documents=is_new(w.text.casefold())) for w in words]


@functools.partial(jax.jit, static_argnames=("config", "count"))
def _top(
    config: ModelConfig, trees: Trees, memories_nMD: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The largest logits of each memory's vectors, [n, M * count], and their tokens."""
    hidden = memories_nMD.astype(jnp.dtype(config.dtype))
    logits_nMV = head_logits(config, trees["base"], hidden)
    values, ids = jax.lax.top_k(logits_nMV, count)
    return values.reshape(len(values), -1), ids.reshape(len(ids), -1)


def _distinct(
    model: Model, scores: Sequence[float], tokens: Sequence[int], count: int
) -> list[Word]:
    distinct: dict[str, Word] = {}
    for score, token in sorted(zip(scores, tokens, strict=True), reverse=True):
        # Ids that only fill the head up have no text.
        text = model.tokenizer.decode([token]).strip() if token < model.tokenizer.size else ""
        if _WORD.fullmatch(text):
            distinct.setdefault(text.casefold(), Word(text, score))
        if len(distinct) == count:
            break
    return list(distinct.values())
