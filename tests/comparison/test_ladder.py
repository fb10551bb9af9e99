"""The ladder: which runs are rungs, in which order, and what is written."""

import json

import pytest

from rlhf.__main__ import main
from rlhf.comparison import ladder
from rlhf.comparison.compare import ReportSettings
from rlhf.completions.functions import FunctionScorer
from rlhf.completions.score import WeightedSum
from rlhf.errors import UserError
from rlhf.models.load import save
from rlhf.models.scratch import new_baseline, new_policy
from rlhf.runs.record import DONE, RunRecord
from tests.conftest import byte_tokenizer


def finished(folder, model_type: str, recipe: str = "pretrain", **metrics):
    """A run folder with a tiny model of random weights, or of counts of one text."""
    tokenizer = byte_tokenizer(chat=False)
    if model_type == "gpt2":
        model = new_policy(
            tokenizer,
            model_type="gpt2",
            hidden_size=16,
            layers=1,
            heads=2,
            context=64,
            dropout=0.0,
        )
    else:
        model = new_baseline(tokenizer, model_type, hidden_size=16, layers=1, order=2, dropout=0.0)
    folder.mkdir(parents=True)
    save(model, tokenizer, folder)
    record = RunRecord(recipe, metrics=metrics, seconds=8.0, steps=4, status=DONE)
    record.save(folder)
    return folder


@pytest.fixture(scope="module")
def rungs(tmp_path_factory):
    """Folders of a small ladder, trained in an order that is not that of the road."""
    root = tmp_path_factory.mktemp("ladder")
    finished(root / "ppo", "gpt2", "ppo")
    finished(root / "gpt2", "gpt2", bits_per_byte=1.5, eval_loss=3.0, parameters=10)
    finished(root / "lstm", "lstm", bits_per_byte=2.0, eval_loss=4.0)
    finished(root / "rnn", "rnn", bits_per_byte=2.5, eval_loss=5.0)
    rows = [{"step": 2, "eval_loss": 6.0}, {"step": 4, "loss": 1.0}]
    lines = [json.dumps(row) + "\n" for row in rows]
    (root / "lstm" / "metrics.jsonl").write_text("".join(lines))
    RunRecord("tokenizer", status=DONE).save(root)
    return root


def test_rungs_come_in_the_order_of_the_road(rungs, tmp_path):
    folders = [rungs / name for name in ("ppo", "lstm", "gpt2", "rnn")]
    found = ladder.find_rungs([*folders, rungs / "lstm"])  # a run that is named twice is one rung
    assert [rung.name for rung in found] == ["rnn", "lstm", "gpt2", "ppo"]
    assert [rung.year for rung in found] == [1990, 1997, 2018, 2022]
    with pytest.raises(UserError, match="no finished run"):
        ladder.find_rungs([tmp_path])


def test_the_curve_is_in_bits_per_byte_of_the_same_text(rungs):
    rung = ladder.read_rung(rungs / "lstm")
    # Half of the 8 seconds, and 6 of 4 nats at the end: 1.5 times its bits per byte.
    assert rung.curve == [(4.0, 3.0)]


def test_bits_per_byte_of_another_text_are_named(rungs, tmp_path):
    assert ladder.notes(ladder.find_rungs([rungs / "rnn", rungs / "lstm", rungs / "ppo"])) == []
    other = finished(tmp_path / "gru", "gru", bits_per_byte=1.0)
    record = RunRecord.load(other)
    record.config, record.data = {"eval_dataset_name": "b"}, [{"sha256": "a"}, {"sha256": "b"}]
    record.save(other)
    found = ladder.find_rungs([rungs / "rnn", other])
    (note,) = ladder.notes(found)
    assert "of gru are of other held-out text than those of rnn" in note
    assert note in ladder.ladder_markdown(found, [], None)


def test_a_pretrained_encoder_is_no_rung(rungs, tmp_path):
    folder = finished(tmp_path / "bert", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    assert ladder.read_rung(rungs / "gpt2") is not None and ladder.read_rung(folder) is None


def test_an_unfinished_run_is_no_rung(rungs, tmp_path):
    folder = finished(tmp_path / "lstm", "lstm")
    record = RunRecord.load(folder)
    record.status = "interrupted"
    record.save(folder)
    assert ladder.read_rung(folder) is None


def says_something(prompts, completions, **columns) -> list[float]:
    return [float(bool(text)) for text in completions]


def test_every_rung_answers_the_same_prompts_and_all_is_written(rungs, tmp_path):
    rows = [{"prompt": "ab"}, {"prompt": "cd"}]
    found = ladder.find_rungs([rungs / name for name in ("rnn", "gpt2")])
    rewards = WeightedSum({"says": FunctionScorer(says_something, "says")}, None)
    settings = ReportSettings(max_completion_length=5)
    for rung in found:
        ladder.measure_rung(rung, rows, settings=settings, rewards=rewards, shown=[1])
        assert len(rung.answers) == 1 and rung.tokens_per_second > 0
        assert rung.rates["score_says"].n == 2
        assert rung.per_cent == list(rung.rates) == ["score_says"]
    assert found[1].parameters == 10 and found[0].parameters > 0
    assert ladder.draw(found, tmp_path / "ladder.png")
    content = json.loads(ladder.ladder_json(found, ["cd"], {}))
    assert [rung["name"] for rung in content["rungs"]] == ["rnn", "gpt2"]
    page = ladder.ladder_markdown(found, ["cd"], "ladder.png")
    assert "Elman" in page and "2.500" in page and "(ladder.png)" in page


def test_prompts_that_do_not_fit_a_rung_are_asked_of_none(rungs):
    rows = [{"prompt": "a" * 200}, {"prompt": "ab"}]
    found = ladder.find_rungs([rungs / name for name in ("rnn", "gpt2")])
    settings = ReportSettings(max_completion_length=5)
    assert ladder.fitting_rows(found[:1], rows, settings) == rows  # an RNN has no longest text
    assert ladder.fitting_rows(found, rows, settings) == rows[1:]
    with pytest.raises(UserError, match="max_completion_length"):
        ladder.fitting_rows(found, rows[:1], settings)


def test_without_prompts_there_are_numbers_and_no_answers(rungs, tmp_path, capsys):
    folders = [str(rungs / "rnn"), str(rungs / "gpt2")]
    assert main(["ladder", *folders, "--output", str(tmp_path)]) == 0
    page = (tmp_path / "ladder.md").read_text()
    assert "2.500" in page and "Answers" not in page
    assert json.loads((tmp_path / "ladder.json").read_text())["prompts"] == []
    assert "answers" not in capsys.readouterr().out


def test_the_command_counts_prompts_that_are_too_long(rungs, tmp_path, capsys):
    rows = [{"prompt": "a" * 200}, {"prompt": "ab"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--prompts", str(tmp_path / "prompts.jsonl"), "--max_completion_length", "5"]
    assert main(["ladder", str(rungs / "gpt2"), *flags, "--output", str(tmp_path / "out")]) == 0
    assert "1 of 2 prompts are too long and were dropped" in capsys.readouterr().out
    assert "| rung | ab |" in (tmp_path / "out" / "ladder.md").read_text()
