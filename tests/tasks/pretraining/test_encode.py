from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from rlhf.tasks.pretraining import encode as pretraining
from rlhf.tasks.pretraining.encode import (
    IGNORED,
    MaskedRows,
    Masking,
    PadRows,
    PairRows,
    Tokens,
    sentences,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "a b c d e f g h".split()


def wordpiece(words: int = 0) -> PreTrainedTokenizerFast:
    """Letters are words or, inside a word, pieces: abc is a ##b ##c. Then the words w0, w1, ... as whole tokens."""
    names = (
        SPECIAL + LETTERS + [f"##{letter}" for letter in LETTERS] + [f"w{i}" for i in range(words)]
    )
    inner = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    )


def row(length: int) -> Tokens:
    """[CLS], words of one piece with ids 5, 6, ..., [SEP]."""
    ids = np.arange(5, 5 + length) % 8 + 5
    return Tokens(
        np.array([2, *ids, 3], dtype=np.int32), np.array([-1, *range(length), -1], dtype=np.int32)
    )


# --- documents


def test_sentences_of_english_and_korean():
    text = 'He said "Go!" Then 3.14 left… 안녕하세요? 네.\n\n한 줄\n「はい。」そう。'
    assert sentences(text) == [
        'He said "Go!"',
        "Then 3.14 left…",
        "안녕하세요?",
        "네.",
        "한 줄",
        "「はい。」",
        "そう。",
    ]


def cut_blocks(documents, size, *, cross_documents):
    blocks = pretraining.Blocks(documents, size, cross_documents=cross_documents)
    return [*blocks], blocks.dropped


def test_blocks_stay_within_documents_unless_told():
    documents = [Tokens(np.full(n, n), np.arange(n)) for n in (5, 1, 8)]
    cut, left = cut_blocks(documents, 4, cross_documents=False)
    assert [block.ids.tolist() for block in cut] == [[5] * 4, [8] * 4, [8] * 4] and left == 2
    cut, left = cut_blocks(documents, 4, cross_documents=True)
    assert [block.ids.tolist() for block in cut] == [[5] * 4, [5, 1, 8, 8], [8] * 4] and left == 2
    assert cut_blocks(documents, 15, cross_documents=True) == ([], 14)
    rest, left = cut_blocks(documents[:1], 3, cross_documents=False)
    assert [len(block.ids) for block in rest] == [
        3,
        2,
    ] and left == 0  # the rest of a document is not thrown away


def test_causal_rows_close_each_text_with_eos(tokenizer):
    rows, left = pretraining.causal_blocks(tokenizer, ["a b c", "d"], 3, cross_documents=True)
    assert [r["input_ids"].tolist() for r in rows] == [[2, 3, 4], [0, 5, 0]] and left == 0
    rows, left = pretraining.causal_blocks(tokenizer, ["a b c", "d"], 3, cross_documents=False)
    assert [r["labels"].tolist() for r in rows] == [[2, 3, 4], [5, 0]] and left == 1


def test_causal_rows_begin_with_bos_where_the_tokenizer_writes_it(tokenizer):
    tokenizer = deepcopy(tokenizer)
    tokenizer.bos_token = "<unk>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 1)]
    )
    texts = ["a b c", "d"]
    rows, left = pretraining.causal_blocks(tokenizer, texts, 4, cross_documents=False)
    assert [r["input_ids"].tolist() for r in rows] == [[1, 2, 3, 4], [1, 5, 0]] and left == 1
    # One stream: BOS begins each text, as in the pretraining of such models.
    rows, left = pretraining.causal_blocks(tokenizer, texts, 4, cross_documents=True)
    assert [r["input_ids"].tolist() for r in rows] == [[1, 2, 3, 4], [0, 1, 5, 0]] and left == 0


def test_masked_rows_are_framed_and_hold_one_document():
    texts = [" ".join([letter] * 20) for letter in "abc"]
    rows, left = pretraining.masked_blocks(wordpiece(), texts, 8, cross_documents=False)
    assert [len(r.ids) for r in rows] == [8, 8, 8, 4] * 3 and left == 0
    assert all(r.ids[0] == 2 and r.ids[-1] == 3 and len(set(r.ids[1:-1])) == 1 for r in rows)
    assert all((r.words[[0, -1]] == -1).all() and (r.words[1:-1] >= 0).all() for r in rows)
    across, left = pretraining.masked_blocks(wordpiece(), texts, 8, cross_documents=True)
    assert [len(r.ids) for r in across] == [8] * 10 and left == 3 * 21 - 10 * 6
    assert across[3].ids.tolist() == [
        2,
        5,
        5,
        3,
        6,
        6,
        6,
        3,
    ]  # a [SEP] between the documents is no word
    assert across[3].words[3] == -1


