"""Checks of every request before a route sees it: Host, Origin, closed routes, identity, size of the body.

It guards Gradio's routes too, which have checks of their own for some of this and none for the rest. Every answer gets
the headers that keep a page from loading, sending to or being framed by another site.
"""

import asyncio
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response

from rlhf.serving.web.access import Access, TooManyFailures
from rlhf.serving.web.errors import ApiError
from rlhf.serving.web.threads import in_thread

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
BODY_BYTES = 2 * 2**20  # 32,000 characters as JSON escapes and a long history fit easily
DRAINED_BYTES = (
    64 * 2**20
)  # read and dropped of a body that is too large, so that the client sees the answer
BODY_SECONDS = 60  # to send a whole body
# Gradio writes its settings and styles into the page, and makes functions of the js= of components.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'none'; "
    "frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer a browser would send our own login form with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
READING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing
# Without a login. `transformers chat` sends its key with every request but that to /load_model, which tells nothing.
PUBLIC = ("/health", "/login", "/load_model", "/favicon.ico", "/robots.txt")
SESSION_COOKIE = "rlhf-session"
GRADIO = "/gradio_api"
# Gradio's routes that fetch from other hosts, and those of features that are off
CLOSED = (f"{GRADIO}/proxy=", f"{GRADIO}/file=http", f"{GRADIO}/file/http", f"{GRADIO}/dev")
UPLOAD = f"{GRADIO}/upload"


@dataclass(frozen=True)
class Rules:
    """Requests that are let in.

    hosts: names that the Host header may hold. any_address: and any IP address, which no foreign name can be.
    origins: other sites whose pages may call the service. uploads: whether Gradio's route for files is open.
    frames: sites whose pages may show the service in a frame. body_bytes: the largest body.
    """

    hosts: tuple[str, ...] = LOOPBACK
    any_address: bool = False
    origins: tuple[str, ...] = ()
    uploads: bool = False
    frames: tuple[str, ...] = ()
    body_bytes: int = BODY_BYTES

    def with_uploads(self) -> "Rules":
        return replace(self, uploads=True)


class Refused(Exception):
    """Holds the response to send."""

    def __init__(self, response: Response):
        super().__init__(response.status_code)
        self.response = response


def refuse(status: int, message: str, **more) -> Refused:
    return Refused(ApiError(status, message, **more).response())


class Guard:
    """The ASGI middleware around the whole service."""

    def __init__(self, app: Callable, rules: Rules, access: Access):
        self.app, self.rules, self.access = app, rules, access
        self.headers = security_headers(rules)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the service has no WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        send = with_security_headers(send, self.headers)
        headers = Headers(scope=scope)
        try:
            check_host(self.rules, headers)
            check_origin(self.rules, scope, headers)
            check_route(self.rules, scope)
            await self._identify(scope, headers)
            if scope["method"] not in READING:
                receive = await limited_body(receive, headers, self.rules.body_bytes)
        except Refused as refused:
            await refused.response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _identify(self, scope, headers: Headers) -> None:
        """Write the name of who asks into the scope. Refused where a name is needed and there is none."""
        if not self.access.required:
            return
        user = await self._user(scope, headers)
        if user is not None:
            scope["rlhf.user"] = user
            return
        if scope["path"] in PUBLIC or scope["method"] == "OPTIONS":
            return
        wants_page = "text/html" in headers.get("accept", "")
        if scope["method"] == "GET" and scope["path"] == "/" and wants_page:
            raise Refused(RedirectResponse("/login", status_code=303))
        raise refuse(
            401, "give a key (Authorization: Bearer KEY), or log in", code="invalid_api_key"
        )

    async def _user(self, scope, headers: Headers) -> str | None:
        token = session_token(scope, headers)
        if token:
            user = self.access.user_of_session(token)
            if user is not None:
                return user
        # gradio_client sends the header under the second name
        header = headers.get("authorization") or headers.get("x-hf-authorization")
        if not header:
            return None
        address = address_of(scope)
        try:
            return await in_thread(lambda: self.access.user_of_header(header, address))
        except TooManyFailures as error:
            raise too_many_failures(error) from error


def too_many_failures(error: TooManyFailures) -> Refused:
    return refuse(
        429,
        f"too many wrong keys or passwords: wait {error.seconds} seconds",
        code="too_many_failures",
        retry_after=error.seconds,
    )


def address_of(scope) -> str:
    client = scope.get("client")
    return client[0] if client else "unknown"


# ---- sessions ------------------------------------------------------------------------------------------------------


def cookie_name(scope) -> str:
    """With the port: browsers send a cookie to every port of a host, and two services may run on one machine."""
    server = scope.get("server")
    port = server[1] if server else 0
    return f"{SESSION_COOKIE}-{port}"


