"""Keys, tokens and passwords are hidden in what others may read, and other text is not."""

import pytest

from rlhf.runs.known_secrets import has_secret, without_secrets


@pytest.mark.parametrize(
    "text, hidden",
    [
        ("the token hf_" + "aB3" * 10, "the token hf_***"),
        ("org api_org_" + "aB3" * 10, "org api_org_***"),
        ("내 토큰은sk-proj-" + "a_b-" * 8 + ".", "내 토큰은sk-***."),
        (r'{"text": "mine:\nsk-' + "a" * 40 + '"}', r'{"text": "mine:\nsk-***"}'),
        ("ghp_" + "a" * 36 + " github_pat_" + "b" * 40, "ghp_*** github_pat_***"),
        ("id AKIA" + "7" * 16, "id AKIA***"),
        ("aws_secret_access_key = " + "aB/+" * 10, "aws_secret_access_key = ***"),
        ("AWS_SECRET_ACCESS_KEY=" + "aB/+" * 10, "AWS_SECRET_ACCESS_KEY=***"),
        ("curl -H 'Authorization: Bearer abc.def'", "curl -H 'Authorization: Bearer ***'"),
        ('{"authorization": "Basic YWxp"}', '{"authorization": "Basic ***"}'),
        ("https://ann:hunter2@example.org/x", "https://ann:***@example.org/x"),
        ("redis://:hunter2@cache:6379", "redis://:***@cache:6379"),
    ],
)
def test_secrets_are_hidden(text, hidden):
    assert has_secret(text) and without_secrets(text) == hidden


def test_a_private_key_is_hidden():
    text = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"
    assert has_secret(text) and "MIIEow" not in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "how does a task-oriented-dialogue-system work?",
        "ask-me-anything-about-the-weather-today",
        "from http://127.0.0.1:7860/ to https://example.org:8080/a@b",
        "write to ann@example.org",
        "Authorization is needed: bear with me",
        "hf_token",
        "sha256 " + "ab" * 32,
        "the key: value",
    ],
)
def test_other_text_stays(text):
    assert not has_secret(text) and without_secrets(text) == text
