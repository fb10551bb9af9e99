"""`rlhf finish`: the rest of a run that is trained."""

import json

import pytest

from rlhf.__main__ import main
from rlhf.commands.finish import has_ended
from rlhf.runs.record import RunRecord, read_jsonl

WORDS = ["red", "green", "blue", *"abcdefgh"]
SIZES = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 16 --max_length 16"


@pytest.fixture
def classify(make_tokenizer, tmp_path, monkeypatch, capsys):
    """f(folder name, *flags) -> the exit code of a classification run of six steps."""
    make_tokenizer(WORDS, "bert").save_pretrained(tmp_path / "tokenizer")
    rows = []
    for i, first in enumerate("abcdefgh"):
        for second in "abcdefgh":
            rows.append({"text": f"{first} {second} {WORDS[i % 3]}", "label": WORDS[i % 3]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("sys.argv", ["rlhf"])

    def classify(name: str, *flags) -> int:
        command = (
            f"classification --dataset_name {tmp_path}/rows.jsonl --eval_fraction 0.25 {SIZES} --use_cpu --report_to none "
            f"--tokenizer_name_or_path {tmp_path}/tokenizer --output_dir {tmp_path / name} --max_steps 6 "
            "--logging_steps 1 --learning_rate 0.00001 --save_strategy steps --save_steps 3 --eval_strategy steps "
            "--eval_steps 3"
        )
        return main([*command.split(), *flags])

    return classify


def fail(*_, **__):
    raise RuntimeError("boom")


def numbers(folder) -> list:
    rows = []
    for row in read_jsonl(folder / "metrics.jsonl"):
        row = {name: value for name, value in row.items() if "runtime" not in name}
        rows.append({name: value for name, value in row.items() if "per_second" not in name})
    return rows


def test_a_run_whose_evaluation_failed_is_finished(classify, tmp_path, monkeypatch, capsys):
    assert classify("whole") == 0
    from rlhf.runs import card

    with monkeypatch.context() as patch:
        patch.setattr(card, "write_card", fail)
        with pytest.raises(RuntimeError, match="boom"):
            classify("run")
    folder = tmp_path / "run"
    assert RunRecord.load(folder).status == "evaluation failed"
    weights = (folder / "model.safetensors").read_bytes()
    assert (folder / "checkpoint-6").is_dir()
    capsys.readouterr()
    assert main(["finish", str(folder)]) == 0
    record, whole = RunRecord.load(folder), RunRecord.load(tmp_path / "whole")
    assert record.status == "done" and record.metrics == whole.metrics and len(record.parts) == 2
    assert (folder / "README.md").is_file()
    assert (folder / "model.safetensors").read_bytes() == weights
    # The best one: the last was kept for `finish` only.
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    # What the failed evaluation has logged is there once.
    ours = [row for row in numbers(folder) if "train_loss" not in row]
    assert ours == [row for row in numbers(tmp_path / "whole") if "train_loss" not in row]

    assert main(["finish", str(folder)]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_what_cannot_be_finished_is_refused(tmp_path, capsys):
    def said(**fields) -> str:
        RunRecord("sft", command="rlhf sft", **fields).save(tmp_path)
        assert main(["finish", str(tmp_path)]) == 2
        return capsys.readouterr().err

    assert main(["finish", str(tmp_path)]) == 2
    assert "holds no readable run.json" in capsys.readouterr().err
    assert "holds no checkpoint: start it again" in said(status="interrupted")
    assert "no checkpoint to evaluate it from: try it with" in said(status="trained", steps=9)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(
        '{"global_step": 4, "max_steps": 9}'
    )
    message = said(status="interrupted", steps=4)
    assert "is of step 4 of 9: continue with its own command" in message and "rlhf sft" in message
    assert "is of step 4 of 9" in said(status="trained", steps=9)


def test_a_run_has_ended_at_its_last_step_or_by_an_early_stop():
    assert has_ended({"global_step": 9, "max_steps": 9})
    assert not has_ended({"global_step": 8, "max_steps": 9}) and not has_ended({})
    control = {"TrainerControl": {"args": {"should_training_stop": True}}}
    assert has_ended({"global_step": 8, "max_steps": 9, "stateful_callbacks": control})


def test_a_path_that_is_missing_here_is_named_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    (folder / "checkpoint-4").mkdir(parents=True)
    data = [{"name": "data/rows.jsonl", "rows": 4, "sha256": "ab"}, {"name": "imdb", "rows": 9}]
    parents = {"base": {"name": "bert-base-uncased"}, "head": {"name": "runs/sft", "sha256": "ab"}}
    facts = {"status": "evaluation failed", "steps": 4, "data": data, "parents": parents}
    RunRecord("classification", **facts).save(folder)
    record = (folder / "run.json").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["finish", str(folder)]) == 2
    assert "data/rows.jsonl, which the run has read, is missing" in capsys.readouterr().err
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").touch()
    assert main(["finish", "run"]) == 2
    said = capsys.readouterr().err
    assert "runs/sft, which" in said and "the folder in which the run was started" in said
    assert (folder / "run.json").read_bytes() == record
