"""What the model says is fixed by hand: its body passes on which token it sees, its head is a table token -> tag."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from rlhf.tasks.ner.predictor import NerPredictor

LABELS = ["O", "B-per", "I-per"]


class Fixed(torch.nn.Module):
    """Logits by token id: 5 for its label, so that the probability of it is e^5 / (e^5 + 2)."""

    def __init__(self, table: dict[int, int], inner):
        super().__init__()
        self.table, self.inner, self.lengths = table, inner, []

    def forward(self, input_ids, **rest):
        self.lengths.append(input_ids.shape[1])
        output = self.inner(input_ids=input_ids, **rest)
        output.logits = torch.tensor([[[5.0 * (self.table.get(i, 0) == k) for k in range(3)] for i in row]
                                      for row in input_ids.tolist()])  # fmt: skip
        return output


@pytest.fixture
def tagger(tmp_path):
    def make(pieces: dict[str, str], units: str = "words", length: int = 32) -> NerPredictor:
        """pieces: piece -> tag of it."""
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        vocabulary = {piece: number for number, piece in enumerate([*special, *pieces])}
        inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        names = {f"{name[1:-1].lower()}_token": name for name in special}
        PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(tmp_path)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            max_position_embeddings=32, id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )  # fmt: skip
        config.trained_units, config.trained_length = units, length
        BertForTokenClassification(config).save_pretrained(tmp_path)
        made = NerPredictor(tmp_path)
        table = {vocabulary[piece]: LABELS.index(tag) for piece, tag in pieces.items()}
        fixed = Fixed(table, made.model)
        fixed.__class__ = type(
            "FixedForTokenClassification", (Fixed,), {}
        )  # run_batches goes by the name
        fixed.device = made.model.device
        made.model = fixed
        return made

    return make


SURE = torch.tensor([5.0, 0, 0]).softmax(0)[0].item()
NAMES = {"ada": "B-per", "love": "I-per", "##lace": "O", "met": "O", ",": "O", "she": "O"}


def test_tokens_and_text_give_the_same_entities(tagger):
    made = tagger(NAMES)
    rows = [
        {"tokens": ["met", "ada", "lovelace", ","]},
        {"text": "met  ada lovelace,"},
        {"text": "she"},
        {"text": " "},
    ]
    tokens, text, none, blank = made.predict(rows, batch_size=2)
    assert tokens["tokens"] == text["tokens"] == ["met", "ada", "lovelace", ","]
    assert tokens["tags"] == text["tags"] == ["O", "B-per", "I-per", "O"]
    score = pytest.approx(SURE)
    assert tokens["entities"] == [
        {"type": "per", "text": "ada lovelace", "start": 4, "end": 16, "score": score}
    ]
    assert text["entities"] == [
        {"type": "per", "text": "ada lovelace", "start": 5, "end": 17, "score": score}
    ]
    assert none == {"tokens": ["she"], "tags": ["O"], "entities": []}
    assert blank == {"tokens": [], "tags": [], "entities": []}


def test_a_tokenizer_that_pads_on_the_left_is_turned_round(tagger, tmp_path):
    tagger(NAMES)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {
        "padding_side": "left"
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    made = NerPredictor(tmp_path)
    alone, together = (
        made.predict([{"text": "met ada"}]),
        made.predict([{"text": "met ada"}, {"text": "she met ada , she"}]),
    )
    assert made.tokenizer.padding_side == "right"
    assert together[0]["tags"] == alone[0]["tags"]


def test_an_inside_without_a_beginning_begins_an_entity(tagger):
    (found,) = tagger(NAMES).predict([{"text": "met love"}])
    assert found["tags"] == ["O", "B-per"] and found["entities"][0]["text"] == "love"


def test_a_model_of_characters_cuts_text_into_characters(tagger):
    made = tagger({"서울": "B-per", "##은": "O", "대학": "I-per"}, units="characters")
    (found,) = made.predict([{"text": "서울 대학은"}])
    assert found["tokens"] == list("서울 대학은")
    assert found["tags"] == ["B-per", "I-per", "I-per", "I-per", "I-per", "O"]
    entity = {
        "type": "per",
        "text": "서울 대학",
        "start": 0,
        "end": 5,
        "score": pytest.approx(SURE),
    }
    assert found["entities"] == [entity]


def test_long_texts_are_read_in_windows_of_the_length_that_was_trained(tagger):
    made = tagger({"a": "O", "b": "B-per"}, length=10)
    tokens = ["a"] * 7 + ["b"] + ["a"] * 40 + ["b"]
    (found,) = made.predict([{"tokens": tokens}])
    assert found["tags"] == ["B-per" if token == "b" else "O" for token in tokens]
    assert max(made.model.lengths) == 10
    assert [entity["start"] for entity in found["entities"]] == [14, 96]
