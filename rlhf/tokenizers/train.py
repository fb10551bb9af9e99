"""Trains a tokenizer on texts: byte-level BPE (GPT-2), WordPiece (BERT), Unigram (T5, ALBERT, XLM-R), words or characters.

Deviations, each with its reason:
- BERT strips accents together with the case. Here they stay, because stripping takes Hangul apart into its letters.
  Instead text is brought to NFC, so that Korean typed on a Mac (NFD) is the same text. SentencePiece's NFKC is not used
  either: it turns the ㅋㅋ and ㅠㅠ of Korean chats into other letters, which no decoder can undo.
- Unigram pieces do not run across punctuation, as in BERT: a name or an answer can be marked without the full stop.
- Words and characters that are not in the vocabulary are spelled in bytes, where the models of their time had one token for
  all unknown words. So every text can be written, and a model cannot look better for words that it need not spell.
- The same text gives the same file. The trainer of `tokenizers` numbers WordPiece's ## letters in the order of a hash
  table, so they are given to it in alphabetical order.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from rlhf.errors import UserError
from rlhf.tokenizers.unigram import train_unigram

END = "<|endoftext|>"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_FREQUENCY = 2  # of WordPiece's pieces: one that occurs once in the text would never be learned
ENCODER_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def train_tokenizer(
    texts: list[str],
    kind: str,
    *,
    vocab_size: int,
    model_max_length: int,
    lowercase: bool,
    character_coverage: float,
    reserved: int,
) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocab_size` tokens. UserError where the alphabet needs more, or where the text gives fewer.

    kind: a key of KINDS.
    lowercase: for WordPiece and Unigram.
    character_coverage: for WordPiece and Unigram. The rarest characters beyond this share of the text become unknown.
    reserved: tokens of vocab_size that the caller will add.
    """
    tokenizer = KINDS[kind](texts, vocab_size - reserved, lowercase, character_coverage)
    actual_size = tokenizer.get_vocab_size() + reserved
    if actual_size > vocab_size:
        raise _too_small(kind, vocab_size, actual_size)
    # The characters of a text are as many as they are.
    if actual_size < vocab_size and kind != "characters":
        raise UserError(
            f"vocab_size={vocab_size}: this text fills only {actual_size} tokens; set vocab_size to at most {actual_size}, "
            "or give more text"
        )
    if kind in BYTE_LEVEL:
        options = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)  # as GPT-2 has it
    else:
        options = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}  # pad_token, ...
        options["model_input_names"] = ENCODER_INPUTS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=model_max_length, **options
    )


def _too_small(kind: str, vocab_size: int, needed: int) -> UserError:
    if kind in BYTE_LEVEL:
        reason = f"256 bytes and the special tokens need {needed}"
        remedy = "set vocab_size above that"
    else:
        reason = f"the letters of this text alone need {needed}"
        remedy = "set vocab_size above that, or lower character_coverage (0.9995) so that rare letters are unknown"
    return UserError(f"vocab_size={vocab_size}: {reason}; {remedy}")


def _byte_bpe(texts: list[str], size: int, *_) -> Tokenizer:
    """GPT-2's kind: every byte is a token, so nothing is ever unknown, and nothing is normalised."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size, 0),  # where it is too small, the caller says so
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _words(texts: list[str], size: int, *_) -> Tokenizer:
    """The most frequent words, each with the space before it, and the punctuation of GPT-2's rule."""
    return _whole_pieces(texts, size, pre_tokenizers.ByteLevel(add_prefix_space=False))


def _characters(texts: list[str], size: int, *_) -> Tokenizer:
    """The most frequent characters. Those of one byte are the bytes themselves."""
    single = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _whole_pieces(texts, size, pre_tokenizers.Sequence([single, as_bytes]))


