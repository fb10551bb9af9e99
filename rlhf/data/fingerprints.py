"""Names for what decides the content of a cached file: sources, settings, code, checks and tokenizers.

A name is a hash. None means that something decides it which cannot be named, so that nothing may be cached.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf.data.templates import day_in_template
from rlhf.digests import file_sha256

VERSION = 1  # of the cached files: raise it when their form changes
IMPORT = re.compile(r"^from (rlhf[\w.]*) import ", re.MULTILINE)
PACKAGES = ("pyarrow", "tokenizers", "transformers", "jinja2")  # whose versions decide, too


def fingerprint(*parts) -> str:
    """A hash of values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """A hash of the code that reads and checks rows, and of the packages that it uses."""
    data = Path(__file__).parent
    paths = [*sorted(data.glob("*.py")), data.parent / "task_table.py"]
    digests = [file_sha256(path) for path in paths]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(version(package))
        except PackageNotFoundError:
            versions.append("")
    return fingerprint(VERSION, sys.version, digests, versions)


@lru_cache(maxsize=64)
def module_fingerprint(module: str) -> str | None:
    """A hash of the source of an imported module and of those of rlhf that it imports, directly or not."""
    texts: dict[str, str] = {}
    names = [module]
    while names:
        name = names.pop()
        source = getattr(sys.modules.get(name), "__file__", None)
        if source and name not in texts:
            texts[name] = Path(source).read_text(encoding="utf-8")
            names += IMPORT.findall(texts[name])
    # Not the names: the recipe that is started is called __main__.
    return fingerprint(sorted(texts.values())) if module in texts else None


def checks_fingerprint(checks: dict[str, Callable]) -> str | None:
    """A hash of checks of columns that say in `fingerprint` what decides them; None where one does not."""
    parts = []
    for column, check in checks.items():
        own = getattr(check, "fingerprint", None)
        code = module_fingerprint(check.__module__)
        if own is None or code is None:
            return None
        parts.append((column, own, code))
    return fingerprint(parts)


def template_fingerprint(tokenizer) -> str:
    """A hash of what decides which turns the chat template of a tokenizer accepts, and what it says about the others."""
    return fingerprint(
        tokenizer.name_or_path,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.init_kwargs,
    )


def tokenizer_fingerprint(tokenizer) -> str | None:
    """A hash of everything that decides how a tokenizer encodes texts and conversations; None for a slow tokenizer."""
    if not tokenizer.is_fast:
        return None
    # Truncation and padding are what the last call happened to use.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.pop("truncation", None)
    backend.pop("padding", None)
    sides = (tokenizer.padding_side, tokenizer.truncation_side)
    return fingerprint(
        type(tokenizer).__name__,
        backend,
        template_fingerprint(tokenizer),
        day_in_template(tokenizer),
        sides,
        tokenizer.model_max_length,
        getattr(tokenizer, "chat_control_tokens", None),
        code_fingerprint(),
    )


def encoding_key(name: str, rows: Sequence[dict], tokenizer, *arguments) -> str | None:
    """A name for the encodings of rows; None where the rows or the tokenizer cannot be named.

    name: of the encoder. arguments: what decides its result besides the rows and the tokenizer.
    """
    source = getattr(rows, "fingerprint", None)
    encoder = source and tokenizer_fingerprint(tokenizer)
    return encoder and f"{name}-{fingerprint(source, encoder, arguments)}"
