"""recipes/dpo.py, kto.py and ilql.py on a few rows: what they refuse, what they save, and that they go on after a kill."""

import json
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.data.load import load_rows
from rlhf.feedback.events import Answer, Comparison, ModelUsed, Ranking, Rating
from rlhf.feedback.store import Store
from rlhf.models.load import save
from rlhf.models.scratch import new_policy
from rlhf.runs.card import card_text
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.run import start
from rlhf.serving.catalogue import find_models
from rlhf.serving.engine.engine import Engine
from rlhf.serving.engine.requests import SamplingSettings

FLAGS = (
    "--use_cpu --report_to none --eval_fraction 0.25 --max_steps 4 --per_device_train_batch_size 4 --learning_rate 1e-2 "
    "--max_completion_length 4 --eval_limit 3 --logging_steps 1 --save_strategy no --gradient_checkpointing false"
).split()
BOTH = pytest.mark.parametrize("name", ["dpo", "kto"])
ALL = pytest.mark.parametrize("name", ["dpo", "kto", "ilql"])


def rankings() -> list[dict]:
    rows = []
    for first in "abdefgh":
        for second in "abc":
            prompt = f"{first} {second}"
            rows.append(
                {"prompt": prompt, "completions": ["c c c", "c d c", "d d"], "ranks": [0, 1, 2]}
            )
    return rows


def thumbs() -> list[dict]:
    rows = []
    for row in rankings():
        for completion, label in (("c c c", True), ("d d", False)):
            rows.append({"prompt": row["prompt"], "completion": completion, "label": label})
    return rows


def scored() -> list[dict]:
    rows = []
    for row in rankings():
        for completion, rank in zip(row["completions"], row["ranks"], strict=True):
            rows.append({"prompt": row["prompt"], "completion": completion, "score": -rank})
    return rows


ROWS = {"dpo": rankings, "kto": thumbs, "ilql": scored}


@pytest.fixture
def base(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, layers=1, heads=2, context=24, dropout=0.1)
    save(new_policy(tokenizer, model_type="gpt2", **sizes), tokenizer, tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def train(recipe_module, base, write, tmp_path):
    """f(recipe, *flags, rows, folder, module) -> the folder of its run."""

    def train(name, *flags, rows=None, folder="run", module=None):
        module = module or recipe_module(name)
        argv = ["--model_name_or_path", base, "--output_dir", str(tmp_path / folder), *FLAGS]
        if "--dataset_name" not in flags:
            argv += ["--dataset_name", write(f"{name}.jsonl", rows or ROWS[name]())]
        start(module.main, module.__doc__, [*argv, *map(str, flags)])
        return tmp_path / folder

    return train


@pytest.fixture
def failing(train, capsys):
    """What a recipe says as it leaves with exit code 2."""

    def failing(name, *flags, **options) -> str:
        with pytest.raises(SystemExit) as left:
            train(name, *flags, **options)
        assert left.value.code == 2
        return capsys.readouterr().err

    return failing


# ---- what a run leaves -------------------------------------------------------------------------------------------


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_is_a_chat_model_with_its_record_card_samples_and_curves(train, tmp_path, name, lora):
    flags = ["--use_peft", "true", "--lora_r", "2"] if lora else []
    folder = train(name, *flags)
    record = RunRecord.load(folder)
    assert record.status == "done" and record.steps == 4
    if name == "ilql":
        assert {"q_correlation", "kl", "completion_length"} <= record.metrics.keys()
    else:
        metric = {"dpo": "accuracy", "kto": "auc"}[name]
        low, high = record.metrics[f"{metric}_low"], record.metrics[f"{metric}_high"]
        assert low <= record.metrics[metric] <= high
        assert {"kl_before", "completion_length_before"} <= record.metrics.keys()
    assert record.parents["policy"]["name"].endswith("base")
    samples = read_jsonl(folder / "samples.jsonl")
    steps = {sample["step"] for sample in samples}
    assert steps == ({4} if name == "ilql" else {0, 4})
    card = card_text(folder)
    assert "Measured on" in card
    assert all(f"step {step}" in card for step in steps if len(steps) > 1)
    assert (folder / "plots" / "curves.png").is_file()
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    models = find_models(tmp_path)["causal"]
    assert models[f"{name} · run"] == str(folder)
    with closing(Engine(models, reward_runs={})) as engine:
        settings = SamplingSettings(temperature=0, max_new_tokens=4)
        (answer,) = engine.sample(
            f"{name} · run", [{"role": "user", "content": "a b"}], settings, 1
        )
    assert isinstance(answer.text, str)


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(train, name, lora):
    flags = ["--save_strategy", "steps", "--save_steps", "2"]
    flags += ["--use_peft", "true", "--lora_r", "2"] if lora else []
    folder = train(name, *flags)
    whole = weights(folder)
    rows = read_jsonl(folder / "metrics.jsonl")
    # As a kill between the last checkpoint and the end leaves it.
    (folder / "model.safetensors").unlink()
    for path in folder.glob("checkpoint-4"):
        path.rename(folder / "gone")
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"status": "running"}))
    train(name, *flags, "--resume_from_checkpoint", "auto")
    resumed = weights(folder)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    again = read_jsonl(folder / "metrics.jsonl")
    assert [row.get("loss") for row in again] == [row.get("loss") for row in rows]


