"""Encodes prompts and completions as token ids. SFT, reward models, PPO, scoring and chat all use these functions.

A model that brings its own chat template keeps it. One without (GPT-2) gets CHAT_TEMPLATE, whose turns are opened by
*added special tokens* and closed by the end-of-text token. Users cannot type such tokens: `sanitize_control_tokens`
encodes their spelling in a message as text.

Omitted: tools and images, because GPT-2 class models have neither.
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
    """Gives a tokenizer without a chat template ours, and returns the tokens that were added to the vocabulary.

    The caller resizes the model's embeddings (`models.parts.fit_embeddings`). A separate pad token is added when there is
    none or when it equals EOS, so that code elsewhere that masks by token id cannot hide EOS either.
    """
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-text token: a chat model cannot learn to stop; "
            "set eos_token in its tokenizer_config.json"
        )
    before = set(tokenizer.get_vocab())  # to see what was added
    if tokenizer.chat_template is None:
        tokenizer.add_special_tokens({"extra_special_tokens": list(ROLE_TOKENS)})
        tokenizer.chat_template = CHAT_TEMPLATE
    # With pad == EOS, code that masks by token id would hide EOS from the loss too.
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    added = set(tokenizer.get_vocab()) - before
    return sorted(added)


def as_messages(prompt: Prompt) -> list[dict]:
    """A prompt in conversational form. A string becomes one user turn. Roles and contents are checked."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = []
    for message in prompt:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(f"role {role!r} is not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UserError(f"the content of a {role} message must be a string")
        messages.append({"role": role, "content": content})  # without other keys, as a "name"
    return messages


def as_text(prompt: Prompt) -> str:
    """A prompt as one readable string, for logs, tables and tokenizers without a chat template."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)


def _apply(tokenizer, messages: list[dict], *, generation_prompt: bool) -> list[int]:
    encoding = tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=generation_prompt,
        sanitize_control_tokens=True,  # no message can open a turn of another role
        return_dict=True,
    )
    return encoding["input_ids"]


def encode_prompt(tokenizer, prompt: Prompt) -> list[int]:
    """Ids of a prompt, up to where the assistant begins to speak. Without a chat template, ids of its plain text."""
    if tokenizer.chat_template is None:
        return encode_text(tokenizer, as_text(prompt) + "\n")
    return _apply(tokenizer, as_messages(prompt), generation_prompt=True)


# Templates encode whole conversations, so a completion is encoded as the answer to an empty message.
EMPTY_TURN = {"role": "user", "content": ""}


@lru_cache(maxsize=16)
def _empty_turn_ids(tokenizer, chat_template: str) -> tuple[int, ...]:
    """Ids in front of the answer to EMPTY_TURN. Cached, because they take a third of the time of a completion.

    chat_template: the tokenizer's, which is only a key of the cache here: a template can be replaced.
    """
    return tuple(_apply(tokenizer, [EMPTY_TURN], generation_prompt=True))


def encode_completion(tokenizer, completion: str) -> list[int]:
    """Ids of a completion, closed by exactly one EOS. The spelling of a control token stays text."""
    if tokenizer.chat_template is None:
        # A model that was trained on plain text, as GPT-2 was.
        return [*encode_text(tokenizer, completion), tokenizer.eos_token_id]
    answer = {"role": "assistant", "content": completion}
    ids = _apply(tokenizer, [EMPTY_TURN, answer], generation_prompt=False)
    before = _empty_turn_ids(tokenizer, tokenizer.chat_template)
    if tuple(ids[: len(before)]) != before:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} writes an answer differently from its generation prompt; "
            "fix the template, or remove it to use ours"
        )
    return _cut_after_last_eos(ids[len(before) :], tokenizer.eos_token_id)


def _cut_after_last_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """Ids up to the last EOS, which is added where there is none.

    Templates may write more after a turn (ChatML ends it with a newline), but the model stops at EOS.
    """
    if eos_token_id not in ids:
        return [*ids, eos_token_id]
    after = ids[::-1].index(eos_token_id)
    return ids[: len(ids) - after]


def encode_text(tokenizer, text: str) -> list[int]:
    """Ids of plain text for language modelling, without a template. The spelling of a control token stays text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_conversation(tokenizer, messages: Sequence[dict]) -> tuple[list[int], list[bool]]:
    """Ids of a whole conversation, and a mask that is True on the tokens of the assistant, EOS included."""
    ids: list[int] = []
    mask: list[bool] = []
    for i, message in enumerate(as_messages(list(messages))):
        if message["role"] != "assistant":
            continue
        # The prompt of each answer is the whole conversation before it.
        prompt = encode_prompt(tokenizer, list(messages[:i]))
        answer = encode_completion(tokenizer, message["content"])
        mask += [False] * (len(prompt) - len(ids))
        mask += [True] * len(answer)
        ids = prompt + answer
    if not ids:
        raise UserError("a conversation needs at least one assistant message to learn from")
    return ids, mask


def encode_example(tokenizer, row: dict) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of a row with prompt and completion, messages, or text.

    The mask is True on the tokens that the model should learn: completions, the assistant's turns, or the whole text.
    """
    if "messages" in row:
        return encode_conversation(tokenizer, row["messages"])
    if "completion" in row:
        prompt = encode_prompt(tokenizer, row["prompt"])
        completion = encode_completion(tokenizer, row["completion"])
        mask = [False] * len(prompt) + [True] * len(completion)
        return prompt + completion, mask
    ids = [*encode_text(tokenizer, row["text"]), tokenizer.eos_token_id]
    return ids, [True] * len(ids)


def decode_text(tokenizer, ids: Sequence[int]) -> str:
    """Text of a completion without its special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def same_encoding(first, second) -> bool:
    """True if two tokenizers encode every conversation as the same ids, so that two models can share ids."""
    if first is second:
        return True
    # The vocabulary alone is not enough: two tokenizers may cut a text into different tokens of it.
    return (
        first.chat_template == second.chat_template
        and first.eos_token_id == second.eos_token_id
        and first.get_vocab() == second.get_vocab()
        and first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    )
