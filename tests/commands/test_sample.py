"""`rlhf sample` from end to end: its files are rows that recipes read, and it goes on where it was killed."""

import argparse
import json
import sys

import pytest
import torch

from rlhf.commands import sample as command
from rlhf.commands.sample import add_arguments, likely_tokens, main
from rlhf.data.load import load_rows
from rlhf.errors import UserError
from rlhf.models.load import save
from rlhf.runs import durable
from rlhf.runs.parents import sampling_record
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.run import start

PROMPTS = [{"prompt": text, "weight": len(text)} for text in "a b,c,d e f,g,h a,a b b".split(",")]
FILES = ("answers.jsonl", "best.jsonl", "ranked.jsonl")


def heavy(prompts, completions, weight, **columns):
    """A reward of the length, which checks that it gets the column `weight`."""
    assert weight == [len(prompt) for prompt in prompts]
    return [float(len(completion)) for completion in completions]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer, make_policy, make_reward_model):
    folder = tmp_path_factory.mktemp("models")
    save(make_policy(tokenizer, factor=2.0, seed=1), tokenizer, folder / "sft")
    save(make_reward_model(tokenizer), tokenizer, folder / "reward")
    return folder


@pytest.fixture
def sample(models, write, tmp_path, monkeypatch):
    """f(name, *flags) runs the command and returns its folder."""
    monkeypatch.setitem(sys.modules, "some_rewards", sys.modules[__name__])
    prompts = write("prompts.jsonl", PROMPTS)

    def sample(name, *flags, reward=True):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        argv = [models / "sft", "--dataset_name", prompts, "--output", tmp_path / name, "--n", 4]
        argv += ["--max_completion_length", 20, "--per_device_batch_size", 4, "--temperature", 3]
        if reward:
            argv += ["--reward_model", models / "reward"]
        assert main(parser.parse_args([*map(str, argv), *map(str, flags)])) == 0
        return tmp_path / name

    return sample


def texts(folder):
    return [(folder / name).read_text(encoding="utf-8") for name in FILES]


def test_the_files_are_rows_that_recipes_read(sample, capsys):
    folder = sample("out", "--keep", 2)
    best = load_rows(str(folder / "best.jsonl"), kinds=("prompt_completion", "messages", "text"))
    ranked = load_rows(str(folder / "ranked.jsonl"), kinds=("ranking",))
    assert best.kind == "prompt_completion" and ranked.kind == "ranking"
    answers = read_jsonl(folder / "answers.jsonl")
    assert [row["prompt"] for row in answers] == [row["prompt"] for row in PROMPTS]
    ended = 0
    for row in answers:
        scores = [answer["score"] for answer in row["answers"]]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True)
        whole = [answer for answer in row["answers"] if answer["ended"] and answer["completion"]]
        ended += sum(answer["ended"] for answer in row["answers"])
        # The best row is the best of the whole answers.
        own = [item for item in best.rows if item["prompt"] == row["prompt"]]
        if whole:
            assert own[0]["completion"] == whole[0]["completion"]
            assert own[0]["score"] == whole[0]["score"]
    record = json.loads((folder / "sample.json").read_text())
    assert record["status"] == "done" and record["models"]["policy"]["sha256"]
    assert record["counts"]["answers"] == 24 and record["counts"]["without end"] == 24 - ended > 0
    assert record["files"]["best.jsonl"]["rows"] == len(best.rows)
    curve = [point["score"] for point in record["curve"]]
    assert len(curve) == 4 and curve == sorted(curve) and curve[0] < curve[3]
    top = [max(answer["score"] for answer in row["answers"]) for row in answers]
    assert curve[3] == pytest.approx(sum(top) / len(top), abs=1e-5)
    assert (folder / "best_of_n.png").stat().st_size > 1000
    assert "best of 4" in capsys.readouterr().out


def test_the_answers_depend_on_neither_the_batch_nor_the_other_prompts(sample):
    one = read_jsonl(sample("one") / "answers.jsonl")
    other = read_jsonl(sample("other", "--per_device_batch_size", 9) / "answers.jsonl")
    fewer = read_jsonl(sample("fewer", "--dataset_limit", 3) / "answers.jsonl")
    for first, second in [*zip(one, other, strict=True), *zip(one, fewer)]:
        completions = [answer["completion"] for answer in first["answers"]]
        assert completions == [answer["completion"] for answer in second["answers"]]
    different = {answer["completion"] for row in one for answer in row["answers"]}
    assert len(different) > 10, "else the test would say little"


