"""What is learned under the chat templates of real models.

trl ships the templates. Each gets a small byte-level tokenizer with its control tokens.
"""

import re
from datetime import date, datetime
from functools import cache
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rlhf.data import templates
from rlhf.data.answers import check_answers, learned_spans, template_checks
from rlhf.data.chat import (
    encode_completion,
    encode_conversation,
    encode_example,
    encode_examples,
    encode_prompt,
    encode_text,
    end_of_turn_id,
    same_encoding,
)
from rlhf.data.splits import load_splits
from rlhf.data.templates import TemplateRefusal, fixed_date, refusal_of, set_variables
from rlhf.errors import UserError
from rlhf.runs.settings import DataSettings

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
CONTROL = re.compile(
    r"<[|｜][^<>'\"\s]{1,40}?[|｜]>|<\|(?:turn|channel|tool)>|<(?:turn|channel|tool)\|>|</?think>"
    r"|<(?:start|end)_of_turn>|<end_of_utterance>|\[/?INST\]"
)
# Llama 3's and Qwen's cut, by which line ends stay together.
PIECES = Regex(
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT_TOKENS = ("<think>", "</think>")  # added, but not special: decoding keeps them

# Beginning of a template's name -> (end of turn, eos_token of the models). By hand, from the models' own files.
ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("<turn|>", "<eos>"),
    "gemma": ("<end_of_turn>", "<eos>"),
    "gemma4": ("<turn|>", "<eos>"),
    "glm4moe": ("<|endoftext|>", "<|endoftext|>"),  # it writes none: eos is added
    "glm4moe_training": ("<|user|>", "<|endoftext|>"),
    "gptoss": ("<|return|>", "<|return|>"),
    "lfm2": ("<|im_end|>", "<|im_end|>"),
    "llama3": ("<|eot_id|>", "<|eot_id|>"),
    "muse": ("<|eot|>", "<|eot|>"),
    "nemotron": ("<|im_end|>", "<|im_end|>"),
    "phi3": ("<|end|>", "<|endoftext|>"),
    "qwen": ("<|im_end|>", "<|im_end|>"),
}


def end_and_eos(name: str) -> tuple[str, str]:
    """The row of ENDS with the longest beginning of the name."""
    beginnings = [beginning for beginning in ENDS if name.startswith(beginning)]
    if not beginnings:
        return "</s>", "</s>"  # models of text and images, which are refused
    return ENDS[max(beginnings, key=len)]


@cache
def shipped_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One token per byte, and "\\n\\n" as one token, as large vocabularies have it."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "ĊĊ"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, name_or_path=name)
    control = sorted(set(CONTROL.findall(template)))
    tokenizer.add_tokens([token for token in control if token in TEXT_TOKENS])
    special = [token for token in control if token not in TEXT_TOKENS]
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    _, eos = end_and_eos(name)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": eos, "pad_token": "<pad>"})
    tokenizer.chat_template = template
    return tokenizer


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "be kind"}
ONE = [user("hi"), assistant("yes")]
THREE = [*ONE, user("why"), assistant("no"), user("so"), assistant("ok")]
REASONED = [user("hi"), assistant("<think>\nbecause\n</think>\n\nyes")]
WANT_PARTS = ("idefics3", "smolvlm", "llava_next")
WANT_REASONING = ("deepseek", "nemotron")
PHI3_TURNS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
REFUSE_SYSTEM = ("gemma", "gemma_training")
SAMPLE = ("llama3_1", "qwen3", "gemma", "phi3", "lfm2", "deepseekv3", "idefics3")
THE_REST = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in SAMPLE]


def learned(tokenizer, messages):
    """Texts that are learned, one list per example."""
    texts = []
    for ids, mask in encode_conversation(tokenizer, messages):
        texts.append([tokenizer.decode(span) for span in learned_spans(ids, mask)])
    return texts


