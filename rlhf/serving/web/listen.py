"""Listen on a port and serve an app there until a signal. Nothing here needs torch or Gradio."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlhf.errors import UserError

# Open at once; more are answered with a 503. An open page holds two or three.
CONNECTIONS = 2000
HEAD_SECONDS = 15  # to send the head of a request; an idle connection is closed before
# For answers under way. Open pages keep their connections, so they are not waited for.
SHUTDOWN_SECONDS = 3


def bind(host: str, port: int) -> socket.socket:
    """A socket on this address; port 0 takes a free one. UserError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait
    try:
        listener.bind((host, port))
        # Without it two services could bind the same port until the first one listens.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UserError(bind_problem(host, port, error)) from error
    return listener


def bind_problem(host: str, port: int, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"--port {port} is not allowed ({error.strerror}): give one from 1024 to 65535"
    if isinstance(error, socket.gaierror) or "assign" in str(error.strerror):
        return f"--host {host} is not an address of this machine ({error.strerror}): use 127.0.0.1"
    return (
        f"--port {port} is in use by another program: give another one, or --port 0 for a free one"
    )


FULL = PlainTextResponse(
    "too many connections are open: ask again later",
    status_code=503,
    headers={"Retry-After": "5", "Connection": "close"},
)


class Protocol(H11Protocol):
    """Closes a connection that does not send a whole request head. Two thousand of them would keep everybody else out.

    h11 also bounds the size of a head, to 64 kB. Where too many connections are open, it answers with a 503.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        serve = self.app

        async def within_limit(scope, receive, send) -> None:
            # `connections` are those of the whole server.
            is_full = len(self.connections) > CONNECTIONS
            await (FULL if is_full else serve)(scope, receive, send)

        self.app = within_limit

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._last = self.cycle
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look)

    def _look(self) -> None:
        """Close if nothing was asked since the last look, and nothing is being answered."""
        # uvicorn has a cycle from the end of a head on.
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self.cycle is self._last:
            self.transport.close()
            return
        self._last = self.cycle
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc) -> None:
        # Or the timer would hold the connection in memory.
        self._timer.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """Calls `on_start` when it really serves. Ends with exit code 0 after SIGTERM and Ctrl+C, the usual ways to stop it.

    on_stop: ends the answers under way, a second before their connections are cut off.
    """

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]
    ):
        super().__init__(config)
        self.on_start, self.on_stop = on_start, on_stop

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self.on_start()

    async def shutdown(self, sockets=None) -> None:
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_answers(self) -> None:
        """Give each of them an end with its reason, instead of half an answer or a 500."""
        await asyncio.sleep(SHUTDOWN_SECONDS - 1)
        await asyncio.to_thread(self.on_stop)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for what says nothing about this server.

    A stopping server cuts off connections, of which every open page has some. And a page that asks Gradio for a session from
    before a restart is answered well, but then Gradio fails.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, asyncio.CancelledError):
        return False
    # Gradio's 404 comes after its 200.
    if isinstance(error, RuntimeError) and "response already started" in str(error):
        return getattr(error.__cause__, "status_code", 500) >= 500
    return not record.getMessage().startswith("Cancel ")


def serve(
    app, listener: socket.socket, on_start: Callable[[], None], on_stop: Callable[[], None]
) -> int:
    """Serve until SIGTERM or Ctrl+C; returns the exit code. A second signal ends it at once."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # ours has no queries
        server_header=False,
        http=Protocol,  # uvicorn's own limit says nothing of Retry-After
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    logging.getLogger("uvicorn.error").addFilter(is_worth_a_line)
    server = Server(config, on_start, on_stop)
    server.run(sockets=[listener])
    if not server.started:
        print("the server could not start: see above", file=sys.stderr)
        return 1
    return 0
