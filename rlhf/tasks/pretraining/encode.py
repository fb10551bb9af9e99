"""Documents -> rows for pretraining: packed blocks, pairs for next-sentence prediction, masks (BERT, arXiv 1810.04805, 3.1).

Deviations from BERT's own data program, and why:
- It wrote ten copies of the text to disk, each masked once. Here masks and pairs are drawn again in every epoch, as a pure
  function of seed, epoch and row, so that a resumed run sees what the uninterrupted one would have seen.
- It puts the sentences that a random second segment replaces back for the next pair. Here the next epoch draws again.
- A random second segment is as long as the true one would have been, so that its length does not tell the two apart.
- Random replacements are never special tokens.
- A sentence longer than half a row is split, not cut off.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from rlhf.data.cache import Writer, stored
from rlhf.data.chat import bos_ids
from rlhf.data.padding import IGNORED, right_pad_columns, row_lengths
from rlhf.data.stored_numbers import StoredNumbers, number_columns
from rlhf.errors import UserError

MASK_SHARE = 0.15  # of tokens that are predicted
SHORT_SHARE = 0.1  # of pairs that are shorter on purpose, so that the model sees short texts too
TEXTS_PER_CALL = 1000  # texts in the tokenizer at once: its encodings are larger than the tokens
NO_WORD = -1  # word number of special tokens


# ---- tokens ------------------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """A piece of text. ids: (T,) int32. words: (T,) int32, the same number for all tokens of a word, NO_WORD for none."""

    ids: np.ndarray
    words: np.ndarray

    def part(self, start: int, stop: int | None = None) -> "Tokens":
        return Tokens(self.ids[start:stop], self.words[start:stop])


def joined(pieces: Sequence[Tokens]) -> Tokens:
    """Pieces one after another; their words are numbered through."""
    words = []
    first = 0  # number of the first word of the piece
    for piece in pieces:
        words.append(np.where(piece.words < 0, NO_WORD, piece.words + first))
        first += int(piece.words.max(initial=-1)) + 1
    ids = [piece.ids for piece in pieces]
    return Tokens(np.concatenate(ids), np.concatenate(words))


def special(*ids: int) -> Tokens:
    """Special tokens, which belong to no word."""
    words = np.full(len(ids), NO_WORD, dtype=np.int32)
    return Tokens(np.array(ids, dtype=np.int32), words)


def tokenize_texts(tokenizer, texts: Iterable[str]) -> Iterator[Tokens]:
    """Plain texts without special tokens, which no text can spell.

    Words are the tokenizer's own (`word_ids`): with WordPiece a first piece and all its ## pieces.
    """
    texts = iter(texts)
    while part := list(islice(texts, TEXTS_PER_CALL)):
        batch = tokenizer(
            part,
            add_special_tokens=False,
            split_special_tokens=True,
            verbose=False,
        )
        for i, ids in enumerate(batch["input_ids"]):
            # A slow tokenizer does not know its words: each token is one.
            words = batch.word_ids(i) if tokenizer.is_fast else range(len(ids))
            yield Tokens(np.array(ids, dtype=np.int32), np.array(words, dtype=np.int32))


def sentences(text: str) -> list[str]:
    """Split a text at line ends, after . ! ? … before white space (closing quotes included), and after 。！？.

    A rule for English and Korean that knows no abbreviations: it splits "Mr. Kim" too.
    """
    text = re.sub(r"([.!?…][\"'”’»)\]]*)\s+", r"\1\n", text)
    text = re.sub(r"([。！？][」』”’]*)", r"\1\n", text)
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line]


# ---- blocks ------------------------------------------------------------------------------------------------------


class Blocks:
    """Documents cut every `size` tokens, in one pass.

    The end of a document is a shorter block. It is dropped if it has fewer than 2 tokens, because there is nothing to learn
    from it. With cross_documents all documents are one stream, so that every block is full, and its end is dropped.

    dropped: tokens that were dropped, complete after the pass.
    """

    def __init__(self, documents: Iterable[Tokens], size: int, *, cross_documents: bool):
        self.documents = documents
        self.size = size
        self.cross_documents = cross_documents
        self.dropped = 0

    def __iter__(self) -> Iterator[Tokens]:
        rest = special()  # of the documents so far, shorter than a block
        for document in self.documents:
            if self.cross_documents:
                document = joined([rest, document])
            whole = len(document.ids) // self.size * self.size
            for start in range(0, whole, self.size):
                yield document.part(start, start + self.size)
            rest = document.part(whole)
            if self.cross_documents:
                continue
            if len(rest.ids) > 1:
                yield rest
            else:
                self.dropped += len(rest.ids)
        if self.cross_documents:
            self.dropped += len(rest.ids)


class StoredTokens(Sequence):
    """Pieces of text in the columns ids and words of an Arrow file."""

    SCHEMA = number_columns("ids", "words")

    def __init__(self, table):
        self.ids = StoredNumbers(table.column("ids"))
        self.words = StoredNumbers(table.column("words"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tokens:
        return Tokens(self.ids[index], self.words[index])


def causal_blocks(
    tokenizer,
    texts: Iterable[str],
    size: int,
    *,
    cross_documents: bool,
    key: str | None = None,
) -> tuple["CausalRows", int]:
    """Rows for causal language modelling: each text closed by EOS, then `Blocks`; and the tokens dropped.

    If the model was pretrained with BOS, each sequence begins with it: a row, or with cross_documents a text.

    key: of the cache, see data.fingerprints.encoding_key. The texts are not read where the rows are in it already.
    """
    start = special(*bos_ids(tokenizer))
    end = special(tokenizer.eos_token_id)
    before_text, before_block = special(), start
    if cross_documents:
        before_text, before_block = start, special()

    def documents():
        for text in tokenize_texts(tokenizer, texts):
            yield joined([before_text, text, end])

    def fill(writer: Writer) -> dict:
        room = size - len(before_block.ids)
        text_blocks = Blocks(documents(), room, cross_documents=cross_documents)
        for block in text_blocks:
            ids = np.concatenate([before_block.ids, block.ids])
            writer.add((ids,), size=ids.nbytes)
        return {"dropped": text_blocks.dropped}

    content = stored(key, CausalRows.SCHEMA, fill, "encoding")
    return CausalRows(content.table), content.note["dropped"]


def masked_blocks(
    tokenizer,
    texts: Iterable[str],
    size: int,
    *,
    cross_documents: bool,
    key: str | None = None,
) -> tuple[StoredTokens, int]:
    """[CLS] block [SEP] of at most `size` tokens; and the tokens dropped. Across documents a [SEP] separates them.

    key: of the cache, see data.fingerprints.encoding_key. The texts are not read where the blocks are in it already.
    """
    before = special(tokenizer.cls_token_id)
    after = special(tokenizer.sep_token_id)

    def documents():
        for text in tokenize_texts(tokenizer, texts):
            yield text
            if cross_documents:
                yield after

    def fill(writer: Writer) -> dict:
        text_blocks = Blocks(documents(), size - 2, cross_documents=cross_documents)
        for block in text_blocks:
            has_words = (block.words >= 0).any()
            if has_words:
                row = joined([before, block, after])
                writer.add(row, size=2 * row.ids.nbytes)
        return {"dropped": text_blocks.dropped}

    content = stored(key, StoredTokens.SCHEMA, fill, "encoding")
    return StoredTokens(content.table), content.note["dropped"]


# ---- masks -------------------------------------------------------------------------------------------------------


class Masking:
    """Chooses the tokens to predict, and replaces them: 80 % by [MASK], 10 % by a random token, 10 % stay."""

    def __init__(self, tokenizer, *, whole_words: bool):
        self.mask = tokenizer.mask_token_id
        self.whole_words = whole_words
        # random replacements are drawn from it
        self.vocabulary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def __call__(
        self,
        row: Tokens,
        random: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels) of a row, both (T,) int64; labels are IGNORED where nothing is predicted.

        15 % of the tokens that belong to words are predicted, at least one. With whole_words random words are taken as long
        as they fit into the 15 %, the first in any case.
        """
        positions = np.flatnonzero(row.words >= 0)
        count = max(1, round(MASK_SHARE * len(positions)))
        if self.whole_words:
            chosen = self._choose_words(row, positions, count, random)
        else:
            chosen = random.permutation(positions)[:count]
        labels = np.full(len(row.ids), IGNORED, dtype=np.int64)
        labels[chosen] = row.ids[chosen]
        ids = row.ids.astype(np.int64)
        draws = random.random(len(chosen))
        masked = chosen[draws < 0.8]
        replaced = chosen[draws >= 0.9]
        # The rest, a tenth, stays as it is.
        ids[masked] = self.mask
        ids[replaced] = random.choice(self.vocabulary, len(replaced))
        return ids, labels

    def _choose_words(
        self,
        row: Tokens,
        positions: np.ndarray,
        count: int,
        random: np.random.Generator,
    ) -> np.ndarray:
        """Positions of whole words, about `count` of them. positions: those of all words of the row."""
        # not 0 at the first token of each word; word numbers begin at 0
        is_start = np.diff(row.words[positions], prepend=-1)
        starts = np.flatnonzero(is_start)
        ends = np.append(starts[1:], len(positions))
        chosen: list[int] = []
        for word in random.permutation(len(starts)):
            word_positions = positions[starts[word] : ends[word]].tolist()
            if not chosen or len(chosen) + len(word_positions) <= count:
                chosen += word_positions
            if len(chosen) >= count:
                break
        return np.array(chosen)