def written(tokenizer, messages, generation_prompt):
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation_prompt
    )


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("messages", [ONE, THREE], ids=["one", "three"])
@pytest.mark.parametrize("name", [*SAMPLE, *THE_REST])
def test_shipped_template_is_learned_right_or_refused(name, messages, system, refused):
    tokenizer = shipped_tokenizer(name)
    if system:
        messages = [SYSTEM, *messages]
    if name.startswith(WANT_PARTS):
        message = refused(encode_conversation, tokenizer, messages)
        assert repr(name) in message and "lists of parts" in message
        return
    if name in REFUSE_SYSTEM and system:
        message = refused(encode_conversation, tokenizer, messages)
        assert repr(name) in message and "first user message" in message
        return
    if name.startswith(WANT_REASONING):
        message = refused(encode_conversation, tokenizer, messages)
        remedy = "enable_thinking = false" if "nemotron" in name else r"before '<think>\n'"
        assert repr(name) in message and remedy in message and "remove it" not in message
        return

    with fixed_date(date.today()):  # as the second rendering below
        check_answers(tokenizer, [{"messages": messages}])
        examples = encode_conversation(tokenizer, messages)
    end, eos = end_and_eos(name)
    assert tokenizer.decode([end_of_turn_id(tokenizer)]) == end
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spans = []
    for ids, mask in examples:
        for i, counts in enumerate(mask):
            if counts and not mask[i - 1]:
                spans.append((tokenizer.decode(ids[:i]), ids[i:], mask[i:]))
    assert len(spans) == len(answers)
    for i, (history, ids, mask) in zip(answers, spans, strict=True):
        stop = [*mask, False].index(False)
        text = tokenizer.decode(ids[:stop])
        # As the model sees it when it answers, and what the template writes then, up to its end of turn.
        assert history == written(tokenizer, messages[:i], True)
        whole = written(tokenizer, messages[: i + 1], False)
        assert whole.startswith(history)
        assert text == whole[len(history) :].split(end)[0].removesuffix("\n") + end
        assert text.count(messages[i]["content"]) == 1 and text.count(end) == 1
        assert tokenizer.encode(end) == ids[stop - 1 : stop]
        others = [message["content"] for message in messages if message is not messages[i]]
        assert not any(other in text.split() for other in others)
        assert eos == end or eos not in text


def test_answers_by_hand():
    """The loss masks that were shifted: Gemma and Phi-3 learned to open the user's turn, Qwen 3 the user's words."""
    gemma, phi, qwen = map(shipped_tokenizer, ("gemma", "phi3", "qwen3"))
    assert learned(gemma, THREE) == [["yes<end_of_turn>", "no<end_of_turn>", "ok<end_of_turn>"]]
    assert learned(phi, THREE) == [["yes<|end|>", "no<|end|>", "ok<|end|>"]]
    thought = "<think>\n\n</think>\n\n"
    # The history has no <think>, so one sequence cannot hold two answers.
    assert learned(qwen, THREE) == [
        [f"{thought}yes<|im_end|>"],
        [f"{thought}no<|im_end|>"],
        [f"{thought}ok<|im_end|>"],
    ]
    ids, _ = encode_conversation(qwen, THREE)[1]
    turns = "<|im_start|>{}\n{}<|im_end|>\n"
    history = turns.format("user", "hi") + turns.format("assistant", "yes")
    history += turns.format("user", "why") + "<|im_start|>assistant\n"
    assert qwen.decode(ids) == f"{history}{thought}no<|im_end|>"


@pytest.mark.parametrize("name", ["llama3_1", "qwen2_5"])
def test_a_template_that_keeps_its_history_gives_one_example(name):
    tokenizer = shipped_tokenizer(name)
    [(ids, mask)] = encode_conversation(tokenizer, THREE)
    end, _ = end_and_eos(name)
    whole = written(tokenizer, THREE, False)
    assert tokenizer.decode(ids) == whole[: whole.rindex(end) + len(end)]
    assert learned(tokenizer, THREE) == [[f"yes{end}", f"no{end}", f"ok{end}"]]
    assert encode_example(tokenizer, {"messages": THREE}) == (ids, mask)


def test_a_rewritten_history_is_more_than_one_example(refused):
    tokenizer = shipped_tokenizer("qwen3")
    assert len(encode_examples(tokenizer, {"messages": THREE})) == 3
    assert "3 examples" in refused(encode_example, tokenizer, {"messages": THREE})


