"""Who gets in: keys, accounts, the brake on guessing, Host, Origin, the size of a body, and what the log says."""

import base64
import logging
import resource
import runpy
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from rlhf.errors import UserError
from rlhf.serving.predictors import Encoders
from rlhf.serving.service import Service
from rlhf.serving.web import access as access_files
from rlhf.serving.web.access import (
    FAILURE_SECONDS,
    FAILURES,
    Access,
    TooManyFailures,
    add_account,
    add_key,
    hash_password,
    keys_of_environment,
    network_of,
    password_matches,
    read_accounts,
    read_keys,
)
from rlhf.serving.web.guard import BODY_BYTES, SECURITY_HEADERS, Rules, is_own_origin, trusted_hosts
from rlhf.serving.web.server import build_api

SCRIPTED = runpy.run_path(str(Path(__file__).with_name("scripted.py")))
ScriptedEngine, serving = SCRIPTED["ScriptedEngine"], SCRIPTED["serving"]
KEY, PASSWORD = "rlhf-0123456789abcdef", "correct horse"
CHAT = {"model": "demo/ppo", "messages": [{"role": "user", "content": "a secret question"}]}


@pytest.fixture(scope="module", autouse=True)
def cheap_hashes():
    """16 MB and 50 ms for each guess are right for a service and slow for a test."""
    before = dict(access_files.SCRYPT)
    access_files.SCRYPT.update(n=2)
    yield
    access_files.SCRYPT.update(before)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def access(clock):
    accounts = {"mina": hash_password(PASSWORD)}
    return Access(keys_of_environment(KEY), accounts, clock=clock)


def make_app(access=None, **rules):
    service = Service(ScriptedEngine(), Encoders({}), Path("runs"))
    return build_api(service, Rules(**rules), access or Access())


