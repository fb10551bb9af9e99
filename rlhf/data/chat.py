"""Encodes prompts and completions as token ids. SFT, reward models, PPO, scoring and chat all use these functions.

A model that brings its own chat template keeps it, and `templates` applies it. One without (GPT-2) gets CHAT_TEMPLATE,
whose turns are opened by *added special tokens* and closed by the end-of-text token. Users cannot type such tokens: their
spelling in a message is encoded as text.

What is learned of an answer is what the template writes behind its own generation prompt, up to the token that closes
the turn.

Omitted: tools and images, because GPT-2 class models have neither.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

from rlhf.data.templates import (
    FILE,
    TemplateRefusal,
    apply_template,
    check_text_template,
    template_of,
    written_text,
)
from rlhf.errors import UserError

ROLES = ("system", "user", "assistant")
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
PAD_TOKEN = "<|pad|>"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")  # of messages in other formats
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

Prompt = str | list[dict]  # plain text, or messages [{"role", "content"}]
Example = tuple[list[int], list[bool]]  # token ids, and True where a token is learned


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
        if bos_ids(tokenizer):
            tokenizer.chat_template = "{{- bos_token -}}" + CHAT_TEMPLATE
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
        for key in REASONING_KEYS:
            if message.get(key):
                raise UserError(
                    f"a {role} message has {key}, which would not be learned: write it into the content, as "
                    "<think>...</think>"
                )
        messages.append({"role": role, "content": content})  # without other keys, as a "name"
    return messages


def as_text(prompt: Prompt) -> str:
    """A prompt as one readable string, for logs, tables and tokenizers without a chat template."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message["content"] for message in prompt)


# ---- prompts, completions and plain text -------------------------------------------------------------------------


def encode_prompt(tokenizer, prompt: Prompt) -> list[int]:
    """Ids of a prompt, up to where the assistant begins to speak. Without a chat template, ids of its plain text."""
    if tokenizer.chat_template is None:
        return encode_text(tokenizer, as_text(prompt) + "\n")
    check_text_template(tokenizer)
    messages = as_messages(prompt)
    if not messages:
        raise UserError("a prompt needs at least one message")
    return apply_template(tokenizer, messages, generation_prompt=True)


def encode_completion(tokenizer, completion: str) -> list[int]:
    """Ids of a completion, closed by exactly one end-of-turn token. The spelling of a control token stays text."""
    if tokenizer.chat_template is None:
        # A model that was trained on plain text, as GPT-2 was.
        return [*_words(tokenizer, completion), tokenizer.eos_token_id]
    form_keys = (template_of(tokenizer), tokenizer.eos_token_id)
    return list(_cached_completion(tokenizer, form_keys, completion))


@lru_cache(maxsize=4096)
def _cached_completion(tokenizer, form_keys: tuple, completion: str) -> tuple[int, ...]:
    """Ids of a completion, of which small data repeats many. form_keys: chat template and EOS, keys of the cache."""
    form = answer_form(tokenizer)
    ids = _with_answer(tokenizer, completion)
    answer = _behind(tokenizer, ids, form)
    if answer is None:
        raise UserError(_two_openings(tokenizer, completion))
    return tuple(form.close(answer))


def end_of_turn_id(tokenizer) -> int:
    """Id of the token by which the chat template closes a turn of the assistant; of EOS for plain text and our template.

    Gemma and Phi-3 close a turn with a token other than their EOS.
    """
    if tokenizer.chat_template is None:
        return tokenizer.eos_token_id
    return answer_form(tokenizer).end


def encode_text(tokenizer, text: str) -> list[int]:
    """Ids of plain text for language modelling, without a template. The spelling of a control token stays text.

    They begin with BOS if the model was pretrained so, see bos_ids.
    """
    return [*bos_ids(tokenizer), *_words(tokenizer, text)]


def bos_ids(tokenizer) -> list[int]:
    """[BOS] if the tokenizer itself begins a text with it, as Llama's and Gemma's do, else []."""
    return list(_bos_ids(tokenizer, tokenizer.bos_token_id))