def test_an_answer_that_begins_with_white_space_keeps_its_prompt():
    """ "assistant\\n" and "\\nyes" share a token in the whole text, which the model never sees."""
    tokenizer = shipped_tokenizer("lfm2")
    prompt = encode_prompt(tokenizer, "hi")
    assert tokenizer.decode(encode_completion(tokenizer, "\nyes")) == "\nyes<|im_end|>"
    [(ids, _)] = encode_conversation(tokenizer, [user("hi"), assistant("\nyes")])
    assert ids[: len(prompt)] == prompt


def test_an_eos_that_closes_the_turn_and_the_text_is_learned_once():
    """Who fine-tunes Phi-3 may make its end of turn the EOS, so that the template writes it twice."""
    tokenizer = shipped_tokenizer.__wrapped__("phi3")
    tokenizer.eos_token = "<|end|>"
    assert written(tokenizer, ONE, False).endswith("yes<|end|>\n<|end|>")
    assert learned(tokenizer, ONE) == [["yes<|end|>"]]


def test_an_eos_right_behind_the_end_of_the_turn_is_not_learned():
    """Phi-3's own tokenizer swallows the line ends behind its control tokens, so that the two are neighbours."""
    tokenizer = shipped_tokenizer.__wrapped__("phi3")
    swallowing = [AddedToken(token, special=True, rstrip=True) for token in PHI3_TURNS]
    tokenizer.add_special_tokens({"extra_special_tokens": swallowing})
    ids = tokenizer.apply_chat_template(ONE, return_dict=False)
    assert tokenizer.decode(ids).endswith("yes<|end|><|endoftext|>")
    assert learned(tokenizer, ONE) == [["yes<|end|>"]]
    assert learned(tokenizer, THREE) == [["yes<|end|>", "no<|end|>", "ok<|end|>"]]
    assert tokenizer.decode(end_of_turn_id(tokenizer)) == "<|end|>"


@pytest.mark.parametrize(
    ("name", "taught"),
    [
        ("qwen3", "<think>\nbecause\n</think>\n\nyes<|im_end|>"),
        ("qwen3_5_think", "because\n</think>\n\nyes<|im_end|>"),  # its prompt ends with <think>
        ("nemotron_3_nano", "because\n</think>\n\nyes<|im_end|>"),
        ("deepseek_r1_distill_training", "because\n</think>\n\nyes<｜end▁of▁sentence｜>"),
    ],
)
def test_reasoning_is_learned_as_tokens(name, taught):
    tokenizer = shipped_tokenizer(name)
    check_answers(tokenizer, [{"messages": REASONED}])
    assert learned(tokenizer, REASONED) == [[taught]]
    [(ids, _)] = encode_conversation(tokenizer, REASONED)
    think, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert ids.count(think) == ids.count(end) == 1
    assert tokenizer.chat_control_tokens is None  # it would be saved with the tokenizer


def test_reasoning_that_the_template_would_double_is_refused(refused):
    """Qwen 3.8 writes an empty <think></think> in front of an answer whose words hold the reasoning."""
    tokenizer = shipped_tokenizer("qwen3_8")
    check_answers(tokenizer, [{"messages": THREE}])
    assert "'qwen3_8'" in refused(check_answers, tokenizer, [{"messages": REASONED}])


def test_the_remedies_work():
    """Following the messages of the templates that want reasoning makes them learn right."""
    nemotron = shipped_tokenizer.__wrapped__("nemotron_3_nano")
    nemotron.chat_template = "{% set enable_thinking = false %}" + nemotron.chat_template
    assert learned(nemotron, ONE) == [["yes<|im_end|>"]]
    deepseek = shipped_tokenizer.__wrapped__("deepseekv3")
    deepseek.chat_template = deepseek.chat_template.replace(
        "<｜Assistant｜><think>\\n", "<｜Assistant｜>"
    )
    assert learned(deepseek, THREE)[-1][-1] == "ok<｜end▁of▁sentence｜>"