@pytest.fixture
def client(access):
    with serving(make_app(access)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def open_url():
    with serving(make_app(origins=("https://friend.example",))) as url:
        yield url


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def basic(name, password):
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_new_key_is_shown_once_and_its_file_holds_only_the_hash(tmp_path):
    path = tmp_path / "keys"
    key = add_key(path, "robot")
    add_key(path, "other")
    assert key not in path.read_text() and path.stat().st_mode & 0o777 == 0o600
    access = Access(read_keys(path))
    assert access.user_of_key(key) == "robot" and access.user_of_key(key + "x") is None
    new = add_key(path, "robot")  # replaces it
    assert Access(read_keys(path)).user_of_key(key) is None
    assert Access(read_keys(path)).user_of_key(new) == "robot" and len(read_keys(path)) == 2


def test_keys_may_be_written_by_hand(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# a comment\n\n{KEY}\nteam:{KEY[::-1]}\n")
    access = Access(read_keys(path))
    assert access.user_of_key(KEY) == "key 3" and access.user_of_key(KEY[::-1]) == "team"


def test_an_account_is_a_hash_that_matches_only_its_password(tmp_path):
    path = tmp_path / "accounts"
    add_account(path, "mina", PASSWORD)
    assert PASSWORD not in path.read_text() and path.stat().st_mode & 0o777 == 0o600
    stored = read_accounts(path)["mina"]
    assert password_matches(PASSWORD, stored) and not password_matches(PASSWORD + " ", stored)
    assert hash_password(PASSWORD) != stored  # another salt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no"),
        ("short", "at least 16"),
        ("a:sha256$12", "64 hex digits"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_of_keys_says_where(tmp_path, text, message):
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_keys(path)


@pytest.mark.parametrize("line", ["mina:password", "mina", "a b:scrypt$2$8$1$YQ==$YQ=="])
def test_a_bad_file_of_accounts_says_where(tmp_path, line):
    path = tmp_path / "accounts"
    path.write_text(f"# team\n{line}\n")
    with pytest.raises(UserError, match="accounts, line 2: not NAME:scrypt"):
        read_accounts(path)


def test_weak_passwords_and_strange_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 8"):
        add_account(tmp_path / "a", "mina", "short")
    with pytest.raises(UserError, match="a name has"):
        add_account(tmp_path / "a", "../mina", PASSWORD)
    assert not (tmp_path / "a").exists()


# ---- guessing ------------------------------------------------------------------------------------------------------


def test_wrong_passwords_are_slowed_down_per_address(access, clock):
    for _ in range(FAILURES):
        assert access.user_of_password("mina", "wrong", "1.1.1.1") is None
    with pytest.raises(TooManyFailures):
        access.user_of_password(
            "mina", PASSWORD, "1.1.1.1"
        )  # the right one, too: else it would tell
    assert access.user_of_password("mina", PASSWORD, "2.2.2.2") == "mina"
    clock.now += FAILURE_SECONDS + 1
    assert access.user_of_password("mina", PASSWORD, "1.1.1.1") == "mina"


def test_guesses_at_once_are_not_all_compared(access, monkeypatch):
    compared = []

    def slow(password, stored):
        compared.append(password)
        time.sleep(0.05)
        return password == "a right password"

    monkeypatch.setattr("rlhf.serving.web.access.password_matches", slow)

    def guess(number):
        with suppress(TooManyFailures):
            access.user_of_password("mina", f"wrong {number}", "1.2.3.4")

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(guess, range(20)))
    assert len(compared) == FAILURES
    # The right password, sent with many requests at once, is no guess.
    with ThreadPoolExecutor(20) as pool:
        answers = [
            pool.submit(access.user_of_password, "mina", "a right password", "5.6.7.8")
            for _ in range(20)
        ]
    assert {answer.result() for answer in answers} == {"mina"}


def test_the_addresses_of_one_ipv6_customer_count_together():
    assert (
        network_of("2001:db8::1")
        == network_of("2001:db8::ffff:1%eth0")
        != network_of("2001:db9::1")
    )
    assert network_of("::ffff:1.2.3.4") == network_of("1.2.3.4") == "1.2.3.4"
    assert network_of("no address") == "no address"


def test_a_right_key_passes_while_an_address_is_slowed_down(access):
    for _ in range(FAILURES):
        assert access.user_of_header("Bearer wrong", "1.1.1.1") is None
    with pytest.raises(TooManyFailures):
        access.user_of_header("Bearer wrong", "1.1.1.1")
    assert access.user_of_header(f"Bearer {KEY}", "1.1.1.1") == "key 1"


@pytest.mark.parametrize("header", ["", "Basic", "Basic !!!", "Basic YWJj", "Digest x", "bearer"])
def test_an_odd_header_is_a_wrong_one(access, header):
    assert access.user_of_header(header, "1.1.1.1") is None


def test_a_session_ends(access, clock):
    token = access.open_session("mina")
    assert access.user_of_session(token) == "mina" and access.user_of_session("x") is None
    clock.now += access_files.SESSION_SECONDS + 1
    assert access.user_of_session(token) is None


# ---- the server ----------------------------------------------------------------------------------------------------


def test_every_route_but_health_and_login_needs_a_name(client):
    assert client.get("/health").status_code == 200 and client.get("/login").status_code == 200
    for path in (
        "/v1/models",
        "/metrics",
        "/openapi.json",
        "/",
        "/config",
        "/gradio_api/info",
        "/nope",
    ):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/v1/chat/completions", "/gradio_api/queue/join", "/gradio_api/cancel"):
        assert client.post(path, json={}).status_code == 401, path


def test_keys_and_accounts_open_the_api(client):
    for headers in (
        bearer(KEY),
        basic("mina", PASSWORD),
        basic("anybody", KEY),
        {"x-hf-authorization": f"Bearer {KEY}"},
    ):
        assert client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
    for headers in (bearer(KEY + "x"), basic("mina", "x"), basic("nobody", PASSWORD)):
        answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")


def test_guessing_over_http_ends_in_429(client):
    for _ in range(FAILURES):
        assert client.post("/login", data={"username": "mina", "password": "x"}).status_code == 401
    answer = client.post("/login", data={"username": "mina", "password": PASSWORD})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    assert client.get("/v1/models", headers=bearer("wrong")).status_code == 429
    assert client.get("/v1/models", headers=bearer(KEY)).status_code == 200


def test_the_login_page_sets_a_cookie_that_scripts_cannot_read(client):
    browser = {"accept": "text/html", "accept-language": "ko-KR"}
    assert client.get("/", headers=browser).headers["location"] == "/login"
    page = client.get("/login", headers=browser).text
    assert "로그인" in page and 'lang="ko"' in page and "<script" not in page
    form = {"username": '"><script>', "password": "wrong"}
    wrong = client.post("/login", data=form, headers=browser)
    assert wrong.status_code == 401 and "올바르지" in wrong.text and "<script" not in wrong.text
    right = client.post("/login", data={"username": "mina", "password": PASSWORD}, headers=browser)
    assert right.status_code == 303 and right.headers["location"] == "/"
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert client.get("/v1/models").status_code == 200  # the cookie is sent
    client.get("/logout")
    assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    "body", [b"a=1&" * 50, b"username=%ff%fe&password=%ed%a0%80", b"\xff", b"{}"]
)
def test_what_is_no_form_is_a_wrong_login(client, body):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/login", content=body, headers=headers).status_code == 401


def test_a_session_that_was_closed_cannot_be_used_again(client):
    client.post("/login", data={"username": "mina", "password": PASSWORD})
    [cookie] = [f"{name}={value}" for name, value in client.cookies.items()]
    client.get("/logout")
    assert client.get("/v1/models", headers={"cookie": cookie}).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::2]"]
)
def test_a_foreign_host_is_refused(open_url, host):
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{open_url}/health", headers={"host": host})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "//", "http://", "\xff"])
def test_an_odd_origin_is_a_foreign_one(open_url, origin):
    headers = {"origin": origin.encode("latin-1"), "content-type": "application/json"}
    answer = httpx.post(f"{open_url}/v1/completions", headers=headers, content=b"{}")
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_origin"


