"""Blocking calls of the engine for asyncio: each in a thread of its own, given up when the client goes away.

asyncio's own pool has a few dozen threads, which as many waiting chats would take, and then /health would wait for a
chat. The engine's line is limited, and so is the number of threads.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection."""


def in_thread(function: Callable[[], T]) -> "asyncio.Future[T]":
    """The result of a call that runs in a thread of its own."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, raised = None, None
        try:
            result = function()
        except BaseException as error:  # who waits must always hear of the end
            raised = error
        _call(loop, settle, result, raised)

    threading.Thread(target=work, name="request", daemon=True).start()
    return future


class EventReader:
    """Reads an iterator of events, which blocks, in a thread of its own. `close` may be called at any time.

    start: returns the iterator; it may block, too.
    cancel: makes the iterator end soon.
    """

    def __init__(self, start: Callable[[], Iterator], cancel: Callable[[], object]):
        self.cancel = cancel
        self.closed = False
        self._loop = asyncio.get_running_loop()
        # pairs of (event, error); (None, None) is the end
        self._events: asyncio.Queue = asyncio.Queue()
        threading.Thread(target=self._read, args=(start,), name="request", daemon=True).start()

    def _read(self, start: Callable[[], Iterator]) -> None:
        try:
            events = start()
            for event in events:
                if self.closed:
                    events.close()
                    break
                self._put(event, None)
        except BaseException as error:  # who waits must always hear of the end
            self._put(None, error)
        else:
            self._put(None, None)

    def _put(self, event, error) -> None:
        _call(self._loop, self._events.put_nowait, (event, error))

    async def next(self):
        """The next event, or None at the end; raises what the iterator raised."""
        event, error = await self._events.get()
        if error is not None:
            raise error
        return event

    def close(self) -> None:
        """Stop reading; the request gives up its room in the engine."""
        self.closed = True
        self.cancel()


async def unless_gone(receive: Callable[[], Awaitable[dict]], awaitable: Awaitable[T]) -> T:
    """The result of `awaitable`; ClientGone if the client closes its connection first.

    receive: of the request, whose body is already read.
    """
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(wait_until_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientGone
    finally:
        gone.cancel()
        work.cancel()


async def wait_until_gone(receive: Callable[[], Awaitable[dict]]) -> None:
    """Return when the client has closed its connection."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


def _call(loop: asyncio.AbstractEventLoop, function: Callable, *arguments) -> None:
    """Call a function in the loop's thread. Nothing happens where the server has stopped meanwhile."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # the loop is closed
        pass
