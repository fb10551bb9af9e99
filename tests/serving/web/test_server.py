"""The running service: its page behind the guard, encoders, clients of Gradio, and the command that starts it."""

import ast
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gradio as gr
import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from rlhf.models.load import save
from rlhf.runs.record import RunRecord
from rlhf.serving.catalogue import find_models, model_ids
from rlhf.serving.engine.deferred import DeferredEngine
from rlhf.serving.engine.engine import Engine
from rlhf.serving.engine.requests import Busy, Limits, SamplingSettings
from rlhf.serving.predictors import Encoders
from rlhf.serving.service import Service
from rlhf.serving.web import listen
from rlhf.serving.web.access import Access, hash_password
from rlhf.serving.web.errors import ApiError, as_api_error
from rlhf.serving.web.guard import UPLOAD, Rules
from rlhf.serving.web.openai_format import finish_reason
from rlhf.serving.web.server import build_api, build_app, is_upload, mount_page
from rlhf.tasks.classification.predictor import ClassificationPredictor

ROOT = Path(__file__).parents[3]
SCRIPTED = runpy.run_path(str(Path(__file__).with_name("scripted.py")))
ScriptedEngine, serving, wait_for = (
    SCRIPTED["ScriptedEngine"], SCRIPTED["serving"], SCRIPTED["wait_for"],
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    runpy.run_path(str(ROOT / "tests" / "serving" / "conftest.py"))["make_runs"](root)
    return root


def save_encoder(folder, cls, tokenizer, recipe: str, **config):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = cls(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=48, **sizes, **config)
    )
    save(model, tokenizer, folder)
    RunRecord(recipe, status="done").save(folder)


@pytest.fixture(scope="module")
def encoder_runs(tmp_path_factory, bert_tokenizer):
    root = tmp_path_factory.mktemp("encoders")
    labels = {0: "O", 1: "B-x", 2: "I-x"}
    windows = {"max_length": 24, "stride": 4, "max_answer_length": 2}
    save_encoder(
        root / "c",
        BertForSequenceClassification,
        bert_tokenizer,
        "classification",
        trained_pairs=False,
    )
    save_encoder(root / "t", BertForTokenClassification, bert_tokenizer, "ner", id2label=labels)
    save_encoder(
        root / "r",
        BertForQuestionAnswering,
        bert_tokenizer,
        "question_answering",
        reader_windows=windows,
    )
    return root


def service_of(root, *more_roots) -> Service:
    """What `rlhf chat --runs` serves."""
    models = {}
    for folder in (root, *more_roots):
        models |= find_models(folder)
    engine = Engine(models.pop("causal", {}), reward_runs=models.pop("reward", {}))
    return Service(engine, Encoders(models), Path(root))


@pytest.fixture(scope="module")
def app(runs, encoder_runs):
    return build_app(service_of(runs, encoder_runs))


@pytest.fixture(scope="module")
def url(app):
    with serving(app) as address:
        yield address


def talking_page(engine) -> gr.Blocks:
    """A page with the one endpoint `talk`, which streams an answer."""

    def talk(text: str, request: gr.Request):
        messages, answer = [{"role": "user", "content": text}], ""
        events = engine.stream(
            "ppo · demo", messages, SamplingSettings(), request=request.session_hash
        )
        for event in events:
            answer += getattr(event, "text", "")
            yield f"{request.username}: {answer}"

    with gr.Blocks(analytics_enabled=False) as page:
        text, answer = gr.Textbox(), gr.Textbox()
        text.submit(talk, text, answer, api_name="talk")
    return page


def talking_app(engine, access=None):
    access = access or Access()
    service = Service(engine, Encoders({}), Path("runs"))
    return mount_page(build_api(service, Rules(), access), talking_page(engine), access)


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine()


@pytest.fixture(scope="module")
def talk_url(engine):
    with serving(talking_app(engine)) as address:
        yield address


# ---- the page and the models ---------------------------------------------------------------------------------------


def test_the_page_names_no_other_host_and_every_model_says_what_it_is(app):
    client = TestClient(app, base_url="http://127.0.0.1:7860")
    page = client.get("/")
    assert page.status_code == 200 and "googleapis" not in page.text and "cdnjs" not in page.text
    assert page.headers["x-frame-options"] == "DENY"
    models = client.get("/v1/models").json()["data"]
    assert {model["id"]: model["kind"] for model in models} == {
        "demo/ppo": "chat", "demo/base": "chat", "c/classification": "classification", "t/ner": "ner",
        "r/question_answering": "question_answering", "demo/reward": "reward",
    }  # fmt: skip
    assert client.get("/health").json()["models"] == 6


