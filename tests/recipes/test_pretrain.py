import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from rlhf.baselines.table import register
from rlhf.errors import UserError
from rlhf.models.load import load_encoder
from rlhf.runs.card import front_matter
from rlhf.runs.record import RunRecord, read_jsonl

LETTERS = "a b c d e f g h".split()
TINY = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 32 --block_size 32 --report_to none".split()
TINY += "--per_device_train_batch_size 8 --logging_steps 5 --bf16 false".split()


def from_documents(path: Path, documents: list[str]) -> list[str]:
    """The flags for these documents."""
    path.write_text("\n<|endoftext|>\n".join(dict.fromkeys(documents)), encoding="utf-8")
    return ["--dataset_name", str(path), "--document_separator", "<|endoftext|>"]


@pytest.fixture
def stories(tmp_path):
    """Documents of one to five lines in which the alphabet runs on from a random letter, forwards or backwards."""
    draw = random.Random(0)

    def line(step: int) -> str:
        start, length = draw.randrange(8), draw.randint(4, 9)
        return " ".join(LETTERS[(start + step * i) % 8] for i in range(length))

    steps = [draw.choice((1, -1)) for _ in range(120)]
    return from_documents(
        tmp_path / "stories.txt",
        ["\n".join(line(s) for _ in range(draw.randint(1, 5))) for s in steps],
    )


@pytest.fixture
def train(trainer_of):
    return trainer_of("pretrain", LETTERS, TINY)


LEARN = "--learning_rate 3e-3 --num_train_epochs 2 --hidden_size 64 --heads 4 --dropout 0 --seed 3".split()


@pytest.mark.slow
def test_masked_learns_that_a_text_repeats_one_letter_and_can_be_fine_tuned(
    train, tmp_path, capsys
):
    stories = from_documents(
        tmp_path / "same.txt", [" ".join([x] * n) for x in LETTERS for n in range(5, 30)]
    )
    folder = train(
        "--objective", "masked", *stories, *LEARN, "--eval_fraction", "0.2", "--whole_words", "true"
    )
    metrics = RunRecord.load(folder).metrics
    assert metrics["masked_accuracy"] > metrics["masked_baseline"] + 0.4
    assert metrics["perplexity"] < 5 and metrics["eval_rows"] > 0
    assert "nsp_accuracy" not in metrics
    curve = [
        line["eval_masked_loss"]
        for line in read_jsonl(folder / "metrics.jsonl")
        if "eval_loss" in line
    ]
    assert len(curve) == 3 and curve[-1] < curve[0]  # after each epoch, and the best once more
    samples = read_jsonl(folder / "samples.jsonl")
    assert samples and all(
        "[?]" in sample["text"] and sample["word"] in LETTERS for sample in samples
    )
    assert (
        sum(sample["filled"].split(", ")[0] == sample["word"] for sample in samples)
        >= len(samples) / 2
    )
    reader, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForMaskedLM.from_pretrained(folder).eval(),
    )
    inputs = reader("g g g [MASK] g g g g", return_tensors="pt")
    assert reader.decode(model(**inputs).logits[0, 4].argmax()) == "g"
    assert front_matter(folder, RunRecord.load(folder))["pipeline_tag"] == "fill-mask"
    tuned = load_encoder(
        str(folder), "AutoModelForSequenceClassification", labels=["x", "y"], new_head=True
    )
    assert not any(name.startswith("bert.e") for name in tuned.new_weights)
    assert "missing keys" not in capsys.readouterr().err


@pytest.mark.slow
def test_masked_nsp_folder_loads_with_both_heads_and_goes_on(train, stories, capsys):
    flags = ["--objective", "masked_nsp", *stories, "--max_steps", "3", "--eval_fraction", "0.2"]
    folder = train(*flags)
    metrics = RunRecord.load(folder).metrics
    assert metrics["masked_loss"] == pytest.approx(2.5, abs=1) and 0 <= metrics["nsp_accuracy"] <= 1
    assert metrics["nsp_baseline"] >= 0.5 and metrics["eval_loss"] > metrics["masked_loss"]
    model, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and type(model).__name__ == "BertForPreTraining"
    _, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert "AutoModelForMaskedLM" in (folder / "README.md").read_text()
    capsys.readouterr()
    further = train(
        *flags, "--from_scratch", "false", "--model_name_or_path", str(folder), name="further"
    )
    assert "random at first" not in capsys.readouterr().out
    assert RunRecord.load(further).parents["base"]["name"] == str(folder)


