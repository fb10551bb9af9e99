"""recipes/seq2seq.py end to end: words that are written backwards, by models from scratch and by checkpoints."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from rlhf.commands.predict import add_arguments, main
from rlhf.errors import UserError
from rlhf.models.seq2seq import fit_pair_tokenizer, new_seq2seq
from rlhf.runs.card import card_text
from rlhf.runs.record import RunRecord, model_kind
from rlhf.runs.run import start
from rlhf.serving.catalogue import label_models
from rlhf.tasks.seq2seq.predictor import Seq2SeqPredictor

pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")

WORDS = "a b c d e f g h".split()
TINY = (
    "--report_to none --save_strategy no --per_device_train_batch_size 8 --eval_strategy no --logging_steps 5 --precision "
    "fp32 --max_source_length 12 --max_target_length 12 --generation_num_beams 2 --disable_tqdm true"
).split()
LSTM = (
    "--from_scratch true --model_type lstm_seq2seq --hidden_size 16 --layers 1 --dropout 0".split()
)
TRANSFORMER = (
    "--from_scratch true --model_type marian --hidden_size 16 --layers 1 --heads 2 --context 32"
).split()


def pairs(count: int, shift: int = 0) -> list[dict]:
    """Two to four words, and the same words backwards. Sources differ."""
    rows = []
    for n in range(shift, shift + count):
        words = [WORDS[n % 8], WORDS[n // 8 % 8], WORDS[(n + 3) % 8], WORDS[n // 4 % 8]]
        words = words[: 2 + n % 3]
        rows.append({"prompt": " ".join(words), "completion": " ".join(reversed(words))})
    return rows


@pytest.fixture
def train(trainer_of, write):
    data = ["--dataset_name", write("train.jsonl", pairs(64)), "--eval_fraction", "0.2"]
    return trainer_of("seq2seq", WORDS, [*TINY, *data])


def predict(*argv) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert main(parser.parse_args([*map(str, argv), "--device", "cpu"])) == 0


def test_a_run_leaves_scores_pictures_a_card_and_predicts(train, tmp_path, capsys):
    """A table of pairs, an LSTM with attention, one epoch. Nothing is learned, and all files are there."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["english", "korean"])
    writer.writerows([row["prompt"], row["completion"]] for row in pairs(64))
    (tmp_path / "pairs.tsv").write_text(text.getvalue())
    data = ["--dataset_name", str(tmp_path / "pairs.tsv"), "--columns"]
    data += ["prompt=english,completion=korean"]
    folder = train(*data, *LSTM, "--attention", "additive", "--num_train_epochs", "1")
    metrics = RunRecord.load(folder).metrics
    assert 0 <= metrics["chrf_low"] <= metrics["chrf"] <= metrics["chrf_high"] <= 100
    assert metrics["train_rows"] + metrics["eval_rows"] == 64 and metrics["rows_too_long"] == 0
    assert metrics["unknown_target_tokens"] == 0
    report = json.loads((folder / "seq2seq.json").read_text())
    assert sum(group["rows"] for group in report["lengths"]) == metrics["eval_rows"]
    assert "version:" in report["chrf_signature"]
    for item in report["alignments"]:
        for weights in item["weights"]:
            assert len(weights) == len(item["source"]) and sum(weights) == pytest.approx(
                1, abs=1e-3
            )
    pictures = {path.name for path in (folder / "plots").iterdir()}
    assert "lengths.png" in pictures
    assert model_kind(folder) == "seq2seq"

    card = card_text(folder)
    assert "pipeline_tag: text2text-generation" in card and "type: chrf" in card
    assert 'register("lstm_seq2seq")' in card and "python -m rlhf predict" in card
    code = card.split("```python\n")[1].split("```")[0]
    capsys.readouterr()
    exec(code.replace('path = "run"', f"path = {str(folder)!r}"), {})
    printed = capsys.readouterr().out.strip()

    # A file with references, a single text, and the card's code agree.
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in pairs(5)))
    output = tmp_path / "written.jsonl"
    predict(folder, held_out, "--output", output)
    said = capsys.readouterr().out
    assert "chrf_low" in said and "5 rows" in said
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["completion"] for row in rows] == [row["completion"] for row in pairs(5)]
    sample = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    predict(folder, "--text", sample, rows[0]["prompt"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"text": sample, "predicted_completion": printed}
    assert lines[1]["predicted_completion"] == rows[0]["predicted_completion"]
    with pytest.raises(UserError, match="14 tokens, and the model was trained on at most 12"):
        predict(folder, "--text", "a " * 12)
    with pytest.raises(UserError, match="rlhf predict"):
        label_models([folder])


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [*LSTM, "--attention", "multiplicative"],
        [*LSTM, "--attention", "additive"],
        TRANSFORMER,
    ],
    ids=["multiplicative", "additive", "transformer"],
)
def test_learns_to_write_words_backwards(train, write, flags):
    data = ["--dataset_name", write("many.jsonl", pairs(400))]
    sizes = ["--hidden_size", "32", "--dropout", "0"]
    fast = "--learning_rate 1e-2 --num_train_epochs 16 --lr_scheduler_type linear --warmup_steps 20"
    if flags is TRANSFORMER:
        fast += " --learning_rate 5e-3 --num_train_epochs 30"
    folder = train(*flags, *sizes, *data, *fast.split())
    # The Transformer learns it more slowly.
    assert RunRecord.load(folder).metrics["chrf"] > (80 if flags is TRANSFORMER else 90)