def test_a_real_model_answers_through_the_api(url):
    body = {"model": "demo/ppo", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == "Hello \N{GRINNING FACE} friend"
    assert answer["usage"]["prompt_tokens"] > 2
    scored = {"model": "demo/reward", "messages": body["messages"], "completions": ["a", "b c"]}
    scores = httpx.post(f"{url}/v1/score", json=scored, timeout=60).json()["data"]
    assert len(scores) == 2 and scores[0]["score"] != scores[1]["score"]


def test_encoders_classify_texts_rows_and_lists(url, encoder_runs):
    def classify(model, given):
        return httpx.post(f"{url}/v1/classify", json={"model": model, "input": given}, timeout=60)

    ours = ClassificationPredictor(encoder_runs / "c").predict([{"text": "a b"}])[0]
    answer = classify("c/classification", ["a b", {"text": "a b"}]).json()
    assert [entry["prediction"] for entry in answer["data"]] == [ours, ours]
    assert answer["kind"] == "classification"
    row = {"question": "a", "context": "b c d"}
    answer = classify("r/question_answering", row).json()["data"][0]["prediction"]
    assert "answer" in str(answer)
    wrong = classify("c/classification", {"txt": "a"})
    assert wrong.status_code == 400 and "'txt' is not a column" in wrong.json()["error"]["message"]
    assert classify("demo/ppo", "a").status_code == 404


def test_ids_do_not_depend_on_other_runs():
    labels = ["ppo · demo", "ppo", "ppo · a b", "ppo · a-b", "ppo · 한국", "org/model"]
    ids = model_ids(labels)
    assert (
        ids["ppo · demo"] == "demo/ppo" and ids["ppo"] == "ppo" and ids["org/model"] == "org/model"
    )
    assert len(set(ids.values())) == len(labels) and all(name.isascii() for name in ids.values())
    for label in labels:
        assert model_ids([label])[label] == ids[label]


def test_a_run_that_finishes_is_served(runs, tmp_path):
    models = {"causal": {"ppo · demo": "x"}}
    engine = ScriptedEngine({"ppo · demo": "x"}, {})
    engine.reward_runs = {}
    service = Service(
        engine, Encoders({}), tmp_path, find=lambda: {k: dict(v) for k, v in models.items()}
    )
    assert not service.refresh()
    models["causal"] = {"ppo · new": "y", "ppo · demo": "x"}
    models["reward"], models["ner"] = {"reward · r": "z"}, {"ner · t": "t"}
    assert service.refresh() and not service.refresh()
    assert list(engine.runs) == ["ppo · new", "ppo · demo"]
    assert engine.reward_runs == {"reward · r": "z"} and service.encoders.runs["ner"] == {
        "ner · t": "t"
    }
    assert service.encoders.opened.keys() == {"ner"}


# ---- clients of Gradio ---------------------------------------------------------------------------------------------


def test_a_gradio_client_logs_in_and_is_known_by_its_name(engine):
    access = Access({}, {"mina": hash_password("correct horse")})
    with serving(talking_app(engine, access)) as address:
        client = Client(address, auth=("mina", "correct horse"), verbose=False)
        assert client.predict("hi", api_name="/talk") == "mina: one two three"
        with pytest.raises(AuthenticationError):
            Client(address, auth=("mina", "wrong password"), verbose=False)


def test_a_key_is_enough_for_a_gradio_client(engine):
    access = Access({"robot": "3" * 64}, {})
    access.user_of_key = lambda key: "robot" if key == "k" else None
    with serving(talking_app(engine, access)) as address:
        client = Client(address, headers={"authorization": "Bearer k"}, verbose=False)
        assert client.predict("hi", api_name="/talk") == "robot: one two three"


@pytest.mark.parametrize("route", ["queue", "call"])
def test_a_gradio_client_that_goes_away_gives_up_its_room(talk_url, engine, route):
    if route == "queue":
        body = {"data": ["slow"], "fn_index": 0, "session_hash": "abc"}
        httpx.post(f"{talk_url}/gradio_api/queue/join", json=body)
        path = "/gradio_api/queue/data?session_hash=abc"
    else:
        event = httpx.post(f"{talk_url}/gradio_api/call/talk", json={"data": ["slow"]}).json()
        path = f"/gradio_api/call/talk/{event['event_id']}"
    host, port = talk_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert wait_for(lambda: engine.running) and connection.recv(100)
    assert wait_for(lambda: not engine.running, 1.0)


def test_nothing_can_be_uploaded_where_no_tab_takes_a_file(talk_url):
    files = {"files": ("a.txt", b"text")}
    assert httpx.post(f"{talk_url}{UPLOAD}", files=files).status_code == 404


def test_uploads_open_with_a_component_that_takes_files():
    with gr.Blocks(analytics_enabled=False) as page:
        gr.File(interactive=False)
    assert not any(is_upload(block) for block in page.blocks.values())
    with page:
        gr.File()
    assert any(is_upload(block) for block in page.blocks.values())


def test_routes_to_other_hosts_are_closed_and_unused_ones_are_silent(talk_url):
    for path in (
        "proxy=http://127.0.0.1/x",
        "file=http://127.0.0.1/x",
        "file=https://example.org/x",
    ):
        assert httpx.get(f"{talk_url}/gradio_api/{path}").status_code == 404
    # below 400, so that the browser's console stays empty
    assert httpx.get(f"{talk_url}/gradio_api/mcp/schema").status_code == 300
    assert httpx.get(f"{talk_url}/monitoring/summary").status_code == 200


SECRETS = ("/etc/passwd", str(ROOT / "app.py"), str(ROOT / "rlhf" / "serving" / "server.py"))
CLIMBS = (
    "../" * 12 + "etc/passwd",
    "..%2f" * 12 + "etc/passwd",
    "%2e%2e/" * 12 + "etc/passwd",
    "....//etc/passwd",
)


@pytest.mark.parametrize(
    "route", ["gradio_api/file=", "gradio_api/file/", "static/", "assets/", "svelte/", "v1/models/"]
)
def test_no_route_reads_a_file_of_this_machine(talk_url, route):
    host, port = talk_url.removeprefix("http://").split(":")
    for name in (*SECRETS, *CLIMBS, "/proc/self/environ", "\0"):
        with socket.create_connection((host, int(port))) as connection:
            name = name.replace("\0", "%00")
            # By hand: a client would shorten the path.
            head = f"GET /{route}{name} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert answer.split()[1] in (b"400", b"403", b"404", b"405"), (name, answer[:200])
        assert b"root:" not in answer and b"import" not in answer and b"PATH=" not in answer


# ---- the engine that comes later -----------------------------------------------------------------------------------


def test_a_deferred_engine_is_made_once_and_knows_the_runs_before():
    made = []

    def make(runs, reward_runs):
        made.append(runs)
        return ScriptedEngine(runs, reward_runs)

    engine = DeferredEngine(make, {"a": "1"}, {"r": "2"}, limits=Limits())
    engine.refresh({"b": "1"}, {"r": "2"})
    assert (
        engine.runs == {"b": "1"}
        and not engine.cancel("x")
        and engine.load_report() == {"ready": 0}
    )
    assert not made
    for _ in range(2):
        events = list(engine.stream("b", [{"role": "user", "content": "hi"}], SamplingSettings()))
        assert events[-1].finish == "stop"
    assert made == [{"b": "1"}] and engine.load_report()["ready"] == 1
    engine.close()
    assert engine.get().closed if engine._engine is None else engine._engine.closed


def test_starting_the_server_imports_no_torch():
    """It takes as long as everything else together. Read from the imports, since trying takes seconds."""
    reached = modules_reached("rlhf.serving.web.server") | modules_reached("rlhf.commands.chat")
    assert "rlhf.serving.ui.page" in reached and "gradio" in reached
    heavy = {"torch", "transformers", "peft", "datasets", "trl", "accelerate"}
    assert not heavy & {name.split(".")[0] for name in reached}


def modules_reached(module: str) -> set[str]:
    """Every module that importing this one imports, as far as it is ours."""
    reached, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        if name.startswith("rlhf"):
            tree = ast.parse(Path(find_spec(name).origin).read_text())
            todo += [used for node in tree.body for used in imported(node)]
    return reached


def imported(node) -> list[str]:
    """Modules that a statement at the top of a file imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    names = [node.module]
    for alias in node.names:
        full = f"{node.module}.{alias.name}"
        if node.module.startswith("rlhf") and is_module(full):
            names.append(full)
    return names


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def app_exit(capsys):
    """Exit code and error line of app.py with these arguments."""
    main = runpy.run_path(str(ROOT / "app.py"))["main"]

    def run(*args):
        return main([str(arg) for arg in args]), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", 99999], "--port 99999: give a number from 0 to 65535"),
        (["--port", -1], "--port -1: give a number"),
        (["--device", "tpu"], "--device tpu: use cpu, cuda, cuda:0, mps or xpu"),
        (["--runs", "/proc/nope"], "--runs /proc/nope: cannot be made"),
        (["/nope"], "no such folder: /nope"),
        ([ROOT / "app.py"], "is a file: give the folder of a run"),
        (["--host", "0.0.0.0"], "so it needs --accounts FILE or --keys FILE"),
        (["--allow-hub", "../x"], "give an id such as"),
        (["--allow-origin", "example.org"], "give it as https://"),
        (["--keys", "/nope"], "/nope cannot be read"),
        (["--accounts", "/nope"], "/nope cannot be read"),
        (["--data", "/nope"], "--data: no such folder"),
        (["--add-key", "x"], "--add-key needs the file"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(runs, app_exit, flags, message):
    given = ["--runs", runs, *flags] if not isinstance(flags[0], Path) else flags
    code, error = app_exit(*given)
    assert code == 2 and error.count("\n") == 1 and message in error


def test_half_a_request_is_not_waited_for(monkeypatch):
    """Two thousand of them would keep everybody else out. An answer under way is no such thing."""
    monkeypatch.setattr(listen, "HEAD_SECONDS", 0.3)
    engine = SCRIPTED["ScriptedEngine"]()
    app = build_api(Service(engine, Encoders({}), Path("runs")), Rules(), Access())
    slow = {"model": "demo/ppo", "messages": [{"role": "user", "content": "slow"}], "stream": True}
    with SCRIPTED["serving"](app, http=listen.Protocol) as url:
        port = int(url.rpartition(":")[2])
        with (
            httpx.stream("POST", f"{url}/v1/chat/completions", json=slow, timeout=5) as answer,
            socket.create_connection(("127.0.0.1", port), timeout=5) as half,
        ):
            half.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            assert half.recv(100) == b""
            lines = answer.iter_lines()
            for _ in range(40):  # 0.05 s and two lines each
                next(lines)


def test_too_many_connections_are_told_when_to_come_back(monkeypatch):
    monkeypatch.setattr(listen, "CONNECTIONS", 1)
    app = build_api(
        Service(SCRIPTED["ScriptedEngine"](), Encoders({}), Path("runs")), Rules(), Access()
    )
    with SCRIPTED["serving"](app, http=listen.Protocol) as url, httpx.Client(base_url=url) as first:
        assert first.get("/health").status_code == 200
        answer = httpx.get(f"{url}/health")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert answer.headers["connection"] == "close"
        assert first.get("/health").status_code == 200


def test_who_watches_the_server_may_ask_for_the_head_alone():
    service = Service(SCRIPTED["ScriptedEngine"](), Encoders({}), Path("runs"))
    app = build_api(service, Rules(), Access())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.head("/health")
        assert answer.status_code == 200 and answer.content == b""
        assert "head" not in client.get("/openapi.json").json()["paths"]["/health"]


def test_a_closing_server_says_when_to_come_back():
    engine = DeferredEngine(lambda runs, rewards: None, {"ppo": "runs/ppo"}, {}, limits=Limits())
    engine.close()
    with pytest.raises(Busy) as raised:
        engine.get()
    response = as_api_error(raised.value, "1").response()
    assert response.status_code == 503 and response.headers["retry-after"] == "10"
    with pytest.raises(ApiError) as raised:
        finish_reason("cancelled")
    assert raised.value.response().headers["retry-after"] == "10"


def test_a_busy_port_is_one_line_and_exit_code_2(runs, app_exit):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, error = app_exit("--runs", runs, "--port", port)
    assert code == 2 and f"--port {port} is in use by another program" in error
    assert error.count("\n") == 1


def test_wrong_flags_are_refused_before_torch_is_imported(tmp_path):
    """In a process of its own: here torch is imported already."""
    code = (
        "import sys; from rlhf.commands.chat import main; "
        f"code = main([{str(tmp_path / 'none')!r}]); "
        "print(code, sorted({'torch', 'gradio', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "2 []" and "no such folder" in done.stderr


def test_a_reward_model_alone_cannot_be_tried(runs, app_exit):
    code, error = app_exit(runs / "demo" / "reward")
    assert code == 2 and "only reward models were given" in error


def test_an_account_and_a_key_are_added_from_the_command(tmp_path, app_exit, monkeypatch, capsys):
    monkeypatch.setattr("getpass.getpass", lambda prompt: "correct horse")
    accounts, keys = tmp_path / "accounts", tmp_path / "keys"
    assert app_exit("--accounts", accounts, "--add-account", "mina")[0] == 0
    assert accounts.read_text().startswith("mina:scrypt$")
    assert app_exit("--keys", keys, "--add-key", "robot")[0] == 0
    monkeypatch.setattr("getpass.getpass", lambda prompt: prompt)  # the second differs
    code, error = app_exit("--accounts", accounts, "--add-account", "jun")
    assert code == 2 and "the two passwords differ" in error and "jun" not in accounts.read_text()


def test_an_error_names_the_command_that_was_run(tmp_path, capsys):
    from rlhf.__main__ import main as command

    assert command(["chat", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err.startswith("rlhf chat: no such folder")


@pytest.mark.parametrize("name", ["missing", "empty", "only a reward model"])
def test_a_folder_without_a_model_is_served_so_that_the_first_can_be_trained(
    name, tmp_path, runs, monkeypatch, capsys
):
    from rlhf.commands import chat
    from rlhf.serving.ui.page import is_empty, shown_tabs
    from rlhf.serving.web import listen

    root = tmp_path / "runs"
    if name == "empty":
        root.mkdir()
    if name == "only a reward model":
        shutil.copytree(runs / "demo" / "reward", root / "reward")
    seen = []
    make_service = chat.make_service

    def keep(*args, **options):
        seen.append(make_service(*args, **options))
        return seen[-1]

    def serve(app, listener, on_start, close):
        listener.close()
        print(chat.none_yet(str(root)))
        return 0

    monkeypatch.setattr(chat, "make_service", keep)
    monkeypatch.setattr(listen, "serve", serve)
    flags = ["--runs", str(root), "--port", "0", "--feedback", str(tmp_path / "feedback")]
    assert chat.main(flags) == 0 and root.is_dir()
    assert is_empty(seen[0])
    assert [tab.name for tab in shown_tabs(seen[0])][:5] == [
        "chat",
        "compare",
        "rank",
        "runs",
        "data",
    ]
    # The first model is served as soon as it is there.
    shutil.copytree(runs / "demo" / "ppo", root / "demo" / "ppo")
    assert (
        seen[0].refresh() and not is_empty(seen[0]) and list(seen[0].engine.runs) == ["ppo · demo"]
    )
    seen[0].jobs.close()


def start(*flags, **environment):
    """The command in a process, and its address once it printed one."""
    command = [
        sys.executable,
        str(ROOT / "app.py"),
        "--port",
        "0",
        "--feedback",
        "",
        *map(str, flags),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.split()[0]
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
def test_the_address_is_printed_when_it_answers_and_sigterm_ends_an_open_stream(runs):
    process, url = start("--runs", runs)
    try:
        assert httpx.get(f"{url}/health", timeout=120).status_code == 200
        body = {
            "model": "demo/base",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
        }
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=240) as answer:
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            try:
                list(answer.iter_lines())
            except httpx.HTTPError:
                pass
        assert process.wait(timeout=120) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


@pytest.mark.slow
def test_other_machines_are_served_with_a_key_and_new_runs_appear(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "demo" / "ppo", tmp_path / "one" / "ppo")
    key = "a-key-of-enough-characters"
    process, url = start("--runs", tmp_path, "--host", "0.0.0.0", RLHF_API_KEYS=key)
    try:
        url = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.get(f"{url}/v1/models", timeout=120).status_code == 401
        assert len(httpx.get(f"{url}/v1/models", headers=headers, timeout=120).json()["data"]) == 1
        shutil.copytree(runs / "demo" / "reward", tmp_path / "one" / "reward")
        listed = lambda: httpx.get(f"{url}/v1/models", headers=headers, timeout=120).json()["data"]  # noqa: E731
        assert wait_for(lambda: len(listed()) == 2, 120)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
