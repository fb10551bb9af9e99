"""The word vector recipe on a tiny text: gensim's vectors in its folder, its questions, and models that start from it."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file

from rlhf.runs.card import card_text
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.run import start
from rlhf.word_vectors.vectors import load_vectors

models = pytest.importorskip("gensim.models")
WORDS = "the red blue grey cat dog hen sat ran on mat roof".split()
TEXTS = []
for animal in ("cat", "dog", "hen"):
    for colour in ("red", "blue", "grey"):
        TEXTS.append(f"The {colour} {animal} sat on the mat")
        TEXTS.append(f"the {animal} ran on the {colour} roof")
QUIET = "--report_to none --use_cpu true --eval_fraction 0.2 --vector_size 8 --min_count 1".split()
SCRATCH = "--from_scratch true --hidden_size 8 --layers 1 --dropout 0 --report_to none --disable_tqdm true".split()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return str(path)


@pytest.fixture
def train(recipe_module, tmp_path, text):
    """f(*flags, name): the folder of a run."""

    def train(*flags, name="vectors", module=None):
        module, folder = module or recipe_module("word_vectors"), tmp_path / name
        words = ["--dataset_name", text, "--output_dir", str(folder), *QUIET, *map(str, flags)]
        start(module.main, module.__doc__, words)
        return folder

    return train


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_the_folder_holds_what_gensim_learns(train, architecture, tmp_path):
    folder = train("--architecture", architecture, "--epochs", "3", "--eval_fraction", "0")
    saved = load_vectors(str(folder))
    rows = [text.lower().split() for text in TEXTS]
    options = {"vector_size": 8, "min_count": 1, "epochs": 3, "seed": 42, "workers": 1}
    theirs = models.Word2Vec(rows, sg=int(architecture == "skipgram"), **options)
    assert saved.words == theirs.wv.index_to_key
    assert torch.equal(saved.vectors, torch.from_numpy(theirs.wv.vectors))
    assert torch.equal(saved.outputs, torch.from_numpy(theirs.syn1neg))
    assert saved.counts[saved.index["the"]].item() == 2 * len(TEXTS)
    read = models.KeyedVectors.load_word2vec_format(str(folder / "vectors.txt"))
    assert read.index_to_key == saved.words
    assert read["red"].tolist() == pytest.approx(
        saved.vectors[saved.find("red")].tolist(), rel=1e-6
    )


def test_a_run_measures_its_questions_and_shows_its_words(train, tmp_path, capsys):
    analogies, pairs = tmp_path / "analogies.txt", tmp_path / "pairs.tsv"
    analogies.write_text(": animals\nred blue cat dog\nred blue cat horse\n")
    pairs.write_text("cat\tdog\t9\ncat\tred\t2\ncat\tmat\t1\nhen\tdog\t8\nhen\tcow\t7\n")
    flags = ["--analogies", analogies, "--similarity_pairs", pairs, "--nearest_to", "Cat", "red"]
    folder = train(*flags, "--epochs", "20", "--alpha", "0.1", "--sample", "0")
    record = RunRecord.load(folder)
    metrics, said = record.metrics, capsys.readouterr().out
    assert record.status == "done" and record.versions["gensim"]
    assert metrics["analogies"]["n"] == metrics["analogies"]["unknown"] == 1
    assert metrics["similarity_pairs"]["unknown"] == 1 and "of 4 questions; 1 more" in said
    assert json.loads((folder / "questions.json").read_text()).keys() == {
        "analogies",
        "similarity_pairs",
    }
    # Before training u is 0, so each of the words is log 2, but draws of the word itself, which do not count.
    losses = [row["eval_loss"] for row in read_jsonl(folder / "metrics.jsonl")]
    assert len(losses) == 21 and losses[-1] == pytest.approx(metrics["eval_loss"], abs=1e-5)
    assert (5 * math.log(2)) < losses[0] <= 6 * math.log(2) and losses[-1] < losses[0] - 0.3
    samples = read_jsonl(folder / "samples.jsonl")
    assert [sample["word"] for sample in samples] == ["cat", "red"]
    for name in ("words", "curves"):
        assert (folder / "plots" / f"{name}.png").is_file()
    card = card_text(folder)
    assert "pipeline_tag: feature-extraction" in card and "prejudices" in card
    code = card.split("```python\n")[1].split("```")[0]
    exec(code.replace('path = "vectors"', f"path = {str(folder)!r}"), {})
    assert capsys.readouterr().out.startswith("the ['the',")


def test_the_same_seed_gives_the_same_vectors(train):
    first, second = (load_vectors(str(train(name=name))).vectors for name in "ab")
    assert torch.equal(first, second)
    other = load_vectors(str(train("--seed", "1", name="c"))).vectors
    assert not torch.equal(first, other)


def test_bad_input_is_refused_before_training(train, refuse_one, tmp_path):
    assert "only 0 of the 12 words" in refuse_one("--min_count", "99")
    assert "architecture='glove': use skipgram or cbow" in refuse_one("--architecture", "glove")
    assert "'horse' has no vector" in refuse_one("--nearest_to", "horse")
    assert "vector_size" in refuse_one("--vector_size", "0")
    assert "learning_rate" in refuse_one("--learning_rate", "0.1")
    questions = tmp_path / "questions.txt"
    questions.write_text("a b c\n")
    assert "3 words" in refuse_one("--analogies", questions)
    questions.write_text("red blue cat horse\n")
    assert "each of the 1 lines" in refuse_one("--analogies", questions)
    signs = tmp_path / "empty.txt"
    signs.write_text("\u200b\n")
    assert "error: " in refuse_one("--dataset_name", signs, "--eval_fraction", "0")


@pytest.fixture
def refuse_one(train, capsys, tmp_path):
    """f(*flags): what the recipe says as it leaves with exit code 2 and without a folder."""

    def refuse_one(*flags) -> str:
        with pytest.raises(SystemExit) as left:
            train(*flags, name="refused")
        assert left.value.code == 2 and not (tmp_path / "refused").exists()
        return capsys.readouterr().err

    return refuse_one


@pytest.mark.parametrize("step", ["measure", "show_nearest", "draw"])
def test_an_error_after_the_training_loses_no_vectors(
    train, recipe_module, monkeypatch, tmp_path, step
):
    expected = load_vectors(str(train("--epochs", 1, name="whole")))
    module = recipe_module("word_vectors")

    def broken(*args):
        raise RuntimeError("a defect after the training")

    monkeypatch.setattr(module, step, broken)
    with pytest.raises(RuntimeError, match="a defect"):
        train("--epochs", 1, module=module, name="broken")
    saved = load_vectors(str(tmp_path / "broken"))
    assert torch.equal(saved.vectors, expected.vectors) and saved.words == expected.words


def test_gensim_that_is_missing_is_named(refuse_one, monkeypatch):
    for name in ("gensim", "gensim.models"):
        monkeypatch.setitem(sys.modules, name, None)
    assert 'pip install "rlhf[ladder]"' in refuse_one()


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [("pretrain", "--model_type gru --block_size 8"), ("classification", "--model_type lstm")],
)
def test_a_model_starts_from_the_vectors(
    train, recipe_module, make_tokenizer, tmp_path, text, recipe, flags
):
    folder = train()
    tokenizer = make_tokenizer([*WORDS, "cow"], "gpt2")
    tokenizer.save_pretrained(tmp_path / "words")
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text, "label": text.split()[1]}) for text in TEXTS]
    rows.write_text("\n".join(lines))
    data = rows if recipe == "classification" else text
    # With a learning rate of 0 the saved weights are the first ones.
    words = [
        "--dataset_name",
        data,
        "--tokenizer_name_or_path",
        tmp_path / "words",
        "--max_steps",
        "1",
    ]
    words += ["--output_dir", tmp_path / "run", "--embeddings_from", folder, "--learning_rate", "0"]
    words += [*SCRATCH, *flags.split(), "--use_cpu", "true", "--save_strategy", "no"]
    start(recipe_module(recipe).main, "", list(map(str, words)))
    vectors = load_vectors(str(folder))
    weight = load_file(tmp_path / "run" / "model.safetensors")["model.embeddings.weight"]
    for word in WORDS:
        row = weight[tokenizer.convert_tokens_to_ids(word)]
        torch.testing.assert_close(row, vectors.vectors[vectors.find(word)], rtol=0, atol=0)
    assert weight[tokenizer.convert_tokens_to_ids("cow")].abs().sum() > 0
    record = RunRecord.load(tmp_path / "run")
    assert record.parents["word_vectors"]["sha256"] == RunRecord.load(folder).weights["sha256"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("pretrain --from_scratch true --model_type lstm --hidden_size 16", "have 8 numbers"),
        ("classification --from_scratch true --model_type gru --hidden_size 16", "have 8 numbers"),
        ("pretrain --from_scratch true --model_type ngram", "counted in one pass"),
        ("classification", "set from_scratch: true"),
    ],
)
def test_vectors_that_a_model_cannot_start_from_are_refused(
    train, recipe_module, make_tokenizer, tmp_path, capsys, command, said
):
    folder = train()
    make_tokenizer(WORDS, "gpt2").save_pretrained(tmp_path / "words")
    recipe, *flags = command.split()
    flags += ["--dataset_name", str(tmp_path / "text.txt"), "--embeddings_from", str(folder)]
    flags += ["--tokenizer_name_or_path", str(tmp_path / "words"), "--use_cpu"]
    with pytest.raises(SystemExit) as left:
        start(recipe_module(recipe).main, "", [*flags, "--output_dir", str(tmp_path / "run")])
    assert left.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