# ---- checkpoints that people bring ----


def vocabulary(make_tokenizer):
    """The ids of a tokenizer that is fitted to pairs, as the recipe fits it."""
    tokenizer = make_tokenizer(WORDS)
    fit_pair_tokenizer(tokenizer)
    return tokenizer


def t5(tokenizer):
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def bart(tokenizer):
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = tokenizer.cls_token_id
    return model


def marian(tokenizer):
    config = MarianConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, forced_eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = MarianMTModel(config)
    model.generation_config.bad_words_ids = [[tokenizer.pad_token_id]]
    return model


MAKERS = {"t5": t5, "bart": bart, "marian": marian}


@pytest.fixture(params=MAKERS)
def checkpoint(request, make_tokenizer, tmp_path):
    """(kind, folder) of a tiny model with random weights, as people bring them."""
    tokenizer = vocabulary(make_tokenizer)
    model = MAKERS[request.param](tokenizer).eval()
    folder = tmp_path / request.param
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return request.param, folder


@pytest.fixture
def prepared(recipe_module, checkpoint, write, tmp_path, monkeypatch):
    """What `prepare` makes of the checkpoint, before any step."""
    module, kept = recipe_module("seq2seq"), []
    prepare = module.prepare

    def spy(*arguments):
        kept.append(prepare(*arguments))
        raise UserError("enough")

    monkeypatch.setattr(module, "prepare", spy)
    data = ["--dataset_name", write("rows.jsonl", pairs(40)), "--eval_fraction", "0.3"]
    folders = ["--model_name_or_path", str(checkpoint[1]), "--output_dir", str(tmp_path / "out")]
    more = ["--train_sampling_strategy", "group_by_length", "--per_device_eval_batch_size", "3"]
    with pytest.raises(SystemExit):
        start(module.main, "", [*TINY, "--use_cpu", *data, *folders, *more])
    return kept[0]


def test_a_checkpoint_is_read_written_and_scored_as_its_own_class_does(checkpoint, prepared):
    kind, folder = checkpoint
    trainer, tokenizer = prepared.trainer, prepared.tokenizer
    own = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    config = own.config
    # The loss of the evaluation is the class's own mean over the target tokens of each batch of three rows.
    losses = []
    for row in prepared.rows:
        source = tokenizer(row["prompt"], return_tensors="pt")
        labels = tokenizer(text_target=row["completion"], return_tensors="pt")["input_ids"]
        assert labels[0, -1] == tokenizer.eos_token_id
        # BART's targets begin with <s>, after the </s> that its decoder starts from.
        losses.append((own(**source, labels=labels).loss.item() * labels.shape[1], labels.shape[1]))
    means = []
    for first in range(0, len(losses), 3):
        sums, counts = zip(*losses[first : first + 3])
        means.append(sum(sums) / sum(counts))
    assert len(losses) % 3 == 0
    trainer.args.predict_with_generate = True
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    assert output.metrics["eval_loss"] == pytest.approx(sum(means) / len(means), rel=1e-4)
    # group_by_length would sort these rows: each text must meet its own reference.
    for ids, row in zip(output.label_ids, prepared.rows, strict=True):
        text = tokenizer.decode(ids[ids >= 0], skip_special_tokens=True)
        assert text == row["completion"]

    source = tokenizer(prepared.rows[0]["prompt"], return_tensors="pt")
    expected = own.generate(**source, num_beams=2, max_length=13, do_sample=False)[0].tolist()
    written = [int(token) for token in output.predictions[0]]
    assert written[: len(expected)] == expected and written[0] == config.decoder_start_token_id
    if kind == "bart":
        assert written[1] == tokenizer.cls_token_id  # forced
    if kind == "marian":
        assert trainer.model.generation_config.bad_words_ids == [[tokenizer.pad_token_id]]


