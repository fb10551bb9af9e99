"""A run that is refused leaves no folder behind, whatever refuses it: the files, the rows, or the settings."""

import pytest

from rlhf.models.load import save
from rlhf.runs.run import start
from tests.conftest import tiny_policy, word_tokenizer

# Each recipe with rows that it takes, and a model that is not there.
ROWS = {
    "tokenizer": '{"text": "a b"}',
    "pretrain": '{"text": "a b"}',
    "sft": '{"prompt": "a", "completion": "b"}',
    "reward": '{"prompt": "a", "chosen": "b", "rejected": "c"}',
    "ppo": '{"prompt": "a"}',
    "classification": '{"text": "a", "label": "b"}',
    "ner": '{"tokens": ["a"], "tags": ["O"]}',
    "question_answering": '{"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [0]}}',
    "multiple_choice": '{"text": "a", "choices": ["b", "c"], "label": 0}',
    "seq2seq": '{"prompt": "a", "completion": "b"}',
    "word_vectors": '{"text": "a b"}',
}
# Those that start from no model, with a flag that they refuse.
WITHOUT_A_MODEL = {
    "tokenizer": ["--vocab_size", "0"],
    "word_vectors": ["--architecture", "none"],
}
COMMON = "--use_cpu --report_to none"


@pytest.fixture
def refuse(recipe_module, tmp_path, capsys):
    """f(recipe, content of the data, *flags): what the recipe says as it leaves with exit code 2, with its folder gone."""

    def refuse(recipe: str, content: str, *flags) -> str:
        data = tmp_path / "rows.jsonl"
        data.write_text(content)
        folder = tmp_path / "runs" / "new"
        words = ["--dataset_name", str(data), "--output_dir", str(folder), *COMMON.split(), *flags]
        with pytest.raises(SystemExit) as left:
            start(recipe_module(recipe).main, "", words)
        assert left.value.code == 2 and not folder.exists()
        return capsys.readouterr().err

    return refuse


@pytest.fixture(scope="module")
def model_flags(tmp_path_factory, make_tokenizer):
    """f(recipe): flags for a model with which its rows are read."""
    home = tmp_path_factory.mktemp("models")
    save(tiny_policy(word_tokenizer()), word_tokenizer(), home / "base")
    make_tokenizer(["a", "b"]).save_pretrained(home / "bert")
    make_tokenizer(["a", "b"], "gpt2").save_pretrained(home / "gpt2")

    def model_flags(recipe: str) -> list[str]:
        base = ["--model_name_or_path", str(home / "base")]
        if recipe in WITHOUT_A_MODEL:
            return []
        if recipe == "ppo":
            return [*base, "--reward_model_path", str(home / "base")]
        if recipe in ("sft", "reward"):
            return base
        kind = "gpt2" if recipe == "seq2seq" else "bert"
        flags = ["--from_scratch", "true", "--tokenizer_name_or_path", str(home / kind)]
        return [*flags, "--objective", "masked"] if recipe == "pretrain" else flags

    return model_flags


@pytest.mark.parametrize("recipe", ROWS)
def test_a_refused_run_leaves_no_folder(refuse, model_flags, recipe, tmp_path):
    gone = ["--model_name_or_path", str(tmp_path / "gone")]
    if recipe in WITHOUT_A_MODEL:
        gone = WITHOUT_A_MODEL[recipe]
    assert refuse(recipe, ROWS[recipe], *gone).startswith("error: ")
    # In the middle of the data, when the folder is there and locked.
    said = refuse(recipe, f"{ROWS[recipe]}\n{{", *model_flags(recipe))
    # The reward model is read before the prompts.
    assert "rows.jsonl:2: not valid JSON" in said or recipe == "ppo"
    assert "learning_rate" in refuse(recipe, ROWS[recipe], "--learning_rate", "-1")
