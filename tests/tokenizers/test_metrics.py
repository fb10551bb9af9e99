import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf.tokenizers.metrics import cut_text, tokenization_report


@pytest.fixture
def wordpiece():
    inner = Tokenizer(
        models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, ".": 4}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


def test_numbers_by_hand(wordpiece):
    # the | cat ##s . | [UNK]    and    the | the
    report = tokenization_report(wordpiece, ["the cats. dog", " the the "])
    assert report == pytest.approx(
        {
            "vocab_size": 5,
            "tokens_per_word": 7 / 5,
            "tokens_per_character": 7 / 22,
            "unknown_rate": 1 / 7,
            "single_token_words": 3 / 5,  # dog is one token, but an unknown one
        }
    )


def test_a_cut_text_shows_every_token(wordpiece):
    assert cut_text(wordpiece, "the cats. dog") == "the| cat|s|.|[ dog]"


def test_bytes_are_never_unknown_and_parts_of_a_character_are_counted(bytes_tokenizer):
    text = "é"  # two bytes, which the tiny vocabulary has not merged
    assert cut_text(bytes_tokenizer, text) == "é|"
    report = tokenization_report(bytes_tokenizer, [text])
    assert (
        report["tokens_per_character"],
        report["unknown_rate"],
        report["single_token_words"],
    ) == (2, 0, 0)


def test_a_lone_space_belongs_to_the_next_word(bytes_tokenizer):
    assert bytes_tokenizer.tokenize("a  a") == ["a", "Ġ", "Ġa"]
    assert tokenization_report(bytes_tokenizer, ["a  a"])["single_token_words"] == 0.5


def test_no_text_is_no_crash(wordpiece):
    assert tokenization_report(wordpiece, ["", " "])["tokens_per_word"] == 0
