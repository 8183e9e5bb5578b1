"""Answers in the form of OpenAI's chat completions."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.exceptions import HTTPException

from clara_jax.serving.asking import LiveReply, status_of
from clara_jax.serving.guard import error_body

MODEL = {"id": "clara", "object": "model", "created": 0, "owned_by": "clara_jax"}


async def named(name: str) -> dict[str, Any]:
    """OpenAI's entry of a model.

    Raises:
        HTTPException: it is not this one.
    """
    if name != MODEL["id"]:
        raise HTTPException(404, f"there is no such model; this server has {MODEL['id']}")
    return MODEL


def completion(reply: LiveReply, model: str) -> dict[str, Any]:
    """A whole answer; `documents` is ours."""
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    return {
        **_head("chat.completion", model),
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.job.reason}
        ],
        "usage": _usage(reply),
        "documents": [document.model_dump() for document in reply.documents().documents],
    }


async def chunks(reply: LiveReply, model: str, usage: bool) -> AsyncIterator[str]:
    """An answer as it comes, as server-sent events.

    Args:
        reply: what the service makes of a question.
        model: name that the client gave.
        usage: a chunk at the end counts tokens.
    """
    head = _head("chat.completion.chunk", model)

    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _data({**head, "choices": [choice]})

    try:
        yield chunk({"role": "assistant", "content": ""})
        async for kind, value in reply.events():
            if kind == "text":
                yield chunk({"content": value})
        yield chunk({}, reply.job.reason)
        if usage:
            yield _data({**head, "choices": [], "usage": _usage(reply)})
    except Exception as e:  # the status is sent: the stream itself must tell
        status_of(e)  # raises what is no error of a request
        yield _data(error_body(str(e), "server_error"))
    yield "data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    identity = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model}


def _usage(reply: LiveReply) -> dict[str, int]:
    read, made = len(reply.job.ids), len(reply.job.tokens)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
