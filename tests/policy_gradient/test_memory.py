"""The memory plan of a run before it starts."""

from rlhf.policy_gradient import memory
from rlhf.policy_gradient.memory import estimate_run_memory, plan_memory


def test_a_run_that_fits_samples_all_rows_at_once(make_trainer):
    trainer = make_trainer()
    table = plan_memory(trainer)
    assert trainer.args.per_device_sampling_batch_size >= trainer.args.rollout_batch_size
    assert "at a time" not in table.replace("at one time", "") and "keys and values" in table


def test_a_run_that_does_not_fit_samples_fewer_rows_at_a_time(make_trainer, monkeypatch):
    trainer = make_trainer()
    whole = estimate_run_memory(trainer)
    # The optimizer's moments, and room for half of the rollout
    free = whole.optimizer + whole.rollout_total // 2
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    said = plan_memory(trainer)
    rows = trainer.args.per_device_sampling_batch_size
    assert 1 <= rows < memory.rows_per_process(trainer)
    assert f"{rows} of {memory.rows_per_process(trainer)} completions are sampled at a time" in said
    assert estimate_run_memory(trainer).rollout_total <= whole.rollout_total // 2
    trainer.train()  # the rollouts are made so


def test_a_number_that_is_given_is_kept(make_trainer):
    trainer = make_trainer(per_device_sampling_batch_size=1)
    plan_memory(trainer)
    assert trainer.args.per_device_sampling_batch_size == 1
    assert estimate_run_memory(trainer).sampling_batch == 1


def test_a_sampling_batch_of_nothing_is_refused(make_trainer, refused):
    assert "at least 1" in refused(make_trainer, per_device_sampling_batch_size=0)


def test_plain_texts_are_counted(make_trainer):
    texts = [[2, 3, 0], [4, 5, 6, 7, 8, 0], [9, 0]]
    with_texts = make_trainer(ptx_coef=0.5, ptx_per_episode=4, models={"texts": texts})
    without = make_trainer()
    more = estimate_run_memory(with_texts).update["activations"]
    more -= estimate_run_memory(without).update["activations"]
    config = with_texts.roles.policy.config
    rows = with_texts.args.per_device_train_batch_size * 4
    per_layer = 72 * config.hidden_size
    if config._attn_implementation == "eager":
        per_layer += 4 * config.num_attention_heads * 6  # probabilities over the longest text
    assert more == rows * 6 * config.num_hidden_layers * per_layer
