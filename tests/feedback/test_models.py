"""The name of the weights that wrote an answer."""

import hashlib

from huggingface_hub import constants

from rlhf.feedback.models import model_used


def test_the_revision_is_the_digest_of_the_weights(tmp_path):
    assert model_used("ppo", tmp_path).revision == ""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    used = model_used("ppo", tmp_path)
    assert used.name == "ppo" and used.path == str(tmp_path)
    assert used.revision == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert model_used("ppo", tmp_path).revision == hashlib.sha256(b"other").hexdigest()
    (tmp_path / "model-2.safetensors").write_bytes(b"more")
    assert model_used("ppo", tmp_path).revision not in ("", used.revision)


def test_the_revision_of_a_hub_model_is_its_cached_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert model_used("tiny", "user/tiny").revision == ""
    reference = tmp_path / "models--user--tiny" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("abc123\n")
    assert model_used("tiny", "user/tiny").revision == "abc123"
