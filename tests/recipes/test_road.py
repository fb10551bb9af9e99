"""The whole road on a few rows: every recipe runs, not only imports; in one process here, in two by `make test-all`."""

import json
import typing
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import SFTConfig, SFTTrainer

from rlhf.__main__ import main as command
from rlhf.digests import weights_sha256
from rlhf.hub.lineage import verify
from rlhf.runs.ancestry import lineage, lines
from rlhf.runs.card import card_text
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.settings import parse

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["red", "green", "blue", "grey", "white", "black"]
QUICK = "--report_to none --use_cpu true".split()
STEPS = "--save_strategy no --per_device_train_batch_size 4".split()


def quick(recipe: str) -> list[str]:
    """Flags that keep a stage short: of those, a tokenizer has no steps, and PPO logs each rollout."""
    if recipe == "tokenizer":
        return QUICK
    if recipe == "ppo":
        return QUICK + STEPS
    return [*QUICK, *STEPS, "--logging_steps", "1"]


@pytest.fixture(scope="module")
def in_process(recipe_module):
    def in_process(recipe, *argv):
        module = recipe_module(recipe)
        hints = typing.get_type_hints(module.main)
        module.main(
            *parse(
                [hints[name] for name in hints if name != "return"],
                "",
                [*quick(recipe), *map(str, argv)],
            )
        )

    return in_process


