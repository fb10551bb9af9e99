"""Encoders as reward models: what they read is the pair that their own tokenizer makes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from rlhf.completions.reward_inputs import RewardInputs, pair_text
from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.models.load import save
from rlhf.reward_model.rankings import collate_rankings, encode_rankings
from rlhf.reward_model.trainer import ScoreModel

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
KINDS = {
    "bert": SIZES | dict(max_position_embeddings=24),
    # RoBERTa's positions begin after those of the padding.
    "roberta": SIZES | dict(max_position_embeddings=25, type_vocab_size=1),
    # as DeBERTa-v3 is configured
    "deberta-v2": SIZES
    | dict(
        max_position_embeddings=24,
        type_vocab_size=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        pooler_hidden_size=16,
    ),
    "modernbert": SIZES | dict(max_position_embeddings=24, global_attn_every_n_layers=2),
    "distilbert": dict(dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=24),
}
PROMPTS = ["a b", "c", "d e f g"]
COMPLETIONS = ["c d e", "a", "h h [SEP] h"]


@pytest.fixture
def make_encoder(make_tokenizer, tmp_path):
    """A reward model of the Hub's kind: the folder of a random encoder with one output, and its tokenizer."""

    def make_encoder(kind: str) -> str:
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        config = AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), pad_token_id=0, num_labels=1, **KINDS[kind]
        )
        if not getattr(config, "type_vocab_size", 0) > 1:
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(10)
        save(model, tokenizer, tmp_path / kind)
        return str(tmp_path / kind)

    return make_encoder


def plain_score(folder: str, prompt: str, completion: str) -> float:
    """What a user of transformers computes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokenizer(prompt, completion, return_tensors="pt")).logits
    return logits.item()


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_gives_the_score_of_its_tokenizers_own_pair(kind, make_encoder, tokenizer):
    folder = make_encoder(kind)
    scorer = RewardModelScorer.load(folder)
    # The policy's own ids are those of another tokenizer.
    ids = [[2, 3]] * 3
    batch = ScoringBatch(
        PROMPTS, COMPLETIONS, tokenizer=tokenizer, prompt_ids=ids, completion_ids=ids
    )
    found = scorer(batch).tolist()
    expected = [plain_score(folder, p, c) for p, c in zip(PROMPTS[:2], COMPLETIONS[:2])]
    assert found[:2] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-4  # so that agreement says something


def test_the_spelling_of_a_special_token_stays_text(make_encoder):
    folder = make_encoder("bert")
    inputs = RewardInputs(
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    [one] = inputs.encode("a [SEP] b", ["c"])
    # [CLS] a [ SEP ] b [SEP] c [SEP]: the brackets and the word are unknown, 1
    assert one.ids == [2, 5, 1, 1, 1, 6, 3, 7, 3]
    assert one.types == [0] * 7 + [1] * 2
    assert one.completion_tokens == 1


def test_training_reads_what_scoring_reads(make_encoder):
    """Token types and all, in a batch of several prompts."""
    scorer = RewardModelScorer.load(make_encoder("bert"))
    rows = []
    for prompt, better in zip(PROMPTS, COMPLETIONS):
        rows.append({"prompt": prompt, "completions": [better, "b b b b"], "ranks": [0, 1]})
    encoded, too_long = encode_rankings(scorer.tokenizer, rows, max_length=24, pairs=True)
    assert too_long == 0 and encoded[0]["lengths"] == [3, 4]
    batch = collate_rankings(encoded, scorer.tokenizer.pad_token_id)
    assert batch["token_type_ids"].sum() > 0
    with torch.no_grad():
        trained_on = ScoreModel(scorer.model)(
            batch["input_ids"], batch["mask"], batch["token_type_ids"]
        )
    texts = []
    for row in rows:
        texts += row["completions"]
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    torch.testing.assert_close(trained_on, scorer(ScoringBatch(prompts, texts)))


def test_long_pairs_are_dropped_and_counted_not_cut(make_encoder):
    scorer = RewardModelScorer.load(make_encoder("bert"))
    rows = [{"prompt": "a", "completions": ["b", "c", "d " * 30], "ranks": [0, 1, 2]}]
    encoded, too_long = encode_rankings(scorer.tokenizer, rows, max_length=24, pairs=True)
    assert too_long == 1 and encoded[0]["places"] == [0, 1]


def test_a_prompt_of_several_turns_is_one_text_with_roles():
    assert pair_text("Why?") == "Why?"
    assert pair_text([{"role": "user", "content": "Why?"}]) == "Why?"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    assert pair_text(turns) == "system: Be brief.\nuser: Hi\nassistant: Hello\nuser: Why?"