def test_a_template_that_drops_words_is_refused(refused):
    tokenizer = shipped_tokenizer.__wrapped__("lfm2")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "content + ", "(content[:3] if message.role == 'assistant' else content) + "
    )
    check_answers(tokenizer, [{"prompt": "hi", "completion": "yes"}])
    message = refused(check_answers, tokenizer, [{"prompt": "hi", "completions": ["yes", "maybe"]}])
    assert "'maybe'" in message and "'may<|im_end|>'" in message


# ---- roles -------------------------------------------------------------------------------------------------------


def test_a_conversation_may_begin_with_the_assistant():
    talk = [assistant("well"), *ONE]
    assert learned(shipped_tokenizer("llama3"), talk) == [["well<|eot_id|>", "yes<|eot_id|>"]]
    [(ids, _)] = encode_conversation(shipped_tokenizer("llama3"), talk)
    assert (
        shipped_tokenizer("llama3")
        .decode(ids)
        .startswith(
            "<bos><|start_header_id|>assistant<|end_header_id|>\n\nwell<|eot_id|><|start_header_id|>user"
        )
    )


def test_a_conversation_of_our_own_template_may_begin_with_the_assistant(tokenizer):
    [(ids, mask)] = encode_conversation(tokenizer, [assistant("a"), user("b"), assistant("c")])
    assert ids == [12, 2, 0, 11, 3, 0, 12, 4, 0]
    assert mask == [False, True, True, False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("messages", "remedy"),
    [
        ([SYSTEM, user("hi")], "put the system message at the start of the first user message"),
        ([assistant("well"), user("hi")], "let the conversation begin with a user message"),
        ([user("hi"), user("why")], "join neighbouring messages"),
    ],
)
def test_roles_that_gemma_refuses(messages, remedy):
    tokenizer = shipped_tokenizer("gemma")
    with pytest.raises(TemplateRefusal, match=remedy) as error:
        encode_prompt(tokenizer, messages)
    assert "'gemma'" in str(error.value) and isinstance(error.value, UserError)
    check = template_checks(tokenizer)["prompt"]
    assert remedy in check(messages) and check("hi") is None


def test_checks_of_messages():
    check = template_checks(shipped_tokenizer("gemma"))["messages"]
    assert check(ONE) is check(THREE) is None
    assert "System role" in check([SYSTEM, *ONE])
    assert "alternate" in check([*ONE, assistant("more")])


def test_a_dropped_system_message_is_named():
    tokenizer = shipped_tokenizer.__wrapped__("lfm2")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{%- if ns.system_prompt -%}", "{%- if false -%}"
    )
    reason = refusal_of(tokenizer, ("system", "user"), generation_prompt=True)
    assert "drops the system message" in reason
    assert refusal_of(tokenizer, ("user",), generation_prompt=True) is None


def test_our_template_accepts_every_order_of_roles(tokenizer, plain_tokenizer):
    for which in (tokenizer, plain_tokenizer):
        checks = template_checks(which)
        assert checks["prompt"]([user("hi"), SYSTEM, user("why")]) is None
        assert checks["messages"]([assistant("well"), assistant("yes")]) is None


def test_reasoning_in_a_key_of_its_own_is_a_bad_row(tokenizer, refused):
    message = {**assistant("yes"), "reasoning_content": "because"}
    for which in (tokenizer, shipped_tokenizer("qwen3")):
        reason = template_checks(which)["messages"]([user("hi"), message])
        assert "reasoning_content" in reason and "<think>...</think>" in reason
    assert "<think>" in refused(encode_conversation, tokenizer, [user("hi"), message])
    encode_conversation(tokenizer, [user("hi"), {**message, "reasoning_content": None}])


def test_a_template_that_writes_bos_gets_no_second_one():
    tokenizer = shipped_tokenizer.__wrapped__("llama3")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    assert encode_text(tokenizer, "hi") == [bos, *encode_completion(tokenizer, "hi")[:-1]]
    assert encode_prompt(tokenizer, "hi").count(bos) == 1
    [(ids, _)] = encode_conversation(tokenizer, THREE)
    assert ids[0] == bos and ids.count(bos) == 1


