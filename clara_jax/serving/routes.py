"""The HTTP interface. Nothing here waits for a device: the service's threads do."""

import asyncio
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from clara_jax.errors import UserError
from clara_jax.inference.encode import Compressed
from clara_jax.serving import chat, embedding, schemas
from clara_jax.serving.asking import STATUS, LiveReply, status_of, until_done
from clara_jax.serving.guard import Guard, error_body
from clara_jax.serving.queueing import Full
from clara_jax.serving.service import Service
from clara_jax.serving.warm_up import compress as compress_texts

_PAGE = pathlib.Path(__file__).parent / "page.html"
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ERRORS = {
    400: "not JSON",
    401: "no token",
    403: "the page of another site asks",
    408: "the request took too long",
    409: "the store is empty, or changed by another process",
    413: "the request is too large",
    415: "the body is not application/json",
    422: "the request is wrong",
    429: "the queue is full; see Retry-After",
    500: "the server failed",
    503: "the server is stopping",
    504: "the deadline is over",
}


def make_app(service: Service, token: str | None = None) -> tuple[FastAPI, Guard]:
    """The application, and around it the guard, which is what to serve.

    Args:
        service: that answers; it is started.
        token: bearer token that requests need.
    """
    app = FastAPI(
        title="clara_jax",
        redoc_url=None,
        openapi_url="/openapi.json" if service.options.docs else None,  # without it no /docs
        responses={status: {"description": text} for status, text in _ERRORS.items()},
        exception_handlers={
            RequestValidationError: _invalid,
            HTTPException: _not_served,
            **dict.fromkeys(STATUS, _failed),
            Exception: _broken,
        },
    )
    guard = Guard(app, service.metrics, token, service.options)
    page = _PAGE.read_text(encoding="utf-8")
    most = service.options.max_new_tokens

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """The page."""
        return HTMLResponse(page, headers=_SECURITY)

    @app.get("/healthz")
    async def health() -> JSONResponse:
        """Whether requests are taken."""
        state = "broken" if service.broken else "stopping" if guard.draining else "ok"
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/search")
    async def search(body: schemas.Search, request: Request) -> schemas.Found:
        """The documents that match a question best."""
        reply = LiveReply(service, body)
        await reply.whole(request)
        return reply.documents()

    @app.post("/v1/ask", response_model=schemas.Answer)
    async def ask(body: schemas.Ask, request: Request) -> Any:
        """Answers a question; with `stream` as events `found`, `text`, and `done` or `error`."""
        reply = LiveReply(service, body, body.options(most), body.rate)
        if body.stream:
            return _stream(_ask_events(reply))
        await reply.whole(request)
        return reply.answer()

    @app.post("/v1/chat/completions")
    async def completions(body: schemas.Chat, request: Request) -> Any:
        """OpenAI's chat completions; the last message of the user is the question."""
        try:
            search = schemas.Search(question=body.question())
        except ValidationError as e:  # such as halves of characters
            raise UserError("the last message of the user is no text") from e
        except ValueError as e:
            raise UserError(str(e)) from e
        reply = LiveReply(service, search, body.options(most), body.rate)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return _stream(chat.chunks(reply, body.model, usage))
        await reply.whole(request)
        return chat.completion(reply, body.model)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """OpenAI's list of models: this one."""
        return {"object": "list", "data": [chat.MODEL]}

    app.get("/v1/models/{name:path}")(chat.named)
    embedding.add_routes(app, service)

    @app.post("/v1/compress")
    async def compress(body: schemas.Compress, request: Request) -> schemas.Compressed:
        """Memories of texts."""
        compressed: Compressed = await until_done(
            request,
            service,
            lambda: compress_texts(
                service.model, service.trees, body.documents, service.let_questions_pass
            ),
        )
        # Thousands of numbers: not on the event loop.
        memories = await asyncio.to_thread(compressed.memories.tolist)
        return schemas.Compressed(memories=memories, rate=compressed.rate, cut=compressed.cut)

    @app.post("/v1/documents")
    async def add(body: schemas.Add, request: Request) -> schemas.Changed:
        """Compresses documents into the store."""
        documents = [document.model_dump() for document in body.documents]
        await until_done(
            request, service, lambda: service.corpus.add(documents, service.let_questions_pass)
        )
        return schemas.Changed(documents=len(service.corpus))

    @app.delete("/v1/documents")
    async def delete(body: schemas.Delete, request: Request) -> schemas.Changed:
        """Deletes documents from the store."""
        await until_done(request, service, lambda: service.corpus.delete(body.ids))
        return schemas.Changed(documents=len(service.corpus))

    return app, guard


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    # Without the input, which may be anything, such as what JSON cannot say.
    parts = [
        f"{'.'.join(str(key) for key in e['loc'] if key != 'body')}: {e['msg']}".lstrip(": ")
        for e in error.errors()[:5]
    ]
    return _refused(422, "; ".join(parts).encode("utf-8", "replace").decode())


async def _not_served(request: Request, error: HTTPException) -> JSONResponse:
    return _refused(error.status_code, str(error.detail), error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    headers = {"Retry-After": str(error.after)} if isinstance(error, Full) else None
    return _refused(status_of(error), str(error), headers)


async def _broken(request: Request, error: Exception) -> JSONResponse:
    return _refused(500, "the server failed; its log says why")


def _refused(status: int, message: str, headers: Any = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(message, kind), status, headers)


def _stream(events: AsyncIterator[str]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _ask_events(reply: LiveReply) -> AsyncIterator[str]:
    try:
        async for kind, value in reply.events():
            data = reply.documents().model_dump() if kind == "found" else {"text": value}
            yield _event(kind, data)
        answer = reply.answer().model_dump(include={"answer", "finish_reason", "usage"})
        yield _event("done", answer)
    except Exception as e:  # the status is sent: the stream itself must tell
        status = status_of(e)
        yield _event("error", error_body(str(e), "error") | {"status": status})


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
