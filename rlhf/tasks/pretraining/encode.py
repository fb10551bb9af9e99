"""Documents -> rows for pretraining: packed blocks, pairs for next-sentence prediction, masks (BERT, arXiv 1810.04805, 3.1).

What differs from BERT's own data program, and why:
- It wrote ten copies of the text to disk, each masked once. Here masks and pairs are drawn anew in every epoch, as a pure
  function of seed, epoch and row, so that a resumed run sees what the uninterrupted one would have seen.
- It puts the sentences that a random second segment pushes aside back for the next pair. Here the next epoch draws again.
- A random second segment is as long as the true one would have been, so that length does not tell the two apart.
- Random replacements are never special tokens. A sentence longer than half a row is parted instead of cut off.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from rlhf.errors import UserError

MASK_SHARE, SHORT_SHARE = (
    0.15,
    0.1,
)  # of tokens that are predicted; of pairs that are shorter on purpose
IGNORED = -100  # label of what is not learned


class Tokens(NamedTuple):
    """A piece of text. ids: (T,) int32; words: (T,) int32, tokens of one word have one number, -1: no word at all."""

    ids: np.ndarray
    words: np.ndarray

    def part(self, start: int, stop: int | None = None) -> "Tokens":
        return Tokens(self.ids[start:stop], self.words[start:stop])


def joined(pieces: Sequence[Tokens]) -> Tokens:
    """One after another, words numbered on."""
    words, first = [], 0
    for piece in pieces:
        words.append(np.where(piece.words < 0, -1, piece.words + first))
        first += int(piece.words.max(initial=-1)) + 1
    return Tokens(np.concatenate([piece.ids for piece in pieces]), np.concatenate(words))


def special(*ids: int) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int32), np.full(len(ids), -1, dtype=np.int32))


def tokenize_texts(tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Plain texts without special tokens, which no text can spell.

    Words are the tokenizer's own (`word_ids`): with WordPiece a first piece and all its ## pieces.
    """
    plain = dict(add_special_tokens=False, split_special_tokens=True, verbose=False)
    found = []
    for start in range(
        0, len(texts), 1000
    ):  # the encodings of one batch are larger than what is kept of them
        encoded = tokenizer(list(texts[start : start + 1000]), **plain)
        for place, ids in enumerate(encoded["input_ids"]):
            words = encoded.word_ids(place) if tokenizer.is_fast else range(len(ids))
            found.append(Tokens(np.array(ids, dtype=np.int32), np.array(words, dtype=np.int32)))
    return found


