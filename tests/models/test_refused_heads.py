import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaForTokenClassification,
)

from rlhf.models.load import load_encoder, load_reward_model, save
from rlhf.models.parts import UNLIMITED, context_length


@pytest.mark.parametrize("kind", ["cohere", "granite", "ernie4_5", "lfm2", "mamba"])
def test_a_kind_without_a_class_of_scores_is_refused_with_what_to_use_instead(
    kind, tmp_path, refused
):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    for new_head in (True, False):
        message = refused(load_reward_model, str(tmp_path), new_head=new_head)
        assert f"no sequence classification model for {kind}" in message
        assert "value_model: shared" in message and "\n" not in message


def test_a_kind_that_needs_more_than_text_is_refused_with_the_reason(tmp_path, refused):
    AutoConfig.for_model("roc_bert").save_pretrained(tmp_path)
    message = refused(load_encoder, str(tmp_path), "AutoModelForTokenClassification", new_head=True)
    assert "the shape and the sound of each character" in message


def test_xmod_is_refused_until_its_config_names_a_language(tmp_path, refused):
    config = AutoConfig.for_model("xmod")
    config.save_pretrained(tmp_path)
    head = "AutoModelForTokenClassification"
    assert "default_language" in refused(load_encoder, str(tmp_path), head, new_head=True)


def test_the_positions_of_roberta_kinds_begin_after_the_pad_token(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = RobertaConfig(vocab_size=20, max_position_embeddings=22, pad_token_id=1, **sizes)
    model = RobertaForTokenClassification(config).eval()
    assert context_length(model) == 20
    ids = torch.full((1, 20), 5)
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises((IndexError, RuntimeError)):
        ids = torch.full((1, 21), 5)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_a_model_without_a_limit_says_so(tmp_path):
    config = AutoConfig.for_model(
        "xlnet", vocab_size=20, d_model=16, n_layer=1, n_head=2, d_inner=32
    )
    from transformers import XLNetForTokenClassification

    assert context_length(XLNetForTokenClassification(config)) == UNLIMITED


def test_an_encoder_whose_pooler_would_be_random_is_no_reward_model(
    bert_tokenizer, tmp_path, refused
):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = BertConfig(vocab_size=len(bert_tokenizer), num_labels=1, **sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    # As if somebody had saved the head with a trunk that has no pooler.
    model.bert.pooler = None
    save(model, bert_tokenizer, tmp_path / "without")
    assert "bert.pooler.dense.bias" in refused(load_reward_model, str(tmp_path / "without"))
    save(BertModel(config), bert_tokenizer, tmp_path / "trunk")
    assert "classifier" in refused(load_reward_model, str(tmp_path / "trunk"))
