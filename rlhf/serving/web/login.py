"""The login page of the service: a plain form, without a script, and the cookie that it leaves.

gradio_client logs in here, too: `Client(url, auth=(name, password))` sends the same form and keeps the cookie.
"""

import html
from string import Template
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from rlhf.serving.ui.texts import add_texts, language_of, text
from rlhf.serving.web.access import SESSION_SECONDS, Access, TooManyFailures
from rlhf.serving.web.errors import ApiError
from rlhf.serving.web.guard import address_of, cookie_name, session_token, too_many_failures
from rlhf.serving.web.threads import in_thread

TEXTS = {
    "login.title": ("Log in", "로그인"),
    "login.name": ("Name", "이름"),
    "login.password": ("Password or key", "비밀번호 또는 키"),
    "login.wrong": ("The name or the password is wrong.", "이름이나 비밀번호가 올바르지 않습니다."),
    "login.wait": (
        "Too many attempts. Try again in {seconds} seconds.",
        "시도가 너무 많습니다. {seconds}초 후에 다시 시도하세요.",
    ),
}
add_texts(TEXTS)

PAGE = Template("""<!doctype html>
<html lang="$language"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {color-scheme: light dark;}
body {font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans KR", sans-serif; margin: 0;
  min-height: 100vh; display: grid; place-items: center; background: light-dark(#f8fafc, #020617);
  color: light-dark(#0f172a, #e2e8f0);}
form {width: min(320px, 86vw); padding: 28px; border-radius: 16px; background: light-dark(white, #0f172a);
  border: 1px solid light-dark(#e2e8f0, #1e293b);}
h1 {font-size: 1.3rem; margin: 0 0 16px;}
label {display: block; margin: 12px 0 4px; font-size: 0.93rem;}
input {width: 100%; box-sizing: border-box; font: inherit; padding: 9px 12px; border-radius: 10px; color: inherit;
  border: 1px solid light-dark(#cbd5e1, #334155); background: transparent;}
button {width: 100%; margin-top: 20px; font: inherit; font-weight: 600; padding: 10px; border: 0; border-radius: 10px;
  background: #0f766e; color: white; cursor: pointer;}
:focus-visible {outline: 2px solid #14b8a6; outline-offset: 2px;}
[role=alert] {color: light-dark(#b91c1c, #fca5a5); min-height: 1.5em; margin: 12px 0 0; font-size: 0.93rem;}
</style></head><body><main><form method="post" action="login"><h1>$title</h1>
<label for="username">$name</label>
<input id="username" name="username" autocomplete="username" value="$user" required autofocus>
<label for="password">$password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<p role="alert">$problem</p><button>$title</button></form></main></body></html>
""")


def login_page(language: str, *, user: str = "", problem: str = "") -> str:
    values = {"language": language, "user": user, "problem": problem}
    for part in ("title", "name", "password"):
        values[part] = text(f"login.{part}", language)
    escaped = {name: html.escape(value) for name, value in values.items()}
    return PAGE.substitute(escaped)


def make_router(access: Access) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    async def show(request: Request) -> Response:
        if not access.required or request.scope.get("rlhf.user"):
            return RedirectResponse("/", status_code=303)
        return HTMLResponse(login_page(language_of(request)))

    @router.post("/login")
    @router.post("/login/")
    async def login(request: Request) -> Response:
        form = form_fields(await request.body())
        name = form.get("username", [""])[0].strip()
        password = form.get("password", [""])[0]
        address = address_of(request.scope)
        try:
            # Hashing takes 50 ms, during which no stream would move.
            user = await in_thread(lambda: access.user_of_password(name, password, address))
        except TooManyFailures as error:
            problem = text("login.wait", language_of(request), seconds=error.seconds)
            return refused(request, name, problem, too_many_failures(error).response)
        if user is None:
            problem = text("login.wrong", language_of(request))
            error = ApiError(401, "the name or the password is wrong", code="invalid_login")
            return refused(request, name, problem, error.response())
        return logged_in(request, access.open_session(user))

    @router.get("/logout")
    async def logout(request: Request) -> Response:
        # The session, not only the cookie: a copied cookie is worth nothing afterwards.
        access.close_session(session_token(request.scope, request.headers))
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(cookie_name(request.scope))
        return response

    return router


def form_fields(body: bytes) -> dict[str, list[str]]:
    """name -> values of a form. Nothing for another body."""
    try:
        return parse_qs(body.decode(errors="replace"), max_num_fields=20)
    except ValueError:  # more fields
        return {}


def wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def refused(request: Request, name: str, problem: str, response: JSONResponse) -> Response:
    """The page again with the problem, for a browser; the error's own response for a client."""
    if not wants_page(request):
        return response
    page = login_page(language_of(request), user=name, problem=problem)
    again = HTMLResponse(page, status_code=response.status_code)
    if "retry-after" in response.headers:
        again.headers["retry-after"] = response.headers["retry-after"]
    return again


def logged_in(request: Request, token: str) -> Response:
    response = JSONResponse({"success": True})
    if wants_page(request):  # 303: the browser asks for the page with GET
        response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        cookie_name(request.scope),
        token,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response