def _whole_pieces(texts: list[str], size: int, pre_tokenizer) -> Tokenizer:
    """A vocabulary of the most frequent pieces that a pre-tokenizer cuts. A rarer piece becomes its bytes."""
    vocabulary = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = set(vocabulary)
    counts = _word_counts(texts, pre_tokenizer)
    # sorted() keeps the alphabetical order of the counts among equals.
    for piece in sorted(counts, key=counts.get, reverse=True):
        if len(vocabulary) >= size:
            break
        if piece not in known:
            vocabulary.append(piece)
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    # Without merges a piece is a token as a whole, or bytes.
    tokenizer = Tokenizer(models.BPE(ids, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def _wordpiece(texts: list[str], size: int, lowercase: bool, coverage: float) -> Tokenizer:
    """BERT's kind: words and punctuation, with ## before what continues a word. [UNK] is a whole word."""
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = _normalizer(lowercase, chinese=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = _replace_rare_characters(texts, learner.normalizer, coverage)
    # The letters within words are given as special tokens, because these keep their order.
    inner_letters = set()
    for word in _word_counts(texts, learner.pre_tokenizer):
        inner_letters.update(f"##{letter}" for letter in word[1:])
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(size, 0),
        special_tokens=[*SPECIAL, *sorted(inner_letters)],
        min_frequency=MIN_FREQUENCY,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)

    # A new tokenizer with the same vocabulary, in which ##x is not special.
    tokenizer = Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = learner.normalizer
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return _with_special_tokens(tokenizer)


def _unigram(texts: list[str], size: int, lowercase: bool, coverage: float) -> Tokenizer:
    """SentencePiece's kind: ▁ marks the space before a word, so that the text can be put together again."""
    normalizer = normalizers.Sequence(
        [
            _normalizer(lowercase, chinese=False),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r" ?\p{P}+| ?[^\p{P} ]+"), "isolated"
            ),  # words or punctuation
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        ]
    )
    words = _word_counts(_replace_rare_characters(texts, normalizer, coverage), pre_tokenizer)
    alphabet = set(chain.from_iterable(words))
    needed = len(alphabet) + len(SPECIAL)  # Unigram always keeps single characters
    if needed > size:
        raise _too_small("unigram", size, needed)
    special = [(token, 0.0) for token in SPECIAL]
    pieces = special + train_unigram(words, size - len(SPECIAL))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("[UNK]")))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _with_special_tokens(tokenizer)


KINDS = {
    "byte_bpe": _byte_bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "words": _words,
    "characters": _characters,
}
BYTE_LEVEL = ("byte_bpe", "words", "characters")  # each spells every byte, so nothing is unknown


def _normalizer(lowercase: bool, *, chinese: bool):
    """NFC, one kind of space, no control characters. chinese: spaces around Chinese characters, as in BERT."""
    bert = normalizers.BertNormalizer(
        handle_chinese_chars=chinese, strip_accents=False, lowercase=lowercase
    )
    return normalizers.Sequence([normalizers.NFC(), bert])


def _replace_rare_characters(texts: Iterable[str], normalizer, coverage: float) -> list[str]:
    """Normalised texts with a space for the rarest characters: those beyond `coverage` of all characters."""
    texts = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(chain.from_iterable(texts))
    uncovered = coverage * counts.total()  # characters that are still to be covered
    rare = {}
    # The most frequent first. The alphabet decides between equals, so that runs agree.
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if uncovered <= 0:
            rare[ord(letter)] = " "
        uncovered -= count
    if not rare:
        return texts
    return [text.translate(rare) for text in texts]


def _word_counts(texts: Iterable[str], pre_tokenizer) -> Counter[str]:
    """Counts of the words into which the pre-tokenizer cuts the texts, in alphabetical order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    return Counter(dict(sorted(counts.items())))  # the order decides how sums are rounded


def _with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Adds BERT's special tokens, and puts [CLS] and [SEP] around a text, or a pair with token types 0 and 1."""
    tokenizer.add_special_tokens(list(SPECIAL))
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    return tokenizer
