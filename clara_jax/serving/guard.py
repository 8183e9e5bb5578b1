"""What every request passes before it is read: who may ask, how much, and whether we serve."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from clara_jax.config import Serve
from clara_jax.serving.metrics import Metrics

Message = dict[str, Any]
_BODY_SECONDS = 20.0  # for a client to send its request
_OPEN = ("/", "/healthz")  # without a token: the page asks for it, and probes have none
_LOCAL = ("127.0.0.1", "localhost", "::1")


def error_body(message: str, kind: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "code": None, "param": None}}


def origins(options: Serve) -> list[str]:
    """Of the pages of other sites that may ask."""
    return [name.strip().rstrip("/") for name in options.origins.split(",") if name.strip()]


class Guard:
    """ASGI middleware.

    Args:
        app: the application.
        metrics: of the server.
        token: bearer token that requests need, or None.
        options: of the server.

    Attributes:
        most: requests that are served at the same time; more get 503.
        active: addresses of the clients whose requests are served now.
        reading: addresses of those whose requests are still arriving.
        draining: new requests are refused.
    """

    def __init__(self, app: Any, metrics: Metrics, token: str | None, options: Serve):
        self._app, self._metrics, self._token, self._body = app, metrics, token, options.body
        self._local = options.host in _LOCAL
        self._origins = origins(options)
        self.draining = False
        self.most = 4 * (options.queue + options.slots) + 100
        self.active: list[Any] = []
        self.reading: list[Any] = []

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, client = time.monotonic(), 500, scope["client"]

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused = self._refuse(scope)
            if refused is None:
                self.reading.append(client)
                try:
                    receive, refused = await self._read(scope, receive)
                finally:
                    self.reading.remove(client)
            self.active.append(client)
            if refused is not None:
                await _refusal(*refused)(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        finally:
            if client in self.active:  # unless it was cancelled before
                self.active.remove(client)
            route = scope.get("route")  # names of our own only: others' would fill the memory
            path = getattr(route, "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begun)

    def _refuse(self, scope: Message) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if self._local and _name(headers.get(b"host", b"localhost")) not in _LOCAL:
            # Or a page of another site could reach us by a name that it lets point here.
            return 421, "this server listens on loopback and is asked for by another name"
        if scope["path"] in _OPEN:
            return None
        if self._token is not None:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self._token.encode())
            if kind.lower() != b"bearer" or not right:
                return 401, "a bearer token is needed: Authorization: Bearer …"
        if self.draining and scope["path"] != "/metrics":
            return 503, "the server is stopping"
        if len(self.active) >= self.most:
            return 503, f"{self.most} requests are served already"
        if scope["method"] in ("GET", "HEAD"):
            return None
        # Without a token a browser would let the page of any site change the store.
        origin = headers.get(b"origin")
        own = not origin or origin.partition(b"://")[2] == headers.get(b"host")
        if self._token is None and not own and origin.decode("latin-1") not in self._origins:
            return 403, "the page of another site may not ask this server"
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if has_body and kind != b"application/json":
            return 415, "Content-Type must be application/json"
        return None

    async def _read(
        self, scope: Message, receive: Callable[[], Awaitable[Message]]
    ) -> tuple[Callable, tuple[int, str] | None]:
        """Reads the body, up to a size and a time; a `receive` that gives it."""
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return receive, (400, "the client has gone")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._body:
                        return receive, (413, f"a request may have {self._body} bytes")
                    more = message.get("more_body", False)
        except TimeoutError:
            return receive, (408, f"the request did not arrive within {_BODY_SECONDS:.0f} s")
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts)}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again, None


def _refusal(status: int, message: str) -> JSONResponse:
    headers = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in (408, 413, 503):
        headers["connection"] = "close"
    if status == 503:
        headers["retry-after"] = "5"
    return JSONResponse(error_body(message, "invalid_request_error"), status, headers)


def _name(host: bytes) -> str:
    """The name in a Host header, without the port."""
    text = host.decode("latin-1")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
