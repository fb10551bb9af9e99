"""Every causal architecture of transformers is right in every respect, or refused with its reason.

Right means, on a tiny random model with dropout in its config: log-probs and entropy are those of its own logits, and a row
is the same alone and in a batch with padding; greedy completions are those of `generate`, also when rows leave the batch;
scores are those of its own classifier; LoRA and gradient checkpointing train; in a PPO step the first ratio is 1 and every
trainable parameter moves.
"""

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging

from rlhf.completions.sample import decode
from rlhf.models.actor_critic import ActorCritic, ValueHead
from rlhf.models.architectures import ENCODERS, REFUSED
from rlhf.models.load import load_policy
from rlhf.models.logits import describe_logits
from rlhf.models.lora import add_lora
from rlhf.models.parts import disable_dropout, freeze_other_parts, hidden_size
from rlhf.models.scores import score_token_ids

PATH = Path(__file__).with_name("tiny_architectures.py")
SPEC = importlib.util.spec_from_file_location("tiny_architectures", PATH)
tiny = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiny)

NOT_SMALL = {
    "dots3_note": "its config of images cannot be made small; dots3_note_text is its language model",
    "gemma3n": "needs the package timm for its images; gemma3n_text is its language model",
}
SAMPLE = [
    "cohere",
    "gemma2",
    "gpt2",
    "granite",
    "lfm2",
    "llama",
    "mamba",
    "opt",
    "phi",
    "qwen3",
]
RIGHT = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*REFUSED} - {*NOT_SMALL})
CHANGE_LOGITS = ["cohere", "gemma2", "granite"]
# Not used in a pass over plain text.
NEVER_MOVED = {
    "big_bird": ["pooler"],
    "roc_bert": ["pronunciation_embed", "shape_embed"],
}
STOP, PAD = 0, 1
PROMPTS = [[11, 2, 5, 12], [11, 5, 3, 7, 6, 12, 9], [4]]
COMPLETIONS = [[3, 4, 7], [9], [5, 6, 7, 8, 2, 3]]
LENGTH = 8  # of greedy completions


def left_padded(rows):
    width = max(map(len, rows))
    ids = [[PAD] * (width - len(row)) + row for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def batch():
    prompt_ids, prompt_mask = left_padded(PROMPTS)
    # Reversed, a left-padded row is a right-padded one.
    completion_ids, mask = left_padded([row[::-1] for row in COMPLETIONS])
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids.flip(1),
        "mask": mask.flip(1),
    }


@torch.no_grad()
def check_log_probs(policy):
    """A second definition: the log-softmax of the model's logits, row by row, without padding."""
    temperature = 0.7
    outputs = ActorCritic(policy, None).eval()(**batch(), temperature=temperature, entropy=True)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        logits = policy(input_ids=torch.tensor([prompt + completion])).logits[0]
        log_probs = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, -1)
        chosen = log_probs[torch.arange(len(completion)), torch.tensor(completion)]
        possible = log_probs.clamp(min=-1e30)  # 0 * -inf of impossible tokens
        entropy = -(log_probs.exp() * possible).sum(-1)
        count = len(completion)
        torch.testing.assert_close(outputs.log_probs[row, :count], chosen, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs.entropy[row, :count], entropy, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def check_completions(policy):
    """Greedy completions are those of `generate` for each prompt alone, also when one row leaves the batch at once."""
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        generated = policy.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=tiny.VOCABULARY + 1,  # none
            pad_token_id=PAD,
        )
        expected.append(generated[0, len(prompt) :].tolist())
    first = expected[0][0]
    for stop in (tiny.VOCABULARY + 1, first):
        prompt_ids, prompt_mask = left_padded(PROMPTS)
        completions = decode(
            policy,
            prompt_ids,
            prompt_mask,
            stop_token_ids=[stop],
            max_completion_length=LENGTH,
            temperature=1.0,
            uniforms=None,
        )
        for row, tokens in enumerate(expected):
            end = tokens.index(stop) + 1 if stop in tokens else LENGTH
            assert completions.ids[row][completions.mask[row]].tolist() == tokens[:end]


