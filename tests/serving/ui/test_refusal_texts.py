"""The Korean of refusals that lower layers write in English: the real refusals are raised here, so that neither drifts."""

import re
from types import SimpleNamespace

import gradio as gr
import pytest

from rlhf.commands.learned import SENTENCES
from rlhf.errors import UserError
from rlhf.feedback.queue import read_prompts
from rlhf.serving.engine.checks import check_messages
from rlhf.serving.engine.model_cache import check_served
from rlhf.serving.engine.prompts import too_long
from rlhf.serving.engine.requests import Limits, SamplingSettings
from rlhf.serving.jobs.allowed import Allowed, check_name
from rlhf.serving.jobs.sharing import read_push
from rlhf.serving.ui import blind, page, rank, refusals, texts
from rlhf.serving.ui.refusal_texts import TABLE, in_korean

HANGUL = re.compile("[가-힣]")
QUESTION = [{"role": "user", "content": "hi"}]


def raised(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def raise_too_long():
    raise too_long("your message has", "abc", 200, 4, 128, 64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: blind.check_prompt(" "),
        lambda: blind.check_models(
            SimpleNamespace(engine=SimpleNamespace(runs={"a": 1})), ["b"], 1, 1
        ),
        lambda: blind.check_models(
            SimpleNamespace(engine=SimpleNamespace(runs={"a": 1})), ["a"], 2, 3
        ),
        lambda: blind.settings_of(0.7, 0.9, 64, "seven"),
        lambda: blind.Blind().get("gone"),
        lambda: blind.check_not_empty([blind.Draft("a", 1)]),
        lambda: rank.ranks_of([1, None], [0, 1]),
        lambda: read_prompts(b"", "prompts.txt"),
        lambda: read_prompts(b"a", "prompts.doc"),
        lambda: SamplingSettings(temperature=9.0),
        lambda: check_served("b", {"a": 1}, "model"),
        lambda: check_messages(QUESTION * 300, Limits()),
        raise_too_long,
        lambda: check_name("../up"),
        lambda: Allowed().check_repo("--private"),
        lambda: Allowed(push_to=("lab",)).check_repo("ann/model"),
        lambda: read_push({"kind": "run"}),
    ],
)
def test_a_common_refusal_is_told_in_korean(call):
    message = raised(call)
    assert not HANGUL.search(message)
    assert HANGUL.search(in_korean(message)), message


def test_what_a_recipe_learns_is_told_in_korean():
    common = ("ranking", "preference", "prompt_completion", "messages", "prompt", "text")
    assert all(HANGUL.search(in_korean(SENTENCES[kind])) for kind in common)


def test_parts_of_a_message_stay_and_braces_in_them_are_text():
    message = "no model '{0} {a}': choose from x, y"
    assert in_korean(message) == "'{0} {a}' 모델이 없습니다. 다음에서 고르세요: x, y"
    assert in_korean("something else") == "something else"


def test_each_row_uses_the_parts_that_it_has():
    for english, korean in TABLE:
        parts = set(re.findall(r"{(\w)}", english))
        assert set(re.findall(r"{(\w)}", korean)) <= parts
        assert HANGUL.search(korean)


def asked_in(language: str) -> gr.Request:
    request = gr.Request()
    request.kwargs = {"headers": {"accept-language": language}}
    return request


@pytest.mark.parametrize(("language", "said"), [("en", "write a message first"), ("ko-KR", "먼저")])
def test_the_page_gets_a_refusal_in_its_language(language, said):
    texts.add_texts(blind.TEXTS)

    def handler(prompt, request: gr.Request):
        return blind.check_prompt(prompt)

    for wrapped in (blind.refusals(handler, escape=True), refusals.told(handler)):
        with pytest.raises(gr.Error, match=said):
            wrapped("", asked_in(language))


def test_a_failure_keeps_its_reason_to_the_log_in_both_languages():
    texts.add_texts(blind.TEXTS)

    def handler(request: gr.Request):
        raise RuntimeError("/secret/path")

    for language, said in (("en", "s log"), ("ko", "서버 로그")):
        with pytest.raises(gr.Error, match=said) as caught:
            blind.refusals(handler, escape=True)(asked_in(language))
        assert "secret" not in str(caught.value)


def test_the_page_is_importable_with_every_text(service):
    page.build_page(service)
    assert texts.text("judge.failed", "ko") != texts.text("judge.failed", "en")
