"""A save leaves nothing of the model that was in the folder before, and what a loader passes over is not shared."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.models.load import save
from rlhf.models.stale_weights import INDEX, replacing_weights, unread_weights


def weights_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(("model", "adapter"))}


@pytest.fixture
def models(make_policy, tokenizer):
    return make_policy(tokenizer), make_policy(tokenizer, hidden_size=24)


def test_a_model_of_one_file_replaces_shards_and_their_index(models, tokenizer, tmp_path):
    old, new = models
    old.save_pretrained(tmp_path, max_shard_size="20KB")
    assert INDEX in weights_in(tmp_path) and len(weights_in(tmp_path)) > 2
    save(new, tokenizer, tmp_path)
    assert weights_in(tmp_path) == {"model.safetensors"}


def test_shards_replace_a_model_of_one_file(models, tokenizer, tmp_path):
    old, new = models
    save(old, tokenizer, tmp_path)
    with replacing_weights(tmp_path):
        new.save_pretrained(tmp_path, max_shard_size="20KB")
    assert "model.safetensors" not in weights_in(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, new.lm_head.weight)


def test_a_whole_model_replaces_an_adapter(models, tokenizer, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gone/away"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"old")
    save(models[0], tokenizer, tmp_path)
    assert weights_in(tmp_path) == {"model.safetensors"}
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_save_that_fails_leaves_the_old_model(models, tmp_path):
    models[0].save_pretrained(tmp_path, max_shard_size="20KB")
    before = weights_in(tmp_path)
    with pytest.raises(OSError, match="full"), replacing_weights(tmp_path):
        raise OSError("the disk is full")
    assert weights_in(tmp_path) == before


def test_what_a_loader_passes_over_is_told(tmp_path):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in (*shards, "model-00001-of-00009.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert unread_weights(tmp_path) == set()  # of nobody's index
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    assert unread_weights(tmp_path) == {"model-00001-of-00009.safetensors"}
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert unread_weights(tmp_path) == {*shards, INDEX, "model-00001-of-00009.safetensors"}