def sentences(text: str) -> list[str]:
    """Parts at line ends, after . ! ? … before white space (closing quotes included), and after 。！？.

    A rule for English and Korean that knows no abbreviations: it parts "Mr. Kim" too.
    """
    text = re.sub(r"([.!?…][\"'”’»)\]]*)\s+", r"\1\n", text)
    text = re.sub(r"([。！？][」』”’]*)", r"\1\n", text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def blocks(
    documents: Sequence[Tokens], size: int, *, cross_documents: bool
) -> tuple[list[Tokens], int]:
    """Documents cut every `size` tokens, and how many tokens were left out.

    The rest of a document is a shorter block; of fewer than 2 tokens it is left out, there is nothing to learn from. With
    cross_documents all are one stream, so that every block is full, and the rest at its end is left out.
    """
    shortest = 2
    if cross_documents and documents:
        documents, shortest = [joined(documents)], size
    cut = [
        doc.part(start, start + size) for doc in documents for start in range(0, len(doc.ids), size)
    ]
    kept = [block for block in cut if len(block.ids) >= shortest]
    return kept, sum(len(block.ids) for block in cut) - sum(len(block.ids) for block in kept)


def causal_blocks(
    tokenizer, texts: Sequence[str], size: int, *, cross_documents: bool
) -> tuple[list[dict], int]:
    """Rows for causal language modelling: each text closed by EOS, then `blocks`; and the tokens left out."""
    end = special(tokenizer.eos_token_id)
    cut, left = blocks(
        [joined([text, end]) for text in tokenize_texts(tokenizer, texts)],
        size,
        cross_documents=cross_documents,
    )
    rows = [torch.from_numpy(block.ids.astype(np.int64)) for block in cut]
    return [{"input_ids": ids, "labels": ids} for ids in rows], left


def masked_blocks(
    tokenizer, texts: Sequence[str], size: int, *, cross_documents: bool
) -> tuple[list[Tokens], int]:
    """[CLS] block [SEP] of at most `size` tokens; and the tokens left out. Across documents a [SEP] parts them."""
    before, after = special(tokenizer.cls_token_id), special(tokenizer.sep_token_id)
    documents = tokenize_texts(tokenizer, texts)
    if cross_documents:
        documents = [piece for document in documents for piece in (document, after)]
    cut, left = blocks(documents, size - 2, cross_documents=cross_documents)
    cut = [block for block in cut if (block.words >= 0).any()]
    return [joined([before, block, after]) for block in cut], left


class Masking:
    """Which tokens are predicted and what stands in their place: 80 % [MASK], 10 % a random token, 10 % itself."""

    def __init__(self, tokenizer, *, whole_words: bool):
        self.mask, self.whole_words = tokenizer.mask_token_id, whole_words
        self.vocabulary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def __call__(self, row: Tokens, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels) of a row, both (T,) int64; labels are IGNORED where nothing is predicted.

        15 % of the tokens that belong to words, at least one. With whole_words random words are taken as long as they fit
        into the 15 %, the first in any case.
        """
        places = np.flatnonzero(row.words >= 0)
        count = max(1, round(MASK_SHARE * len(places)))
        chosen = (
            self._words(row, places, count, random)
            if self.whole_words
            else random.permutation(places)[:count]
        )
        labels = np.full(len(row.ids), IGNORED, dtype=np.int64)
        labels[chosen] = row.ids[chosen]
        ids = row.ids.astype(np.int64)
        fate = random.random(len(chosen))
        ids[chosen[fate < 0.8]] = self.mask
        other = chosen[fate >= 0.9]
        ids[other] = random.choice(self.vocabulary, len(other))
        return ids, labels

    def _words(
        self, row: Tokens, places: np.ndarray, count: int, random: np.random.Generator
    ) -> np.ndarray:
        starts = np.flatnonzero(np.diff(row.words[places], prepend=-1))
        ends = np.append(starts[1:], len(places))
        chosen: list[int] = []
        for word in random.permutation(len(starts)):
            if not chosen or len(chosen) + ends[word] - starts[word] <= count:
                chosen += places[starts[word] : ends[word]].tolist()
            if len(chosen) >= count:
                break
        return np.array(chosen)


class DrawnRows(Dataset):
    """Rows that are drawn anew in every epoch, as a function of (seed, epoch, place).

    Rows to judge by are never told the epoch, so they stay. lengths: tokens of each row, about.
    """

    def __init__(self, lengths: Sequence[int], masking: Masking, *, seed: int):
        self.lengths, self.masking, self.seed = list(lengths), masking, seed
        self.epoch = torch.zeros(
            (), dtype=torch.long
        ).share_memory_()  # workers that outlive an epoch see it too

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.lengths)

    def random(self, place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(self.epoch), place])


class MaskedRows(DrawnRows):
    """Rows of tokens, masked."""

    def __init__(self, rows: Sequence[Tokens], masking: Masking, *, seed: int):
        super().__init__([len(row.ids) for row in rows], masking, seed=seed)
        self.rows = rows

    def __getitem__(self, place: int) -> dict:
        ids, labels = self.masking(self.rows[place], self.random(place))
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


class PairRows(DrawnRows):
    """[CLS] A [SEP] B [SEP] for next-sentence prediction, masked.

    A row is a run of sentences of one document that fills it (a tenth of the rows: a random part of it). The run is parted
    at a random sentence; in half of the cases B is the rest (next_sentence_label 0), otherwise sentences of another
    document (1), as it always is where the run is one sentence.
    """

    def __init__(self, tokenizer, texts: Sequence[str], size: int, masking: Masking, *, seed: int):
        self.room = size - 3
        self.before, self.after = special(tokenizer.cls_token_id), special(tokenizer.sep_token_id)
        self.documents = [pieces for pieces in self._documents(tokenizer, texts) if pieces]
        if len(self.documents) < 2:
            raise UserError(
                "masked_nsp takes every second pair from two documents, and here is one: give more rows (training and "
                "evaluation rows need two each), or name what parts the documents of a .txt file, document_separator"
            )
        # tokens from each sentence to the end of its document
        self.remaining = [
            np.cumsum([len(s.ids) for s in reversed(pieces)])[::-1] for pieces in self.documents
        ]
        random = np.random.default_rng([seed])
        self.runs = [
            run for place in range(len(self.documents)) for run in self._runs(place, random)
        ]
        if all(stop - start == 1 for _, start, stop, _ in self.runs):
            raise UserError(
                "masked_nsp needs documents of several sentences, and each is one: use objective: masked"
            )
        super().__init__([length + 3 for *_, length in self.runs], masking, seed=seed)

    def _documents(self, tokenizer, texts: Sequence[str]) -> list[list[Tokens]]:
        parted, half = [sentences(text) for text in texts], self.room // 2
        encoded = iter(
            tokenize_texts(tokenizer, [sentence for document in parted for sentence in document])
        )
        whole = [[next(encoded) for _ in document] for document in parted]
        return [
            [s.part(i, i + half) for s in document for i in range(0, len(s.ids), half)]
            for document in whole
        ]

    def _runs(self, place: int, random: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """(document, first sentence, last + 1, tokens of the pair) of the rows of a document."""
        found, start, length, wanted = [], 0, 0, 0
        for stop, sentence in enumerate(self.documents[place], start=1):
            if not wanted:
                wanted = (
                    int(random.integers(2, self.room + 1))
                    if random.random() < SHORT_SHARE
                    else self.room
                )
            length += len(sentence.ids)
            if length >= wanted or stop == len(self.documents[place]):
                found.append(
                    (place, start, stop, min(length, self.room) if stop - start > 1 else self.room)
                )
                start, length, wanted = stop, 0, 0
        return found

    def pair(self, place: int, random: np.random.Generator) -> tuple[Tokens, Tokens, int]:
        """A, B, and 1 where B is of another document."""
        document, start, stop, length = self.runs[place]
        run = self.documents[document][start:stop]
        cut = int(random.integers(1, len(run))) if len(run) > 1 else 1
        first, second = joined(run[:cut]), run[cut:]
        is_random = int(not second or random.random() < 0.5)
        if is_random:
            ends = stop == len(self.documents[document])
            second = self._elsewhere(document, max(1, length - len(first.ids)), ends, random)
        return *self._fitting(first, joined(second), random), is_random

    def _elsewhere(
        self, document: int, wanted: int, ends: bool, random: np.random.Generator
    ) -> list[Tokens]:
        """Sentences of another document, `wanted` tokens or a little more; its last ones if the run `ends` its document.

        Thus neither the length of B nor a last sentence of a story tells whether B is random.
        """
        other = int(random.integers(len(self.documents) - 1))
        other += other >= document
        remaining = self.remaining[other]
        long_enough = max(1, int((remaining >= wanted).sum()))
        start = long_enough - 1 if ends else int(random.integers(long_enough))
        stop = start + 1
        while stop < len(remaining) and remaining[start] - remaining[stop] < wanted:
            stop += 1
        return self.documents[other][start:stop]

    def _fitting(
        self, first: Tokens, second: Tokens, random: np.random.Generator
    ) -> tuple[Tokens, Tokens]:
        """Both cut to the room of a row: tokens are taken from the longer one, from its start or its end at random."""
        bounds = [[0, len(first.ids)], [0, len(second.ids)]]
        for _ in range(len(first.ids) + len(second.ids) - self.room):
            longer = (
                bounds[0]
                if bounds[0][1] - bounds[0][0] > bounds[1][1] - bounds[1][0]
                else bounds[1]
            )
            if random.random() < 0.5:
                longer[0] += 1
            else:
                longer[1] -= 1
        return first.part(*bounds[0]), second.part(*bounds[1])

    def __getitem__(self, place: int) -> dict:
        random = self.random(place)
        first, second, is_random = self.pair(place, random)
        ids, labels = self.masking(
            joined([self.before, first, self.after, second, self.after]), random
        )
        types = torch.zeros(len(ids), dtype=torch.long)
        types[len(first.ids) + 2 :] = 1
        row = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        return row | {"token_type_ids": types, "next_sentence_label": torch.tensor(is_random)}


class PadRows:
    """Rows -> batch. Rows of one length need no padding and no attention mask, which would only cost time."""

    def __init__(self, pad_token_id: int):
        self.fill = {"input_ids": pad_token_id, "labels": IGNORED, "token_type_ids": 0}

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        batch = {name: [row[name] for row in rows] for name in rows[0]}
        lengths = torch.tensor([len(ids) for ids in batch["input_ids"]])
        if lengths.min() == lengths.max():
            return {name: torch.stack(values) for name, values in batch.items()}
        padded = {
            name: torch.nn.utils.rnn.pad_sequence(
                values, batch_first=True, padding_value=self.fill[name]
            )
            if name in self.fill
            else torch.stack(values)
            for name, values in batch.items()
        }
        return padded | {
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        }


def baselines(rows: DrawnRows) -> dict[str, float]:
    """What always the most frequent answer scores on these rows: masked_baseline, and nsp_baseline for pairs."""
    labels, pairs = Counter(), Counter()
    for place in range(len(rows)):
        row = rows[place]
        labels.update(row["labels"][row["labels"] != IGNORED].tolist())
        if "next_sentence_label" in row:
            pairs[int(row["next_sentence_label"])] += 1
    named = {"masked_baseline": labels} | ({"nsp_baseline": pairs} if pairs else {})
    return {name: max(counts.values()) / counts.total() for name, counts in named.items()}