# ---- several templates, the date, two tokenizers -----------------------------------------------------------------


def test_a_template_with_a_syntax_error_is_not_the_fault_of_a_row(refused):
    tokenizer = shipped_tokenizer.__wrapped__("qwen3")
    tokenizer.chat_template = "{% for m in messages %}\n{{ m.content }\n{% endfor %}"
    message = refused(template_checks, tokenizer)
    assert "not valid Jinja (line 2: unexpected '}')" in message and "correct it" in message


def test_of_several_templates_the_default_counts(refused):
    tokenizer = shipped_tokenizer.__wrapped__("lfm2")
    template = tokenizer.chat_template
    tokenizer.chat_template = {"default": template, "tool_use": "{{ 'no' }}"}
    assert learned(tokenizer, ONE) == [["yes<|im_end|>"]]
    tokenizer.chat_template = {"tool_use": template, "rag": template}
    assert "none of them named default" in refused(encode_prompt, tokenizer, "hi")


class Clock(datetime):
    """A clock that the test sets."""

    day = date(2025, 3, 1)

    @classmethod
    def now(cls, tz=None):
        return datetime(cls.day.year, cls.day.month, cls.day.day, 12)

    @classmethod
    def today(cls):
        return cls.day


def test_the_date_in_a_template_is_that_of_the_run(monkeypatch):
    tokenizer = shipped_tokenizer.__wrapped__("llama3_2")
    monkeypatch.setattr(templates, "date", Clock)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    prompt = tokenizer.decode(encode_prompt(tokenizer, "hi"))
    assert "Today Date: 01 Mar 2025" in prompt
    answer = encode_completion(tokenizer, "yes")
    Clock.day = date(2025, 3, 2)  # midnight
    assert encode_completion(tokenizer, "yes") == answer
    assert "Today Date: 02 Mar 2025" in tokenizer.decode(encode_prompt(tokenizer, "hi"))
    with fixed_date(date(2025, 3, 1)):
        assert tokenizer.decode(encode_prompt(tokenizer, "hi")) == prompt
        assert learned(tokenizer, ONE) == [["yes<|eot_id|>"]]
    gpt_oss = shipped_tokenizer("gptoss")
    with fixed_date(date(2024, 2, 29)):
        assert "Current date: 2024-02-29" in gpt_oss.decode(encode_prompt(gpt_oss, "hi"))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("strftime_now('%d %b %Y')", "29 Feb 2024"),
        ('strftime_now("%B %-d, %Y")', "February 29, 2024"),
        ("strftime_now(format='%Y-%m-%d')", "2024-02-29"),
        ("strftime_now('%Y' + '-%j')", "2024-060"),
        ("strftime_now(form)", "Thursday 00:00"),
    ],
)
def test_the_date_does_not_depend_on_how_a_template_asks(call, text):
    tokenizer = shipped_tokenizer.__wrapped__("qwen3")
    begin = "\n  {%- set form = '%A %H:%M' -%}"
    tokenizer.chat_template = f"{begin}<|im_start|>{{{{ {call} if strftime_now is defined }}}}" + (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
    )
    with fixed_date(date(2024, 2, 29)):
        written = tokenizer.decode(encode_prompt(tokenizer, "hi"))
    assert written == f"<|im_start|>{text}<|im_start|>hi<|im_end|><|im_start|>"


def test_two_tokenizers_of_one_template():
    first, second = shipped_tokenizer("gemma"), shipped_tokenizer.__wrapped__("gemma")
    assert same_encoding(first, second)
    second.bos_token = "<pad>"  # which the template writes
    assert not same_encoding(first, second)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("prompt", {}),
        ("ranking", {"completions": ["yes", "no"], "ranks": [0, 1]}),
        ("ranking", {"chosen": "yes", "rejected": "no"}),
    ],
)
def test_refused_prompts_are_bad_rows(kind, row, write, refused):
    rows = [{"prompt": "hi", **row}, {"prompt": [SYSTEM, user("hi")], **row}]
    path = write("rows.jsonl", rows)
    checks = template_checks(shipped_tokenizer("gemma"))
    settings = DataSettings(dataset_name=path, eval_fraction=0)
    message = refused(load_splits, settings, (kind,), seed=0, checks=checks)
    assert f"{path}:2: prompt: the chat template of 'gemma'" in message
    settings.skip_bad = True
    splits = load_splits(settings, (kind,), seed=0, checks=checks)
    assert len(splits.train) == 1 and "1 of 2 rows are bad" in splits.warnings[0]