def weights(folder) -> dict[str, torch.Tensor]:
    """The policy's, and the values' where the run has them."""
    tensors = load_file(folder / "model.safetensors")
    values = folder / "value_model" / "action_values.safetensors"
    if values.is_file():
        tensors |= load_file(values)
    return tensors


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_reference(train, failing, base, tokenizer):
    flags = ["--save_strategy", "steps", "--save_steps", "2"]
    folder = train("dpo", *flags)
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"status": "running"}))
    # Trained again meanwhile.
    model = AutoModelForCausalLM.from_pretrained(base)
    model.transformer.wte.weight.data += 0.1
    save(model, tokenizer, base)
    message = failing("dpo", *flags, "--resume_from_checkpoint", folder / "checkpoint-2")
    assert "with other models: policy, sha256 " in message


# ---- rows --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """Seven rankings, thumbs for as many prompts, and a comparison in which both answers are bad."""
    store = Store(tmp_path / "feedback")
    model = ModelUsed("sft", "runs/sft", "1" * 64)
    for i, word in enumerate("abcdefg"):
        prompt = [{"role": "user", "content": f"{word} a"}]
        answers = [Answer(text, model, 0) for text in ("c c", "d", "e e")]
        store.append(Ranking(prompt, answers, [0, 1, 2], {}, [0, 1, 1]))
        value = "up" if i % 2 else "down"
        store.append(Rating(prompt, f"c {word}", model, {}, 1, value))
    both = [Answer("d d", model, 0), Answer("e e", model, 1)]
    store.append(Comparison([{"role": "user", "content": "h h"}], both, [0, 1], {}, "both bad"))
    return store


def test_dpo_reads_the_rankings_of_a_feedback_store_and_kto_its_thumbs(store):
    rankings = load_rows(str(store.folder), kinds=("ranking",))
    assert len(rankings.rows) == 7 and rankings.rows[0]["ranks"] == [0, 1, 1]
    thumbs = load_rows(str(store.folder), kinds=("unpaired_preference",))
    labels = [row["label"] for row in thumbs.rows]
    assert labels.count(True) == 3 and labels.count(False) == 4 + 2
    assert {"prompt", "completion", "label"} <= thumbs.rows[0].keys()
    assert any(
        "7 rankings and comparisons, which rate no answer" in text for text in thumbs.warnings
    )
    rows = [row["completion"] for row in thumbs.rows]
    assert rows[0] == "c a" and rows[-2:] == ["d d", "e e"]


@pytest.mark.slow
@BOTH
def test_a_feedback_store_is_trained_on_as_it_is(train, store, name):
    folder = train(name, "--dataset_name", store.folder, "--eval_fraction", "0.4", "--seed", "3")
    assert RunRecord.load(folder).parents["feedback"]


def test_rankings_are_not_read_as_thumbs(failing):
    message = failing("kto", rows=rankings())
    assert "ranking rows are for reward and dpo" in message


# ---- what is refused before a model is loaded --------------------------------------------------------------------


@pytest.fixture
def never_loads(recipe_module, monkeypatch):
    """f(recipe) -> its module, which must not load a model."""

    def never_loads(name):
        module = recipe_module(name)

        def load(*args, **options):
            raise AssertionError("a model was loaded before the checks")

        loader = "load_policy" if name == "ilql" else "load_roles"
        monkeypatch.setattr(module, loader, load)
        return module

    return never_loads