@lru_cache(maxsize=16)
def _bos_ids(tokenizer, bos_token_id: int | None) -> tuple[int, ...]:
    ids = tokenizer("a")["input_ids"]
    if bos_token_id is not None and len(ids) > 1 and ids[0] == bos_token_id:
        return (bos_token_id,)
    return ()


def text_pieces(tokenizer, rows: Sequence[dict], size: int) -> list[list[int]]:
    """Texts of rows as ids, closed by EOS and cut into pieces of at most `size` ids.

    Each piece has something to predict: two ids at least. It begins with BOS if the model was pretrained so.
    """
    start = bos_ids(tokenizer)
    room = size - len(start)
    pieces = []
    for row in rows:
        ids = [*_words(tokenizer, row["text"]), tokenizer.eos_token_id]
        for i in range(0, len(ids) - 1, room):  # a last token alone has nothing to predict
            pieces.append(start + ids[i : i + room])
    return pieces


def _words(tokenizer, text: str) -> list[int]:
    """Ids of a piece of text, without any special token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


# ---- how a template writes an answer -----------------------------------------------------------------------------

# Templates encode whole conversations, so a completion is encoded as the answer to an empty message.
EMPTY_TURN = {"role": "user", "content": ""}
MOST_READ = 100_000_000  # characters of one conversation, counted again for each answer behind them
ANY_DAY = date(
    2024, 1, 1
)  # a completion does not depend on it, and a cached prompt must not change at midnight


@dataclass(frozen=True)
class AnswerForm:
    """The form in which a chat template writes an answer.

    prompt: ids in front of the answer to EMPTY_TURN.
    opening: the end of `prompt`, which opens the turn of the assistant.
    end: id of the token that closes the turn.
    closings: how often the template writes it behind the words of an answer; 0: never.
    control: ids of the tokens that no words make.
    """

    prompt: list[int]
    opening: list[int]
    end: int
    closings: int
    control: frozenset[int]

    def close(self, answer: list[int]) -> list[int]:
        """Ids of an answer up to the token that closes it, which is added where there is none.

        Templates may write more behind a turn (ChatML a newline, Phi-3 an EOS), but the model stops there.
        """
        if not self.closings:
            return [*answer, self.end]
        positions = [i for i, token in enumerate(answer) if token == self.end]
        return answer[: positions[-self.closings] + 1]


def answer_form(tokenizer) -> AnswerForm:
    """The form in which the chat template of a tokenizer writes answers."""
    return _cached_answer_form(tokenizer, template_of(tokenizer), tokenizer.eos_token_id)


@lru_cache(maxsize=16)
def _cached_answer_form(tokenizer, chat_template: str, eos_token_id: int) -> AnswerForm:
    """The form of answers, from two of them. chat_template, eos_token_id: the tokenizer's, keys of the cache."""
    check_text_template(tokenizer)
    turn = [EMPTY_TURN]
    prompt = apply_template(tokenizer, turn, generation_prompt=True, day=ANY_DAY)
    closed = apply_template(tokenizer, turn, generation_prompt=False, day=ANY_DAY)
    # Phi-3 closes a text with EOS unless an answer is opened, so the shorter one need not be a prefix.
    opening = prompt[_shared(prompt, closed) :]

    behind = _behind_answers(_with_answer(tokenizer, "a"), _with_answer(tokenizer, "b"))
    end, closings = eos_token_id, 0
    control = _control_ids(tokenizer)
    starts = [i for i, token in enumerate(behind) if token in control]
    if starts:
        last = starts[0]
        # Of several in a row, as Cohere 2 writes, the last one ends the turn.
        while last + 1 in starts:
            last += 1
        # But not an EOS that only the last turn of a text has, as Phi-3's.
        kept = _shared(behind, _behind_in_history(tokenizer))
        if kept > starts[0]:
            last = min(last, kept - 1)
        end = behind[last]
        closings = behind[last:].count(end)
    return AnswerForm(prompt, opening, end, closings, control)


def _with_answer(tokenizer, completion: str) -> list[int]:
    """Ids of an empty message and its answer, with what the template writes behind it."""
    messages = [EMPTY_TURN, {"role": "assistant", "content": completion}]
    return apply_template(tokenizer, messages, generation_prompt=False, day=ANY_DAY)


