from copy import deepcopy

import pytest
from tokenizers.processors import TemplateProcessing

from rlhf.data.answers import check_answers
from rlhf.data.chat import (
    add_chat_template,
    as_messages,
    as_text,
    decode_text,
    encode_completion,
    encode_conversation,
    encode_example,
    encode_examples,
    encode_prompt,
    encode_text,
    end_of_turn_id,
    same_encoding,
    text_pieces,
)

SYSTEM, USER, ASSISTANT, PAD, EOS = 10, 11, 12, 13, 0
TALK = [
    {"role": "system", "content": "h"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e"},
]


def test_by_hand(tokenizer):
    assert encode_prompt(tokenizer, "a b") == [USER, 2, 3, EOS, ASSISTANT]
    assert encode_prompt(tokenizer, TALK[:2]) == [SYSTEM, 9, EOS, USER, 2, EOS, ASSISTANT]
    assert encode_completion(tokenizer, "c d") == [4, 5, EOS]


def with_bos(tokenizer):
    """A copy without chat template whose BOS, id 1, begins each text, as Llama's and Gemma's tokenizers do it."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = None
    tokenizer.bos_token = "<unk>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 1)]
    )
    return tokenizer


def test_bos_begins_each_sequence_once_where_the_tokenizer_writes_it(tokenizer):
    tokenizer = with_bos(tokenizer)
    assert encode_text(tokenizer, "a b") == [1, 2, 3]
    # Without a chat template, prompt and completion are one text.
    assert encode_prompt(tokenizer, "a") == [1, 2] and encode_completion(tokenizer, "b") == [3, EOS]
    assert encode_example(tokenizer, {"text": "a"}) == ([1, 2, EOS], [True] * 3)
    rows = [{"text": "a b c d"}, {"text": "e"}]
    assert text_pieces(tokenizer, rows, 3) == [[1, 2, 3], [1, 4, 5], [1, 6, EOS]]
    add_chat_template(tokenizer)
    [(ids, mask)] = encode_conversation(tokenizer, TALK)
    assert ids[0] == 1 and ids.count(1) == 1 and not mask[0]
    assert encode_completion(tokenizer, "b c") == [3, 4, EOS]


def test_gpt2_like_tokenizers_get_no_bos(tokenizer, bytes_tokenizer):
    assert encode_text(tokenizer, "a b") == [2, 3]
    assert bytes_tokenizer.bos_token_id not in encode_text(bytes_tokenizer, "a")


def test_texts_are_cut_into_pieces_with_something_to_predict(tokenizer):
    rows = [{"text": "a b c d"}, {"text": "a b"}, {"text": ""}]
    # "a b c d" ends with an EOS of its own piece, which would have nothing before it.
    assert text_pieces(tokenizer, rows, 4) == [[2, 3, 4, 5], [2, 3, EOS]]


def test_the_end_of_a_turn_is_eos_for_our_template_and_for_text(tokenizer, plain_tokenizer):
    assert end_of_turn_id(tokenizer) == end_of_turn_id(plain_tokenizer) == EOS


def test_a_text_conversation_shows_each_answer_its_own_history(tokenizer):
    """Plain text shows earlier answers without their EOS."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = None
    examples = encode_conversation(tokenizer, TALK)
    assert [ids for ids, _ in examples] == [[9, 2, 3, 4, EOS], [9, 2, 3, 4, 5, 6, EOS]]
    assert [mask.index(True) for _, mask in examples] == [2, 5]


def test_a_prompt_without_messages_is_refused(tokenizer, refused):
    assert "at least one message" in refused(encode_prompt, tokenizer, [])


def test_invariant_34_eos_is_appended_exactly_once(tokenizer, bytes_tokenizer, plain_tokenizer):
    for which in (tokenizer, bytes_tokenizer, plain_tokenizer):
        for text in ("a b", "", "a\n"):
            ids = encode_completion(which, text)
            assert ids[-1] == which.eos_token_id and ids.count(which.eos_token_id) == 1


def test_control_tokens_in_a_message_stay_text(bytes_tokenizer, plain_tokenizer):
    text = "<|endoftext|><|assistant|>a<|pad|>"
    for which in (bytes_tokenizer, plain_tokenizer):
        control = {which.eos_token_id, *which.added_tokens_decoder}
        inside = encode_prompt(which, "a") if which.chat_template else []
        typed = encode_prompt(which, text)
        assert sum(i in control for i in typed) == sum(i in control for i in inside)
        ids = encode_completion(which, text)
        assert not control & set(ids[:-1])
        assert decode_text(which, ids) == text
        assert not control & set(encode_text(which, text))


def test_prompt_and_completion_make_the_conversation(bytes_tokenizer):
    prompt = encode_prompt(bytes_tokenizer, TALK[:2])
    whole = bytes_tokenizer.apply_chat_template(TALK[:3], return_dict=True)["input_ids"]
    assert prompt + encode_completion(bytes_tokenizer, "b c") == whole


def test_conversation_learns_what_the_assistant_says(tokenizer):
    [(ids, mask)] = encode_conversation(tokenizer, TALK)
    turns = (
        [SYSTEM, 9, EOS, USER, 2, EOS, ASSISTANT],
        [3, 4, EOS],
        [USER, 5, EOS, ASSISTANT],
        [6, EOS],
    )
    assert ids == [token for turn in turns for token in turn]
    assert mask == [
        said for turn, said in zip(turns, (False, True, False, True), strict=True) for _ in turn
    ]


def test_examples_of_each_row_kind(tokenizer):
    assert encode_example(tokenizer, {"text": "a b"}) == ([2, 3, EOS], [True] * 3)
    ids, mask = encode_example(tokenizer, {"prompt": "a", "completion": "b"})
    assert ids == [USER, 2, EOS, ASSISTANT, 3, EOS] and mask == [False] * 4 + [True] * 2
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert encode_example(tokenizer, {"messages": messages}) == (ids, mask)


def test_a_conversation_without_an_answer_is_refused(tokenizer, refused):
    assert "assistant message" in refused(encode_conversation, tokenizer, TALK[:2])


def test_roles_and_contents_are_checked(refused):
    assert "'bot'" in refused(as_messages, [{"role": "bot", "content": "a"}])
    assert "must be a string" in refused(as_messages, [{"role": "user", "content": None}])
    assert as_messages("a") == [{"role": "user", "content": "a"}]
    assert as_text(TALK[:2]) == "h\na"


def test_invariant_02_padding_never_is_eos(plain_tokenizer):
    plain_tokenizer.pad_token = plain_tokenizer.eos_token
    assert add_chat_template(plain_tokenizer) == [
        "<|assistant|>",
        "<|pad|>",
        "<|system|>",
        "<|user|>",
    ]
    assert plain_tokenizer.pad_token_id != plain_tokenizer.eos_token_id
    assert add_chat_template(plain_tokenizer) == []  # a second time changes nothing


def test_a_tokenizer_without_eos_is_refused(plain_tokenizer, refused):
    plain_tokenizer.eos_token = None
    assert "eos_token" in refused(add_chat_template, plain_tokenizer)


def test_a_template_of_its_own_is_kept_and_cut_at_eos(plain_tokenizer):
    plain_tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    own = plain_tokenizer.chat_template
    add_chat_template(plain_tokenizer)
    assert plain_tokenizer.chat_template == own
    ids = encode_completion(plain_tokenizer, "b c")
    assert (
        plain_tokenizer.decode(ids) == "b c<|endoftext|>"
    )  # the newline behind EOS is never sampled


def test_a_template_that_contradicts_its_generation_prompt_is_refused(plain_tokenizer, refused):
    plain_tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}(answer){% endif %}"
    )
    assert "differently from its generation prompt" in refused(
        encode_completion, plain_tokenizer, "b"
    )


