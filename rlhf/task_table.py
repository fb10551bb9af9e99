"""The encoder tasks as a table: everything that differs between them, and nothing else.

The key of a task names its recipe, its folder in `rlhf/tasks/`, its rows, its report and its endpoint in the app. Data,
models, run records, model cards, the app and `python -m rlhf predict` read this table, so a new task is a folder, a
recipe, a row here and a view in `rlhf/serving/ui/tasks.py`.

Only data and only the standard library: every layer may import this file. Classes are named as "module:Class" and
imported where they are used.
"""

from collections import ChainMap
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rows:
    """One kind of rows.

    columns: name -> form of its values, a key of `rlhf.data.rows.FORMS`.
    example: one valid row.
    relation: a condition that ties columns to each other: a key of `rlhf.data.rows.RELATIONS`, then its columns.
    unanswered: the kind that the same rows have without the answer, where a file may lack the answers.
    """

    columns: dict[str, str]
    example: dict
    relation: tuple[str, ...] = ()
    unanswered: str = ""


@dataclass(frozen=True)
class RowList:
    """A list of rows in a file of the run folder that the model card shows as a table.

    file: its name. key: of the list in a JSON object, "" in a .jsonl file. columns: () shows those of the first row.
    """

    file: str
    key: str = ""
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One task of a fine-tuned encoder.

    title: its name for people, in the app and in messages.
    answer: the column that a model learns to predict.
    rows: kind -> Rows. Kinds with the answer are read by the recipe, the others by `predict`.
    inputs: kinds that a trained model predicts from, preferred ones first.
    texts: columns that the app asks for. optional: those that only models with `trained_pairs` in their config read.
    head: name of transformers' Auto class. No two tasks share one: it tells the task of a model.
    model_types: architectures that can be trained from random weights.
    peft_type: peft's name of the task. lora_excludes: heads that peft trains in full, so that LoRA must pass them by.
    predictor: "module:Class" of a trained model. answers: "module:Class" that compares predictions with answers.
    pipeline: the Hub's name of the task. hub_metrics: metric of a run record -> the Hub's name of it.
    report: the table of results. report_rows: what its rows are. mistakes: held-out rows that the model got wrong.
    summary: one sentence for the model card. summaries: the same by `problem_type` of the config, where it differs.
    snippet: Python code for the model card. snippet_example: its inputs where the run left no short samples.
    """

    title: str
    answer: str
    rows: dict[str, Rows]
    inputs: tuple[str, ...]
    texts: tuple[str, ...]
    head: str
    model_types: tuple[str, ...]
    peft_type: str
    predictor: str
    answers: str
    pipeline: str
    hub_metrics: dict[str, str]
    report: RowList
    report_rows: str
    mistakes: RowList
    summary: str
    snippet: str
    snippet_example: dict
    optional: tuple[str, ...] = ()
    lora_excludes: tuple[str, ...] = ()
    summaries: dict[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The end of the names of model classes with this head, as in BertForTokenClassification."""
        return self.head.removeprefix("AutoModel")

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The kinds of rows that the recipe reads: those with the answer."""
        return tuple(name for name, rows in self.rows.items() if self.answer in rows.columns)


@dataclass(frozen=True)
class TextToText:
    """A model that writes a text for a text, as `predict` knows it. The fields mean what they do in Task."""

    title: str
    answer: str
    inputs: tuple[str, ...]
    texts: tuple[str, ...]
    predictor: str
    answers: str
    optional: tuple[str, ...] = ()


# The heads of pretraining by the recipe's `objective`; masked_nsp has BERT's two, masked words and next sentence.
PRETRAINING_HEADS = {"masked": "AutoModelForMaskedLM", "masked_nsp": "AutoModelForPreTraining"}


# ---- Python code of the model cards. {path}, {text}, ... are replaced by Python literals. ----

# top_k=None: the probability of every label and not only the best
CLASSIFICATION_SNIPPET = """from transformers import pipeline

path = {path}
classify = pipeline("text-classification", model=path, top_k=None)
print(classify({texts}, truncation=True))
"""

# The pipeline joins tokens to entities; `aggregation` follows from the units that the model tags.
NER_SNIPPET = """from transformers import pipeline

path = {path}
tag = pipeline("token-classification", model=path, aggregation_strategy="{aggregation}")
for entity in tag({text}):
    print(entity["entity_group"], entity["word"], entity["start"], entity["end"], entity["score"])
"""

# The best span within the context that is not too long, as our predictor finds it in one window.
QUESTION_ANSWERING_SNIPPET = """import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

