"""The two languages of the app."""

from types import SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.serving.ui import texts

texts.add_texts({"test.hello": ("Hello {name}", "안녕 {name}")})


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("ko-KR,ko;q=0.9,en;q=0.8", "ko"),
        ("en-US,en", "en"),
        ("fr,ko;q=0.5", "ko"),
        ("fr", "en"),
        ("", "en"),
        (None, "en"),
    ],
)
def test_the_language_is_the_first_that_the_app_has(header, language):
    headers = {} if header is None else {"accept-language": header}
    assert texts.language_of(SimpleNamespace(headers=headers)) == language


def test_without_a_request_the_language_is_english():
    assert texts.language_of(None) == "en"


def test_a_refusal_is_told_in_both_languages():
    refusal = texts.Refusal("test.hello", name="x")
    assert str(refusal) == texts.told(refusal, "en") == "Hello x"
    assert texts.told(refusal, "ko") == "안녕 x"
    assert texts.told(UserError("plain"), "ko") == "plain"


def test_labels_are_translated_by_the_browser():
    assert texts.label("test.hello").to_dict()["key"] == "test.hello"
    translations = texts.i18n().translations_dict
    assert translations["en"]["test.hello"] == "Hello {name}"
    assert translations["ko"]["test.hello"] == "안녕 {name}"