def test_a_text_cannot_spell_a_special_token():
    (encoded,) = pretraining.tokenize_texts(wordpiece(), ["a [MASK] b"])
    assert not set(encoded.ids) & {0, 2, 3, 4}


# --- masks


@pytest.mark.parametrize("whole_words", [False, True])
def test_masking_counted(whole_words):
    masking, source, draws = Masking(wordpiece(words=200), whole_words=whole_words), row(40), 4000
    places, fates, others = Counter(), Counter(), Counter()
    random = np.random.default_rng(0)
    for _ in range(draws):
        ids, labels = masking(source, random)
        chosen = np.flatnonzero(labels != IGNORED)
        assert len(chosen) == 6  # 15 % of 40
        assert (labels[chosen] == source.ids[chosen]).all()
        assert (np.delete(ids, chosen) == np.delete(source.ids, chosen)).all()
        places.update(chosen.tolist())
        for place in chosen:
            same = ids[place] == source.ids[place]
            fates["mask" if ids[place] == 4 else "same" if same else "other"] += 1
            others[int(ids[place])] += ids[place] != 4 and not same
    total = 6 * draws
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.012)  # four standard deviations
    assert fates["other"] / total == pytest.approx(0.1 * 215 / 216, abs=0.008)
    assert set(places) == set(range(1, 41))  # never [CLS] or [SEP]
    assert max(places.values()) < 600 + 5 * 23 and min(places.values()) > 600 - 5 * 23
    assert not {place for place, count in others.items() if count} & set(range(5)) - {1}


def test_whole_words_are_never_half_masked():
    masking, random = Masking(wordpiece(), whole_words=True), np.random.default_rng(0)
    (source,) = pretraining.tokenize_texts(wordpiece(), ["abc d efg ha bcdefgh a bc def"])
    assert source.words.tolist() == [0, 0, 0, 1, 2, 2, 2, 3, 3, *[4] * 7, 5, 6, 6, 7, 7, 7]
    masked = Counter()
    for _ in range(400):
        labels = masking(source, random)[1] != IGNORED
        words = set(source.words[labels])
        assert words and (labels == np.isin(source.words, list(words))).all()
        assert labels.sum() <= 3 or len(words) == 1  # 15 % of 22; more only by the first word
        masked.update(words)
    assert set(masked) == set(range(8))


def test_a_short_row_has_a_mask():
    for length, whole_words in ((1, False), (2, True)):
        labels = Masking(wordpiece(), whole_words=whole_words)(
            row(length), np.random.default_rng(0)
        )[1]
        assert (labels != IGNORED).sum() == 1


