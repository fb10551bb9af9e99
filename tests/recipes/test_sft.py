"""SFT on rows and templates that people bring: what is encoded, counted and refused."""

import json
from collections import Counter
from copy import deepcopy
from datetime import date
from pathlib import Path

import pytest
import torch
import trl
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from rlhf.data.padding import IGNORED
from rlhf.models.load import save
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.run import start
from rlhf.runs.trl_trainer import QuickHead
from tests.conftest import tiny_policy

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
QUICK = (
    "--use_cpu true --report_to none --save_strategy no --max_steps 1 --logging_steps 1 --eval_fraction 0 "
    "--per_device_train_batch_size 4 --max_length 200"
).split()
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "no"},
]
SYSTEM = {"role": "system", "content": "be kind"}


@pytest.fixture(scope="module")
def sft(recipe_module):
    return recipe_module("sft")


@pytest.fixture
def byte_model(bytes_tokenizer, tmp_path):
    """f(template): the folder of a tiny Llama, whose tokenizer has that template of trl's."""

    def byte_model(template: str) -> str:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=deepcopy(bytes_tokenizer.backend_tokenizer), eos_token="<|endoftext|>"
        )
        control = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
        special = {"extra_special_tokens": control, "bos_token": "<bos>", "pad_token": "<|pad|>"}
        tokenizer.add_special_tokens(special)
        tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
        folder = tmp_path / template
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return byte_model


@pytest.fixture
def train(sft, tmp_path, capsys):
    """f(flags): what the recipe says, and its record."""

    def train(*flags, name="run"):
        start(sft.main, "", [*QUICK, "--output_dir", str(tmp_path / name), *map(str, flags)])
        return capsys.readouterr().out, RunRecord.load(tmp_path / name)

    return train


@pytest.fixture
def failing(train, capsys):
    def failing(*flags):
        with pytest.raises(SystemExit):
            train(*flags)
        return capsys.readouterr().err

    return failing


# ---- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--assistant_only_loss", "true"], "only the assistant's turns are learned"),
        (["--completion_only_loss", "false"], "give rows with a text column"),
        (["--dataset_text_field", "story"], "columns: text=NAME"),
        (["--chat_template_path", "a.jinja"], "chat_template.jinja"),
        (["--eos_token", "<eos>"], "tokenizer_config.json"),
        (["--padding_free", "true"], "packing: true"),
        (["--max_length", "0"], "must be at least 2"),
        (["--activation_offloading", "true"], "no GPU"),
        (
            "--metric_for_best_model f1 --load_best_model_at_end true --eval_strategy epoch --save_strategy epoch".split(),
            "use one of loss, mean_token_accuracy",
        ),
        (["--report_to", "wandb"], "report_to: none"),
        (["--optim", "lomo"], "lomo_optim"),
        (["--use_liger_kernel", "true"], "liger-kernel is not installed"),
    ],
)
def test_keys_without_an_effect_are_refused(failing, flags, remedy):
    message = failing("--dataset_name", "none.jsonl", *flags)
    assert flags[0].removeprefix("--") in message and remedy in message