path = {path}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForQuestionAnswering.from_pretrained(path)
question, context = {question}, {context}
inputs = tokenizer(question, context, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
offsets = inputs.pop("offset_mapping")[0].tolist()
output = model(**inputs)
inside = torch.tensor([part == 1 for part in inputs.sequence_ids()])
spans = torch.ones(len(inside), len(inside)).triu().tril({longest}).bool() & inside & inside[:, None]
scores = (output.start_logits[0][:, None] + output.end_logits[0]).masked_fill(~spans, -1e9)
start, end = divmod(scores.argmax().item(), len(inside))
answer = context[offsets[start][0] : offsets[end][1]]  # a span even where the text holds no answer
print(answer)
"""

# The head takes (1, choices, tokens).
MULTIPLE_CHOICE_SNIPPET = """import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

path = {path}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForMultipleChoice.from_pretrained(path)
text, choices = {text}, {choices}
inputs = tokenizer([text] * len(choices), choices, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**{{name: value.unsqueeze(0) for name, value in inputs.items()}}).logits  # (1, choices)
answer = choices[logits[0].argmax().item()]
print(answer)
"""


TASKS = {
    "classification": Task(
        title="Classification",
        answer="label",
        rows={
            "classification": Rows(
                columns={"text": "text", "label": "label"},
                example={"text": "A fine film.", "label": "good"},
            ),
            "pair_classification": Rows(
                columns={"text": "text", "text_pair": "text", "label": "label"},
                example={"text": "It rains.", "text_pair": "It is wet.", "label": "entailment"},
            ),
            "pair": Rows(
                columns={"text": "text", "text_pair": "text"},
                example={"text": "It rains.", "text_pair": "It is wet."},
            ),
        },
        # A model of pairs takes only the first, one of single texts only the second.
        inputs=("pair", "text"),
        texts=("text",),
        optional=("text_pair",),
        head="AutoModelForSequenceClassification",
        # all but BERT read the label from the last token
        model_types=("bert", "gpt2", "rnn", "lstm", "gru"),
        peft_type="SEQ_CLS",
        lora_excludes=("pre_classifier",),  # DistilBERT
        predictor="rlhf.tasks.classification.predictor:ClassificationPredictor",
        answers="rlhf.tasks.classification.predictor:ClassificationAnswers",
        pipeline="text-classification",
        hub_metrics={
            # of one or several labels
            "accuracy": "accuracy",
            "f1": "f1",
            # of numbers
            "mse": "mse",
            "mae": "mae",
            "pearson": "pearsonr",
            "spearman": "spearmanr",
        },
        report=RowList(
            file="classification.json",
            key="classes",
            columns=("label", "rows", "precision", "recall", "f1"),
        ),
        report_rows="labels",
        mistakes=RowList(file="errors.jsonl"),  # its columns depend on the problem
        summary="A classifier that gives {texts} one label.",
        summaries={
            "multi_label_classification": "A classifier that gives {texts} any number of labels.",
            "regression": "A model that gives {texts} a number.",
        },
        snippet=CLASSIFICATION_SNIPPET,
        snippet_example={
            "text": "The letter was written by Ada.",
            "text_pair": "Ada wrote the letter.",
        },
    ),
    "ner": Task(
        title="NER",
        answer="tags",
        rows={
            "ner": Rows(
                columns={"tokens": "tokens", "tags": "tags"},
                example={
                    "tokens": ["Ada", "Lovelace", "wrote", "."],
                    "tags": ["B-person", "I-person", "O", "O"],
                },
                relation=("same_length", "tags", "tokens"),
                unanswered="tokens",
            ),
            "tokens": Rows(
                columns={"tokens": "tokens"},
                example={"tokens": ["Ada", "Lovelace", "wrote", "."]},
            ),
        },
        # Raw text is cut into tokens as the training rows were.
        inputs=("tokens", "text"),
        texts=("text",),
        head="AutoModelForTokenClassification",
        model_types=("bert", "gpt2"),
        peft_type="TOKEN_CLS",
        lora_excludes=("classifier", "score"),  # the head of BERT, that of GPT-2
        predictor="rlhf.tasks.ner.predictor:NerPredictor",
        answers="rlhf.tasks.ner.predictor:NerAnswers",
        pipeline="token-classification",
        hub_metrics={"f1": "f1", "precision": "precision", "recall": "recall"},
        report=RowList(
            file="ner.json",
            key="types",
            columns=("type", "entities", "precision", "recall", "f1"),
        ),
        report_rows="types",
        mistakes=RowList(file="errors.jsonl", columns=("tokens", "errors")),
        summary="A model that labels each word (named entity recognition).",
        snippet=NER_SNIPPET,
        snippet_example={"text": "The letter was written by Ada."},
    ),
    "question_answering": Task(
        title="Question answering",
        answer="answers",
        rows={
            "question_answering": Rows(
                columns={"question": "text", "context": "text", "answers": "answers"},
                # Empty lists would mean that the context holds no answer (SQuAD v2).
                example={
                    "question": "Who wrote it?",
                    "context": "Ada wrote it.",
                    "answers": {"text": ["Ada"], "answer_start": [0]},
                },
                relation=("quotes", "answers", "context"),
                unanswered="question",
            ),
            "question": Rows(
                columns={"question": "text", "context": "text"},
                example={"question": "Who wrote it?", "context": "Ada did."},
            ),
        },
        inputs=("question",),
        texts=("question", "context"),
        head="AutoModelForQuestionAnswering",
        model_types=("bert",),  # "no answer" is a score of the first token, which has to be no text
        peft_type="QUESTION_ANS",
        lora_excludes=("qa_outputs",),
        predictor="rlhf.tasks.question_answering.predictor:QuestionAnsweringPredictor",
        answers="rlhf.tasks.question_answering.predictor:QuestionAnsweringAnswers",
        pipeline="question-answering",
        hub_metrics={"f1": "f1", "exact": "exact_match"},
        report=RowList(
            file="question_answering.json",
            key="kinds",
            columns=("question", "rows", "exact", "f1"),
        ),
        report_rows="kinds of questions",  # the first two words: "who is", "how many"
        mistakes=RowList(
            file="question_answering.json",
            key="mistakes",
            columns=("question", "gold", "predicted", "f1"),
        ),
        summary="A model that marks the answer to a question in a text.",
        snippet=QUESTION_ANSWERING_SNIPPET,
        snippet_example={
            "question": "Who wrote the letter?",
            "context": "The letter was written by Ada.",
        },
    ),
    "multiple_choice": Task(
        title="Multiple choice",
        answer="label",
        rows={
            "multiple_choice": Rows(
                columns={"text": "text", "choices": "choices", "label": "label"},
                example={
                    "text": "Ada opened the door.",
                    "choices": ["She went in.", "It is a fruit.", "He slept on."],
                    "label": 0,
                },
                relation=("index_of", "label", "choices"),
                unanswered="choices",
            ),
            "choices": Rows(
                columns={"text": "text", "choices": "choices"},
                example={
                    "text": "Ada opened the door.",
                    "choices": ["She went in.", "It is a fruit."],
                },
            ),
        },
        inputs=("choices",),
        texts=("text", "choices"),
        head="AutoModelForMultipleChoice",
        model_types=("bert",),  # transformers has no such head for GPT-2
        peft_type="SEQ_CLS",  # peft has no name of its own for it: the head is a classifier with one output
        lora_excludes=("pre_classifier",),
        predictor="rlhf.tasks.multiple_choice.predictor:MultipleChoicePredictor",
        answers="rlhf.tasks.multiple_choice.predictor:MultipleChoiceAnswers",
        pipeline="multiple-choice",
        hub_metrics={"accuracy": "accuracy"},
        report=RowList(
            file="multiple_choice.json",
            key="choices",
            columns=("choices", "rows", "accuracy", "chance"),
        ),
        report_rows="numbers of choices",
        mistakes=RowList(file="errors.jsonl"),
        summary="A model that picks the right one of several texts that may follow a text.",
        snippet=MULTIPLE_CHOICE_SNIPPET,
        snippet_example={
            "text": "Ada opened the door.",
            "choices": ["She went in.", "It is a fruit."],
        },
    ),
}


# Kind of model -> what `predict` needs to know of it.
WRITERS = {
    "seq2seq": TextToText(
        title="Text to text",
        answer="completion",
        # Rows with a reference, which is compared with what is written; prompts; lines of a text file.
        inputs=("prompt_completion", "prompt", "text"),
        texts=("prompt",),
        predictor="rlhf.tasks.seq2seq.predictor:Seq2SeqPredictor",
        answers="rlhf.tasks.seq2seq.predictor:Seq2SeqAnswers",
    )
}
# A view, not a copy: a row that is added to TASKS is in it.
PREDICTED = ChainMap(TASKS, WRITERS)
