"""The models before the Transformer in the rest of the house: policy gradients, the engine, keys, and what is refused."""

import re
import subprocess
import sys
from contextlib import closing

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf.baselines.ngram import NgramForCausalLM, count_windows
from rlhf.baselines.table import BASELINES, baseline_of
from rlhf.completions.sample import decode, uniform_numbers
from rlhf.data.chat import encode_prompt
from rlhf.data.padding import IGNORED
from rlhf.errors import UserError
from rlhf.models.activation_checkpointing import drop_default
from rlhf.models.actor_critic import hidden_before, log_probs_of, token_log_probs
from rlhf.models.load import load_reward_model, reward_model_outline, save
from rlhf.models.lora import add_lora
from rlhf.models.parts import fit_embeddings, trunk_of
from rlhf.models.scratch import new_baseline
from rlhf.runs.card import card_text
from rlhf.runs.record import RunRecord
from rlhf.runs.settings import ModelSettings, parse
from rlhf.serving.engine.batched import can_batch
from rlhf.serving.engine.engine import Engine
from rlhf.serving.engine.requests import SamplingSettings, StreamEnd, TextChunk
from rlhf.tasks.pretraining.bits_per_byte import causal_sums, mean_nats, predicted_bytes

CAUSAL = [name for name, row in BASELINES.items() if row.is_causal()]
NEURAL = [name for name in CAUSAL if BASELINES[name].learns == "gradient"]
RECURRENT = ["rnn", "lstm", "gru"]


def tiny(tokenizer, name: str):
    """A model of 16 units. An n-gram has counted the text a b c d of the word tokenizer, over and over."""
    torch.manual_seed(0)
    model = new_baseline(tokenizer, name, hidden_size=16, layers=1, order=3, dropout=0.0)
    if isinstance(model, NgramForCausalLM):
        model.set_counts(*count_windows([[2, 3, 4, 5, 2, 3, 4, 5, 0]], 3))
    return model.eval()


# ---- policy gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_the_log_probs_of_a_rollout_are_those_it_was_sampled_with(tokenizer, name):
    """Two prompts of different length, so that one is padded on the left and its completion on the right."""
    model = tiny(tokenizer, name)
    ids = torch.tensor([[0, 0, 2], [3, 4, 5]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]]).bool()
    uniforms = uniform_numbers(2, 6, seed=3, stream=0)
    options = dict(stop_token_ids=[0], max_completion_length=6, temperature=1.0)
    sampled = decode(model, ids, mask, uniforms=uniforms, **options)
    hidden = hidden_before(trunk_of(model), ids, mask, sampled.ids, sampled.mask)
    together = log_probs_of(model, token_log_probs, hidden, sampled.ids, sampled.mask, 1.0)
    for row in range(2):
        prompt, completion = ids[row, mask[row]], sampled.ids[row, sampled.mask[row]]
        logits = model(input_ids=torch.cat([prompt, completion]).unsqueeze(0)).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        expected = rows.gather(1, completion.unsqueeze(1)).squeeze(1)
        actual = together[row, : len(completion)]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("ppo", "lstm"), ("rloo", "gru"), ("grpo", "rnn")],
)
def test_policy_gradients_move_every_weight(make_trainer, tokenizer, algorithm, name):
    policy = tiny(tokenizer, name)
    before = {key: value.clone() for key, value in policy.named_parameters()}
    settings = {"algorithm": algorithm, "total_episodes": 16, "epochs_per_rollout": 1}
    if algorithm != "ppo":
        settings |= {"num_generations": 4, "models": {"value_model": None}}
    trainer = make_trainer(policy=policy, **settings)
    trainer.train()
    for key, value in policy.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, before[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", *RECURRENT])
def test_ppo_learns_to_say_c(make_trainer, tokenizer, name):
    rows = [{"prompt": word} for word in "abcdefgh"]
    trainer = make_trainer(
        policy=tiny(tokenizer, name), eval_rows=rows, total_episodes=1024, learning_rate=1e-2
    )
    before = trainer.evaluate()["eval_score"]
    trainer.train()
    assert trainer.evaluate()["eval_score"] > before + 0.5


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_an_ngram_is_refused_where_gradients_train(tokenizer):
    """`fit_embeddings` is the first step of SFT, DPO, KTO and policy gradients on a loaded model."""
    with pytest.raises(
        UserError, match="counted, not trained by gradient steps.*start from an MLP"
    ):
        fit_embeddings(tiny(tokenizer, "ngram"), tokenizer)


def test_an_ngram_is_no_reward_model(tokenizer, tmp_path):
    save(tiny(tokenizer, "ngram"), tokenizer, tmp_path)
    with pytest.raises(UserError, match="no sequence classification model for ngram"):
        reward_model_outline(str(tmp_path))


@pytest.mark.parametrize("name", RECURRENT)
def test_lora_is_refused_by_name(tokenizer, name):
    with pytest.raises(UserError, match=f"{name} models are of another sort"):
        add_lora(tiny(tokenizer, name), task="CAUSAL_LM", rank=2, alpha=4)


def test_lora_trains_an_mlp(tokenizer):
    model = add_lora(tiny(tokenizer, "mlp"), task="CAUSAL_LM", rank=2, alpha=4)
    ids = torch.tensor([[2, 3, 4]])
    model(input_ids=ids, labels=ids).loss.backward()
    trained = [name for name, value in model.named_parameters() if value.grad is not None]
    assert trained and all("lora_" in name for name in trained)


def test_gradient_checkpointing_is_refused_where_asked_for_and_else_dropped(tokenizer, tmp_path):
    from trl import SFTConfig

    model = tiny(tokenizer, "lstm")
    save(model, tokenizer, tmp_path / "lstm")
    assert baseline_of(tmp_path / "lstm") == BASELINES["lstm"] and baseline_of(tmp_path) is None
    places = ["--model_name_or_path", str(tmp_path / "lstm"), "--output_dir", str(tmp_path / "run")]
    classes = [ModelSettings, SFTConfig]
    with pytest.raises(UserError, match="gradient_checkpointing=true has no effect.*no layers"):
        parse(classes, "", [*places, "--gradient_checkpointing", "true"])
    _, args = parse(classes, "", [*places, "--use_cpu", "true"])
    assert args.activation_checkpointing  # trl's default
    said = []
    drop_default(args, model, said.append)
    assert not args.activation_checkpointing and not args.gradient_checkpointing
    assert said == ["no gradient_checkpointing: lstm models have no layers to compute again"]


# ---- the chat ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "ngram"])
def test_the_engine_answers(tokenizer, tmp_path, name):
    """No such state joins a running batch, so the engine takes one request after the other."""
    model = tiny(tokenizer, name)
    save(model, tokenizer, tmp_path)
    assert not can_batch(model)
    prompt = torch.tensor([encode_prompt(tokenizer, "a b")])
    options = dict(stop_token_ids=[0], max_completion_length=5, temperature=1.0)
    sampled = decode(model, prompt, torch.ones_like(prompt).bool(), uniforms=None, **options)
    expected = tokenizer.decode(sampled.ids[0, sampled.mask[0]], skip_special_tokens=True)
    settings = SamplingSettings(temperature=0, max_new_tokens=5)
    with closing(Engine({"run": tmp_path})) as engine:
        *pieces, end = engine.stream("run", [{"role": "user", "content": "a b"}], settings)
    assert isinstance(end, StreamEnd)
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextChunk))
    assert text.strip() == expected.strip()


