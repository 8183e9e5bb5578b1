"""Between the event loop and the service's threads: one question and what comes of it."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request

from clara_jax.errors import UserError
from clara_jax.files import Busy
from clara_jax.inference.sampling import GenerationOptions
from clara_jax.serving import schemas
from clara_jax.serving.queueing import Broken, Cancelled, Full, Job, Late, Question
from clara_jax.serving.service import Empty, Service

_GRACE = 1.0  # seconds after the deadline

STATUS: dict[type[Exception], int] = {
    Full: 429,
    Late: 504,
    Cancelled: 499,  # nobody reads it
    Empty: 409,
    Busy: 409,
    UserError: 422,
    Broken: 500,
}


def status_of(error: Exception) -> int:
    """The HTTP status of an error; raises the errors that have none."""
    for kind, status in STATUS.items():
        if isinstance(error, kind):
            return status
    raise error


class LiveReply:
    """What the service makes of a question, as it comes.

    Attributes:
        job: the question, with its documents once these are there.
        text: the answer so far.
        first: seconds to its first text, None if there is none yet.

    Args:
        service: that works on it.
        search: the question.
        options: of the answer; None: search alone.
        rate: of the memories in the prompt; None: as they are kept.

    Raises:
        Full: too many wait.
        Broken: the server has ended.
    """

    def __init__(
        self,
        service: Service,
        search: schemas.Search,
        options: GenerationOptions | None = None,
        rate: int | None = None,
    ):
        self._service, self._begun = service, time.monotonic()
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue()

        def put(kind: str, value: Any = None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                loop.call_soon_threadsafe(self._events.put_nowait, (kind, value))

        self.text = ""
        self.first: float | None = None  # seconds to the first text
        self.job = Question(
            functools.partial(put, "end"),
            search.question,
            search.top_k or service.top_k,
            on_found=functools.partial(put, "found"),
            on_text=functools.partial(put, "text"),
            options=options,
            rate=rate or 0,
            wants_words=search.words,
        )
        service.accept(self.job)

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """Yields ("found", None), then ("text", piece) as they come.

        Raises:
            Exception: there is no whole answer (queueing.Late, UserError, …).
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
                if kind == "text":
                    if self.first is None:
                        self.first = time.monotonic() - self._begun
                        self._service.metrics.first_token.observe(self.first)
                    self.text += value
                yield kind, value
        finally:
            self.job.cancelled = True

    async def whole(self, request: Request) -> None:
        """Waits for the end; errors as in `until_gone`."""

        async def read() -> None:
            async for _ in self.events():
                pass

        await until_gone(request, read(), self.job, self._service.options.deadline)

    def documents(self) -> schemas.Found:
        """The documents as they are sent."""
        job, config = self.job, self._service.model.config
        documents = [
            schemas.Document(**vars(document), score=float(hit.score), by=hit.by)
            for hit, document in zip(job.hits, job.documents, strict=True)
        ]
        tokens = sum(document.tokens for document in documents)
        vectors = config.vectors_at(job.rate) * len(documents)
        rate = tokens / max(vectors, 1)
        return schemas.Found(
            documents=documents,
            words=[schemas.Word.model_validate(word) for word in job.words],
            compression=schemas.Compression(tokens=tokens, vectors=vectors, rate=rate),
        )

    def answer(self) -> schemas.Answer:
        """The documents and the answer as they are sent."""
        usage = schemas.Usage(
            prompt_tokens=len(self.job.ids),
            completion_tokens=len(self.job.tokens),
            first_token_seconds=self.first,
            seconds=time.monotonic() - self._begun,
        )
        return schemas.Answer(
            **self.documents().model_dump(),
            answer=self.text,
            finish_reason=self.job.reason,
            usage=usage,
        )


async def until_gone(
    request: Request, work: Awaitable, job: Job, deadline: float | None = None
) -> Any:
    """The result of work that ends where the client leaves; without a deadline however late.

    Raises:
        Exception: the work failed or took too long, or the client has gone (see STATUS).
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait(
            (task, gone),
            return_when=asyncio.FIRST_COMPLETED,
            timeout=None if deadline is None else deadline + 2 * _GRACE,
        )
        if task.done():
            return task.result()
        raise Cancelled("the client has gone") if gone.done() else Late("the deadline is over")
    finally:
        job.cancelled = True
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def until_done(request: Request, service: Service, call: Callable[[], Any]) -> Any:
    """What a call on the service's worker returns; errors as in `until_gone`.

    The deadline holds until it begins: then its end is waited for, or a client would be told of a
    failure though all was done.
    """
    work = service.do(call)
    future = asyncio.wrap_future(work.future)
    return await until_gone(request, future, work)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
