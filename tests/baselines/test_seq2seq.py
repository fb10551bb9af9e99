"""The LSTM encoder-decoder: attention by hand, padding, steps, files, and beam search against all texts."""

from itertools import product

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from rlhf.baselines.seq2seq import AdditiveScores, MultiplicativeScores, alignment
from rlhf.baselines.table import register
from rlhf.errors import UserError

EOS, PAD, START = 0, 1, 2
SOURCE = torch.tensor([[3, 4, 5, 6, 0], [6, 3, 0, 1, 1], [1, 1, 6, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
TARGET = torch.tensor([[4, 3, 0], [5, 0, -100], [5, 0, -100]])


def tiny(attention, vocabulary: int = 8, scale: float = 4.0):
    register("lstm_seq2seq")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "lstm_seq2seq", vocab_size=vocabulary, hidden_size=6, num_hidden_layers=2, attention=attention,
        eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=START,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)  # a new model hardly tells its inputs apart
    return model


@pytest.fixture(params=[None, "additive", "multiplicative"], ids=str)
def model(request):
    return tiny(request.param)


def test_additive_scores_and_their_alignment_by_hand():
    """One unit: e = v tanh(W s + U h + b)."""
    scores = AdditiveScores(1)
    with torch.no_grad():
        for layer, value in ((scores.query, 0.5), (scores.key, 2.0), (scores.energy, 3.0)):
            layer.weight.fill_(value)
        scores.key.bias.fill_(-1.0)
    states = torch.tensor([[[2.0]]])
    memory = torch.tensor([[[0.0], [0.5], [9.0]]])
    expected = 3 * torch.tensor([[[0.0, 1.0, 18.0]]]).tanh()
    torch.testing.assert_close(scores(states, scores.key(memory)), expected)
    # The third token is padding: exp(0) against exp(3 tanh 1 = 2.284783).
    weights = alignment(expected, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(
        weights, torch.tensor([[[0.092395, 0.907605, 0.0]]]), atol=1e-5, rtol=0
    )


def test_multiplicative_scores_by_hand():
    scores = MultiplicativeScores(2)
    with torch.no_grad():
        scores.key.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    states = torch.tensor([[[1.0, 3.0]]])
    memory = torch.tensor([[[1.0, 1.0], [4.0, -2.0]]])
    # W h = (3, -1) and (0, 2); times s: 0 and 6.
    assert scores(states, scores.key(memory)).tolist() == [[[0.0, 6.0]]]


def test_the_first_context_of_additive_attention_is_chosen_before_the_first_step():
    """The first alignment depends on the source alone, as s_0 does, and not on the first target token."""
    model = tiny("additive")
    rows = []
    for token in (START, 5):
        ids = torch.tensor([[token]])
        output = model(input_ids=SOURCE[:1], decoder_input_ids=ids, output_attentions=True)
        rows.append(output.cross_attentions[0])
    assert torch.equal(*rows)
    model = tiny("multiplicative")
    output = [
        model(input_ids=SOURCE[:1], decoder_input_ids=torch.tensor([[token]]), output_attentions=True)
        for token in (START, 5)
    ]  # fmt: skip
    assert not torch.equal(output[0].cross_attentions[0], output[1].cross_attentions[0])


def test_additive_attention_reads_the_state_of_the_top_layer():
    model = tiny("additive")
    read = model.encoder(SOURCE[:1])
    output = model(SOURCE[:1], decoder_input_ids=torch.tensor([[START]]), output_attentions=True)
    keys = model.decoder.scores.key(read.last_hidden_state)
    scores = model.decoder.scores(read.hidden[:, -1:], keys)
    expected = alignment(scores, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(output.cross_attentions[0][:, 0], expected)


def test_padding_on_either_side_changes_nothing(model):
    padded = model(SOURCE, MASK, labels=TARGET, output_attentions=True)
    for row in range(len(SOURCE)):
        counts = MASK[row].bool()
        alone = model(
            SOURCE[row : row + 1, counts], labels=TARGET[row : row + 1], output_attentions=True
        )
        torch.testing.assert_close(padded.logits[row], alone.logits[0], atol=1e-5, rtol=0)
        if padded.cross_attentions:
            weights = padded.cross_attentions[0][row, 0]
            torch.testing.assert_close(weights.sum(-1), torch.ones(3))
            assert not weights[:, ~counts].any()
            expected = alone.cross_attentions[0][0, 0]
            torch.testing.assert_close(weights[:, counts], expected, atol=1e-5, rtol=0)
    assert (model.config.attention is None) == (padded.cross_attentions is None)


def test_one_token_per_step_gives_the_logits_of_the_whole_target(model):
    ids = torch.tensor([[START, 4, 3], [START, 5, 5], [START, 5, 5]])
    whole = model(SOURCE, MASK, decoder_input_ids=ids).logits
    outputs, cache = model.encoder(SOURCE, MASK), None
    for step in range(3):
        token = ids[:, step : step + 1]
        output = model(
            attention_mask=MASK,
            decoder_input_ids=token,
            encoder_outputs=outputs,
            cache=cache,
            use_cache=True,
        )
        cache = output.cache
        torch.testing.assert_close(output.logits[:, 0], whole[:, step], atol=1e-5, rtol=0)


def test_the_loss_is_the_mean_over_target_tokens_that_are_learned(model):
    output = model(SOURCE, MASK, labels=TARGET)
    log_probs = output.logits.log_softmax(-1)
    pairs = [(0, 0, 4), (0, 1, 3), (0, 2, 0), (1, 0, 5), (1, 1, 0), (2, 0, 5), (2, 1, 0)]
    expected = -sum(log_probs[pair] for pair in pairs) / len(pairs)
    torch.testing.assert_close(output.loss, expected)


LENGTH = 3  # of the longest target


def best_text(model, source, mask) -> list[int]:
    """The text with the highest mean log-probability per token, of all that there are: the score of beam search."""
    best, best_score = [], -float("inf")
    others = [token for token in range(5) if token != EOS]
    texts = []
    for length in range(LENGTH):
        texts += [[*words, EOS] for words in product(others, repeat=length)]
    texts += [list(words) for words in product(others, repeat=LENGTH)]
    for text in texts:
        loss = model(source, mask, labels=torch.tensor([text])).loss
        if -loss.item() > best_score:
            best, best_score = text, -loss.item()
    return best


@torch.no_grad()
def test_beam_search_with_all_beams_gives_the_best_of_all_texts(model):
    model = tiny(model.config.attention, vocabulary=5)
    source, mask = SOURCE.clamp(max=4)[:2], MASK[:2]
    # 80 beams hold every text of three tokens.
    written = model.generate(
        input_ids=source, attention_mask=mask, num_beams=80, max_length=LENGTH + 1, do_sample=False
    )
    greedy = model.generate(
        input_ids=source, attention_mask=mask, num_beams=1, max_length=LENGTH + 1
    )
    expected = [best_text(model, source[row : row + 1], mask[row : row + 1]) for row in range(2)]
    for row in range(2):
        text = written[row, 1:].tolist()[: len(expected[row])]
        assert text == expected[row], (greedy[row].tolist(), written[row].tolist())


def test_it_is_saved_loaded_and_samples(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    expected = model(SOURCE, MASK, labels=TARGET).logits
    assert torch.equal(loaded(SOURCE, MASK, labels=TARGET).logits, expected)
    torch.manual_seed(0)
    many = loaded.generate(
        input_ids=SOURCE[:1].expand(4000, -1), do_sample=True, top_k=0, max_length=2
    )
    shares = torch.bincount(many[:, 1], minlength=8) / 4000
    probabilities = (
        model(SOURCE[:1], decoder_input_ids=torch.tensor([[START]])).logits[0, 0].softmax(-1)
    )
    assert (shares - probabilities).abs().max() < 0.04


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"hidden_size": 7}, "hidden_size=7 must be even"),
        ({"attention": "dot"}, "attention='dot': use null, additive or multiplicative"),
    ],
)
def test_a_config_that_means_nothing_is_refused(entries, said):
    register("lstm_seq2seq")
    config = AutoConfig.for_model("lstm_seq2seq", vocab_size=8, **entries)
    with pytest.raises(UserError, match=said):
        AutoModelForSeq2SeqLM.from_config(config)