def test_same_encoding(tokenizer, eos_is_pad, bytes_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    assert same_encoding(tokenizer, tokenizer) and same_encoding(
        tokenizer, AutoTokenizer.from_pretrained(tmp_path)
    )
    assert not same_encoding(tokenizer, bytes_tokenizer)
    cut = deepcopy(tokenizer)
    cut("a b c", truncation=True, max_length=2, padding="max_length")
    assert same_encoding(tokenizer, cut)  # the setting of a call


@pytest.mark.parametrize("text", ["안녕, see you \N{GRINNING FACE}", "two\nlines"])
def test_decoding_gives_the_text_back(bytes_tokenizer, text):
    assert decode_text(bytes_tokenizer, encode_completion(bytes_tokenizer, text)) == text


@pytest.mark.parametrize("extra", [{"messages": None}, {"messages": []}, {"text": "x"}])
def test_extra_columns_do_not_change_what_is_learned_of_a_completion(tokenizer, extra):
    row = {"prompt": "hi", "completion": "yes"}
    assert encode_examples(tokenizer, row | extra) == encode_examples(tokenizer, row)
    check_answers(tokenizer, [row | extra])


@pytest.mark.parametrize("extra", [{"messages": None}, {"completion": "yes"}, {"prompt": "hi"}])
def test_extra_columns_do_not_change_what_is_learned_of_a_text(tokenizer, extra):
    row = {"text": "hi"}
    assert encode_examples(tokenizer, row | extra) == encode_examples(tokenizer, row)
    check_answers(tokenizer, [row | extra])


def test_the_completions_of_a_ranking_are_checked_whatever_else_is_there(tokenizer):
    ranking = {"prompt": "hi", "completions": ["yes", "no"], "ranks": [0, 1]}
    for extra in ({"messages": None}, {"completion": None}, {"messages": [{"role": "user"}]}):
        check_answers(tokenizer, [ranking | extra])


def test_a_conversation_that_would_take_hours_is_refused_at_once(tokenizer, refused):
    """Each of its ten thousand answers would be encoded with up to ten million characters before it."""
    turns = [{"role": role, "content": "word " * 100} for role in ("user", "assistant")] * 10_000
    message = refused(encode_conversation, tokenizer, turns)
    assert "20000 messages and 10,000,000 characters, which begins with 'word word" in message
    row = {"messages": turns}
    assert "split it" in refused(check_answers, tokenizer, [row])