def test_a_checkpoint_without_the_head_is_continued_and_that_is_said(
    train, stories, tmp_path, capsys
):
    config = BertConfig(
        vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    base = BertModel(config)
    base.save_pretrained(tmp_path / "base")
    flags = [
        "--from_scratch",
        "false",
        "--model_name_or_path",
        str(tmp_path / "base"),
        "--objective",
        "masked",
    ]
    folder = train(*flags, *stories, "--max_steps", "1", "--learning_rate", "0")
    out = capsys.readouterr().out
    assert (
        "so random at first: cls.predictions" in out
        and "bert." not in out.split("random at first:")[1].split("\n")[0]
    )
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(
        load_file(folder / "model.safetensors")[f"bert.{words}"], base.state_dict()[words]
    )


@pytest.mark.parametrize(
    "objective", [pytest.param("masked", marks=pytest.mark.slow), "masked_nsp", "causal"]
)
@pytest.mark.slow
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_the_same(train, stories, objective):
    kind = "gpt2" if objective == "causal" else "bert"
    flags = [
        *stories,
        "--objective",
        objective,
        "--eval_fraction",
        "0",
        "--learning_rate",
        "1e-2",
        "--dropout",
        "0.2",
    ]
    flags += (
        "--num_train_epochs 2 --save_strategy steps --save_steps 20 --save_total_limit 9".split()
    )
    whole = train(*flags, kind=kind)
    steps = json.loads((whole / "checkpoint-20" / "trainer_state.json").read_text())
    assert (
        steps["epoch"] % 1 and steps["max_steps"] > 20
    )  # in the middle of an epoch, and not the end
    resumed = train(
        *flags, "--resume_from_checkpoint", str(whole / "checkpoint-20"), kind=kind, name="resumed"
    )
    first, second = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    begun = load_file(whole / "checkpoint-20" / "model.safetensors")
    assert not all(torch.equal(first[name], begun[name]) for name in first)


def test_causal_blocks_within_documents(train, stories):
    flags = [*stories, "--max_steps", "2", "--eval_fraction", "0.2", "--save_strategy", "no"]
    apart, across = (
        train(*flags, kind="gpt2"),
        train(*flags, "--cross_documents", "true", kind="gpt2", name="across"),
    )
    AutoModelForCausalLM.from_pretrained(apart)
    apart, across = RunRecord.load(apart).metrics, RunRecord.load(across).metrics
    assert across["train_tokens"] % 32 == 0 and apart["train_tokens"] >= across["train_tokens"] - 1
    assert apart["perplexity"] > 1


def test_bad_input_is_one_line_and_exit_code_2(failing, train, stories, tmp_path):
    def fails(*flags, **options):
        return failing(*flags, name=f"run{len(list(tmp_path.iterdir()))}", **options)

    masked = ["--objective", "masked"]
    assert "has no pad_token, cls_token, sep_token, mask_token" in fails(
        *masked, *stories, kind="gpt2"
    )
    assert "has no eos_token" in fails(*stories)
    assert "objective='mlm': use one of causal, masked, masked_nsp" in fails(
        "--objective", "mlm", *stories
    )
    assert "model_type='gpt2': use one of bert" in fails(*masked, *stories, "--model_type", "gpt2")
    assert "block_size=64 is over the model's context of 32 tokens" in fails(
        *masked, *stories, "--block_size", "64"
    )
    assert "give a row at least 8 tokens" in fails(*masked, *stories, "--block_size", "4")
    assert "unknown key 'max_length'" in fails(*masked, *stories, "--max_length", "4")
    assert "use_peft" in fails(*masked, *stories, "--use_peft", "true")
    assert "whole_words: needs a masked" in fails(*stories, "--whole_words", "true", kind="gpt2")
    nsp = ["--objective", "masked_nsp"]
    assert "drawn within documents" in fails(*nsp, *stories, "--cross_documents", "true")
    (tmp_path / "one.txt").write_text("a b c\nd e f\n", encoding="utf-8")
    one = ["--dataset_name", str(tmp_path / "one.txt"), "--eval_fraction", "0"]
    across = ["--cross_documents", "true"]
    assert "training text is shorter than one block of 32 tokens" in fails(
        *one, *across, kind="gpt2"
    )
    assert "the file has no line '###'" in fails(*masked, *one, "--document_separator", "###")
    assert "each is one: use objective: masked" in fails(*nsp, *one)
    assert "here is one" in fails(*nsp, *stories, "--dataset_limit", "1", "--eval_fraction", "0")
    gpt2 = train(
        *stories, "--max_steps", "1", "--save_strategy", "no", kind="gpt2", name="gpt2-run"
    )
    other = ["--from_scratch", "false", "--model_name_or_path", str(gpt2)]
    assert "ids are other tokens" in fails(*masked, *stories, *other)
    AutoTokenizer.from_pretrained(tmp_path / "bert").save_pretrained(gpt2)  # the remedy
    wrong = fails(*masked, *stories, *other)
    assert "cannot be loaded as AutoModelForMaskedLM" in wrong
    assert "label_smoothing_factor is for one label" in fails(
        *masked, *stories, "--label_smoothing_factor", "0.1"
    )
    stop = ["--early_stopping_patience", "1", "--eval_fraction", "0"]
    assert "there are no evaluation rows" in fails(*masked, *stories, *stop)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["masked", "masked_nsp"])