def test_hosts_that_are_served():
    assert trusted_hosts("10.0.0.5", ["Chat.example:443"])[-2:] == ("10.0.0.5", "chat.example")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},  # another program of this machine
        {"origin": "file://"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_pages_of_other_sites_change_nothing(open_url, headers):
    for path in ("/v1/chat/completions", "/login", "/gradio_api/queue/join", "/gradio_api/cancel"):
        answer = httpx.post(f"{open_url}{path}", json=CHAT, headers=headers)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_origin"
        assert "access-control-allow-origin" not in answer.headers


def test_our_own_page_and_the_named_site_may_ask(open_url):
    own = httpx.post(f"{open_url}/v1/chat/completions", json=CHAT, headers={"origin": open_url})
    assert own.status_code == 200
    friend = {"origin": "https://friend.example"}
    answer = httpx.post(f"{open_url}/v1/chat/completions", json=CHAT, headers=friend)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    read = httpx.get(f"{open_url}/v1/models", headers={"origin": "http://evil.example"})
    assert (
        "access-control-allow-origin" not in read.headers
    )  # its browser keeps the answer from the page


def test_an_origin_is_compared_whole():
    headers = {"host": "chat.example"}
    assert is_own_origin("https://chat.example", {}, headers)
    assert not is_own_origin("https://chat.example.evil.example", {}, headers)
    assert not is_own_origin("https://chat.example:8000", {}, headers)


def test_every_answer_keeps_other_sites_out(open_url):
    answers = [
        httpx.get(f"{open_url}/health"),
        httpx.get(f"{open_url}/nope"),
        httpx.post(f"{open_url}/v1/chat/completions", json=CHAT),
        httpx.get(f"{open_url}/health", headers={"host": "evil.example"}),
    ]
    for answer in answers:
        assert SECURITY_HEADERS.items() <= dict_of(answer.headers, SECURITY_HEADERS).items()
        assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    assert "http" not in policy and "*" not in policy and "frame-ancestors 'none'" in policy


def dict_of(headers, names):
    return {name: headers.get(name) for name in names}


# ---- bodies --------------------------------------------------------------------------------------------------------


def body_of(size, part=64 * 1024):
    """A generator sends it in chunks, without a Content-Length."""
    for _ in range(0, size, part):
        yield b" " * part


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/login", "/gradio_api/queue/join"])
def test_ten_megabytes_are_a_413(open_url, path, chunked):
    size = 10 * 2**20
    content = body_of(size) if chunked else b" " * size
    answer = httpx.post(f"{open_url}{path}", content=content)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


def test_large_bodies_do_not_grow_the_memory(open_url):
    before = peak_kilobytes()
    for _ in range(6):
        answer = httpx.post(f"{open_url}/v1/score", content=body_of(60 * 2**20))
        assert answer.status_code == 413
    assert peak_kilobytes() - before < 8 * 1024  # six bodies together are 360 MB


def peak_kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_body_of_the_limit_is_read(open_url):
    body = b'{"model": "x", "pad": "' + b"a" * (BODY_BYTES - 25) + b'"}'
    answer = httpx.post(
        f"{open_url}/v1/score", content=body, headers={"content-type": "application/json"}
    )
    assert len(body) == BODY_BYTES and answer.status_code == 400
    assert httpx.post(f"{open_url}/v1/score", content=body + b" ").status_code == 413


# ---- what is written down ------------------------------------------------------------------------------------------


def test_the_access_log_has_no_text_of_a_message(access, caplog):
    caplog.set_level(logging.INFO, "rlhf.access")
    with serving(make_app(access)) as url:
        answer = httpx.post(f"{url}/v1/chat/completions?q=private", json=CHAT, headers=bearer(KEY))
        httpx.get(f"{url}/a%0Aforged%20line", headers=basic("mina", PASSWORD))
    lines = [record.getMessage() for record in caplog.records if record.name == "rlhf.access"]
    # A server of an earlier test may still write a line.
    [asked] = [line for line in lines if line.endswith(answer.headers["x-request-id"])]
    assert " 127.0.0.1 key 1 POST /v1/chat/completions 200 " in asked
    assert any("GET /a%0Aforged%20line 404" in line for line in lines)
    for secret in ("secret", "private", KEY, PASSWORD, "one two"):
        assert secret not in caplog.text


def test_metrics_count_requests_under_a_fixed_set_of_names(open_url):
    httpx.post(f"{open_url}/v1/chat/completions", json=CHAT)
    httpx.get(f"{open_url}/invented/{'x' * 50}")
    httpx.request("BREW", f"{open_url}/health")
    text = httpx.get(f"{open_url}/metrics").text
    row = 'rlhf_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}'
    assert row in text and "invented" not in text and "BREW" not in text
    assert "rlhf_engine_running 0.0" in text and "rlhf_engine_models_served 3.0" in text
    assert "rlhf_engine_loaded" not in text  # not a number
