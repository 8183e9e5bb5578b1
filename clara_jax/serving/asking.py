"""Between the event loop and the service's threads: one question and what comes of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from fastapi import HTTPException, Request

from clara_jax.errors import UserError
from clara_jax.files import Busy
from clara_jax.serving import schemas
from clara_jax.serving.batching import Broken, Cancelled, Late
from clara_jax.serving.queueing import Full
from clara_jax.serving.service import Empty, Found, Job, Service

_GRACE = 1.0  # seconds after the deadline

_STATUS: dict[type[Exception], int] = {
    Full: 429,
    Late: 504,
    Cancelled: 499,  # nobody reads it
    Empty: 409,
    Busy: 409,
    UserError: 422,
    Broken: 500,
}


def http_error(error: Exception) -> HTTPException:
    """What a client is told of an error."""
    headers = {"Retry-After": str(error.after)} if isinstance(error, Full) else None
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return HTTPException(status, str(error), headers)
    raise error


class Asking:
    """A question that the service works on.

    Attributes:
        found: the documents, once there.
        text: the answer so far.
        first: seconds to its first text, None if there is none yet.
    """

    def __init__(self, service: Service, question: str, top_k: int | None, answer: bool = True,
                 words: bool = False, **how: Any):  # fmt: skip
        self._service, self._begun = service, time.monotonic()
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue()

        def put(kind: str) -> Callable[[Any], None]:
            def call(value: Any) -> None:
                try:
                    loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))
                except RuntimeError:  # the loop has ended: nobody listens
                    pass

            return call

        self.found: Found | None = None
        self.text, self.first = "", None
        self._job = service.ask(
            question,
            top_k or service.top_k,
            on_found=put("found"),
            on_end=put("end"),
            on_text=put("text") if answer else None,
            words=words,
            **how,
        )

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """Yields ("found", Found), then ("text", piece) as they come.

        Raises:
            Exception: there is no whole answer (engine.Late, UserError, …).
        """
        late = asyncio.get_running_loop().time() + self._service.options.deadline + _GRACE
        try:
            while True:
                try:  # the service keeps the deadline itself, unless its worker is held up
                    async with asyncio.timeout_at(late):
                        kind, value = await self._events.get()
                except TimeoutError as e:
                    raise Late("the deadline is over") from e
                if kind == "end":
                    if value is not None:
                        raise value
                    return
                if kind == "found":
                    self.found = value
                else:
                    if self.first is None:
                        self.first = time.monotonic() - self._begun
                        self._service.metrics.first_token.observe(self.first)
                    self.text += value
                yield kind, value
        finally:
            self._job.cancel()

    async def whole(self, request: Request) -> None:
        """Waits for the end; a client that leaves before cancels.

        Raises:
            HTTPException: there is no whole answer.
        """

        async def read() -> None:
            async for _ in self.events():
                pass

        await until_gone(request, read(), self._job, self._service.options.deadline)

    def result(self) -> schemas.Found:
        """The documents as they are sent."""
        found, M = self.found, len(self._service.model.extra.memory)
        documents = [
            schemas.Document(
                id=document.id, parent=document.parent, title=document.title, text=document.text,
                score=float(hit.score), by=hit.by, tokens=document.tokens,
            )
            for hit, document in zip(found.hits, found.documents, strict=True)
        ]  # fmt: skip
        tokens = sum(document.tokens for document in documents)
        vectors = M * len(documents)
        return schemas.Found(
            documents=documents,
            words=[
                schemas.Word(text=w.text, score=w.score, in_documents=w.in_documents)
                for w in found.words
            ],
            compression=schemas.Compression(
                tokens=tokens, vectors=vectors, rate=tokens / max(vectors, 1)
            ),
        )

    def answer(self) -> schemas.Answer:
        """The documents and the answer as they are sent."""
        return schemas.Answer(
            **self.result().model_dump(), answer=self.text, finish_reason=self.reason,
            usage=schemas.Usage(
                prompt_tokens=self.found.prompt_tokens, completion_tokens=self.tokens,
                first_token_seconds=self.first, seconds=time.monotonic() - self._begun,
            ),
        )  # fmt: skip

    @property
    def reason(self) -> str:
        """Why the answer has ended: stop or length."""
        return self._job.request.reason

    @property
    def tokens(self) -> int:
        """Of the answer."""
        return len(self._job.request.tokens)


async def until_gone(request: Request, work: Any, job: Job, deadline: float) -> Any:
    """The result of a coroutine, which ends where the client leaves.

    Raises:
        HTTPException: the work failed or took too long, or the client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait(
            (task, gone), return_when=asyncio.FIRST_COMPLETED, timeout=deadline + 2 * _GRACE
        )
        if not task.done():
            if not gone.done():
                raise http_error(Late("the deadline is over"))
            raise http_error(Cancelled("the client has gone"))
        return task.result()
    except (Full, Late, Cancelled, UserError, Broken) as e:
        raise http_error(e) from e
    finally:
        job.cancel()
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def until_done(request: Request, started: tuple[Job, Future], deadline: float) -> Any:
    """The result of the service's work; errors as in `until_gone`."""
    job, future = started
    return await until_gone(request, _wait(future), job, deadline)


async def _wait(future: Future) -> Any:
    return await asyncio.wrap_future(future)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