@pytest.fixture
def in_two_processes(launch):
    def in_two_processes(recipe, *argv):
        run = launch(
            ROOT / "recipes" / f"{recipe}.py",
            *quick(recipe),
            *argv,
            check=False,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert f"{recipe}: 2 processes on cpu" in run.stdout

    return in_two_processes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prompts = [
        f"what is a {a} and {b} {c} thing"
        for a in COLOURS
        for b in COLOURS[:3]
        for c in ("big", "small")
    ]
    files = {
        "sft": [{"prompt": p, "completion": f"it is {p.split()[3]}"} for p in prompts],
        "rankings": [
            {
                "prompt": p,
                "completions": [f"it is {p.split()[3]}", "no", "who knows"],
                "ranks": [0, 1, 1],
            }
            for p in prompts
        ],
        "prompts": [{"prompt": p} for p in prompts],
        "topics": [{"text": p, "label": p.split()[3]} for p in prompts],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text("\n".join(f"{p} it is {p.split()[3]}" for p in prompts) + "\n")
    return folder


SMALL = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 64"
ROAD = f"""
tokenizer --dataset_name DATA/text.txt --vocab_size 300 --output_dir RUNS/tokenizer
pretrain --dataset_name DATA/text.txt --tokenizer_name_or_path RUNS/tokenizer {SMALL} --block_size 16 --max_steps 2 \
    --output_dir RUNS/base
sft --dataset_name DATA/sft.jsonl --model_name_or_path RUNS/base --max_steps 2 --output_dir RUNS/sft
reward --dataset_name DATA/rankings.jsonl --model_name_or_path RUNS/sft --max_steps 2 --output_dir RUNS/reward
ppo --dataset_name DATA/prompts.jsonl --model_name_or_path RUNS/sft --reward_model_path RUNS/reward --output_dir RUNS/ppo \
    --total_episodes 16 --rollout_batch_size 8 --epochs_per_rollout 1 --max_completion_length 6
classification --dataset_name DATA/topics.jsonl --tokenizer_name_or_path RUNS/tokenizer {SMALL} --max_steps 2 \
    --output_dir RUNS/classifier
"""


def walk(run, data, runs):
    """Each stage from the run before it."""
    for line in ROAD.replace("DATA", str(data)).replace("RUNS", str(runs)).strip().splitlines():
        run(*line.split())


@pytest.fixture(scope="module")
def runs(in_process, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    walk(in_process, data, folder)
    return folder


@pytest.mark.parametrize("name", ["base", "sft", "reward", "ppo", "classifier"])
def test_every_run_records_what_it_computed_in(runs, name):
    """The defaults of sft (trl's is bf16) and of the encoders (a processor's flag) once differed from machine to machine."""
    assert RunRecord.load(runs / name).precision["name"] == "fp32"


def test_what_accelerate_was_told_is_recorded(in_process, data, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    flags = f"--dataset_name {data}/rankings.jsonl --model_name_or_path {runs}/sft --max_steps 1".split()
    in_process("reward", *flags, "--output_dir", tmp_path / "reward")
    record = json.loads((tmp_path / "reward" / "run.json").read_text())
    assert record["precision"]["name"] == "bf16"


@pytest.mark.slow
def test_bf16_is_used_by_every_trainer(in_process, data, runs, tmp_path):
    """Seen in what is computed: the same steps in fp32 give other weights."""
    stages = (
        ROAD.replace("DATA", str(data)).strip().splitlines()[1:]
    )  # a tokenizer has no precision
    for stage in stages:
        read, written = stage.split("--output_dir RUNS/")
        name, *rest = written.split()
        recipe, *flags = [*read.replace("RUNS", str(runs)).split(), *rest]
        folder = tmp_path / name
        in_process(recipe, *flags, "--output_dir", folder, "--precision", "bf16")
        assert RunRecord.load(folder).precision["name"] == "bf16"
        weights = [(path / "model.safetensors").read_bytes() for path in (folder, runs / name)]
        assert weights[0] != weights[1]


def test_every_run_folder_is_plain_and_complete(runs):
    for name in ("base", "sft", "ppo"):
        AutoModelForCausalLM.from_pretrained(runs / name)
    for name in ("reward", "classifier"):
        AutoModelForSequenceClassification.from_pretrained(runs / name)
    assert (runs / "ppo" / "value_model" / "model.safetensors").is_file()
    for name in ("base", "sft", "reward", "ppo", "classifier"):
        record = RunRecord.load(runs / name)
        assert record.status == "done" and record.data and record.seconds > 0, name
        assert read_jsonl(runs / name / "metrics.jsonl"), name
        # The same run gives the same card.
        assert (runs / name / "README.md").read_text(encoding="utf-8") == card_text(runs / name)
    assert RunRecord.load(runs / "ppo").parents["reward"]["name"] == str(runs / "reward")
    assert {"prompt", "completion", "score", "kl"} <= set(
        read_jsonl(runs / "ppo" / "samples.jsonl")[0]
    )


def test_the_lineage_of_ppo_names_every_stage_and_its_data(runs):
    listed = lines(lineage(runs / "ppo"))
    names = {name: weights_sha256(runs / name) for name in ("ppo", "sft", "base", "reward")}
    for name, sha256 in names.items():
        assert (str(runs / name), sha256) in {(line.name, line.sha256) for line in listed}, name
    assert all(line.sha256 for line in listed)
    assert {line.stage for line in listed} >= {"policy", "reward", "base", "tokenizer", "data"}
    assert {check.state for check in verify(runs / "ppo")} == {"same"}


def test_the_report_reads_the_runs(runs, data, capsys):
    names = [str(runs / name) for name in ("base", "sft", "ppo")]
    flags = [
        "--prompts",
        str(data / "sft.jsonl"),
        "--reward_model",
        str(runs / "reward"),
        "--limit",
        "6",
    ]
    assert command(["report", *names, *flags]) == 0
    report = json.loads((runs / "ppo" / "report" / "report.json").read_text())
    assert [run["label"] for run in report["runs"]] == ["base", "sft", "ppo"]
    assert "sft" in capsys.readouterr().out


def test_lora_and_packing_run(in_process, runs, data, tmp_path):
    lora = [
        "--model_name_or_path",
        runs / "base",
        "--use_peft",
        "true",
        "--lora_r",
        2,
        "--max_steps",
        2,
    ]
    packed = ["--packing", "true", "--max_length", 48, "--output_dir", tmp_path / "sft"]
    in_process("sft", "--dataset_name", data / "sft.jsonl", *lora, *packed)
    AutoModelForCausalLM.from_pretrained(tmp_path / "sft")  # merged


def test_packed_rows_do_not_see_each_other(runs, tmp_path):
    """The loss of two rows in one packed sequence is the mean, by tokens, of their own losses."""
    model = AutoModelForCausalLM.from_pretrained(runs / "sft")
    from rlhf.models.load import load_tokenizer

    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]},
        {"input_ids": [9, 10, 11], "labels": [-100, 10, 11]},
    ]

    def loss(rows, packing):
        args = SFTConfig(
            output_dir=str(tmp_path / f"{len(rows)}{packing}"), packing=packing, max_length=16, per_device_eval_batch_size=4,
            report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        tokenizer = load_tokenizer(str(runs / "sft"))
        dataset = Dataset.from_list(rows)
        trainer = SFTTrainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=dataset,
            eval_dataset=dataset,
        )
        return trainer.evaluate()["eval_loss"]

    apart = (3 * loss(rows[:1], False) + 2 * loss(rows[1:], False)) / 5
    assert loss(rows, True) == pytest.approx(apart, abs=1e-5)


@pytest.mark.slow
def test_every_recipe_runs_on_two_processes(in_two_processes, data, tmp_path):
    torch.set_num_threads(1)
    walk(in_two_processes, data, tmp_path)
    assert RunRecord.load(tmp_path / "ppo").status == "done"
