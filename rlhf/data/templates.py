"""Applies the chat template of a tokenizer: a program that the authors of the model wrote.

What such a program does to a conversation is theirs to decide, and three of its habits would harm a run unseen:
- It may refuse messages (Gemma: a system message, two user turns in a row). That is a TemplateRefusal here.
- It may drop a message, as templates do that want lists of parts (text and images). They are refused by name.
- It may write today's date (Llama 3.2, gpt-oss). `fixed_date` keeps the date of a run.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from functools import lru_cache
from math import isfinite

from jinja2 import TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from rlhf.errors import UserError

# Reasoning models write their thoughts between these tokens, and templates take them out of old answers.
REASONING_TOKENS = ("<think>", "</think>")
# Where the template of a model is, for messages.
FILE = "chat_template.jinja in the folder of the model"


class TemplateRefusal(UserError):
    """A chat template refuses the messages of one row."""


# ---- the date ----------------------------------------------------------------------------------------------------

_run_date: date | None = None  # None: today's, read from the clock


@contextmanager
def fixed_date(day: date) -> Iterator[None]:
    """Let the templates of all tokenizers of this process write one date, whatever the clock says."""
    global _run_date
    before = _run_date
    _run_date = day
    try:
        yield
    finally:
        _run_date = before


# The letters of strftime's directives.
DIRECTIVES = "aAbBcdfGHIjmMpSuUVwWxXyYzZ"


def _dated(template: str, day: date | None) -> str:
    """The template with a clock of its own, which gives a fixed day. None: the run's day, or today."""
    if "strftime_now" not in template:
        return template
    # Templates are given no functions of ours, so the clock is a macro of the template that has the name of theirs.
    moment = datetime.combine(day or _run_date or date.today(), time())
    steps = []
    for letter in DIRECTIVES:
        written = moment.strftime(f"%{letter}")
        short = written.lstrip("0") or "0"
        steps.append(f"|replace('%{letter}', {written!r})|replace('%-{letter}', {short!r})")
    return f"{{% macro strftime_now(format) %}}{{{{ format{''.join(steps)} }}}}{{% endmacro +%}}{template}"


def day_in_template(tokenizer) -> str:
    """The day that the chat templates of a tokenizer write; "" where they write none."""
    if "strftime_now" not in str(tokenizer.chat_template):
        return ""
    return str(_run_date or date.today())


# ---- variables ---------------------------------------------------------------------------------------------------

# The form of our assignments, in front of a template. The + keeps a line break behind them.
ASSIGNMENT = "{{% set {} = {} +%}}"
ASSIGNED = re.compile(r"\{% set (\w+) = ([^\n]*?) \+%\}")
GENERATION = re.compile(
    r"\{%-?\s*(end)?generation\s*-?%\}"
)  # transformers' own tag, which Jinja does not know
NOT_VARIABLES = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "strftime_now",
)


def set_variables(tokenizer, variables: dict | str) -> None:
    """Set variables of a tokenizer's chat template, as enable_thinking of Qwen 3, for all that use the tokenizer.

    They are written in front of the template, and so they are saved with it. Values that were set before are replaced.

    variables: name -> true, false, a number or a string, or null; or a JSON object of these.
    UserError where the template has no such variable, so that setting it would do nothing.
    """
    variables = _read_variables(variables)
    if tokenizer.chat_template is None:
        raise UserError(
            f"chat_template_kwargs: the tokenizer {tokenizer.name_or_path!r} has no chat template: drop the key"
        )
    template = template_of(tokenizer)
    # A run that starts from another one may change what that one has set.
    assigned = {}
    while match := ASSIGNED.match(template):
        assigned[match[1]] = match[2]
        template = template[match.end() :]
    read = _variables_of(tokenizer, template)
    for name, value in variables.items():
        if name in NOT_VARIABLES or name not in read:
            raise UserError(
                f"chat_template_kwargs: the chat template of {tokenizer.name_or_path!r} has no variable {name!r}: drop "
                f"it, or check its spelling in the template ({FILE})"
            )
        assigned[name] = "none" if value is None else json.dumps(value, ensure_ascii=False)
    head = "".join(ASSIGNMENT.format(name, value) for name, value in assigned.items())
    if isinstance(tokenizer.chat_template, dict):  # templates for several uses
        tokenizer.chat_template = tokenizer.chat_template | {"default": head + template}
    else:
        tokenizer.chat_template = head + template


def _variables_of(tokenizer, template: str) -> set[str]:
    """The variables that a template reads before it assigns them itself: not its comments, texts and attributes."""
    environment = SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(environment.parse(GENERATION.sub("", template)))
    except TemplateSyntaxError as error:
        raise _refusal(tokenizer, [], error) from error


def _read_variables(variables: dict | str) -> dict:
    """The variables as a dict, whose values have the same form in JSON and in a template."""
    given = variables
    if isinstance(variables, str):
        try:
            variables = json.loads(variables)
        except ValueError:
            variables = None
    is_map = isinstance(variables, dict)
    simple = (bool, int, float, str, type(None))
    # NaN and infinity have no spelling in a template.
    values = list(variables.values()) if is_map else []
    infinite = any(isinstance(value, float) and not isfinite(value) for value in values)
    if not is_map or infinite or not all(isinstance(value, simple) for value in values):
        raise UserError(
            f"chat_template_kwargs: {given!r} is not a map of names to true, false, numbers or strings, as in "
            '{"enable_thinking": false}'
        )
    return variables


# ---- applying ----------------------------------------------------------------------------------------------------


