"""Questions and shots -> token ids of a prompt and of its answers, as plain text or as turns of a chat template.

The ids of an answer are those of "prompt answer" beyond those of "prompt". A merge over the boundary changes the last
tokens of the prompt, for some answers and not for others. So all answers of a question are scored from the same token on:
the first one that any of them changes. Every score then covers the same text, and the part of the prompt in it is
log p(prompt's end, answer | prompt's beginning) for all of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.data.chat import encode_completion, encode_prompt, encode_text
from rlhf.data.templates import written_text
from rlhf.errors import UserError
from rlhf.few_shot.questions import Question

# kind of rows -> the text of a question. The answer follows after a space.
TEMPLATES = {
    "classification": "Text: {text}\nLabel:",
    "pair_classification": "Text: {text}\nSecond text: {text_pair}\nLabel:",
    "multiple_choice": "{text}",
    "question_answering": "{context}\nQuestion: {question}\nAnswer:",
}
SEPARATOR = "\n\n"  # between shots of plain text
DELIMITER = " "  # between a question and its answer in plain text
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def check_template(template: str, kind: str, columns: Sequence[str]) -> str:
    """The template with real line ends. UserError where it names a column that the rows do not have, or none."""
    template = template.replace("\\n", "\n")  # a shell passes the two characters
    names = PLACEHOLDER.findall(template)
    allowed = [*columns]
    if "classification" in kind:
        allowed.append("labels")
    braced = ", ".join(f"{{{name}}}" for name in allowed)
    for name in names:
        if name not in allowed:
            raise UserError(f"--template: {{{name}}} is not a column of {kind} rows: use {braced}")
    if not set(names) & set(columns):
        raise UserError(f"--template: it holds no text of the row: use at least one of {braced}")
    if template != template.rstrip():
        raise UserError(
            "--template ends with white space, and the space before the answer is written for you: most tokenizers have "
            "it in the first token of a word. Drop it"
        )
    return template


@dataclass(frozen=True)
class Candidates:
    """Token ids of a question's prompt with each of its answers.

    sequences: prompt and answer, one for each answer.
    start: index of the first token that is scored, the same for all.
    lengths: UTF-8 bytes of each answer.
    """

    sequences: list[list[int]]
    start: int
    lengths: list[int]


@dataclass(frozen=True)
class PromptWriter:
    """Writes prompts for one tokenizer. chat: shots are turns of its chat template."""

    tokenizer: object
    template: str
    labels: tuple[str, ...]
    chat: bool

    def fill(self, texts: dict[str, str]) -> str:
        """The text of a question without its answer. Braces in the texts stay as they are."""
        values = texts | {"labels": ", ".join(self.labels)}
        return PLACEHOLDER.sub(lambda match: values[match[1]], self.template)

    def text(self, shots: Sequence[Question], texts: dict[str, str]) -> str:
        """The prompt as plain text."""
        blocks = [self.fill(shot.texts) + DELIMITER + shot.references[0] for shot in shots]
        return SEPARATOR.join([*blocks, self.fill(texts)])

    def messages(self, shots: Sequence[Question], texts: dict[str, str]) -> list[dict]:
        """The prompt as turns of a conversation."""
        messages = []
        for shot in shots:
            messages.append({"role": "user", "content": self.fill(shot.texts)})
            messages.append({"role": "assistant", "content": shot.references[0]})
        messages.append({"role": "user", "content": self.fill(texts)})
        return messages

    def shown(self, shots: Sequence[Question], texts: dict[str, str]) -> str:
        """The prompt as the model reads it, for people."""
        if not self.chat:
            return self.text(shots, texts)
        return written_text(self.tokenizer, self.messages(shots, texts), generation_prompt=True)

    def encode(self, shots: Sequence[Question], texts: dict[str, str]) -> list[int]:
        """Token ids of the prompt."""
        if self.chat:
            return encode_prompt(self.tokenizer, self.messages(shots, texts))
        return encode_text(self.tokenizer, self.text(shots, texts))

    def candidates(
        self, shots: Sequence[Question], texts: dict[str, str], answers: Sequence[str]
    ) -> Candidates:
        """Token ids of the prompt with each answer, which in a chat is written up to the end of its turn."""
        prompt = self.encode(shots, texts)
        lengths = [len(answer.encode()) for answer in answers]
        if self.chat:
            # A turn is closed by exactly one token, which is not part of the answer.
            words = [encode_completion(self.tokenizer, answer)[:-1] for answer in answers]
            sequences, start = [prompt + ids for ids in words], len(prompt)
        else:
            text = self.text(shots, texts)
            sequences = []
            for answer in answers:
                sequences.append(encode_text(self.tokenizer, text + DELIMITER + answer))
            start = min(shared_length(prompt, sequence) for sequence in sequences)
        for answer, sequence in zip(answers, sequences):
            if len(sequence) <= start:
                raise UserError(
                    f"the answer {answer!r} has no tokens of its own: give it another text"
                )
        if start == 0:
            raise UserError("--template: the text before the answer has no tokens: make it longer")
        return Candidates(sequences, start, lengths)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids at the start that two sequences share."""
    for i, (a, b) in enumerate(zip(first, second)):
        if a != b:
            return i
    return min(len(first), len(second))
