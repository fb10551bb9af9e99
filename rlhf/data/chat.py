"""Text -> token ids: the one place where a prompt and its completion are encoded, for SFT, reward, PPO, scoring, chat.

What was left out and why: tools and images (GPT-2 class models have neither). A model that brings its own chat template
keeps it; one without (GPT-2) gets CHAT_TEMPLATE, whose turns are opened by *added special tokens* and closed by the end
of text token. Such tokens cannot be typed: `sanitize_control_tokens` encodes their spelling in a message as text.
"""

from collections.abc import Sequence
from functools import lru_cache

from rlhf.errors import UserError

ROLES = ("system", "user", "assistant")
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
PAD_TOKEN = "<|pad|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

Prompt = str | list[dict]  # plain text, or messages [{"role", "content"}]


def add_chat_template(tokenizer) -> list[str]:
    """Give a tokenizer without a chat template ours; returns the tokens that were added to the vocabulary.

    The caller resizes the model's embeddings (`models.load.fit_embeddings`). A separate pad token is added when there is
    none or when it equals EOS, so that code elsewhere that masks by token id cannot hide EOS either.
    """
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-text token: a chat model cannot learn to stop; "
            "set eos_token in its tokenizer_config.json"
        )
    before = set(tokenizer.get_vocab())
    if tokenizer.chat_template is None:
        tokenizer.add_special_tokens({"extra_special_tokens": list(ROLE_TOKENS)})
        tokenizer.chat_template = CHAT_TEMPLATE
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return sorted(set(tokenizer.get_vocab()) - before)


def as_messages(prompt: Prompt) -> list[dict]:
    """A prompt in conversational form; a string is one user turn. Roles are checked."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    for message in prompt:
        if message.get("role") not in ROLES:
            raise UserError(f"role {message.get('role')!r} is not one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise UserError(f"the content of a {message['role']} message must be a string")
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def as_text(prompt: Prompt) -> str:
    """A prompt as one readable string, for logs, tables and tokenizers without a chat template."""
    return (
        prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
    )


def _apply(tokenizer, messages: list[dict], *, generation_prompt: bool) -> list[int]:
    return tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=generation_prompt,
        sanitize_control_tokens=True,
        return_dict=True,
    )["input_ids"]


def encode_prompt(tokenizer, prompt: Prompt) -> list[int]:
    """Ids of a prompt up to where the assistant begins to speak; without a chat template, of its plain text."""
    if tokenizer.chat_template is None:
        return encode_text(tokenizer, as_text(prompt) + "\n")
    return _apply(tokenizer, as_messages(prompt), generation_prompt=True)


OPENING = [{"role": "user", "content": ""}]


@lru_cache(maxsize=16)
def _opening(tokenizer, chat_template: str) -> list[int]:
    """Ids before the answer to OPENING; a third of the time of encoding a completion, hence kept."""
    return _apply(tokenizer, OPENING, generation_prompt=True)


def encode_completion(tokenizer, completion: str) -> list[int]:
    """Ids of a completion, closed by EOS exactly once. Control tokens spelled in it stay text."""
    if tokenizer.chat_template is None:
        return [*encode_text(tokenizer, completion), tokenizer.eos_token_id]
    before = _opening(tokenizer, tokenizer.chat_template)
    ids = _apply(
        tokenizer, [*OPENING, {"role": "assistant", "content": completion}], generation_prompt=False
    )
    if ids[: len(before)] != before:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} writes an answer differently from its generation prompt; "
            "remove the template (ours is used then) or mend it"
        )
    ids = ids[len(before) :]
    # Templates may write more after the turn (ChatML ends it with a newline): the model stops at EOS, so cut there.
    if tokenizer.eos_token_id in ids:
        return ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
    return [*ids, tokenizer.eos_token_id]


def encode_text(tokenizer, text: str) -> list[int]:
    """Ids of plain text for language modelling: no template, and no control token can be spelled into it."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_conversation(tokenizer, messages: Sequence[dict]) -> tuple[list[int], list[bool]]:
    """Ids of a whole conversation and a mask that is True on what the assistant says, EOS included."""
    ids: list[int] = []
    mask: list[bool] = []
    for place, message in enumerate(as_messages(list(messages))):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt(tokenizer, list(messages[:place]))
        answer = encode_completion(tokenizer, message["content"])
        mask += [False] * (len(prompt) - len(ids)) + [True] * len(answer)
        ids = prompt + answer
    if not ids:
        raise UserError("a conversation needs at least one assistant message to learn from")
    return ids, mask


def encode_example(tokenizer, row: dict) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of a row: prompt + completion, messages, or text. True where the model should learn."""
    if "messages" in row:
        return encode_conversation(tokenizer, row["messages"])
    if "completion" in row:
        prompt, completion = (
            encode_prompt(tokenizer, row["prompt"]),
            encode_completion(tokenizer, row["completion"]),
        )
        return prompt + completion, [False] * len(prompt) + [True] * len(completion)
    ids = [*encode_text(tokenizer, row["text"]), tokenizer.eos_token_id]
    return ids, [True] * len(ids)


def decode(tokenizer, ids: Sequence[int]) -> str:
    """Text of a completion without its special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def same_encoding(first, second) -> bool:
    """Whether two tokenizers turn every conversation into the same ids, so that ids may be shared between models."""
    if first is second:
        return True
    return (
        first.chat_template == second.chat_template
        and first.eos_token_id == second.eos_token_id
        and first.get_vocab() == second.get_vocab()
        and first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    )