# ---- rows --------------------------------------------------------------------------------------------------------


class CausalRows(Dataset):
    """Rows for causal language modelling, in the column ids of an Arrow file. lengths: tokens of each row."""

    SCHEMA = number_columns("ids")

    def __init__(self, table):
        self.ids = StoredNumbers(table.column("ids"))
        self.lengths = self.ids.lengths.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids}  # the model shifts the labels


class DrawnRows(Dataset):
    """Rows that are drawn again in every epoch, as a function of (seed, epoch, index).

    Evaluation rows are never told the epoch, so they stay the same. lengths: tokens of each row, about.
    """

    def __init__(self, lengths: Sequence[int], masking: Masking, *, seed: int):
        self.lengths = list(lengths)
        self.masking = masking
        self.seed = seed
        # In shared memory, so that workers that outlive an epoch see it too.
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.lengths)

    def random(self, index: int) -> np.random.Generator:
        """The random numbers of a row."""
        return np.random.default_rng([self.seed, int(self.epoch), index])


class MaskedRows(DrawnRows):
    """Rows of tokens, masked."""

    def __init__(self, rows: Sequence[Tokens], masking: Masking, *, seed: int):
        super().__init__([len(row.ids) for row in rows], masking, seed=seed)
        self.rows = rows

    def __getitem__(self, index: int) -> dict:
        ids, labels = self.masking(self.rows[index], self.random(index))
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