def test_evaluations_without_rows_are_refused(byte_model, write, failing):
    flags = ["--dataset_name", write("rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)]
    flags += ["--eval_strategy", "epoch", "--model_name_or_path", byte_model("qwen3")]
    assert "eval_strategy=epoch: there are no evaluation rows" in failing(*flags)


# ---- conversations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_each_answer_with_a_rewritten_history_is_an_example(byte_model, write, train, packing):
    rows = [{"messages": TALK}, {"messages": [SYSTEM, *TALK]}, {"messages": TALK[:2]}]
    flags = ["--dataset_name", write("talk.jsonl", rows), "--packing", packing]
    said, record = train(*flags, "--model_name_or_path", byte_model("qwen3"))
    assert "train: 5 examples of 3 rows" in said
    assert record.metrics["train_rows"] == 5 and record.metrics["rows_too_long"] == 0
    assert record.template_date == date.today().isoformat()


def test_packing_is_refused_where_examples_would_read_each_other(
    plain_tokenizer, make_architecture, write, failing, tmp_path
):
    save(make_architecture("opt"), plain_tokenizer, tmp_path / "opt")
    data = write("talk.jsonl", [{"messages": TALK}])
    flags = ["--dataset_name", data, "--model_name_or_path", tmp_path / "opt", "--eval_fraction", 0]
    assert "set packing: false" in failing(*flags, "--packing", True)
    assert "set packing: true" in failing(*flags, "--padding_free", True)


def test_only_answers_have_labels(sft, tokenizer):
    encoded, too_long = sft.encode(
        tokenizer, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b c d"}], 6
    )
    assert list(encoded) == [
        {"input_ids": [11, 2, 0, 12, 3, 0], "labels": [IGNORED] * 4 + [3, 0]},
    ]
    assert too_long == 1


def test_a_refused_system_message_names_the_row(byte_model, write, train, failing):
    rows = [{"messages": TALK}, {"messages": [SYSTEM, *TALK]}, {"messages": TALK[:2]}]
    data = write("talk.jsonl", rows)
    flags = ["--dataset_name", data, "--model_name_or_path", byte_model("gemma")]
    message = failing(*flags)
    assert f"{data}:2" in message and "System role not supported" in message
    assert "put the system message at the start" in message and "skip_bad: true" in message
    said, _ = train(*flags, "--skip_bad", name="skipped")
    assert "1 of 3 rows are bad and were dropped" in said and "2 examples of 2 rows" in said


def test_a_template_of_parts_is_refused_by_name(byte_model, write, failing):
    folder = byte_model("llava_next")
    data = write("talk.jsonl", [{"messages": TALK}])
    message = failing("--dataset_name", data, "--model_name_or_path", folder)
    assert folder in message and "lists of parts" in message


# ---- plain text that is mixed in ---------------------------------------------------------------------------------


def test_long_texts_are_cut_and_recorded(byte_model, write, train):
    rows = [{"prompt": "hi", "completion": "yes"}] * 8
    texts = [{"text": "a red bridge over a red river " * 20} for _ in range(20)]
    flags = [
        "--dataset_name",
        write("rows.jsonl", rows),
        "--model_name_or_path",
        byte_model("lfm2"),
    ]
    text = write("text.jsonl", texts)
    said, record = train(
        *flags, "--pretraining_dataset", text, "--pretraining_share", 0.5, "--max_length", 32
    )
    pieces = int(said.split("plain text: ")[1].split()[0])
    assert pieces >= 20 * 3  # each text has more than 64 tokens
    assert record.metrics["train_rows"] == 16
    assert [source["name"] for source in record.data] == [flags[1], text]


def test_mixed_text_is_a_random_sample(sft):
    demonstrations = [{"input_ids": [0]}] * 10
    text = [{"input_ids": [i]} for i in range(100, 140)]
    mixed = sft.mix(demonstrations, text, 0.5, seed=1)
    added = sorted(row["input_ids"][0] for row in mixed if row["input_ids"][0])
    assert len(added) == len(set(added)) == 10 and added != list(range(100, 110))
    assert (
        mixed == sft.mix(demonstrations, text, 0.5, seed=1) != sft.mix(demonstrations, text, 0.5, 2)
    )
    # 90 texts are wanted and 40 are there: each is taken two or three times.
    repeated = Counter(row["input_ids"][0] for row in sft.mix(demonstrations, text, 0.9, seed=1))
    assert {repeated[i] for i in range(100, 140)} == {2, 3}


def test_long_evaluation_rows_are_counted(byte_model, write, train):
    rows = [{"prompt": "hi", "completion": "yes"}, {"prompt": "so", "completion": "no " * 200}]
    held_out = [
        {"prompt": "why", "completion": "yes"},
        {"prompt": "who", "completion": "no " * 200},
    ]
    said, record = train(
        "--dataset_name",
        write("train.jsonl", rows),
        "--eval_dataset_name",
        write("eval.jsonl", held_out),
        "--model_name_or_path",
        byte_model("lfm2"),
    )
    assert record.metrics["rows_too_long"] == record.metrics["eval_rows_too_long"] == 1
    assert "eval: 1 examples of 2 rows, 1 longer than 200 tokens dropped" in said


# ---- the date ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_keeps_the_date_of_its_templates(byte_model, write, train, tmp_path):
    data = write("rows.jsonl", [{"prompt": "hi", "completion": "yes"}] * 8)
    flags = ["--dataset_name", data, "--model_name_or_path", byte_model("lfm2")]
    train(*flags, "--save_strategy", "steps", "--save_steps", 1)
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    killed = {"template_date": "2025-03-01", "status": "running"}
    path.write_text(json.dumps(content | killed))
    changed = ["--max_steps", 2, "--resume_changed", "true"]
    _, record = train(*flags, "--resume_from_checkpoint", "true", *changed)
    assert record.template_date == "2025-03-01"
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")


def test_the_longest_conversation_and_system_messages_are_known_to_the_chat(sft):
    talk, single = {"messages": TALK}, {"prompt": "hi", "completion": "yes"}
    assert sft.longest_and_system([single, talk]) == (2, False)
    with_system = {"prompt": [SYSTEM, TALK[0]], "completion": "yes"}
    assert sft.longest_and_system([with_system, single]) == (1, True)


@pytest.mark.parametrize("most", [2**24, 0])
def test_scoring_the_learned_tokens_only_changes_no_number(sft, tokenizer, monkeypatch, most):
    model = tiny_policy(tokenizer)
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(tokenizer), (3, 12), generator=generator)
    labels = ids.clone()
    labels[:, :7] = IGNORED
    monkeypatch.setattr(QuickHead, "MOST", most)
    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", ChunkedLogProbFunction)
    scored = []
    for score_all in (True, False):
        monkeypatch.setattr(trl_utils, "_use_triton", lambda device: False)
        if not score_all:
            sft.score_learned_tokens_only()
        model.zero_grad()
        outputs = model(input_ids=ids, labels=labels, fused_lm_head=True)
        outputs.loss.backward()
        grad = model.get_input_embeddings().weight.grad.clone()
        scored.append((outputs.log_probs.detach(), outputs.entropy.detach(), outputs.is_top1, grad))
    for whole, learned in zip(*scored, strict=True):
        # trl's sum of exponentials rounds more: up to 3e-5 from numbers of twice the precision
        torch.testing.assert_close(whole, learned, rtol=1e-4, atol=5e-5)
    assert trl_utils._ChunkedLogProbFunction is QuickHead


def test_batches_of_one_length_come_in_random_order(recipe_module):
    lengths = [3 + (7 * i) % 40 for i in range(203)]
    sampler = recipe_module("sft").BatchesOfOneLength(4, lengths=lengths)
    torch.manual_seed(0)
    indices = list(sampler)
    assert sorted(indices) == list(range(203)) and len(sampler) == 203
    batches = [[lengths[i] for i in indices[n : n + 4]] for n in range(0, 203, 4)]
    assert max(lengths) in batches[0] and [len(batch) for batch in batches] == [4] * 50 + [3]
    # Sorted within 12 batches at a time: neighbours in length stay together.
    assert sum(max(batch) - min(batch) for batch in batches) < 4 * len(batches)
    firsts = [batch[0] for batch in batches]
    falls = sum(after < before for before, after in zip(firsts, firsts[1:], strict=False))
    assert 15 < falls < 35  # transformers: nearly all of them
    assert list(sampler) != indices