def pair(chosen="c", rejected="d", prompt="a"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


ONE_TIER = [{**row, "ranks": [0, 0, 0]} for row in rankings()]
NOTHING = "--nll_coef 0 --values_move_trunk false --use_peft true"
REFUSED = {
    "equal answers": ("dpo", [pair("c", "c"), pair(prompt="b")], "", "the same text as chosen"),
    "one tier": ("dpo", ONE_TIER, "", "they are all ties"),
    "no evaluation": ("dpo", None, "--eval_fraction 0", "prompts it has not seen"),
    "beta": ("dpo", None, "--beta 0", "beta=0.0 must be more than 0"),
    "robust": ("dpo", None, "--loss_type robust", "needs label_smoothing above 0"),
    "smoothing": ("dpo", None, "--label_smoothing 0.1", "only loss_type: robust and exo_pair"),
    "unknown loss": ("dpo", None, "--loss_type dpo", "use one of sigmoid"),
    "weights": ("dpo", None, "--loss_weights 1", "it weighs several losses"),
    "dropout": ("dpo", None, "--disable_dropout false", "policy and reference must differ"),
    "moving reference": ("dpo", None, "--sync_ref_model true", "a reference that moves"),
    "all good": ("kto", [row | {"label": True} for row in thumbs()], "", "are good (true)"),
    "beta of kto": ("kto", None, "--beta 0", "beta=0.0 must be more than 0"),
    "one row": ("kto", None, "--per_device_train_batch_size 1", "use 2 or more"),
    "one score": ("ilql", [row | {"score": 1} for row in scored()], "", "nothing to tell good"),
    "no scores": ("ilql", [{"prompt": "a", "completion": "b"}], "", "rows are for sft"),
    "no other prompts": ("ilql", None, "--eval_fraction 0", "prompts it has not seen"),
    "expectile": ("ilql", None, "--expectile 1", "expectile=1.0 must be at least 0.5 and below 1"),
    "no policy": ("ilql", None, "--nll_coef 0", "nothing would keep the policy"),
    "lora of nothing": ("ilql", None, NOTHING, "drop use_peft"),
    "shuffled": ("kto", None, "--train_sampling_strategy random", "shuffled once, by seed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_a_model_is_loaded(failing, never_loads, tmp_path, case):
    name, rows, flags, said = REFUSED[case]
    assert said in failing(name, *flags.split(), rows=rows, module=never_loads(name))
    assert not list((tmp_path / "run").glob("*")) if (tmp_path / "run").exists() else True


@BOTH
def test_a_reference_with_another_tokenizer_is_refused_before_a_model_is_loaded(
    failing, never_loads, make_tokenizer, make_policy, tmp_path, name
):
    other = make_tokenizer("a b c d e f g h i j".split(), "gpt2")
    save(make_policy(other), other, tmp_path / "other")
    message = failing(name, "--ref_model", tmp_path / "other", module=never_loads(name))
    assert "another tokenizer or chat template" in message


@BOTH
def test_a_reference_that_is_missing_is_named(failing, tmp_path, name):
    assert "no such" in failing(name, "--ref_model", tmp_path / "none")


@pytest.mark.slow
def test_rows_are_as_long_as_the_reference_reads(train, tokenizer, tmp_path):
    sizes = dict(hidden_size=16, layers=1, heads=2, context=12, dropout=0.1)
    save(new_policy(tokenizer, model_type="gpt2", **sizes), tokenizer, tmp_path / "short")
    rows = rankings()
    rows[0]["completions"][0] = "c " * 13
    folder = train("dpo", "--ref_model", tmp_path / "short", rows=rows)
    metrics = RunRecord.load(folder).metrics
    assert metrics["completions_too_long"] + metrics["eval_completions_too_long"] == 1


@pytest.mark.slow
def test_one_held_out_prompt_with_both_thumbs_is_enough(train):
    metrics = RunRecord.load(train("kto", "--eval_fraction", "0.001")).metrics
    assert metrics["prompts"] == 1 and metrics["answers"] == 2


@pytest.mark.slow
def test_what_is_dropped_is_said_and_counted(train, capsys):
    rows = rankings()
    rows[0]["completions"][1] = "c " * 40
    rows[1] |= {"completions": ["c", "c", "d"], "ranks": [0, 1, 2]}
    rows[2]["ranks"] = [1, 1, 1]
    folder = train("dpo", "--seed", "1", rows=rows)
    metrics = RunRecord.load(folder).metrics
    names = ("completions_too_long", "completions_repeated", "rankings_without_order")
    counts = [metrics[name] + metrics[f"eval_{name}"] for name in names]
    assert counts == [1, 1, 1]
    said = capsys.readouterr().out
    assert "1 completions too long" in said and "1 rankings without order" in said


@pytest.mark.slow
def test_weights_out_of_the_range_of_the_paper_are_said(train, capsys):
    rows = [row for i, row in enumerate(thumbs()) if row["label"] or i % 6 == 1]
    train("kto", "--max_steps", "1", rows=rows)
    assert "KTO's authors advise 1 to 1.33, as with undesirable_weight" in capsys.readouterr().out