# ---- variables ----


def opened(tokenizer):
    return tokenizer.decode(encode_prompt(tokenizer, "hi")).split("assistant\n")[1]


def test_a_variable_is_set_for_all_that_use_the_tokenizer_and_saved_with_it(tmp_path):
    tokenizer = shipped_tokenizer.__wrapped__("qwen3")
    assert opened(tokenizer) == ""
    set_variables(tokenizer, {"enable_thinking": False})
    thought = "<think>\n\n</think>\n\n"
    assert opened(tokenizer) == thought
    # The thought is in the prompt, so the answer is its words alone, in every turn.
    assert tokenizer.decode(encode_completion(tokenizer, "yes")) == "yes<|im_end|>"
    assert learned(tokenizer, ONE) == [["yes<|im_end|>"]]
    check_answers(tokenizer, [{"messages": THREE}, {"prompt": "hi", "completion": "yes"}])
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert opened(loaded) == thought and same_encoding(loaded, tokenizer)
    # Once more, as from a run that has it; and another value, as JSON from the command line.
    before = loaded.chat_template
    set_variables(loaded, {"enable_thinking": False})
    assert loaded.chat_template == before
    set_variables(loaded, '{"enable_thinking": true}')
    assert opened(loaded) == ""


@pytest.mark.parametrize("value", [True, None, 3, 0.5, 'it\'s "so"', "\n"])
def test_values_mean_in_a_template_what_they_mean_in_a_yaml(value):
    tokenizer = shipped_tokenizer.__wrapped__("qwen3")
    tokenizer.chat_template = "\n{{ messages[0].content }}[{{ custom }}]"
    set_variables(tokenizer, {"custom": value})
    text = tokenizer.apply_chat_template([user("hi")], tokenize=False)
    assert text == f"\nhi[{value}]"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"enable_thinkin": False}, "has no variable 'enable_thinkin'"),
        ({"messages": "x"}, "has no variable 'messages'"),
        # Words of the template, but none of its variables.
        ({"message": "x"}, "has no variable 'message'"),
        ({"role == 'user'": True}, "has no variable"),
        ({"enable_thinking": float("nan")}, "is not a map"),
        ({"enable_thinking": [1]}, "is not a map of names"),
        ("enable_thinking=false", "is not a map of names"),
        ("[1]", "is not a map of names"),
    ],
)
def test_a_variable_that_would_do_nothing_is_refused(variables, reason, refused):
    assert reason in refused(set_variables, shipped_tokenizer.__wrapped__("qwen3"), variables)


def test_a_variable_that_the_template_assigns_itself_is_refused(refused):
    tokenizer = shipped_tokenizer.__wrapped__("qwen3")
    tokenizer.chat_template = (
        "{# style #}{% set system = 'x' %}{% if not day is defined %}{% set day = 'Monday' %}{% endif %}"
        "{{ system }}{{ day }}{% generation %}{{ messages[0].content }}{% endgeneration %}"
    )
    assert "has no variable 'system'" in refused(set_variables, tokenizer, {"system": "y"})
    assert "has no variable 'style'" in refused(set_variables, tokenizer, {"style": "y"})
    set_variables(tokenizer, {"day": "Friday"})
    assert tokenizer.apply_chat_template([user("hi")], tokenize=False) == "xFridayhi"
    tokenizer.chat_template = "{% if %}"
    assert "not valid Jinja" in refused(set_variables, tokenizer, {"day": "Friday"})


def test_a_tokenizer_without_a_template_has_no_variables(plain_tokenizer, refused):
    assert "has no chat template" in refused(set_variables, plain_tokenizer, {"a": True})
