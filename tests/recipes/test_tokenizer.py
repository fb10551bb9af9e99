import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlhf.runs.record import RunRecord
from rlhf.runs.run import start

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "tokenizer.py"
TEXTS = [f"the {colour} {animal} sat on a {place}" for colour in ("red", "blue", "grey") for animal in ("cat", "dog", "hen")
         for place in ("mat", "roof", "wall")]  # fmt: skip
QUIET = ["--report_to", "none", "--use_cpu", "true", "--eval_fraction", "0.2"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return str(path)


@pytest.fixture
def train(recipe_module, tmp_path, text):
    def train(*flags, name="run"):
        module = recipe_module("tokenizer")
        start(
            module.main,
            "",
            ["--dataset_name", text, "--output_dir", str(tmp_path / name), *QUIET, *flags],
        )
        return tmp_path / name

    return train


@pytest.mark.parametrize(
    ("kind", "size"), [("byte_bpe", "290"), ("wordpiece", "60"), ("unigram", "36")]
)
def test_a_run_measures_on_held_out_text_beside_others(
    train, bytes_tokenizer, tmp_path, capsys, kind, size
):
    bytes_tokenizer.save_pretrained(tmp_path / "bytes")
    other = str(tmp_path / "bytes")
    folder = train(
        "--tokenizer_type", kind, "--vocab_size", size, "--compare_tokenizers", other, name=kind
    )
    record, tokenizer = RunRecord.load(folder), AutoTokenizer.from_pretrained(folder)
    metrics = record.metrics
    assert len(tokenizer) == metrics["vocab_size"] == int(size)
    assert metrics["train_rows"] + metrics["eval_rows"] == len(TEXTS) and metrics["eval_rows"] > 0
    names = {
        "vocab_size",
        "tokens_per_word",
        "tokens_per_character",
        "unknown_rate",
        "single_token_words",
    }
    assert names <= set(metrics) and names == set(metrics["compared"][other])
    assert (
        metrics["unknown_rate"] == 0
        and metrics["tokens_per_word"] < metrics["compared"][other]["tokens_per_word"]
    )
    assert (tokenizer.chat_template is not None) == (kind == "byte_bpe")
    card, out = (folder / "README.md").read_text(), capsys.readouterr().out
    assert (
        "tokens\\_per\\_word" in card
        and "single\\_token\\_words" in card
        and f"compared.{other}"[:8] in card
    )
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["tokenizer"] for sample in samples[:2]] == [str(folder), other]
    assert all(
        sample["cut"].replace("|", "") in TEXTS and sample["cut"] in out for sample in samples
    )
    assert "whole words" in out


def test_bad_input_is_one_line_and_exit_code_2(failing, train):
    assert "tokenizer_type='bpe': use one of byte_bpe, wordpiece, unigram" in failing(
        "--tokenizer_type", "bpe", name="a"
    )
    large = failing("--tokenizer_type", "wordpiece", "--vocab_size", "30000", name="b")
    assert "error: vocab_size=30000: this text fills only" in large
    most = large.split("at most ")[1].split(",")[0]
    train(
        "--tokenizer_type", "wordpiece", "--vocab_size", most, name="b"
    )  # a refused run leaves its folder free
    assert "256 bytes and the special tokens need 261" in failing("--vocab_size", "200", name="c")
    rare = ["--tokenizer_type", "unigram", "--character_coverage"]
    assert "character_coverage=0.5: use 0.9 to 1" in failing(*rare, "0.5", name="d")
    assert "the others know every character" in failing("--character_coverage", "0.99", name="e")
    assert "no such model folder" in failing("--compare_tokenizers", "/no/such/place", name="f")


def test_a_chat_template_of_ones_own(failing, train, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m['content'] | lower }}{{ eos_token }}{% endfor %}")
    own = AutoTokenizer.from_pretrained(
        train("--vocab_size", "290", "--chat_template_path", str(path), name="own")
    )
    assert own.chat_template == path.read_text()
    assert {"<|user|>", "<|assistant|>"} <= set(own.get_vocab())
    flags = ["--vocab_size", "290", "--chat_template_path"]
    assert "no such text file" in failing(*flags, "/no/such.jinja", name="a")
    path.write_text("{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    assert "give it a template" in failing(*flags, str(path), name="b")
    assert "drop it" in failing(*flags, str(path), "--chat", "false", name="c")


@pytest.mark.slow
def test_two_processes_train_one_tokenizer(tmp_path, text, train, launch):
    flags = ["--tokenizer_type", "unigram", "--dataset_name", text, *QUIET, "--output_dir"]
    launch(SCRIPT, *flags, tmp_path / "two", "--vocab_size", "36")
    alone = train("--tokenizer_type", "unigram", "--vocab_size", "36", name="one")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "two" / name).read_bytes() == (alone / name).read_bytes()
    assert RunRecord.load(tmp_path / "two").status == "done"
    quiet = {"check": False, "capture_output": True, "text": True}
    bad = launch(SCRIPT, *flags, tmp_path / "bad", "--vocab_size", "9000", **quiet)
    # The other process says it behind the number of the process that failed.
    lines = [line for line in bad.stderr.splitlines() if line.startswith("error: ")]
    assert bad.returncode != 0 and len(lines) == 1 and "fills only" in lines[0]