def template_of(tokenizer) -> str:
    """The chat template of a tokenizer. Of several, the one named "default"."""
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"{tokenizer.name_or_path!r} has chat templates for several uses, none of them named default: keep one ({FILE})"
        ) from error


def apply_template(
    tokenizer, messages: list[dict], *, generation_prompt: bool, day: date | None = None
) -> list[int]:
    """Token ids of messages as the chat template writes them.

    generation_prompt: open the answer of the assistant at the end.
    day: what the template writes as today; None: the date of the run, see fixed_date.

    The spelling of a control token in a message stays text. The reasoning tokens do not: an answer that spells
    `<think>` means the token.
    """
    template = _dated(template_of(tokenizer), day)
    try:
        with _reasoning_as_tokens(tokenizer):
            encoding = tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                add_generation_prompt=generation_prompt,
                sanitize_control_tokens=True,  # no message can open a turn of another role
                return_dict=True,
            )
    except Exception as error:  # noqa: BLE001
        raise _refusal(tokenizer, messages, error) from error
    return encoding["input_ids"]


def written_text(tokenizer, messages: list[dict], *, generation_prompt: bool, **variables) -> str:
    """The text that the chat template writes, control tokens spelled out. variables: of the template."""
    template = _dated(template_of(tokenizer), None)
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            **variables,
        )
    except Exception as error:  # noqa: BLE001
        raise _refusal(tokenizer, messages, error) from error


def _refusal(tokenizer, messages: list[dict], error: Exception) -> UserError:
    # A template is somebody's program, so any exception may come out of it.
    roles = tuple(message["role"] for message in messages)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if type(error).__name__ == "TemplateSyntaxError":  # Jinja's, whatever the row
        return UserError(
            f"the chat template of {tokenizer.name_or_path!r} is not valid Jinja (line {error.lineno}: {reason}): "
            f"correct it ({FILE})"
        )
    return TemplateRefusal(
        f"the chat template of {tokenizer.name_or_path!r} refuses the turns {', '.join(roles)} ({reason}): "
        f"{_remedy(tokenizer, roles)}"
    )


@contextmanager
def _reasoning_as_tokens(tokenizer) -> Iterator[None]:
    """Allow messages to spell the reasoning tokens, and no other control token."""
    control = _control_without_reasoning(tokenizer, template_of(tokenizer))
    if control is None:
        yield
        return
    before = tokenizer.chat_control_tokens  # would be saved with the tokenizer
    tokenizer.chat_control_tokens = control
    try:
        yield
    finally:
        tokenizer.chat_control_tokens = before


@lru_cache(maxsize=16)
def _control_without_reasoning(tokenizer, chat_template: str) -> tuple[str, ...] | None:
    """Added tokens that the template writes, except the reasoning tokens. None if it writes none of those.

    transformers adds the special tokens itself.
    """
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    if tokenizer.chat_control_tokens is not None:
        written = list(tokenizer.chat_control_tokens)  # the authors named them
    else:
        written = [token for token in added if token in chat_template and not token.isspace()]
    if not any(token in REASONING_TOKENS for token in written):
        return None
    return tuple(token for token in written if token not in REASONING_TOKENS)


# ---- what a template accepts -------------------------------------------------------------------------------------


def refusal_of(tokenizer, roles: tuple[str, ...], *, generation_prompt: bool) -> str | None:
    """Why the template cannot write messages of these roles, with a remedy; None if it can.

    The answer is cached by the roles, because it hardly ever depends on the words.
    """
    return _cached_refusal(tokenizer, template_of(tokenizer), roles, generation_prompt)


@lru_cache(maxsize=4096)
def _cached_refusal(
    tokenizer, chat_template: str, roles: tuple[str, ...], generation_prompt: bool
) -> str | None:
    messages = []
    for i, role in enumerate(roles):
        messages.append({"role": role, "content": f"probe{i}"})
    try:
        text = written_text(tokenizer, messages, generation_prompt=generation_prompt)
    except TemplateRefusal as refusal:
        return str(refusal)
    for message in messages:
        if message["content"] not in text:
            return (
                f"the chat template of {tokenizer.name_or_path!r} drops the {message['role']} message of the turns "
                f"{', '.join(roles)}: {_remedy(tokenizer, roles)}"
            )
    return None


def _remedy(tokenizer, roles: tuple[str, ...]) -> str:
    """Advice: the change that makes messages of these roles acceptable."""
    if "system" in roles:
        without = tuple(role for role in roles if role != "system")
        if without and refusal_of(tokenizer, without, generation_prompt=False) is None:
            return "put the system message at the start of the first user message"
    turns = [role for role in roles if role != "system"]
    if turns and turns[0] == "assistant":
        return "let the conversation begin with a user message"
    if any(first == second for first, second in zip(turns, turns[1:], strict=False)):
        return "join neighbouring messages of one role, so that user and assistant take turns"
    return "use messages that the model was made for"


def check_text_template(tokenizer) -> None:
    """UserError where the template drops the text of a message, because it wants lists of parts (idefics3, llava)."""
    _check_text_template(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _check_text_template(tokenizer, chat_template: str) -> None:
    try:
        text = written_text(
            tokenizer, [{"role": "user", "content": "probe0"}], generation_prompt=True
        )
    except TemplateRefusal:  # says more with the messages of a row
        return
    if "probe0" not in text:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} writes nothing of a message that is a string: it wants lists "
            "of parts, as models of text and images do. Use a text model, or give it a template that writes "
            f"message['content'] ({FILE})"
        )
