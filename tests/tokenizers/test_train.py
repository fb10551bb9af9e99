"""Tokenizers from a few words: what is learned, what comes back, and what is refused."""

import unicodedata

import pytest
from transformers import AutoTokenizer

from rlhf.models.parts import fit_tokenizer
from rlhf.models.scratch import new_encoder
from rlhf.tokenizers.train import SPECIAL, train_tokenizer

ENGLISH = ["the red cat sat on the mat", "the cat ran to the red mat", "a red mat, a red cat."] * 3
KOREAN = [
    "영화가 정말 재미있어요 ㅋㅋㅋ",
    "정말 재미없어요 ㅠㅠ",
    "배우가 정말 멋있어요 (진짜)!",
    "이 영화 진짜 최고예요",
] * 3
WORDS = ("wordpiece", "unigram")


def trained(kind, texts=ENGLISH, vocab_size=28, **settings):
    defaults = dict(model_max_length=64, lowercase=True, character_coverage=1.0, reserved=0)
    return train_tokenizer(texts, kind, vocab_size=vocab_size, **defaults | settings)


def largest(kind, texts, **settings):
    """The tokenizer of the largest vocabulary that the texts fill, as the refusal names it."""
    try:
        return trained(kind, texts, 100_000, **settings)
    except Exception as error:
        return trained(kind, texts, int(str(error).split("at most ")[1].split(",")[0]), **settings)


@pytest.mark.parametrize("kind", WORDS)
def test_a_pair_is_framed_as_bert_frames_it_and_a_folder_keeps_it(kind, tmp_path):
    tokenizer = trained(kind)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for one in (tokenizer, loaded):
        assert [one.convert_tokens_to_ids(name) for name in SPECIAL] == [0, 1, 2, 3, 4]
        assert (one.mask_token, one.pad_token_id, one.model_max_length, len(one)) == (
            "[MASK]",
            0,
            64,
            28,
        )
        both = one("the cat", "mat")
        first, second = (
            one(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "mat")
        )
        assert both["input_ids"] == [2, *first, 3, *second, 3]
        assert both["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert one.tokenize("the [MASK] mat").count("[MASK]") == 1
        assert (
            one.decode(one("The CAT sat on a mat")["input_ids"], skip_special_tokens=True)
            == "the cat sat on a mat"
        )
        sizes = dict(model_type="bert", hidden_size=8, layers=1, heads=1, context=64)
        fit_tokenizer(one, new_encoder(one, "AutoModelForMaskedLM", **sizes), pairs=True)
        assert one("the cat", "mat") == both


@pytest.mark.parametrize("kind", ["byte_bpe", *WORDS])
def test_korean_comes_back(kind):
    tokenizer = largest(kind, KOREAN)
    for text in KOREAN[:4]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        spaced = (
            text if kind != "wordpiece" else text.replace("(", "( ").replace(")!", " )!")
        )  # WordPiece's decoder
        assert tokenizer.decode(ids).replace(" !", "!") == spaced
        if kind != "byte_bpe":  # typed on a Mac: each syllable as its letters
            assert (
                tokenizer(unicodedata.normalize("NFD", text), add_special_tokens=False)["input_ids"]
                == ids
            )
    assert tokenizer.tokenize(" 정말" if kind == "byte_bpe" else "정말").__len__() == 1


@pytest.mark.parametrize("kind", WORDS)
def test_case_and_accents(kind):
    texts = ["Été Été été Über über"] * 3
    lower, cased = largest(kind, texts), largest(kind, texts, lowercase=False)
    assert lower.decode(lower("Été Über", add_special_tokens=False)["input_ids"]) == "été über"
    assert cased.decode(cased("Été über", add_special_tokens=False)["input_ids"]) == "Été über"


def test_unigram_pieces_stop_at_punctuation_and_know_pretokenized_words():
    tokenizer = trained("unigram", ["in 1998. in 1998. (seoul) (seoul)..."] * 5, 22)
    pieces = tokenizer.get_vocab()
    assert not [
        piece
        for piece in pieces
        if piece not in SPECIAL and any(a.isalnum() for a in piece) and set(piece) & set("().")
    ]
    whole = tokenizer.tokenize("in 1998")
    assert tokenizer.tokenize(["in", "1998"], is_split_into_words=True) == whole


@pytest.mark.parametrize("kind", ["byte_bpe", *WORDS])
def test_the_same_text_gives_the_same_file(kind, tmp_path):
    files = []
    for name in "ab":
        tokenizer = trained(
            kind, KOREAN, 300 if kind == "byte_bpe" else 63 if kind == "wordpiece" else 45
        )
        tokenizer.save_pretrained(tmp_path / name)
        files.append(
            [
                (tmp_path / name / file).read_bytes()
                for file in ("tokenizer.json", "tokenizer_config.json")
            ]
        )
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["byte_bpe", *WORDS])
def test_a_vocabulary_the_text_cannot_fill_is_refused_with_the_largest_that_it_can(kind, refused):
    message = refused(trained, kind, vocab_size=5000)
    assert (
        message.startswith("vocab_size=5000: this text fills only ")
        and "or give more text" in message
    )
    most = int(message.split("set vocab_size to at most ")[1].split(",")[0])
    assert len(trained(kind, vocab_size=most)) == most
    assert f"at most {most}," in refused(trained, kind, vocab_size=most + 1)


