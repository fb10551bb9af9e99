"""The choice between fp32 and bf16, with the clock replaced where the answer must not depend on this machine."""

import time

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf.models import precision
from rlhf.models.precision import (
    MatrixRates,
    bf16_weights_warning,
    convert_for_answers,
    is_tiny,
    matrix_sizes,
    share_that_moves,
    training_rates,
    weights_dtype,
)

CPU = torch.device("cpu")


def layers(*sizes, dtype=torch.float32):
    return nn.ModuleList([nn.Linear(*size, bias=False, dtype=dtype) for size in sizes])


@pytest.mark.parametrize(
    "fp32, bf16, faster",
    [(240, 147, "fp32"), (160, 415, "bf16"), (100, 119, "fp32"), (100, 120, "bf16")],
)
def test_bf16_must_be_faster_by_a_fifth(fp32, bf16, faster):
    assert MatrixRates(fp32=fp32, bf16=bf16).faster == faster


def test_linear_layers_of_both_kinds_are_counted_by_size():
    model = nn.ModuleList([nn.Linear(3, 5), nn.Linear(3, 5), Conv1D(7, 2), nn.Embedding(9, 4)])
    assert matrix_sizes(model) == {(3, 5): 2, (2, 7): 1}  # Conv1D(outputs, inputs)


def test_a_model_of_a_million_weights_is_not_tiny():
    assert is_tiny(layers((1024, 1023)))
    assert not is_tiny(layers((1024, 512), (1024, 512)))


def test_rates_weigh_each_kind_of_matrix_by_its_work(monkeypatch):
    """10 layers of 8 x 8 take 1 s each in fp32, one of 16 x 16 takes 2 s; bf16 takes half of that."""
    model = layers(*[(8, 8)] * 10, (16, 16))
    seconds = {8: 1.0, 16: 2.0}

    def clock(inputs, weights, name, device):
        assert inputs.shape == (4, weights.shape[1])
        return seconds[len(weights)] * (0.5 if name == "bf16" else 1.0)

    monkeypatch.setattr(precision, "_seconds", clock)
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    rates = training_rates(model, tokens=4, device=CPU)
    operations = 6 * 4 * (10 * 64 + 256)
    assert rates.fp32 == pytest.approx(operations / (10 * 1.0 + 2.0) / 1e9)
    assert rates.bf16 == pytest.approx(2 * rates.fp32)


def test_a_wide_matrix_is_timed_in_part(monkeypatch):
    shapes = []

    def clock(inputs, weights, name, device):
        shapes.append((tuple(inputs.shape), tuple(weights.shape)))
        return 1.0

    monkeypatch.setattr(precision, "_seconds", clock)
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    with torch.device("meta"):
        wide = layers((512, 50_257))
    training_rates(wide, tokens=10**6, device=CPU)
    tokens = int(3e9 / (6 * 512 * 2048))  # some hundredths of a second
    assert set(shapes) == {((tokens, 512), (2048, 512))}


def test_measuring_is_short_and_leaves_the_random_state_alone():
    model = layers((64, 64), (64, 256))
    before = torch.get_rng_state()
    started = time.perf_counter()
    rates = training_rates(model, tokens=32, device=CPU)
    assert time.perf_counter() - started < 5  # 0.4 s on a machine that does nothing else
    assert rates.fp32 > 0 and rates.bf16 > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_one_thread_is_used_for_the_time_being():
    torch.set_num_threads(2)
    try:
        with precision.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_dtype_of_a_model_is_that_of_its_largest_matrix():
    model = nn.ModuleList([layers((9, 9), dtype=torch.bfloat16), nn.Linear(2, 2)])
    assert weights_dtype(model) == torch.bfloat16


# ---- bf16 weights ------------------------------------------------------------------------------


def test_a_step_moves_the_entries_that_are_small_beside_it():
    """Between 1 and 2 bf16 numbers are 2^-7 apart, between 1/2 and 1 half as much: 2^-8 moves 0.75 and not 1.5."""
    model = layers((4, 1), dtype=torch.bfloat16)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.5, -1.75, 0.75, 0.0]]))
    assert share_that_moves(model, learning_rate=2.0**-8 * 0.9) == 0.5


def test_a_usual_learning_rate_moves_a_sixth_of_a_bf16_matrix_and_is_warned_of():
    torch.manual_seed(0)
    model = layers((300, 300), dtype=torch.bfloat16)
    nn.init.normal_(model[0].weight, std=0.02)
    share = share_that_moves(model, learning_rate=9e-6)
    # An entry moves if it is below 2^e and the step at least 2^(e - 9): counted in fp32, by exponents.
    exponents = torch.frexp(model[0].weight.float().abs())[1]
    assert share == pytest.approx(float((9e-6 >= 2.0 ** (exponents - 9)).float().mean()), abs=0.01)
    assert 0.1 < share < 0.2
    warning = bf16_weights_warning(model, learning_rate=9e-6)
    assert f"{share:.0%} of the weights" in warning and "dtype: float32" in warning


def test_no_warning_where_updates_arrive():
    model = layers((30, 30), dtype=torch.bfloat16)
    assert bf16_weights_warning(model, learning_rate=1.0) is None
    assert bf16_weights_warning(layers((30, 30)), learning_rate=9e-6) is None
    # LoRA: the bf16 weights are frozen
    assert bf16_weights_warning(model.requires_grad_(False), learning_rate=9e-6) is None


# ---- answering ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [("fp32", torch.float32), ("auto", torch.float32), ("bf16", torch.bfloat16)],
)
def test_a_tiny_model_answers_in_fp32_unless_it_is_told(asked, dtype, make_policy, tokenizer):
    model = convert_for_answers(make_policy(tokenizer), asked, CPU)
    assert weights_dtype(model) == dtype


@pytest.mark.parametrize(
    ("in_bf16", "dtype"), [(0.8, torch.bfloat16), (0.9, torch.float32), (2.0, torch.float32)]
)
def test_auto_answers_in_bf16_where_a_step_is_clearly_faster(
    in_bf16, dtype, make_policy, tokenizer, monkeypatch
):
    """A step takes 1 s in fp32; 1.2 times faster is 0.83 s."""

    def clock(model):
        return in_bf16 if weights_dtype(model) == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "is_tiny", lambda model: False)
    monkeypatch.setattr(precision, "_seconds_of_a_step", clock)
    model = convert_for_answers(make_policy(tokenizer), "auto", CPU)
    assert weights_dtype(model) == dtype


def test_a_step_is_timed(make_policy, tokenizer):
    assert 0 < precision._seconds_of_a_step(make_policy(tokenizer)) < 5


def test_another_name_is_refused(make_policy, tokenizer, refused):
    assert "auto, fp32, bf16" in refused(convert_for_answers, make_policy(tokenizer), "half", CPU)