def rows_equal(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("pairs", [False, True])
def test_masks_are_a_function_of_seed_epoch_and_row(pairs):
    def make(seed):
        masking = Masking(wordpiece(), whole_words=False)
        if pairs:
            texts = ["\n".join(["a b c d e f g h"] * 6), "\n".join(["h g f e d c b a"] * 6)]
            return PairRows(wordpiece(), texts, 48, masking, seed=seed)
        return MaskedRows([row(40)] * 3, masking, seed=seed)

    rows, again = make(1), make(1)
    first = rows[1]
    assert rows_equal(first, rows[1]) and rows_equal(first, again[1])
    assert not rows_equal(first, make(2)[1]) or not rows_equal(rows[0], make(2)[0])
    rows.set_epoch(3)
    assert not (rows_equal(first, rows[1]) and rows_equal(again[0], rows[0]))
    again.set_epoch(3)
    assert rows_equal(rows[1], again[1])
    rows.set_epoch(0)
    assert rows_equal(rows[1], first)


# --- pairs


def numbered(documents: int, lines: int, words: int) -> list[str]:
    """Every word of the text is another token, in order; a line is a sentence."""
    number = iter(range(documents * lines * words))
    return [
        "\n".join(" ".join(f"w{next(number)}" for _ in range(words)) for _ in range(lines))
        for _ in range(documents)
    ]


def test_next_really_follows_and_random_is_of_another_document():
    tokenizer, per_document = wordpiece(words=1200), 60
    rows = PairRows(
        tokenizer, numbered(20, 12, 5), 32, Masking(tokenizer, whole_words=False), seed=0
    )
    labels, lengths = [], {0: [], 1: []}
    for epoch in range(20):
        rows.set_epoch(epoch)
        for place in range(len(rows)):
            first, second, is_random = rows.pair(place, rows.random(place))
            a, b = first.ids - 21, second.ids - 21  # w0 is token 21
            assert len(a) and len(b) and len(a) + len(b) <= 29
            assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
            homes = set(a // per_document), set(b // per_document)
            assert len(homes[0]) == len(homes[1]) == 1
            assert (homes[0] != homes[1]) if is_random else (homes[0] == homes[1])
            if not is_random:  # nothing stands between them but what was cut off for want of room
                assert b[0] > a[-1] and (b[0] == a[-1] + 1 or len(a) + len(b) == 29)
            item = rows[place]
            assert (
                item["next_sentence_label"] == is_random
                and len(item["input_ids"]) == len(a) + len(b) + 3
            )
            assert item["token_type_ids"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
            whole = torch.where(
                item["labels"] == IGNORED, item["input_ids"], item["labels"]
            ).tolist()
            assert whole == [2, *first.ids, 3, *second.ids, 3]
            if rows.runs[place][2] - rows.runs[place][1] > 1:
                labels.append(is_random)
            lengths[is_random].append(len(whole))
    assert np.mean(labels) == pytest.approx(0.5, abs=0.06)
    assert abs(np.mean(lengths[0]) - np.mean(lengths[1])) < 3  # the length of a row does not tell
    covered = {
        w
        for run in rows.runs
        for s in rows.documents[run[0]][run[1] : run[2]]
        for w in s.ids.tolist()
    }
    assert covered == set(range(21, 1221))  # no sentence is left out


def test_a_sentence_longer_than_a_row_is_parted():
    tokenizer = wordpiece(words=300)
    rows = PairRows(
        tokenizer, numbered(2, 1, 100), 23, Masking(tokenizer, whole_words=False), seed=0
    )
    assert [len(s.ids) for s in rows.documents[0]] == [10] * 10


def test_pairs_need_documents_and_sentences(refused):
    tokenizer = wordpiece(words=50)
    masking = Masking(tokenizer, whole_words=False)
    assert "two documents, and here is one" in refused(
        PairRows, tokenizer, numbered(1, 4, 5), 32, masking, seed=0
    )
    assert "each is one: use objective: masked" in refused(
        PairRows, tokenizer, numbered(4, 1, 5), 32, masking, seed=0
    )


def test_workers_that_outlive_an_epoch_draw_anew():
    rows = pretraining.MaskedRows(
        [row(20)] * 4, pretraining.Masking(wordpiece(), whole_words=False), seed=0
    )
    loader = DataLoader(rows, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=list)
    drawn = []
    for epoch in range(2):
        rows.set_epoch(epoch)
        drawn.append(next(iter(loader)))
    assert not all(rows_equal(a, b) for a, b in zip(*drawn))


# --- batches and baselines


def test_only_rows_of_different_length_are_padded():
    rows = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
        for ids in ([5, 6], [7, 8], [9])
    ]
    assert set(PadRows(1)(rows[:2])) == {"input_ids", "labels"}
    batch = PadRows(1)(rows)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 8], [9, 1]]
    assert batch["labels"].tolist() == [[5, 6], [7, 8], [9, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 1], [1, 0]]


def test_baselines_by_hand():
    rows = [
        {"labels": torch.tensor([IGNORED, 5, 5, 7]), "next_sentence_label": torch.tensor(1)},
        {"labels": torch.tensor([5, IGNORED, 8, IGNORED]), "next_sentence_label": torch.tensor(1)},
        {"labels": torch.tensor([9, IGNORED]), "next_sentence_label": torch.tensor(0)},
    ]
    assert pretraining.baselines(rows) == {"masked_baseline": 3 / 6, "nsp_baseline": 2 / 3}
    assert pretraining.baselines([{"labels": torch.tensor([4, 4, 5, IGNORED])}]) == {
        "masked_baseline": 2 / 3
    }


def refused_texts():
    """Texts that must not be read again."""
    raise AssertionError("the texts were read")
    yield


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("encode", [pretraining.causal_blocks, pretraining.masked_blocks])
def test_blocks_are_encoded_once(encode, cross, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    tokenizer = wordpiece()
    tokenizer.eos_token = "[SEP]"
    texts = ["abc d efg", "ha bcd", "a b c d e f g h"]

    def encoded(texts, key):
        rows, dropped = encode(tokenizer, texts, 5, cross_documents=cross, key=key)
        return str([rows[i] for i in range(len(rows))]), dropped

    plain = encoded(texts, None)
    assert encoded(texts, "key") == encoded(refused_texts(), "key") == plain


def test_pairs_are_encoded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    texts = ["a b. c d. e f g h.", "d. e. f g.", "", "h h h."]
    tokenizer = wordpiece()
    masking = Masking(tokenizer, whole_words=True)

    def drawn(texts, key):
        rows = PairRows(tokenizer, texts, 16, masking, seed=3, key=key)
        assert len(rows.documents) == 3  # the empty one has no sentence
        return str([rows[i] for i in range(len(rows))])

    plain = drawn(texts, None)
    assert drawn(texts, "key") == drawn(refused_texts(), "key") == plain
