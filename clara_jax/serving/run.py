"""`--mode=serve`: answers over HTTP from a store; options of `config.serve` and `config.search`.

SIGTERM or Ctrl-C: what runs is finished, what comes gets 503, then the process ends; a second
signal ends it at once.
"""

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import AsyncGenerator
from typing import Any

import jax
import uvicorn
from absl import logging
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Config, Serve
from clara_jax.corpus import locks
from clara_jax.errors import UserError
from clara_jax.runs.load import load_setup
from clara_jax.serving.guard import Guard, origins
from clara_jax.serving.live_corpus import LiveCorpus
from clara_jax.serving.routes import make_app
from clara_jax.serving.service import Service

TOKEN = "CLARA_TOKEN"
FAILED = 1  # exit code where a thread of the server has failed
_LOOK = 0.1  # seconds between looks whether all is done
_IDLE_SECONDS = 20.0  # for a client to send the head of a request, or to read on

_DRAIN_SECONDS = 5.0  # after the deadline of requests, until a server that drains ends anyway
_UNREAD = 2**16  # bytes that wait to be sent, from which on a client is taken not to read


def run(store: str, workdir: str, base: str | None = None, config: Config | None = None) -> int:
    """Serves until a signal.

    Args:
        store: folder of `--mode=compress`.
        workdir: of a run, or a directory in the layout of the PyTorch release.
        base: the base model, as for `api.load`.
        config: of it `serve`, `store` and `search` count.

    Returns:
        The exit code.

    Raises:
        UserError: model, store or options cannot be used, or the address is taken.
    """
    config = config_lib.Config() if config is None else config
    if jax.process_count() > 1:
        raise UserError("--mode=serve runs in one process; start one on each machine")
    token = read_token(config.serve)
    model, trees = load_setup(workdir, base)
    with locks.kept(store):
        service = Service(model, trees, LiveCorpus(store, model, trees, config), config.serve)
        server = Server(service, token)
        with server.bound() as sockets:
            service.start()
            server.run(sockets=sockets)
    service.close()
    return FAILED if server.failed else 0


def read_token(options: Serve) -> str | None:
    """The bearer token of `config.serve.token_file` or of the environment; None without.

    Raises:
        UserError: the file cannot be read, or the token is empty or not plain ASCII.
    """
    if options.token_file:
        try:
            token, origin = files.read(options.token_file).strip(), options.token_file
        except OSError as e:
            raise UserError(f"config.serve.token_file={options.token_file}: {e.strerror}") from e
    elif TOKEN in os.environ:
        token, origin = os.environ[TOKEN].strip(), TOKEN
    else:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"{origin}: the token must be printable ASCII without blanks, not empty")
    return token


class _Connection(AutoHTTPProtocol):
    """A connection that is entered, by its client's address, among the transports that are open.

    Where there are too many, the oldest without a request in work makes room.
    """

    def __init__(self, wires: dict[Any, asyncio.Transport], guard: Guard, **options: Any):
        super().__init__(**options)
        self._wires, self._guard = wires, guard

    def connection_made(self, transport: Any) -> None:
        self._peer = transport.get_extra_info("peername")[:2]
        if len(self._wires) >= self._guard.most:
            active = set(self._guard.active)
            oldest = next((wire for peer, wire in self._wires.items() if peer not in active), None)
            if oldest is not None:
                oldest.abort()
        self._wires[self._peer] = transport
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wires.pop(self._peer, None)
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """Uvicorn that finishes what runs before it closes.

    Args:
        service: that answers.
        token: bearer token that requests need.
    """

    def __init__(self, service: Service, token: str | None = None):
        self._service, self.failed = service, False
        self._wires: dict[Any, asyncio.Transport] = {}  # to clients
        self._idle: dict[asyncio.Transport, float] = {}  # that wait for the client, since when
        app, self.guard = make_app(service, token)
        app.router.lifespan_context = self._lifespan
        options = service.options
        served: Any = self.guard
        if allowed := origins(options):  # around the guard: browsers must read its refusals too
            served = CORSMiddleware(
                served, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"]
            )
        make_connection: Any = functools.partial(_Connection, self._wires, self.guard)
        super().__init__(
            uvicorn.Config(
                served,
                host=options.host,
                port=options.port,
                http=make_connection,
                log_level="warning",
                lifespan="on",
                server_header=False,
                proxy_headers=False,  # a connection is known by its own address
                timeout_keep_alive=10,
                timeout_graceful_shutdown=10,
            )
        )
        if token is None and options.host not in ("127.0.0.1", "localhost", "::1"):
            logging.warning(
                "listening on %s without a token: whoever reaches it may ask, add and delete; set "
                "%s or config.serve.token_file",
                options.host,
                TOKEN,
            )

    @contextlib.contextmanager
    def bound(self) -> Any:
        """Yields the listening sockets, taken before anything is compiled.

        Raises:
            UserError: the address cannot be had.
        """
        options = self._service.options
        try:
            family, kind, _, _, address = socket.getaddrinfo(
                options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError as e:
            raise UserError(
                f"config.serve.host={options.host} port={options.port}: {e.strerror or e}"
            ) from e
        with listening:
            self.port = listening.getsockname()[1]
            yield [listening]

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal drains, the second ends."""
        if self.guard.draining:
            self.should_exit = self.force_exit = True
        self.guard.draining = True
        self._drained = time.monotonic() + self._service.options.deadline + _DRAIN_SECONDS

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncGenerator[None]:
        task = asyncio.create_task(self._watch())
        logging.info("serving on http://%s:%d", self._service.options.host, self.port)
        yield
        task.cancel()

    async def _watch(self) -> None:
        """Ends the server when it has drained, or when a thread of it has failed."""
        while True:
            await asyncio.sleep(_LOOK)
            if self._service.broken:
                self.failed = self.should_exit = True
            elif self.guard.draining:
                late = time.monotonic() > self._drained
                if late or not self.guard.active:
                    self.should_exit = True
                    for client in self.guard.reading:  # what is still arriving is not waited for
                        if client in self._wires:
                            self._wires[client].abort()
            self._close_idle()

    def _close_idle(self) -> None:
        """Closes connections whose client neither asks nor reads: there is a limit of them."""
        now, before, active = (
            time.monotonic(),
            self._idle,
            {*self.guard.active, *self.guard.reading},
        )
        self._idle = {
            wire: before.get(wire, now)
            for client, wire in self._wires.items()
            if client not in active or _is_unread(wire)
        }
        for wire, since in self._idle.items():
            periods = (now - since) / _IDLE_SECONDS
            if periods > 2 or (periods > 1 and _is_unread(wire)):
                wire.abort()
            elif periods > 1:
                wire.close()  # what is written is sent before


def _is_unread(wire: asyncio.Transport) -> bool:
    """The client does not read what is written."""
    return wire.get_write_buffer_size() > _UNREAD