def test_label_smoothing_is_of_the_training_alone(prepared):
    """(1 - e) nll + e mean over the vocabulary, per target token."""
    trainer = prepared.trainer
    trainer.args.label_smoothing_factor = 0.25
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    outputs = trainer.model(**batch)
    log_probs, mask = outputs.logits.log_softmax(-1), batch["labels"] >= 0
    chosen = -log_probs.gather(-1, batch["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    even = -log_probs.mean(-1)
    plain = trainer.smoothed_loss(outputs, batch["labels"], mask.sum())
    torch.testing.assert_close(plain, chosen[mask].mean())
    trainer.model.train()
    smoothed = trainer.smoothed_loss(outputs, batch["labels"], mask.sum())
    torch.testing.assert_close(smoothed, 0.75 * chosen[mask].mean() + 0.25 * even[mask].mean())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--use_peft", "true"]], ids=["whole", "lora"])
def test_a_checkpoint_is_trained_saved_and_loaded(train, checkpoint, flags):
    _, folder = checkpoint
    before = load_file(folder / "model.safetensors")
    run = train("--model_name_or_path", str(folder), "--num_train_epochs", "1", *flags)
    after = load_file(run / "model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and before.keys() == after.keys()
    AutoModelForSeq2SeqLM.from_pretrained(run)
    assert len(Seq2SeqPredictor(run).predict([{"text": "a b"}, {"prompt": "c"}])) == 2


def test_a_transformer_from_scratch_has_the_sines_of_its_paper(make_tokenizer, tmp_path):
    """PE(pos, i) = sin(pos / 10000^(2i/d)), and cosines in the second half; they survive saving."""
    tokenizer = vocabulary(make_tokenizer)
    sizes = dict(hidden_size=8, layers=1, heads=2, context=6, dropout=0.0, attention=None)
    model = new_seq2seq(tokenizer, "marian", **sizes)
    position = torch.arange(6.0).unsqueeze(1)
    angles = position / 10000 ** (torch.arange(4) * 2 / 8)
    expected = torch.cat([angles.sin(), angles.cos()], dim=1)
    model.save_pretrained(tmp_path)
    for version in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        for part in (version.model.encoder, version.model.decoder):
            torch.testing.assert_close(part.embed_positions.weight.data, expected)
    assert model.config.decoder_start_token_id != tokenizer.eos_token_id


# ---- refusals ----


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--attention additive", "attention"),
        ("--model_type lstm", "model_type='lstm': use one of lstm_seq2seq, marian"),
        ("--bleu_tokenize ja-mecab", "bleu_tokenize='ja-mecab': use one of"),
        ("--eval_fraction 0", "set eval_fraction or eval_dataset_name"),
        ("--max_source_length 2", "no training pair fits max_source_length=2"),
        ("--use_peft true", "set one of the two to false"),
        (
            "--metric_for_best_model chrf --load_best_model_at_end true",
            "metric_for_best_model=chrf: use one of loss",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(failing, flags, said):
    assert said in failing(*TRANSFORMER, *flags.split())


def test_other_models_and_rows_are_refused(failing, write, tmp_path):
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    MBartConfig().save_pretrained(tmp_path / "mbart")
    said = failing("--model_name_or_path", str(tmp_path / "gpt2"))
    assert "not an encoder-decoder" in said and "recipes/sft.py" in said
    assert "the rows do not say them" in failing("--model_name_or_path", str(tmp_path / "mbart"))
    messages = [{"role": "user", "content": "a"}]
    talk = write("talk.jsonl", [{"prompt": messages, "completion": "b"}] * 4)
    assert "a list of messages is for recipes/sft.py" in failing(*LSTM, "--dataset_name", talk)


def test_a_missing_package_is_named(failing, monkeypatch):
    monkeypatch.setattr("rlhf.tasks.seq2seq.metrics.is_installed", lambda: False)
    assert 'pip install "rlhf[ladder]"' in failing(*LSTM)


# ---- resuming, two processes ----


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[*LSTM, "--attention", "additive"], TRANSFORMER])
def test_a_resumed_run_equals_the_uninterrupted_one(train, flags):
    steps = "--save_strategy steps --save_steps 3 --max_steps 9 --save_total_limit 3 --dropout 0.2"
    steps += " --train_sampling_strategy group_by_length --label_smoothing_factor 0.1"
    folder = train(*flags, *steps.split())
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for path in (folder / "checkpoint-9").iterdir():
        path.unlink()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    train(*flags, *steps.split(), "--resume_from_checkpoint", "true")
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert RunRecord.load(folder).metrics["chrf"] == record["metrics"]["chrf"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[*LSTM, "--attention", "multiplicative"], TRANSFORMER])
def test_two_processes_train_what_one_does(launch_two, train, write, flags):
    """Batches of 2 x 4 are a batch of 8, and every held-out pair is written once."""
    data = ["--dataset_name", write("train.jsonl", pairs(64)), "--eval_fraction", "0.2"]
    more = [*TINY, *flags, *data, "--max_steps", "6", "--dropout", "0", "--learning_rate", "1e-2"]
    one = train(*more)
    two = launch_two("seq2seq", WORDS, *more, "--use_cpu", "--per_device_train_batch_size", "4")
    first, second = (load_file(Path(run) / "model.safetensors") for run in (one, two))
    for name in first:
        if "k_proj.bias" in name:  # has no gradient but rounding, which Adam makes as large as any
            continue
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-3)
    ours, theirs = (RunRecord.load(run).metrics for run in (one, two))
    assert ours["eval_rows"] == theirs["eval_rows"]
    # A mean of the batches' means: the last one of two processes is filled with rows of the beginning.
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=0.01)
    assert ours["chrf"] == pytest.approx(theirs["chrf"], abs=0.5)
