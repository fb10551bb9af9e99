"""Texts -> a new tokenizer: byte-level BPE (GPT-2), WordPiece (BERT) or Unigram (T5, ALBERT, XLM-R).

Deviations, each with its reason:
- Accents stay where BERT strips them with the case: stripping takes Hangul apart into its letters. Text is brought to NFC
  instead, so that Korean typed on a Mac (NFD) is the same text. SentencePiece's NFKC is not used either: it turns the
  ㅋㅋ and ㅠㅠ of Korean chats into other letters, which no decoder can undo.
- Unigram pieces do not run across punctuation, as in BERT: a name or an answer can be marked without the full stop.
- The same text gives the same file. The trainer of `tokenizers` numbers WordPiece's ## letters in the order of a hash table,
  hence they are handed to it in the order of the alphabet.
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
SEEN = 2  # of BERT's words: a piece that stands in the text once would never be learned
ENCODER_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def train_tokenizer(
    texts: list[str], kind: str, *, vocab_size: int, model_max_length: int, lowercase: bool, character_coverage: float,
    reserved: int,
) -> PreTrainedTokenizerFast:  # fmt: skip
    """A tokenizer of `vocab_size` tokens, `reserved` of which the caller adds. kind: a key of KINDS.

    lowercase, character_coverage (the rarest characters beyond this share of the text become unknown) are for WordPiece
    and Unigram. UserError where the alphabet needs more tokens than vocab_size, or the text has not enough for it.
    """
    tokenizer = KINDS[kind](texts, vocab_size - reserved, lowercase, character_coverage)
    filled = tokenizer.get_vocab_size() + reserved
    if filled > vocab_size:
        raise _too_small(kind, vocab_size, filled)
    if filled < vocab_size:
        raise UserError(
            f"vocab_size={vocab_size}: this text fills only {filled} tokens; set vocab_size to at most {filled}, "
            "or bring more text"
        )
    if kind == "byte_bpe":
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    else:
        special = {f"{name[1:-1].lower()}_token": name for name in SPECIAL} | {
            "model_input_names": ENCODER_INPUTS
        }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=model_max_length, **special
    )


def _too_small(kind: str, vocab_size: int, needed: int) -> UserError:
    what = (
        "256 bytes and the special tokens need"
        if kind == "byte_bpe"
        else "the letters of this text alone need"
    )
    remedy = (
        ""
        if kind == "byte_bpe"
        else ", or lower character_coverage (0.9995) so that rare letters are unknown"
    )
    return UserError(f"vocab_size={vocab_size}: {what} {needed}; set vocab_size above that{remedy}")


def _byte_bpe(texts: list[str], size: int, *_) -> Tokenizer:
    """Every byte is a token: nothing is ever unknown, nothing is normalised."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": [END], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=max(size, 0), **options))
    return tokenizer


def _wordpiece(texts: list[str], size: int, lowercase: bool, coverage: float) -> Tokenizer:
    """BERT's: words and punctuation, ## before what continues a word; [UNK] is a whole word."""
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = _normalizer(lowercase, chinese=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = _covered(texts, learner.normalizer, coverage)
    inside = sorted(
        {f"##{letter}" for word in _words(texts, learner.pre_tokenizer) for letter in word[1:]}
    )
    options = {"special_tokens": [*SPECIAL, *inside], "min_frequency": SEEN, "show_progress": False}
    learner.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=max(size, 0), **options)
    )

    tokenizer = Tokenizer(
        models.WordPiece(learner.get_vocab(), unk_token="[UNK]")
    )  # where ##x is not special
    tokenizer.normalizer, tokenizer.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return _framed(tokenizer)


def _unigram(texts: list[str], size: int, lowercase: bool, coverage: float) -> Tokenizer:
    """SentencePiece's: ▁ stands for the space before a word, so that the text can be put together again."""
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    normalizer = normalizers.Sequence([_normalizer(lowercase, chinese=False), *spaces])
    words_or_signs = pre_tokenizers.Split(Regex(r" ?\p{P}+| ?[^\p{P} ]+"), "isolated")
    marked = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    pre_tokenizer = pre_tokenizers.Sequence([words_or_signs, marked])
    words = _words(_covered(texts, normalizer, coverage), pre_tokenizer)
    needed = len({letter for word in words for letter in word}) + len(SPECIAL)
    if needed > size:
        raise _too_small("unigram", size, needed)
    pieces = [*((name, 0.0) for name in SPECIAL), *train_unigram(words, size - len(SPECIAL))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("[UNK]")))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _framed(tokenizer)


KINDS = {"byte_bpe": _byte_bpe, "wordpiece": _wordpiece, "unigram": _unigram}


def _normalizer(lowercase: bool, *, chinese: bool):
    """NFC, one kind of space, no control characters. chinese: spaces around Chinese characters, as in BERT."""
    bert = normalizers.BertNormalizer(
        handle_chinese_chars=chinese, strip_accents=False, lowercase=lowercase
    )
    return normalizers.Sequence([normalizers.NFC(), bert])


def _covered(texts: Iterable[str], normalizer, coverage: float) -> list[str]:
    """Normalised texts in which a space stands for the rarest characters: those beyond `coverage` of all characters."""
    texts = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(chain.from_iterable(texts))
    needed, rare = coverage * counts.total(), {}
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if needed <= 0:
            rare[ord(letter)] = " "
        needed -= count
    return [text.translate(rare) for text in texts] if rare else texts


def _words(texts: Iterable[str], pre_tokenizer) -> Counter[str]:
    """What the pre-tokenizer cuts the texts into, counted, in the order of the alphabet."""
    counts = Counter(word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text))
    return Counter(dict(sorted(counts.items())))


def _framed(tokenizer: Tokenizer) -> Tokenizer:
    """[CLS] text [SEP], and [CLS] text [SEP] pair [SEP] with token types 0 and 1; special tokens are matched as such."""
    tokenizer.add_special_tokens(list(SPECIAL))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer
