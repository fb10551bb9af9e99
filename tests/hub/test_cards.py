"""The cards of every kind of run: their YAML is valid for the Hub, and their snippets run as they are."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from rlhf.hub.lineage import run_folder, verify
from rlhf.hub.push import push_folder
from rlhf.models.load import save
from rlhf.models.lora import add_lora
from rlhf.models.snapshots import model_folder
from rlhf.runs.ancestry import lineage, lines
from rlhf.runs.card import card_text, write_card
from rlhf.runs.public_names import public_record
from rlhf.runs.record import RunRecord
from tests.conftest import tiny_policy, tiny_reward_model, word_tokenizer
from tests.runs.lineage_runs import make_run, make_stages

ENCODERS = {
    "pretrain": BertForMaskedLM,
    "classification": BertForSequenceClassification,
    "ner": BertForTokenClassification,
    "question_answering": BertForQuestionAnswering,
    "multiple_choice": BertForMultipleChoice,
}
DECODERS = ("sft", "dpo", "kto", "ilql", "ppo", "reward", "value_model")
METRICS = {
    "accuracy": 0.75,
    "f1": 0.5,
    "exact": 0.5,
    "score": 1.5,
    "token_accuracy": 0.5,
    "perplexity": 9.0,
    "eval_rows": 12,
    "pairs": 12,
    "auc": 0.75,
    "q_correlation": 0.5,
    "answers": 12,
}


def finished(folder, recipe: str, **fields) -> RunRecord:
    """The record of a finished run in a folder, with data and numbers."""
    fields = {"data": [{"name": "user/rows", "rows": 3}], "metrics": METRICS} | fields
    record = RunRecord(recipe, status="done", seed=3, **fields)
    record.save(folder)
    return record


@pytest.fixture
def form(tmp_path, bert_tokenizer, request):
    """f(name): a folder with a tiny model of this form and its record."""

    def form(name: str):
        folder = tmp_path / name
        torch.manual_seed(0)
        if name == "tokenizer":
            word_tokenizer().save_pretrained(folder)
        elif name in ENCODERS:
            sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
            config = BertConfig(
                vocab_size=len(bert_tokenizer),
                intermediate_size=8,
                max_position_embeddings=64,
                **sizes,
            )
            save(ENCODERS[name](config), bert_tokenizer, folder)
        elif name in ("reward", "value_model"):
            save(tiny_reward_model(word_tokenizer()), word_tokenizer(), folder)
        else:
            save(tiny_policy(word_tokenizer()), word_tokenizer(), folder)
        # A value model is a part of its policy's run.
        if name == "value_model":
            finished(tmp_path, "ppo")
        else:
            finished(folder, name)
        # Two evaluations of twelve prompts each.
        rows = [json.dumps({"step": step, "prompt": "a"}) for step in (0, 5) for _ in range(12)]
        (folder / "samples.jsonl").write_text("\n".join(rows))
        return folder

    return form


def run_snippet(card: str) -> dict:
    """Execute the first block of Python of a card as it is, and return its variables."""
    code = re.search(r"^```python\n(.*?)^```", card, flags=re.M | re.S)[1]
    variables: dict = {}
    exec(code, variables)
    return variables


@pytest.mark.parametrize("name", ["tokenizer", *ENCODERS, *DECODERS])
def test_the_yaml_of_every_form_is_valid_and_its_snippet_runs(hub, form, name, capsys):
    folder = form(name)
    text = card_text(folder, model_id=str(folder))
    path = folder / "README.md"
    path.write_text(text)
    card = ModelCard.load(path)
    card.validate()
    run_snippet(text)
    assert capsys.readouterr().out
    assert "## Intended use and limits" in text and "seed 3" in text
    if name in ("tokenizer", "value_model"):
        return
    results = card.data.eval_results
    assert results and all(r.metric_args == {"seed": 3, "n": 12} for r in results)


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_a_lora_adapter_has_a_card_that_loads_it_on_its_base(hub, tmp_path, name, capsys):
    tokenizer = word_tokenizer()
    base, folder = tmp_path / "base", tmp_path / "adapter"
    if name == "sft":
        model, task = tiny_policy(tokenizer), "CAUSAL_LM"
    else:
        model, task = tiny_reward_model(tokenizer), "SEQ_CLS"
    save(model, tokenizer, base)
    model.name_or_path = model.config._name_or_path = str(base)
    adapted = add_lora(model, task=task, rank=2, alpha=4)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_()
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parents = {"base": {"name": "user/base", "revision": "c" * 40, "license": "mit"}}
    finished(folder, name, parents=parents, config={"max_completion_length": 4})
    text = card_text(folder, model_id=str(folder))
    card = ModelCard(text)
    assert (card.data.library_name, card.data["base_model_relation"]) == ("peft", "adapter")
    assert (card.data.base_model, card.data.license) == ("user/base", "mit")
    assert "lora" in card.data.tags and "LoRA matrices alone" in text
    loaded = run_snippet(text)["model"]
    ids = torch.tensor([[2, 3, 4]])
    adapted.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, adapted(input_ids=ids).logits)


def test_licence_and_languages_are_those_of_the_base_or_a_warning(tmp_path):
    parents = {"policy": {"name": "user/sft", "revision": "c" * 40, "recipe": "sft"}}
    base = {
        "name": "org/base",
        "license": "other",
        "license_name": "base-terms",
        "license_link": "https://example.org/terms",
        "language": "ko",
    }
    key = f"user/sft@{'c' * 40}"
    finished(tmp_path, "ppo", parents=parents, ancestors={key: {"parents": {"base": base}}})
    card = ModelCard(card_text(tmp_path))
    assert (card.data.license, card.data.license_name) == ("other", "base-terms")
    assert card.data.language == "ko" and card.data.base_model == "user/sft"
    assert "[`base-terms`](https://example.org/terms), copied from org/base" in card.text
    finished(tmp_path, "ppo", parents=parents)
    card = ModelCard(card_text(tmp_path))
    assert card.data.license == "other" and card.data.license_name is None
    assert "the licence is not known" in card.text and card.data.language is None


def test_intervals_n_and_memory_are_on_the_card(tmp_path):
    metrics = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "pairs": 40}
    machine = {"cpu": "Fast CPU 9", "gpu": "Big GPU 1", "cores": 8}
    finished(
        tmp_path,
        "reward",
        metrics=metrics,
        machine=machine,
        peak_memory_gb=2.0,
        peak_gpu_memory_gb=7.5,
    )
    text = card_text(tmp_path)
    assert "| accuracy | 0.9 (0.8 to 0.95) |" in text and "accuracy\\_low" not in text
    assert "Measured on 40 pairs of ranked answers" in text and "95 % interval" in text
    assert "7.50 GB of memory of Big GPU 1" in text and "8 cores of Fast CPU 9" in text
    assert "2.00 GB of main memory" in text


def test_the_answers_of_each_stage_are_those_of_the_report(tmp_path):
    finished(tmp_path, "ppo")
    (tmp_path / "report").mkdir()
    sample = {
        "prompt": "Hi",
        "completions": {"base": "b", "base (greedy)": "g", "sft": "s", "/home/me/ppo": "p"},
    }
    report = {"samples": [sample], "settings": {"seed": 5, "temperature": 0.5}}
    (tmp_path / "report" / "report.json").write_text(json.dumps(report))
    text = card_text(tmp_path)
    assert "| prompt | base | sft | ppo |" in text and "| Hi | b | s | p |" in text
    assert "seed 5 at temperature 0.5" in text


def test_a_pushed_chain_keeps_its_lineage_and_verifies_against_the_hub(hub, tmp_path, monkeypatch):
    """SFT is pushed and pulled; PPO starts from the pulled one; everything behind it is still named to the hash."""
    stages = make_stages(tmp_path / "private" / "runs")
    expected = {line.sha256 for line in lines(lineage(stages.sft))}
    record = public_record(stages.sft)
    assert "private" not in json.dumps(record)
    staged = tmp_path / "staged"
    staged.mkdir()
    for path in stages.sft.iterdir():
        (staged / path.name).write_bytes(path.read_bytes())
    (staged / "config.json").write_text("{}")
    (staged / "run.json").write_text(json.dumps(record))
    write_card(staged, model_id="alice/sft")
    push_folder(staged, "alice/sft", message="share")
    model_folder("alice/sft")
    ppo = make_run(tmp_path / "ppo", "ppo", parents=[("policy", "alice/sft")])
    listed = lines(lineage(ppo))
    assert expected <= {line.sha256 for line in listed}
    [policy] = lineage(ppo).parents
    assert policy.is_on_hub and policy.revision == hub.repo("alice/sft").refs["main"]
    assert ModelCard(card_text(ppo)).data.base_model == "alice/sft"
    checks = [check for check in verify(ppo) if check.stage == "policy"]
    assert {check.state for check in checks} == {"same"}
    pulled = lineage(run_folder("alice/sft"))
    assert [line.sha256 for line in lines(pulled)] == [line.sha256 for line in lines(policy)]
    # A folder of the same name here has nothing to do with the parents of a run from elsewhere.
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "base", "pretrain", content="others")
    assert {check.state for check in verify("alice/sft")} == {"same", "not checked"}