class Sentences(Sequence):
    """The sentences of a document. tokens: all of them. ends: (S,) where each sentence ends."""

    def __init__(self, tokens: Tokens, ends: np.ndarray):
        self.tokens = tokens
        self.ends = ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        """A sentence, or of a slice the list of its sentences."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = 0
        if index:
            start = self.ends[index - 1]
        return self.tokens.part(start, self.ends[index])


class StoredDocuments(Sequence):
    """Documents as their sentences, in the columns ids, words and ends of an Arrow file."""

    SCHEMA = number_columns("ids", "words", "ends")

    def __init__(self, table):
        self.tokens = StoredTokens(table)
        self.ends = StoredNumbers(table.column("ends"))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Sentences:
        return Sentences(self.tokens[index], self.ends[index])


class SentenceRun(NamedTuple):
    """Sentences start to stop (exclusive) of a document, and the tokens of the pair that they become."""

    document: int
    start: int
    stop: int
    length: int


class PairRows(DrawnRows):
    """[CLS] A [SEP] B [SEP] for next-sentence prediction, masked.

    A row is a run of sentences of one document that fills it (a tenth of the rows: a random part of it). The run is split
    at a random sentence. In half of the cases B is the rest (next_sentence_label 0), otherwise sentences of another
    document (1), as it always is if the run is one sentence.
    """

    def __init__(
        self,
        tokenizer,
        texts: Iterable[str],
        size: int,
        masking: Masking,
        *,
        seed: int,
        key: str | None = None,
    ):
        self.room = size - 3  # without [CLS] and two [SEP]
        self.before = special(tokenizer.cls_token_id)
        self.after = special(tokenizer.sep_token_id)
        tokenized = _tokenized_sentences(tokenizer, texts, self.room // 2)
        self.documents = _stored_documents(key, tokenized)
        if len(self.documents) < 2:
            raise UserError(
                "masked_nsp takes every second pair from two documents, and here is one: give more rows (training and "
                "evaluation rows need two each), or name what separates the documents of a .txt file, document_separator"
            )
        # tokens from each sentence to the end of its document
        self.remaining: list[np.ndarray] = []
        for pieces in self.documents:
            starts = np.concatenate([[0], pieces.ends[:-1]])
            self.remaining.append(pieces.ends[-1] - starts)
        random = np.random.default_rng([seed])
        self.runs: list[SentenceRun] = []
        for document in range(len(self.documents)):
            self.runs += self._runs(document, random)
        if all(run.stop - run.start == 1 for run in self.runs):
            raise UserError(
                "masked_nsp needs documents of several sentences, and each is one: use objective: masked"
            )
        super().__init__([run.length + 3 for run in self.runs], masking, seed=seed)

    def _runs(self, document: int, random: np.random.Generator) -> list[SentenceRun]:
        """The rows of a document."""
        pieces = self.documents[document]
        runs = []
        start = length = 0
        wanted = 0  # tokens of the next run; 0: not drawn yet
        for stop, sentence in enumerate(pieces, start=1):
            if not wanted:
                wanted = self.room
                if random.random() < SHORT_SHARE:
                    wanted = int(random.integers(2, self.room + 1))
            length += len(sentence.ids)
            if length >= wanted or stop == len(pieces):
                # One sentence gets a random B, which fills the row.
                is_one = stop - start == 1
                pair_length = self.room if is_one else min(length, self.room)
                runs.append(SentenceRun(document, start, stop, pair_length))
                start, length, wanted = stop, 0, 0
        return runs

    def pair(
        self,
        index: int,
        random: np.random.Generator,
    ) -> tuple[Tokens, Tokens, int]:
        """A, B, and 1 if B is of another document."""
        document, start, stop, length = self.runs[index]
        pieces = self.documents[document]
        run = pieces[start:stop]
        cut = 1
        if len(run) > 1:
            cut = int(random.integers(1, len(run)))
        first = joined(run[:cut])
        rest = run[cut:]
        is_random = int(not rest or random.random() < 0.5)
        if is_random:
            wanted = max(1, length - len(first.ids))
            rest = self._elsewhere(document, wanted, stop == len(pieces), random)
        first, second = self._fitting(first, joined(rest), random)
        return first, second, is_random

    def _elsewhere(
        self,
        document: int,
        wanted: int,
        ends: bool,
        random: np.random.Generator,
    ) -> list[Tokens]:
        """Sentences of another document, `wanted` tokens or a few more; its last ones if the run `ends` its document.

        Thus neither the length of B nor a last sentence of a story tells if B is random.
        """
        other = int(random.integers(len(self.documents) - 1))
        if other >= document:
            other += 1
        remaining = self.remaining[other]
        # the sentences with enough tokens from them on; the first one in any case
        starts = max(1, int((remaining >= wanted).sum()))
        start = starts - 1
        if not ends:
            start = int(random.integers(starts))
        stop = start + 1
        while stop < len(remaining) and remaining[start] - remaining[stop] < wanted:
            stop += 1
        return self.documents[other][start:stop]

    def _fitting(
        self,
        first: Tokens,
        second: Tokens,
        random: np.random.Generator,
    ) -> tuple[Tokens, Tokens]:
        """Both cut to the room of a row: tokens are taken from the longer one, from its start or its end at random."""
        first_bounds = [0, len(first.ids)]
        second_bounds = [0, len(second.ids)]
        surplus = len(first.ids) + len(second.ids) - self.room
        for _ in range(surplus):
            first_length = first_bounds[1] - first_bounds[0]
            second_length = second_bounds[1] - second_bounds[0]
            longer = first_bounds if first_length > second_length else second_bounds
            if random.random() < 0.5:
                longer[0] += 1
            else:
                longer[1] -= 1
        return first.part(*first_bounds), second.part(*second_bounds)

    def __getitem__(self, index: int) -> dict:
        random = self.random(index)
        first, second, is_random = self.pair(index, random)
        row = joined([self.before, first, self.after, second, self.after])
        ids, labels = self.masking(row, random)
        types = torch.zeros(len(ids), dtype=torch.long)
        types[len(first.ids) + 2 :] = 1  # B and its [SEP]
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "token_type_ids": types,
            "next_sentence_label": torch.tensor(is_random),
        }


def _tokenized_sentences(
    tokenizer,
    texts: Iterable[str],
    longest: int,
) -> Iterator[list[Tokens]]:
    """The sentences of each text; those of more than `longest` tokens are split."""
    texts = iter(texts)
    while part := list(islice(texts, TEXTS_PER_CALL)):
        texts_sentences = [sentences(text) for text in part]
        # The sentences of these texts go to the tokenizer together, and come back in order.
        tokenized = tokenize_texts(tokenizer, chain.from_iterable(texts_sentences))
        for text_sentences in texts_sentences:
            pieces = []
            for sentence in islice(tokenized, len(text_sentences)):
                for start in range(0, len(sentence.ids), longest):
                    pieces.append(sentence.part(start, start + longest))
            yield pieces


def _stored_documents(
    key: str | None,
    documents: Iterable[list[Tokens]],
) -> StoredDocuments:
    """Documents of one sentence or more. They are not read where they are in the cache already."""

    def fill(writer: Writer) -> dict:
        for pieces in documents:
            if not pieces:
                continue
            ids = np.concatenate([piece.ids for piece in pieces])
            words = np.concatenate([piece.words for piece in pieces])
            ends = np.cumsum([len(piece.ids) for piece in pieces])
            writer.add((ids, words, ends), size=2 * ids.nbytes + ends.nbytes)
        return {}

    return StoredDocuments(stored(key, StoredDocuments.SCHEMA, fill, "encoding").table)


# ---- batches and baselines ---------------------------------------------------------------------------------------


class PadRows:
    """Rows -> batch. Rows of one length need no padding and no attention mask, which would only cost time."""

    def __init__(self, pad_token_id: int):
        self.fill = {
            "input_ids": pad_token_id,
            "labels": IGNORED,
            "token_type_ids": 0,
        }

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        lengths = row_lengths([row["input_ids"] for row in rows])
        if lengths.min() == lengths.max():
            return right_pad_columns(rows, {})
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, L)
        return right_pad_columns(rows, self.fill) | {"attention_mask": mask.long()}


def baselines(rows: DrawnRows) -> dict[str, float]:
    """Accuracy of always predicting the most frequent answer: masked_baseline, and nsp_baseline for pairs."""
    labels: Counter[int] = Counter()
    next_sentence: Counter[int] = Counter()
    for i in range(len(rows)):
        row = rows[i]
        predicted = row["labels"][row["labels"] != IGNORED]
        labels.update(predicted.tolist())
        if "next_sentence_label" in row:
            next_sentence[int(row["next_sentence_label"])] += 1
    shares = {"masked_baseline": max(labels.values()) / labels.total()}
    if next_sentence:
        shares["nsp_baseline"] = max(next_sentence.values()) / next_sentence.total()
    return shares
