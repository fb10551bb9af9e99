"""A line per request in the log: who, which route, status, time. Never a text of a message, a query or a header.

2026-01-31T09:30:00Z 127.0.0.1 alice POST /v1/chat/completions 200 1532 bytes 0.412 s 1f0c...
"""

import logging
import time
import uuid
from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import MutableHeaders

from rlhf.serving.web.guard import address_of
from rlhf.serving.web.metrics import ServiceMetrics

logger = logging.getLogger("rlhf.access")

PATH_CHARACTERS = 200


class Observer:
    """The outermost ASGI middleware: names each request, logs and counts it at its end."""

    def __init__(self, app: Callable, metrics: ServiceMetrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["rlhf.id"] = uuid.uuid4().hex
        sent = {"status": 500, "bytes": 0}

        async def counting_send(message: dict) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = scope["rlhf.id"]
            else:
                sent["bytes"] += len(message.get("body", b""))
            await send(message)

        started = time.perf_counter()
        # Mounting changes the scope's path, and a route may end in an exception.
        method, path = scope["method"], scope["path"]
        self.metrics.open.inc()
        try:
            await self.app(scope, receive, counting_send)
        finally:
            self.metrics.open.dec()
            seconds = time.perf_counter() - started
            status = sent["status"]
            if scope.get("rlhf.gone"):
                status = 499  # the client closed the connection, as nginx counts
            self.metrics.count(method, path, status, seconds)
            logger.info(access_line(scope, path, status, sent["bytes"], seconds))


def access_line(scope, path: str, status: int, size: int, seconds: float) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    user = quote(scope.get("rlhf.user") or "-", safe="@ ._-")
    # Quoted: a path may hold line breaks, which would forge a line.
    short = quote(path, safe="/:@=,~!$&'()*+;")[:PATH_CHARACTERS]
    method = quote(scope["method"])[:10]
    address = quote(address_of(scope), safe=":.")
    return (
        f"{now} {address} {user} {method} {short} {status} {size} bytes {seconds:.3f} s "
        f"{scope['rlhf.id']}"
    )