# ---- the card ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lstm"])
@pytest.mark.parametrize("recipe", ["pretrain", "sft", "reward", "classification"])
def test_the_snippet_runs_in_a_process_of_its_own(tokenizer, tmp_path, recipe, name):
    """Only a new process does not know the model's classes yet."""
    model = tiny(tokenizer, name)
    save(model, tokenizer, tmp_path)
    if recipe in ("reward", "classification"):
        model = load_reward_model(str(tmp_path), new_head=True)
        save(model, tokenizer, tmp_path)
    RunRecord(recipe, status="done").save(tmp_path)
    card = card_text(tmp_path, model_id=str(tmp_path))
    code = re.search(r"^```python\n(.*?)^```", card, flags=re.M | re.S)[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- bits per byte -----------------------------------------------------------------------------------------------


def test_sums_of_nats_are_those_of_the_models_own_loss():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)).eval()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, IGNORED, IGNORED]])
    output = model(input_ids=ids, labels=labels)
    sums = causal_sums(output.logits, labels)
    assert sums[:, 1].tolist() == [3, 1]
    torch.testing.assert_close(mean_nats(sums), output.loss)
    alone = model(input_ids=ids[1:, :2], labels=ids[1:, :2]).loss
    assert sums[1, 0].item() == pytest.approx(alone.item(), abs=1e-5)


def test_bytes_of_the_predicted_tokens(bytes_tokenizer):
    """A letter of two bytes, in a tokenizer with one token per byte; the first token is not predicted, EOS has no bytes."""
    ids = bytes_tokenizer("a\u00e9 a").input_ids
    first = len(bytes_tokenizer.convert_ids_to_tokens(ids)[0])
    row = {"input_ids": torch.tensor([*ids, bytes_tokenizer.eos_token_id])}
    assert predicted_bytes(bytes_tokenizer, [row, row]) == (2 * (5 - first), 0)


def test_unknown_tokens_are_counted(tokenizer):
    ids = tokenizer("a zzz b").input_ids
    count, unknown = predicted_bytes(tokenizer, [{"input_ids": torch.tensor(ids)}])
    assert unknown == 1 and count >= 2
