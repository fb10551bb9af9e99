"""The forms of keys, tokens and passwords that can be told from other text, to hide them in what others may read."""

import re

# Each form has a part "secret", which is hidden. What is around it, such as the name of a host, may be read.
# Korean words end with a particle and no space, so a letter of another alphabet may be next to a key.
START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"  # in JSON and YAML a line break is a backslash and a letter
FORMS = (
    r"(?:hf|api_org)_(?P<secret>[A-Za-z0-9]{16,})",  # Hugging Face
    rf"{START}sk-(?P<secret>[A-Za-z0-9_-]{{20,}})",  # OpenAI and others
    rf"{START}gh[pousr]_(?P<secret>[A-Za-z0-9]{{30,}})",  # GitHub
    rf"{START}github_pat_(?P<secret>[A-Za-z0-9_]{{30,}})",
    rf"{START}(?:AKIA|ASIA)(?P<secret>[0-9A-Z]{{16}})(?![A-Za-z0-9])",  # AWS
    r"(?i:secret_?access_?key)\W{1,6}(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])",
    r"(?i:authorization)\W{1,6}(?i:bearer|basic|token)\s+(?P<secret>[^\s\"'\\,;]{4,})",
    r"://[^\s/:@\"']*:(?P<secret>[^\s/@\"']+)@",  # https://user:password@host
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?P<secret>[^-]*)",
)
PATTERNS = tuple(re.compile(form) for form in FORMS)
# A text without any of these has no secret. To look for a fixed text is much faster than for a pattern.
SIGNS = (
    "hf_ api_org_ sk- ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ akia asia accesskey access_key".split()
)
SIGNS += ["authorization", "://", "-----begin"]
HIDDEN = "***"


def has_secret(text: str) -> bool:
    """True for a text with what looks like a key, a token or a password in it."""
    return _may_have(text) and any(pattern.search(text) for pattern in PATTERNS)


def without_secrets(text: str) -> str:
    """The text with *** for the secret part of each key, token and password."""
    if not _may_have(text):
        return text
    for pattern in PATTERNS:
        text = pattern.sub(_hidden, text)
    return text


def _may_have(text: str) -> bool:
    lower = text.lower()
    return any(sign in lower for sign in SIGNS)


def _hidden(match: re.Match) -> str:
    start, end = match.start("secret") - match.start(), match.end("secret") - match.start()
    return match[0][:start] + HIDDEN + match[0][end:]