def test_two_processes_measure_what_one_does(train, launch_two, stories, objective):
    flags = [
        *stories,
        "--objective",
        objective,
        "--max_steps",
        "2",
        "--learning_rate",
        "0",
        "--eval_fraction",
        "0.3",
    ]
    flags += ["--per_device_eval_batch_size", "3", "--save_strategy", "no"]
    alone = RunRecord.load(train(*flags)).metrics
    both = RunRecord.load(launch_two("pretrain", LETTERS, *TINY, *flags)).metrics
    for name in (
        "masked_loss",
        "masked_accuracy",
        "masked_baseline",
        "nsp_accuracy",
        "nsp_baseline",
    ):
        assert both.get(name) == pytest.approx(alone.get(name), abs=1e-5), name


def test_stories_are_documents(real_data):
    from rlhf.data.load import load_rows

    path = real_data("tinystories/tinystories_2mb.txt.gz")
    rows = load_rows(path, kinds=("text",), separator="<|endoftext|>").rows
    assert len(rows) == 2317 and not any("endoftext" in row["text"] for row in rows)
    assert sum("\n" in row["text"] for row in rows) > 2000


SMALL = "--from_scratch true --block_size 32 --report_to none --bf16 false".split()


@pytest.mark.slow
@pytest.mark.parametrize("carried", ["false", "true"])
def test_an_lstm_resumed_in_the_middle_of_an_epoch_ends_the_same(trainer_of, stories, carried):
    train = trainer_of("pretrain", LETTERS, SMALL)
    flags = [*stories, *"--model_type lstm --hidden_size 16 --layers 2 --dropout 0.2".split()]
    flags += ["--carry_state", carried, "--cross_documents", carried, "--block_size", "8"]
    flags += "--eval_fraction 0 --learning_rate 1e-2 --num_train_epochs 2 --save_steps 20".split()
    flags += "--save_strategy steps --per_device_train_batch_size 8 --save_total_limit 9".split()
    whole = train(*flags, kind="gpt2")
    begun = whole / "checkpoint-20"
    assert json.loads((begun / "trainer_state.json").read_text())["epoch"] % 1
    resumed = train(*flags, "--resume_from_checkpoint", str(begun), kind="gpt2", name="resumed")
    first, second = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = load_file(begun / "model.safetensors")
    assert not all(torch.equal(first[name], before[name]) for name in first)


