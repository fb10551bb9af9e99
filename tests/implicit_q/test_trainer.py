"""ILQLTrainer on a tiny model: which weights move, that it learns more than its data do, and its loss by hand."""

import pytest
import torch

from rlhf.completions.sample import decode, uniform_numbers
from rlhf.data.padding import left_pad
from rlhf.direct_preference.trainer import Sampling
from rlhf.implicit_q.config import ILQLConfig
from rlhf.implicit_q.rows import collate_scored
from rlhf.implicit_q.trainer import MEASURED, ILQLTrainer, sample_names
from rlhf.models.action_values import ActionValueHeads, guided
from rlhf.models.lora import add_lora

DEFAULTS = dict(
    per_device_train_batch_size=5, per_device_eval_batch_size=4, max_steps=4, report_to="none", use_cpu=True,
    disable_tqdm=True, logging_steps=1, save_strategy="no", seed=1, learning_rate=1e-2, bf16=False, gamma=1.0,
    gradient_checkpointing=False,
)  # fmt: skip
B, C, D, E, EOS = 3, 4, 5, 6, 0
# What begins with b is worse on average, (1 x 1 + 2 x 0) / 3, than what begins with c. The best answer begins with b.
ANSWERS = [
    ([B, D, EOS], 1.0),
    ([B, E, EOS], 0.0),
    ([B, E, EOS], 0.0),
    ([C, D, EOS], 0.5),
    ([C, E, EOS], 0.5),
]


def rows(count=1):
    made = []
    for completion, score in ANSWERS * count:
        row = {"prompt_ids": [2], "completion_ids": completion, "score": score, "prompt": "a"}
        made.append(row)
    return made


@pytest.fixture
def make(tokenizer, make_policy, tmp_path):
    def make(*, lora=False, policy=None, **settings) -> ILQLTrainer:
        policy = policy or make_policy(tokenizer, factor=2.0, seed=1)
        torch.manual_seed(0)
        heads = ActionValueHeads(16, policy.get_output_embeddings().out_features)
        if lora:
            policy = add_lora(policy, rank=2, alpha=4, task="CAUSAL_LM")
        return ILQLTrainer(
            policy=policy,
            heads=heads,
            tokenizer=tokenizer,
            args=ILQLConfig(output_dir=str(tmp_path / "run"), **DEFAULTS | settings),
            train_rows=rows(),
            eval_rows=rows(),
            sampling=Sampling([{"prompt": "a"}, {"prompt": "b"}], 4),
        )

    return make


# ---- learning ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def shares(trainer: ILQLTrainer, coef: float, count=200) -> dict[tuple, float]:
    """Completion -> its share among sampled ones."""
    prompts, mask = left_pad([[2]] * count, 0)
    model = trainer.model.eval()
    with guided(model.policy, model.heads, coef):
        sampled = decode(
            model.policy,
            prompts,
            mask,
            stop_token_ids=(EOS,),
            max_completion_length=4,
            temperature=1.0,
            uniforms=uniform_numbers(count, 4, seed=3, stream=0),
        )
    texts = [tuple(ids[keep].tolist()) for ids, keep in zip(sampled.ids, sampled.mask, strict=True)]
    return {text: texts.count(text) / count for text in set(texts)}


@pytest.mark.slow
def test_it_puts_the_best_answer_together_where_cloning_repeats_the_data(make):
    """The policy clones: b d a fifth of the time. An upper expectile sees that b can go on well; the mean does not."""
    flags = dict(max_steps=400, target_update_rate=0.1, cql_coef=0.01, logging_steps=400)
    best = make(expectile=0.95, **flags)
    best.train()
    cloned = shares(best, 0.0)
    assert cloned[B, D, EOS] == pytest.approx(0.2, abs=0.08)
    assert cloned[B, E, EOS] == pytest.approx(0.4, abs=0.1)
    assert shares(best, 20.0)[B, D, EOS] > 0.95
    mean = make(expectile=0.5, **flags)
    mean.train()
    by_first = shares(mean, 20.0)
    assert sum(share for text, share in by_first.items() if text[0] == C) > 0.9


def test_an_evaluation_gives_every_metric_that_it_promises(make):
    trainer = make()
    metrics = trainer.evaluate()
    expected = {f"eval_{name}" for name in (*MEASURED, *sample_names(trainer.sampling))}
    assert set(metrics) - {"epoch"} == expected
    # Fresh heads know nothing and guide nothing.
    assert metrics["eval_q_correlation"] == 0 and metrics["eval_kl"] == 0
    assert metrics["eval_q_loss"] == pytest.approx(2 * (1.0 + 0.25 + 0.25) / 15)
    assert metrics["eval_cql_loss"] == pytest.approx(
        2 * torch.tensor(float(trainer.model.heads.vocabulary)).log().item(), rel=1e-5
    )


# ---- weights -----------------------------------------------------------------------------------------------------


def changed(trainer) -> set[str]:
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return {
        name
        for name, parameter in trainer.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }


CASES = {
    "all": {},
    "lora": {"lora": True},
    "heads alone": {"nll_coef": 0.0, "values_move_trunk": False},
    "not through the values": {"values_move_trunk": False},
}
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("lora", "not through the values")]


@pytest.mark.parametrize("case", ["all", "heads alone", *SLOW])
def test_every_trainable_parameter_moves_and_no_other_but_the_copies_of_q(make, case):
    trainer = make(max_steps=6, **CASES[case])
    names = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    copies = {name for name, _ in trainer.model.named_parameters() if "target_quality" in name}
    assert changed(trainer) == names | copies
    is_policy = {name for name in names if name.startswith("policy.")}
    if case == "heads alone":
        assert not is_policy
    if case == "lora":
        assert is_policy and all("lora_" in name for name in is_policy)


def test_the_values_do_not_move_the_trunk_where_they_are_told_not_to(make):
    trainer = make(values_move_trunk=False)
    inputs = collate_scored(rows(), 0)
    losses = trainer.token_losses(trainer.model, inputs)
    (losses["q"] + losses["v"] + losses["cql"]).sum().backward()
    assert all(p.grad is None for p in trainer.model.policy.parameters())


@pytest.mark.slow
def test_batches_of_a_step_equal_one_batch(make, tokenizer, make_policy):
    """Answers of different lengths: each token weighs the same."""
    weights = []
    for size, steps in ((4, 1), (1, 4), (2, 2)):
        trainer = make(
            per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=2,
            optim="sgd", learning_rate=0.1, policy=make_policy(tokenizer, factor=2.0, seed=1),
        )  # fmt: skip
        trainer.train_dataset[:] = rows()[:4]
        trainer.train_dataset[0] = trainer.train_dataset[0] | {"completion_ids": [B, D, D, EOS]}
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    for other in weights[1:]:
        assert torch.allclose(other, weights[0], atol=1e-5)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_a_policy_that_nothing_keeps_is_refused(tmp_path, refused):
    message = refused(ILQLConfig, output_dir=str(tmp_path), use_cpu=True, nll_coef=0.0)
    assert "values_move_trunk: false" in message


def test_a_metric_that_no_evaluation_gives_is_refused(make, refused):
    options = dict(load_best_model_at_end=True, save_strategy="best", eval_strategy="epoch")
    assert "use one of loss, q_loss" in refused(make, metric_for_best_model="reward", **options)
