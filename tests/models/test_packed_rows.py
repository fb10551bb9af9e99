import pytest
import torch

from rlhf.models.packed_rows import check_packing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2"])
def test_models_that_keep_the_examples_of_a_packed_row_apart(make_architecture, model_type, dtype):
    model = make_architecture(model_type).to(dtype).train()
    check_packing(model, model_type)
    assert model.training


@pytest.mark.parametrize("model_type", ["opt", "mamba"])
def test_models_that_read_them_into_each_other_are_refused(make_architecture, model_type, refused):
    message = refused(check_packing, make_architecture(model_type), "runs/base")
    assert "packing: runs/base" in message and "set packing: false" in message


def test_an_attention_that_may_need_another_device_is_left_alone(make_architecture):
    model = make_architecture("opt")
    model.config._attn_implementation = "flash_attention_2"
    check_packing(model, "runs/base")