@pytest.mark.slow
def test_two_processes_count_the_n_grams_of_one(trainer_of, launch, stories, tmp_path):
    flags = [*stories, *"--model_type ngram --order 3 --eval_fraction 0.3 --use_cpu".split()]
    alone = trainer_of("pretrain", LETTERS, SMALL)(*flags, kind="gpt2")
    both = tmp_path / "two"
    places = ["--tokenizer_name_or_path", tmp_path / "gpt2", "--output_dir", both]
    launch(Path("recipes/pretrain.py"), *SMALL, *flags, *places, layout="ddp_cpu")
    first, second = load_file(alone / "model.safetensors"), load_file(both / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = ("bits_per_byte", "grams", "train_tokens")
    one, two = RunRecord.load(alone).metrics, RunRecord.load(both).metrics
    assert [one[name] for name in names] == pytest.approx([two[name] for name in names], rel=1e-6)


def test_carried_states_are_used_by_training_and_evaluation(trainer_of, tmp_path):
    """The losses are those of each stream of the text read in one piece; no block's first token is predicted."""
    train = trainer_of("pretrain", LETTERS, SMALL)
    draw, texts, flags = random.Random(0), {}, "--model_type gru --hidden_size 16".split()
    for name in ("dataset_name", "eval_dataset_name"):
        texts[name] = " ".join(draw.choice(LETTERS) for _ in range(8 * 11))
        (tmp_path / name).with_suffix(".txt").write_text(texts[name])
        flags += [f"--{name}", str(tmp_path / f"{name}.txt")]
    flags += "--layers 1 --dropout 0 --cross_documents true --carry_state true".split()
    flags += "--per_device_train_batch_size 2 --per_device_eval_batch_size 3 --max_steps 6".split()
    flags += "--block_size 8 --learning_rate 0 --logging_steps 1 --save_strategy no".split()
    folder = train(*flags, kind="gpt2")
    register("gru")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def losses(name: str, streams: int):
        """Of each batch, whose rows are blocks of `streams` equal parts of the text."""
        ids, batches = torch.tensor(tokenizer(texts[name]).input_ids), 11 // streams
        parts = ids[: streams * batches * 8].view(streams, -1)
        with torch.no_grad():
            log_probs = model(input_ids=parts).logits[:, :-1].log_softmax(-1)
        picked = log_probs.gather(2, parts[:, 1:, None]).squeeze(2)  # (streams, batches * 8 - 1)
        padded = torch.nn.functional.pad(picked, (1, 0)).view(streams, batches, 8)
        return -padded[:, :, 1:].mean((0, 2))

    logged = [line["loss"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]
    expected = losses("dataset_name", 2)
    assert logged == pytest.approx([*expected.tolist(), expected[0].item()], abs=1e-4)
    metrics = RunRecord.load(folder).metrics
    assert metrics["eval_loss"] == pytest.approx(
        losses("eval_dataset_name", 2).mean().item(), abs=1e-4
    )
    assert metrics["eval_rows"] == 10 and metrics["train_tokens"] == 80


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model_type gpt2 --cross_documents true", "a gpt2 model has no recurrent state"),
        ("--cross_documents true", "a Transformer model has no recurrent state"),
        ("--model_type lstm", "set cross_documents to true"),
    ],
)
def test_a_state_that_cannot_be_carried_is_refused(trainer_of, stories, capsys, flags, said):
    with pytest.raises(SystemExit):
        trainer_of("pretrain", LETTERS, SMALL)(*stories, "--carry_state", "true", *flags.split())
    assert said in capsys.readouterr().err


def test_carried_states_are_for_one_process(recipe_module):
    settings = SimpleNamespace(
        carry_state=True, from_scratch=True, model_type="lstm", cross_documents=True
    )
    with pytest.raises(UserError, match="2 processes would read other streams than one"):
        recipe_module("pretrain").check_carries_state(settings, SimpleNamespace(world_size=2))