def test_a_vocabulary_smaller_than_the_alphabet_is_refused_with_the_number_it_needs(refused):
    assert "256 bytes and the special tokens need 261" in refused(
        trained, "byte_bpe", vocab_size=260, reserved=4
    )
    assert len(trained("byte_bpe", vocab_size=261, reserved=4)) == 257
    # "ab ba" has a, b, ##a, ##b; Unigram has a, b and the ▁ of the space
    assert "the letters of this text alone need 9; " in refused(
        trained, "wordpiece", ["ab ba"] * 3, 8
    )
    assert "the letters of this text alone need 8; " in refused(
        trained, "unigram", ["ab ba"] * 3, 7
    )
    assert (
        len(trained("wordpiece", ["ab ba"] * 3, 9)) == 9
        and len(trained("unigram", ["ab ba"] * 3, 8)) == 8
    )


@pytest.mark.parametrize("kind", WORDS)
def test_the_rarest_characters_are_left_unknown(kind):
    texts = ["aa bb"] * 50 + ["z"]  # 250 + 1 characters: z is the last 0.4 %
    most = largest(kind, texts, character_coverage=0.99)
    unknown = most.unk_token_id
    assert unknown in most("z")["input_ids"] and unknown not in most("aa bb")["input_ids"]
    assert unknown not in largest(kind, texts)("z")["input_ids"]


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_rare_words_and_characters_are_spelled_in_bytes_and_come_back(kind, tmp_path):
    tokenizer = trained(kind, [*ENGLISH, *KOREAN], 275)
    tokenizer.save_pretrained(tmp_path)
    text = "the cat  sat on a zebra 🙂\n 영화 <|endoftext|>"
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = one(text, split_special_tokens=True)["input_ids"]
        assert one.decode(ids) == text and one.eos_token_id not in ids


def test_frequent_words_are_one_token_each_and_others_are_bytes():
    tokenizer = trained("words", ["ab ab ab cd cd ef"], 259)  # the end, 256 bytes and two words
    assert tokenizer.tokenize("ab ab cd ef") == ["a", "b", "Ġab", "Ġcd", "Ġ", "e", "f"]


def test_characters_are_as_many_as_the_text_has_or_vocab_size_allows():
    assert len(trained("characters", ["하나 둘"], 1000)) == 257 + 3
    tokenizer = trained("characters", ["하하 나"], 258)
    assert (
        len(tokenizer.tokenize("하나")) == 1 + 3
    )  # the frequent one is a token, the other three bytes