@torch.no_grad()
def check_scores(model_type):
    config = tiny.tiny_config(model_type)
    config.num_labels, config.pad_token_id = 1, PAD  # as `fit_embeddings` sets it
    model = tiny.enlarge_matrices(AutoModelForSequenceClassification.from_config(config))
    rows = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = [model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows]
    scores = score_token_ids(model, rows, pad_token_id=PAD)
    torch.testing.assert_close(scores, torch.stack(expected).float(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def check_dropout(policy):
    """Without dropout, train mode gives what the model gave in evaluation mode."""
    ids = torch.tensor([PROMPTS[1]])
    expected = policy.eval()(input_ids=ids).logits
    disable_dropout(policy).train()
    torch.testing.assert_close(policy(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def check_lora(policy, never_moved):
    model = disable_dropout(add_lora(policy, task="CAUSAL_LM", rank=2, alpha=4)).train()
    if policy.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    outputs = ActorCritic(model, None)(**batch(), temperature=1.0)
    outputs.log_probs.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(part in name for part in never_moved):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def check_ppo_step(policy, make_trainer, never_moved):
    def score(prompts, completions, **columns):
        return [float(i % 3) for i in range(len(completions))]

    trainer = make_trainer(
        "run",
        policy=policy,
        score=score,
        models={"value_model": ValueHead(hidden_size(policy))},
        total_episodes=8,
        rollout_batch_size=8,
        max_completion_length=5,
        epochs_per_rollout=1,
        learning_rate=1e-2,
    )
    before = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and not any(part in name for part in never_moved):
            before[name] = parameter.detach().clone()
    trainer.train()
    errors = [entry.get("first_ratio_error", 0.0) for entry in trainer.state.log_history]
    assert max(errors) < 1e-4
    after = dict(trainer.model.named_parameters())
    unmoved = [name for name in before if torch.equal(after[name], before[name])]
    assert unmoved == []


def tiny_policy(model_type):
    torch.manual_seed(0)
    policy = tiny.tiny_causal_lm(model_type)
    freeze_other_parts(policy)  # as `load_policy` does
    return policy


def check_all(model_type, make_trainer):
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    policy = tiny_policy(model_type)
    check_log_probs(policy)
    check_completions(policy)
    if model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        check_scores(model_type)
    check_dropout(policy)
    never_moved = NEVER_MOVED.get(model_type, [])
    check_lora(tiny_policy(model_type), never_moved)
    check_ppo_step(tiny_policy(model_type), make_trainer, never_moved)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_of_the_architectures_is_right(model_type, make_trainer):
    check_all(model_type, make_trainer)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RIGHT)
def test_an_architecture_is_right(model_type, make_trainer):
    check_all(model_type, make_trainer)


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_refused_architecture_says_its_reason_when_it_is_loaded(model_type, tmp_path, refused):
    config = {"model_type": model_type}
    if model_type == "gemma4_assistant":  # its default config is not valid
        config["text_config"] = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = refused(load_policy, str(tmp_path))
    assert f"a {model_type} model cannot be a policy here" in message
    assert REFUSED[model_type] in message and "such as gpt2" in message


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_is_a_policy_only_where_it_reads_one_way(model_type, tmp_path, refused):
    config = tiny.tiny_config(model_type)
    config.is_decoder = False
    config.save_pretrained(tmp_path)
    assert "reads the tokens that it is to predict" in refused(load_policy, str(tmp_path))


def test_the_tables_name_architectures_that_exist():
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for table in (REFUSED, NOT_SMALL, ENCODERS, NEVER_MOVED):
        assert {*table} <= known


@pytest.mark.parametrize("model_type", CHANGE_LOGITS)
def test_a_model_that_changes_its_logits_is_said_to(model_type):
    message = describe_logits(tiny_policy(model_type))
    assert "changes the logits of its output layer" in message


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_model_that_does_not_keeps_its_output_layer_alone(model_type):
    assert describe_logits(tiny_policy(model_type)) is None


def test_the_tiny_models_have_dropout():
    """Or the first ratio would be 1 by itself."""
    assert (
        tiny.tiny_config("gpt2").attn_pdrop
        == tiny.tiny_config("falcon").hidden_dropout
        == tiny.DROPOUT
    )
