import inspect

import pytest
import torch

from rlhf.algorithms import ALGORITHMS, call, takes

OFFERED = {
    "advantages": "rewards totals values mask gamma gae_lambda num_generations",
    "ratio": "log_probs old_log_probs mask",
    "policy_loss": "log_probs old_log_probs ref_log_probs ratio advantages mask clip_range clip_range_high",
    "token_weights": "mask num_tokens num_completions max_completion_length",
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_formula_of_the_table_can_be_called_with_what_the_trainer_offers(name):
    for field, offered in OFFERED.items():
        parameters = inspect.signature(getattr(ALGORITHMS[name], field)).parameters
        assert set(parameters) <= set(offered.split()), field


def test_values_and_groups_are_read_off_the_advantages():
    assert [name for name, row in ALGORITHMS.items() if row.needs_values] == ["a2c", "trpo", "ppo"]
    grouped = [name for name, row in ALGORITHMS.items() if row.grouped]
    assert grouped == ["rloo", "grpo", "dr_grpo", "dapo", "gspo"]


def test_a_row_has_an_upper_clip_range_exactly_where_its_loss_takes_one():
    for row in ALGORITHMS.values():
        assert (row.clip_range_high is not None) == takes(row.policy_loss, "clip_range_high")


def test_call_passes_what_the_signature_names_and_nothing_else():
    def formula(b, *, a):
        return b - a

    assert call(formula, a=1, b=5, c=torch.zeros(1)) == 4
    with pytest.raises(KeyError):
        call(formula, a=1)