def _behind_answers(first: list[int], second: list[int]) -> list[int]:
    """The common end of two conversations that differ in one answer: what is behind the words of the answer."""
    return first[len(first) - _shared(first[::-1], second[::-1]) :]


def _behind_in_history(tokenizer) -> list[int]:
    """Ids behind the words of an answer where another turn follows. [] if the template refuses it."""
    written = []
    for words in "ab":
        messages = [EMPTY_TURN, {"role": "assistant", "content": words}, EMPTY_TURN]
        try:
            ids = apply_template(tokenizer, messages, generation_prompt=True, day=ANY_DAY)
        except TemplateRefusal:
            return []
        written.append(ids)
    return _behind_answers(*written)


def _control_ids(tokenizer) -> frozenset[int]:
    """Ids of the added tokens, except runs of white space, which are words (Gemma has such)."""
    ids = {tokenizer.eos_token_id}
    for i, token in tokenizer.added_tokens_decoder.items():
        if token.content.strip(" \n\t\r\u2581"):
            ids.add(i)
    return frozenset(ids)


def _shared(first: list[int], second: list[int]) -> int:
    """Number of elements that two sequences have in common at their start."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _behind(tokenizer, ids: list[int], form: AnswerForm) -> list[int] | None:
    """The rest of `ids` behind the prompt of the form; None if they do not begin with its text.

    The last token of the prompt and the first one of the answer may have become one token ("\\n" and "\\n"), which the model
    never sees: it reads the prompt alone. Such a token is split.
    """
    shared = _shared(ids, form.prompt)
    rest = form.prompt[shared:]
    if not rest:
        return ids[shared:]
    # A control token and its spelling have the same text, but are not the same.
    if not form.control.isdisjoint(rest):
        return None
    rest_text = _decode(tokenizer, rest)
    for stop in range(shared + 1, len(ids) + 1):
        text = _decode(tokenizer, ids[shared:stop])
        if text.startswith(rest_text):
            surplus = text[len(rest_text) :]
            return [*_words(tokenizer, surplus), *ids[stop:]]
        if not rest_text.startswith(text):
            return None
    return None


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _two_openings(tokenizer, completion: str) -> str:
    """The message for a template whose generation prompt is not how it begins an answer (DeepSeek-R1, Nemotron)."""
    messages = [EMPTY_TURN, {"role": "assistant", "content": completion}]
    prompt = written_text(tokenizer, messages[:1], generation_prompt=True)
    written = written_text(tokenizer, messages, generation_prompt=False)
    shared = _shared(prompt, written)
    problem = (
        f"the chat template of {tokenizer.name_or_path!r} writes an answer differently from its generation prompt, which "
        f"ends with {prompt[-30:]!r}, while the answer is written as {written[max(0, shared - 20) : shared + 30]!r}"
    )
    quiet = written_text(tokenizer, messages[:1], generation_prompt=True, enable_thinking=False)
    if quiet != prompt and written.startswith(quiet):
        return (
            f"{problem}: give answers that begin with their reasoning (<think>), or begin the template with "
            f"{{% set enable_thinking = false %}} ({FILE})"
        )
    return (
        f"{problem}: let the generation prompt of the template end before {prompt[shared:]!r} ({FILE}), or, if the answers "
        "begin with their reasoning, a template that keeps it in the answer (as trl's training template for DeepSeek-R1: "
        "trl.chat_template_utils.get_training_chat_template)"
    )


# ---- rows --------------------------------------------------------------------------------------------------------


def encode_conversation(tokenizer, messages: Sequence[dict]) -> list[Example]:
    """Ids of a whole conversation, and a mask that is True on the tokens of the assistant, its end-of-turn tokens included.

    Each answer is learned behind its history as the model sees it when it answers. Some templates rewrite earlier answers
    (Qwen 3 takes their reasoning out). Then one sequence cannot hold two answers, and each answer that the next history
    rewrites ends an example.
    """
    messages = as_messages(list(messages))
    check_size(messages)
    examples: list[Example] = []
    ids: list[int] = []
    mask: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, answer = _encode_turn(tokenizer, messages[:i], message["content"])
        # The history no longer holds the answers as they were learned.
        if prompt[: len(ids)] != ids:
            examples.append((ids, mask))
            ids, mask = [], []
        mask = mask + [False] * (len(prompt) - len(ids)) + [True] * len(answer)
        ids = prompt + answer
    if not ids:
        raise UserError("a conversation needs at least one assistant message to learn from")
    return [*examples, (ids, mask)]


def check_size(messages: list[dict]) -> None:
    """UserError for a conversation that would take hours: each of its answers is encoded with all that is before it."""
    characters = read = 0
    for message in messages:
        characters += len(message["content"])
        if message["role"] == "assistant":
            read += characters
    if read > MOST_READ:
        first = messages[0]["content"]
        raise UserError(
            f"a conversation of {len(messages)} messages and {characters:,} characters, which begins with {first!r:.60}, is "
            "too long for one row: split it, or remove it"
        )


def _encode_turn(tokenizer, history: list[dict], answer: str) -> tuple[list[int], list[int]]:
    """Ids of the history of an answer, and of the answer."""
    if history:
        return encode_prompt(tokenizer, history), encode_completion(tokenizer, answer)
    if tokenizer.chat_template is None:
        return bos_ids(tokenizer), encode_completion(tokenizer, answer)
    # There is no prompt without a message, so it is cut out of the written answer.
    form = answer_form(tokenizer)
    message = {"role": "assistant", "content": answer}
    ids = apply_template(tokenizer, [message], generation_prompt=False)
    for start in range(len(ids)):
        stop = start + len(form.opening)
        if ids[start:stop] == form.opening:
            return ids[:stop], form.close(ids[stop:])
    raise TemplateRefusal(
        f"the chat template of {tokenizer.name_or_path!r} does not open an answer that has nothing before it as it opens "
        "others: let the conversation begin with a user message"
    )


def learned_column(row: dict) -> str:
    """The column of a row from which SFT learns: completion, messages or text. Extra columns may have these names too."""
    if row.get("prompt") is not None and row.get("completion") is not None:
        return "completion"
    if row.get("messages") is not None:
        return "messages"
    return "text"


def encode_examples(tokenizer, row: dict) -> list[Example]:
    """Ids and loss mask of each example of a row with prompt and completion, messages, or text.

    The mask is True on the tokens that the model should learn: completions, the assistant's turns, or the whole text. Only
    a conversation can be several examples, see encode_conversation.
    """
    part = learned_column(row)
    if part == "messages":
        return encode_conversation(tokenizer, row["messages"])
    if part == "completion":
        prompt = encode_prompt(tokenizer, row["prompt"])
        completion = encode_completion(tokenizer, row["completion"])
        mask = [False] * len(prompt) + [True] * len(completion)
        return [(prompt + completion, mask)]
    ids = [*encode_text(tokenizer, row["text"]), tokenizer.eos_token_id]
    return [(ids, [True] * len(ids))]


def encode_example(tokenizer, row: dict) -> Example:
    """Ids and loss mask of a row that is one example, see encode_examples."""
    examples = encode_examples(tokenizer, row)
    if len(examples) > 1:
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} rewrites earlier answers, so that this conversation is "
            f"{len(examples)} examples: give its answers one by one, as prompt and completion"
        )
    return examples[0]


def decode_text(tokenizer, ids: Sequence[int]) -> str:
    """Text of a completion without its special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def completion_text(tokenizer, ids: Sequence[int], *, ended: bool) -> str:
    """Text of a sampled completion. ended: its last id is the stop token, which need not be special to the tokenizer."""
    if ended:
        ids = ids[:-1]
    return decode_text(tokenizer, ids)


def same_encoding(first, second) -> bool:
    """True if two tokenizers encode every conversation as the same ids, so that two models can share ids."""
    if first is second:
        return True
    # The vocabulary alone is not enough: two tokenizers may cut a text into different tokens of it.
    return (
        first.chat_template == second.chat_template
        and first.eos_token_id == second.eos_token_id
        and first.bos_token == second.bos_token  # which a template may write
        and first.get_vocab() == second.get_vocab()
        and _as_written(first) == _as_written(second)
    )


def _as_written(tokenizer) -> dict:
    """The content of tokenizer.json, without the truncation and padding of the last call."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return content | {"truncation": None, "padding": None}