def session_token(scope, headers: Headers) -> str:
    """The value of the session's cookie, "" if there is none."""
    wanted = cookie_name(scope)
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted:
            return value
    return ""


# ---- checks --------------------------------------------------------------------------------------------------------


def host_name(host: str) -> str:
    """A Host header, or the part of an origin after ://, without the port and in lower case."""
    host = host.strip().lower()
    if host.startswith("["):  # IPv6
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def check_host(rules: Rules, headers: Headers) -> None:
    """Refuse a foreign Host header.

    DNS rebinding: another site's name may point to this machine, and its pages could then read ours. The header still
    holds that name.
    """
    name = host_name(headers.get("host", ""))
    if name in rules.hosts or (rules.any_address and is_address(name)):
        return
    raise refuse(400, "this Host is not served here (see --allowed-host)", code="wrong_host")


def check_origin(rules: Rules, scope, headers: Headers) -> None:
    """Refuse a request that a page of another site made, if it may change something."""
    if scope["method"] in READING:
        return
    origin = headers.get("origin")
    if origin is None:
        # An old browser, or no browser. A new browser says so where another site's page sends a form.
        if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
            return
    elif origin in rules.origins or is_own_origin(origin, scope, headers):
        return
    raise refuse(
        403, "pages of other sites may not call this (see --allow-origin)", code="wrong_origin"
    )


def is_own_origin(origin: str, scope, headers: Headers) -> bool:
    """True for a page of this service. A proxy that ends TLS may hide the scheme, so it is not compared."""
    try:
        parts = urlsplit(origin)
    except ValueError:  # such as http://[
        return False
    if parts.scheme not in ("http", "https"):  # "null" is a sandboxed page or a file
        return False
    return parts.netloc.lower() == headers.get("host", "").lower()


def check_route(rules: Rules, scope) -> None:
    """Refuse routes of Gradio that nothing here uses."""
    path = scope["path"]
    if path.startswith(CLOSED) or (path.startswith(UPLOAD) and not rules.uploads):
        raise refuse(404, "Not Found")
    # The page "Use via API" asks for these two. A 404 or 403 would be an error in the browser's console, and a 200
    # would say that there is an MCP server: 300 is neither.
    if path.startswith(f"{GRADIO}/mcp"):
        raise Refused(JSONResponse([], status_code=300))
    if path.startswith("/monitoring"):
        raise Refused(JSONResponse({"functions": {}}))


# ---- bodies --------------------------------------------------------------------------------------------------------


async def limited_body(receive: Callable, headers: Headers, most: int) -> Callable:
    """Read the body, at most `most` bytes of it, and return a `receive` that gives it again.

    Refused (413) for a larger one, whether its length is said or not: at no time more than `most` bytes are kept.
    """
    too_large = int_or(headers.get("content-length"), 0) > most
    try:
        body = await asyncio.wait_for(read_body(receive, most, too_large), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise refuse(408, f"the body did not arrive in {BODY_SECONDS} seconds") from error
    if body is None:
        raise refuse(413, f"the body is larger than {most} bytes", code="too_large")
    return replay(body, receive)


async def read_body(receive: Callable, most: int, too_large: bool) -> bytes | None:
    """The body, or None if it is too large. Then the rest is read and dropped, so that the client sees the answer."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise refuse(400, "the body is not complete")  # the client went away
        part = message.get("body", b"")
        size += len(part)
        too_large = too_large or size > most
        if too_large:
            parts.clear()
        else:
            parts.append(part)
        if not message.get("more_body") or size > DRAINED_BYTES:
            return None if too_large else b"".join(parts)


def replay(body: bytes, receive: Callable) -> Callable:
    """A `receive` that gives this body first, then what comes."""
    given = False

    async def receive_again() -> dict:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def int_or(text: str | None, default: int) -> int:
    if text is None or not text.isdecimal():
        return default
    return int(text[:20])


# ---- headers -------------------------------------------------------------------------------------------------------


def security_headers(rules: Rules) -> dict[str, str]:
    """The headers of every answer."""
    if not rules.frames:
        return SECURITY_HEADERS
    allowed = f"frame-ancestors 'self' {' '.join(rules.frames)}"
    headers = dict(SECURITY_HEADERS)
    headers["Content-Security-Policy"] = POLICY.replace("frame-ancestors 'none'", allowed)
    # It knows no list of sites; browsers read the policy above.
    del headers["X-Frame-Options"]
    return headers


def with_security_headers(send: Callable, values: dict[str, str]) -> Callable:
    async def send_with_headers(message: dict) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in values.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def trusted_hosts(host: str, allowed: Iterable[str]) -> tuple[str, ...]:
    """The names under which a service on the address `host` may be called."""
    names = [*LOOPBACK, host_name(host)]
    names += [host_name(name) for name in allowed]
    return tuple(dict.fromkeys(names))
