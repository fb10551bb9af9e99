import inspect

import pytest
import torch

from rlhf.algorithms import ALGORITHMS, call


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_formula_of_the_table_can_be_called_with_what_the_trainer_offers(name):
    algorithm = ALGORITHMS[name]
    offered = {"rewards", "totals", "values", "mask", "gamma", "gae_lambda", "num_generations"}
    assert set(inspect.signature(algorithm.advantages).parameters) <= offered
    offered = {"log_probs", "old_log_probs", "advantages", "clip_range"}
    assert set(inspect.signature(algorithm.policy_loss).parameters) <= offered
    assert algorithm.value_model == ("values" in inspect.signature(algorithm.advantages).parameters)
    assert algorithm.grouped == (
        "num_generations" in inspect.signature(algorithm.advantages).parameters
    )


def test_call_passes_what_the_signature_names_and_nothing_else():
    def formula(b, *, a):
        return b - a

    assert call(formula, a=1, b=5, c=torch.zeros(1)) == 4
    with pytest.raises(KeyError):
        call(formula, a=1)
