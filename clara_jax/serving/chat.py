"""Answers in the form of OpenAI's chat completions."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from clara_jax.serving.asking import AskedQuestion, status_of
from clara_jax.serving.guard import error_body

MODEL = {"id": "clara", "object": "model", "created": 0, "owned_by": "clara_jax"}


def completion(asked: AskedQuestion, model: str) -> dict[str, Any]:
    """A whole answer; `documents` is ours."""
    message = {"role": "assistant", "content": asked.text, "refusal": None}
    return {
        **_head("chat.completion", model),
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": asked.job.reason}
        ],
        "usage": _usage(asked),
        "documents": [document.model_dump() for document in asked.documents().documents],
    }


async def chunks(asked: AskedQuestion, model: str, usage: bool) -> AsyncIterator[str]:
    """An answer as it comes, as server-sent events.

    Args:
        asked: the question.
        model: name that the client gave.
        usage: a chunk at the end counts tokens.
    """
    head = _head("chat.completion.chunk", model)

    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _data({**head, "choices": [choice]})

    try:
        yield chunk({"role": "assistant", "content": ""})
        async for kind, value in asked.events():
            if kind == "text":
                yield chunk({"content": value})
        yield chunk({}, asked.job.reason)
        if usage:
            yield _data({**head, "choices": [], "usage": _usage(asked)})
    except Exception as e:  # the status is sent: the stream itself must tell
        status_of(e)  # raises what is no error of a request
        yield _data(error_body(str(e), "server_error"))
    yield "data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    identity = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model}


def _usage(asked: AskedQuestion) -> dict[str, int]:
    read, made = len(asked.job.ids), len(asked.job.tokens)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