def test_a_killed_command_goes_on_and_samples_nothing_twice(sample, tmp_path, monkeypatch):
    whole = texts(sample("whole"))
    calls = []

    def dies_at_the_third(model, tokenizer, prompts, rewards, settings):
        calls.append(len(prompts.rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(model, tokenizer, prompts, rewards, settings)

    original = command.sample_answers
    with monkeypatch.context() as patched:
        patched.setattr(command, "sample_answers", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            sample("killed")
    part = tmp_path / "killed" / "part-0.jsonl"
    # As if the machine had gone off in the middle of a line.
    done = part.read_text()
    part.write_text(done + done.splitlines()[0][:40])
    calls.clear()
    with monkeypatch.context() as patched:
        patched.setattr(command, "sample_answers", lambda *a: calls.append(1) or original(*a))
        assert texts(sample("killed")) == whole
    assert len(calls) == 4, "of six chunks two were done"
    assert not part.exists()


def test_other_rows_are_made_without_sampling_again(sample, monkeypatch):
    before = texts(sample("out"))
    monkeypatch.setattr(command, "sample_missing", None)
    after = texts(sample("out", "--keep", 4))
    assert after[0] == before[0] and after[2] == before[2] and len(after[1]) > len(before[1])
    assert not (sample("out", "--min_margin", 1e6) / "ranked.jsonl").exists()


def test_a_command_killed_in_its_first_record_goes_on(sample, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(durable, "boundary", killed)
        with pytest.raises(KeyboardInterrupt):
            sample("out")
    assert (sample("out") / "best.jsonl").exists()


def test_a_model_stays_the_same_when_it_gets_a_card_and_not_with_other_weights(sample, models):
    sample("out")
    card, weights = models / "sft" / "README.md", models / "sft" / "model.safetensors"
    content = weights.read_bytes()
    card.write_text("---\nlicense: mit\n---\n")
    try:
        sample("out", "--keep", 2)
        weights.write_bytes((models / "reward" / "model.safetensors").read_bytes())
        with pytest.raises(UserError, match="other models .policy files"):
            sample("out")
    finally:
        card.unlink()
        weights.write_bytes(content)


def test_other_settings_do_not_go_on_in_the_same_folder(sample, tmp_path):
    sample("out")
    with pytest.raises(UserError, match="other settings .temperature: 3.0, now 0.5"):
        sample("out", "--temperature", 0.5)
    with pytest.raises(UserError, match="leaves no room"):
        sample("new", "--max_completion_length", 48)
    sample("new")  # nothing was sampled, so that another setting is no change
    with pytest.raises(UserError, match="other data"):
        sample("out", "--dataset_limit", 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(UserError, match="thesis.txt and no sample.json"):
        sample("mine")


def test_a_function_rewards_and_no_row_is_left_where_none_can_be_taught(sample, capsys):
    flags = ("--reward_functions", "some_rewards:heavy", "--max_completion_length", 1)
    folder = sample("out", *flags, "--min_score", 1e6, reward=False)
    assert not (folder / "best.jsonl").exists()
    assert "no answer can be taught" in capsys.readouterr().out
    for row in read_jsonl(folder / "answers.jsonl"):
        for answer in row["answers"]:
            assert answer["parts"] == {"heavy": answer["score"]}
            assert answer["score"] == len(answer["completion"])


@pytest.mark.parametrize("flags", [("--top_k", 1), ("--top_p", 1e-9)])
def test_of_one_likely_token_all_answers_are_the_same(sample, flags):
    for row in read_jsonl(sample("out", *flags) / "answers.jsonl"):
        assert len({answer["completion"] for answer in row["answers"]}) == 1


def test_likely_tokens_by_hand():
    logits = torch.tensor([[2.0, 0.0, 4.0, 6.0]])
    inf = float("inf")
    assert likely_tokens(2.0, 0, 1.0)(logits).tolist() == [[1.0, 0.0, 2.0, 3.0]]
    assert likely_tokens(2.0, 2, 1.0)(logits).tolist() == [[-inf, -inf, 2.0, 3.0]]
    # e^3 has 0.64 of the mass at temperature 2, and 0.86 at temperature 1.
    assert likely_tokens(2.0, 0, 0.7)(logits).tolist() == [[-inf, -inf, 2.0, 3.0]]
    assert likely_tokens(1.0, 0, 0.7)(logits).tolist() == [[-inf, -inf, -inf, 6.0]]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_that_has_diverged_gives_no_answers(number):
    logits = torch.tensor([[2.0, 0.0], [number, 0.0]])
    with pytest.raises(UserError, match="no finite numbers"):
        likely_tokens(1.0, 0, 1.0)(logits)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--n", 0), "--n 0 must be at least 1"),
        (("--keep", 5), "between 1 and --n 4"),
        (("--temperature", 0), "--temperature 0.0 must be > 0"),
        (("--top_p", 0), "--top_p 0.0 must be > 0"),
        (("--top_k", -1), "--top_k -1"),
        (("--min_margin", -1), "--min_margin -1.0"),
        (("--min_margin", "nan"), "--min_margin nan"),
        (("--min_score", "nan"), "--min_score nan"),
        (("--temperature", "nan"), "--temperature nan must be > 0 and finite"),
        (("--temperature", "inf"), "--temperature inf must be > 0 and finite"),
        (("--temperature", "1e-42"), "no finite numbers at --temperature 1e-42"),
        (("--reward_timeout", 0), "--reward_timeout 0.0"),
        (("--reward_retries", -1), "--reward_retries -1"),
        (("--max_completion_length", 48), "leaves no room for a prompt"),
        (("--max_prompt_length", 1), "every prompt is longer than 1 tokens"),
    ],
)
def test_what_means_nothing_is_refused(sample, flags, reason):
    with pytest.raises(UserError, match=reason):
        sample("out", *flags)


def test_a_reward_is_needed(sample):
    with pytest.raises(UserError, match="--reward_model, --reward_functions, or both"):
        sample("out", reward=False)


def test_long_prompts_are_dropped_or_cut_and_counted(sample, capsys):
    limit = 4  # two role tokens, one letter and the end of the turn
    dropped = read_jsonl(sample("drop", "--max_prompt_length", limit) / "answers.jsonl")
    assert [row["row"] for row in dropped] == [1, 3]
    assert "4 prompts are too long and were dropped" in capsys.readouterr().out
    cut = sample("cut", "--max_prompt_length", limit, "--long_prompts", "cut")
    assert len(read_jsonl(cut / "answers.jsonl")) == len(PROMPTS)
    assert "4 prompts are too long and were cut" in capsys.readouterr().out


def test_rows_name_the_models_that_made_them_until_they_are_changed(sample, models):
    best = sample("out") / "best.jsonl"
    made_by = sampling_record(str(best))["models"]
    assert made_by["policy"]["name"] == str(models / "sft") and made_by["reward"]["sha256"]
    best.write_text(best.read_text() + best.read_text())
    assert sampling_record(str(best)) == {}
    assert sampling_record(str(models)) == {}


def test_processes_share_the_prompts(sample, monkeypatch):
    whole = texts(sample("whole"))
    shares = []

    def both(args, splits, done, index, count):
        for process in range(2):
            before = len(shares)
            original(args, splits, done, process, 2)
            assert len(shares) > before, "a process without work would say nothing"
        return {}

    def counted(model, tokenizer, prompts, *others):
        shares.extend(prompts.numbers)
        return sampled(model, tokenizer, prompts, *others)

    original, sampled = command.sample_missing, command.sample_answers
    monkeypatch.setattr(command, "sample_missing", both)
    monkeypatch.setattr(command, "sample_answers", counted)
    assert texts(sample("shared")) == whole
    assert sorted(shares) == list(range(len(PROMPTS)))


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one_and_sft_learns_them(
    sample, models, launch, recipe_module, tmp_path
):
    one = sample("one")
    flags = ["--dataset_name", tmp_path / "prompts.jsonl", "--reward_model", models / "reward"]
    flags += ["--n", 4, "--max_completion_length", 20, "--per_device_batch_size", 4]
    flags += ["--temperature", 3]
    launch("-m", "rlhf", "sample", models / "sft", *flags, "--output", tmp_path / "two")
    assert texts(tmp_path / "two") == texts(one)
    sft = recipe_module("sft")
    learned = ["--model_name_or_path", models / "sft", "--dataset_name", one / "best.jsonl"]
    learned += ["--output_dir", tmp_path / "next", "--eval_fraction", 0, "--max_steps", 1]
    start(sft.main, "", list(map(str, [*learned, "--report_to", "none", "--use_cpu"])))
    parents = RunRecord.load(tmp_path / "next").parents
    assert parents["sampled_reward"]["name"] == str(models / "reward")
    assert parents["sampled_policy"]["sha256"] == parents["base"]["sha256"]
