"""Search keys of texts as OpenAI's embeddings, and documents ranked as by Jina and Cohere.

An embedding is the store's search key of a memory (corpus/search/keys.py), of norm 1. Queries and
documents have the same map, without the documents' offset, so that dot products come near the
trained score. The trained score itself, of whole memories, ranks.
"""

import base64
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, StrictInt

from clara_jax.errors import UserError
from clara_jax.inference import rank
from clara_jax.inference.encode import encode_query
from clara_jax.serving.asking import until_done
from clara_jax.serving.live_corpus import TOGETHER
from clara_jax.serving.schemas import Few, Id, Question, Text
from clara_jax.serving.service import Service
from clara_jax.serving.warm_up import compress

MOST = 256  # texts or documents of one request
_AT_ONCE = 8  # documents of one question: a shape of `rank.scores` that every store compiles

# Of a length that bounds the mistakes to report.
Ids = Annotated[
    list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=2048)
]
Inputs = (
    Text
    | Ids
    | Annotated[list[Text], Field(min_length=1, max_length=MOST)]
    | Annotated[list[Ids], Field(min_length=1, max_length=MOST)]
)


class Embed(BaseModel):
    """OpenAI's request; what is not named here is ignored."""

    input: Inputs = Field(description="Texts, or ids of the model's own tokenizer.")
    model: str = Field("clara", max_length=256)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="The first ones; by default all.")
    input_type: Literal["query", "document"] = "document"  # ours


class Reference(BaseModel):
    """A document of the store, or one given as text."""

    id: Id | None = None
    text: Text | None = None


class Rerank(BaseModel):
    """The request of Jina and Cohere; what is not named here is ignored."""

    query: Question
    documents: Few[Text | Reference] = Field(min_length=1, max_length=MOST)
    model: str = Field("clara", max_length=256)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


def add_routes(app: FastAPI, service: Service) -> None:
    """Adds both routes to an application."""

    @app.post("/v1/embeddings")
    async def embeddings(body: Embed, request: Request) -> dict[str, Any]:
        """Embeddings of texts, in OpenAI's form."""
        vectors, tokens = await until_done(request, service, lambda: _embed(service, body))
        packed = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(v.tobytes()).decode() if packed else v.tolist(),
            }
            for index, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body.model, "usage": usage}

    @app.post("/v1/rerank")
    async def rerank(body: Rerank, request: Request) -> dict[str, Any]:
        """Documents by their trained scores, the best first."""
        results, tokens = await until_done(request, service, lambda: _rerank(service, body))
        head = {"id": uuid.uuid4().hex, "model": body.model}
        return {**head, "results": results, "usage": {"total_tokens": tokens}}


def _embed(service: Service, body: Embed) -> tuple[np.ndarray, int]:
    """Embeddings float32 [n, K] and the tokens that were read."""
    basis = service.corpus.basis
    if body.dimensions and body.dimensions > basis.key:
        raise UserError(f"dimensions: the store's search keys have {basis.key} numbers")
    given = [body.input] if isinstance(body.input, str) else body.input
    given = [given] if isinstance(given[0], int) else given
    texts = [text if isinstance(text, str) else _text(service, text) for text in given]
    tokens = _tokens(service, "input", texts)
    keys = []
    for memories in _memories(service, texts, body.input_type):
        filled = np.zeros((TOGETHER, *memories.shape[1:]), np.float32)
        filled[: len(memories)] = memories
        keys.append(basis.queries(filled)[: len(memories), : body.dimensions])
    vectors = np.concatenate(keys)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype("<f4"), tokens


def _rerank(service: Service, body: Rerank) -> tuple[list[dict[str, Any]], int]:
    """Results and the tokens that were read."""
    texts: dict[int, str] = {}
    ids: dict[int, str] = {}
    for index, document in enumerate(body.documents):
        if isinstance(document, str):
            texts[index] = document
        elif (document.id is None) == (document.text is None):
            raise UserError(f"documents.{index}: give either text or id")
        elif document.text is not None:
            texts[index] = document.text
        else:
            ids[index] = document.id or ""
    tokens = _tokens(service, "query", [body.query])
    tokens += _tokens(service, "documents", list(texts.values()))
    (query_1MD,) = _memories(service, [body.query], "query")
    kind = service.model.config.select.score

    def score(memories_nMD: np.ndarray) -> list[float]:
        return rank.scores(query_1MD[0], memories_nMD, kind).tolist()

    scores: list[float] = []
    for memories in _memories(service, list(texts.values()), "document"):
        scores += score(memories)
    ranked = [(s, i, {"text": texts[i]}) for s, i in zip(scores, texts, strict=True)]
    ranked += _stored(service, ids, score)
    ranked.sort(key=lambda entry: (-entry[0], entry[1]))
    return [
        {"index": i, "relevance_score": s} | ({"document": d} if body.return_documents else {})
        for s, i, d in ranked[: body.top_n]
    ], tokens


def _stored(
    service: Service, ids: dict[int, str], score: Callable[[np.ndarray], list[float]]
) -> list[tuple[float, int, dict[str, str]]]:
    """Score, index and contents of stored documents; of a long one, those of its best piece."""
    rows = list(dict.fromkeys(service.corpus.rows(list(ids.values())))) if ids else []
    best: dict[str, tuple[float, dict[str, str]]] = {}
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        memories = service.corpus.memories(part)
        for s, one in zip(score(memories), service.corpus.documents(part), strict=True):
            for name in {one.id, one.parent}:
                if name not in best or s > best[name][0]:
                    best[name] = s, {"id": name, "text": one.text}
        service.let_questions_pass()
    return [(best[name][0], index, best[name][1]) for index, name in ids.items()]


def _memories(service: Service, texts: Sequence[str], role: str) -> Iterator[np.ndarray]:
    """Memories [n <= TOGETHER, M, D] of a few texts after the other; questions pass between."""
    model, trees = service.model, service.trees
    for start in range(0, len(texts), TOGETHER):
        part = texts[start : start + TOGETHER]
        if role == "document":
            yield compress(model, trees, part).memories
        else:
            filled = [*part, *[part[0]] * (TOGETHER - len(part))]
            yield encode_query(model, trees, filled, TOGETHER)[: len(part)]
        service.let_questions_pass()


def _text(service: Service, ids: Sequence[int]) -> str:
    size = service.model.tokenizer.size
    if max(ids) >= size:
        raise UserError(f"input: the model's tokenizer has ids below {size}, not {max(ids)}")
    text = service.model.tokenizer.decode(ids)
    if not text.strip():
        raise UserError("input: these ids are no text")
    return text


def _tokens(service: Service, name: str, texts: Sequence[str]) -> int:
    """Of all texts.

    Raises:
        UserError: one is longer than the model reads.
    """
    most, total = service.model.config.data.document_length, 0
    for text in texts:
        count = len(service.model.tokenizer.encode(text))
        if count > most:
            raise UserError(
                f"{name}: a text has {count} tokens, the model reads {most}; split it: "
                f"{text[:40]!r}"
            )
        total += count
        service.let_questions_pass()
    return total
