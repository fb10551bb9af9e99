"""The demo's data: the embedded small talk (recipes/data) as the files a user would bring.

    python recipes/smalltalk.py --voice caring --output runs/demo/data

64 topics, about 270 phrasings each, and one right answer per topic in each of five voices. Questions that small talk
cannot answer (beyond.json: facts, tasks, arithmetic, other languages and more) have one right answer in each voice too,
which says so. Follow-ups ("why?", "another one"; follow_ups.json) have an answer that depends on the topic before. All of it
was written for this project.
    text.txt         plain text to pretrain on: prompts with answers, five of one topic in a line, so that words of similar
                     meaning occur together
    sft.jsonl        messages: conversations of one to three turns, the voices mixed evenly; each phrasing twice, once
                     carelessly typed, with or without all of its words
    sft_dev.jsonl    messages: the prompts of dev.jsonl with an answer, for the loss
    rankings.jsonl   prompt, completions, ranks: the preferred voice, two others, then an honest "beyond me", and last
                     answers to other topics, one of them in the preferred voice, so that the voice alone never wins
    prompts.jsonl    prompts for PPO
    dev.jsonl        prompts to tune on, whose wording no file above holds, with the closed list of right answers
    heldout.jsonl, heldout_beyond.jsonl, heldout_dialogues.jsonl    the same for the report, of other wordings; what is
                     beyond small talk is partly of kinds that no other file knows
    turns.jsonl, turns_heldout.jsonl    text: a question and its answer as plain text, for `make ladder`
    topics.jsonl, topics_heldout.jsonl    text, label: the phrasings with their topic, for classification
    chat_template.jinja    how the demo's models read a conversation: what the user says in lower case, and of all before
                     the last question only the first word of each message
"""

import argparse
import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rlhf.runs.replacement import replacement

VOICES = ("plain", "friendly", "witty", "caring", "enthusiastic")
DATA = Path(__file__).parent / "data"
SOURCE = DATA / "smalltalk.jsonl"
TEMPLATE = "chat_template.jinja"
BEYOND = "beyond"  # the topic of all that small talk cannot answer
RANKED = 28  # phrasings per topic
PER_LINE = 5  # prompts with answers in a line of text.txt
BEYOND_PROMPTS = (
    20000  # drawn from the templates in beyond.json; a message without braces counts once
)
ASKED = 6000  # prompts for PPO, more than its episodes
# Shares: conversations of two and of three turns, and follow-ups among their later turns.
TURNS = (1, 1, 2, 3)
FOLLOW_UPS = 0.5
NAMES = (
    *("text", "sft", "sft_dev", "rankings", "prompts", "dev"),
    *("heldout", "heldout_beyond", "heldout_dialogues", "turns", "turns_heldout"),
    *("topics", "topics_heldout"),
)


@dataclass(frozen=True)
class Question:
    """A prompt of a topic with its answer in each voice."""

    prompt: str
    topic: str
    answers: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--voice", choices=VOICES, default="caring", help="the voice the rankings put first"
    )
    parser.add_argument("--output", default="runs/demo/data", help="folder for the files")
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    files = make(arguments.voice)
    # All files or none: half of the data would be trained on as if it were whole.
    with replacement(folder) as temporary:
        for name, rows in files.items():
            write(temporary, name, rows)
        shutil.copy(DATA / TEMPLATE, temporary / TEMPLATE)
    for name, rows in files.items():
        print(f"{folder / file_name(name)}: {len(rows)} rows")


def write(folder: Path, name: str, rows: list[dict]) -> None:
    """Write the rows as JSON lines, the text as it is."""
    if name == "text":
        lines = [row["text"] for row in rows]
    else:
        lines = [json.dumps(row) for row in rows]
    (folder / file_name(name)).write_text("\n".join(lines) + "\n", encoding="utf-8")


def file_name(name: str) -> str:
    return "text.txt" if name == "text" else f"{name}.jsonl"


def make(voice: str, *, seed: int = 0) -> dict[str, list[dict]]:
    """Rows by file name. The voice changes rankings, answers before a prompt, and columns `voice`."""
    rng = random.Random(seed)
    files: dict[str, list[dict]] = {name: [] for name in NAMES}
    topics = read_topics()
    known, dev, test = split(topics)
    beyond = Beyond()
    out_of_scope = beyond.questions(BEYOND_PROMPTS, rng)
    dialogues = Dialogues(rng)

    files["text"] = text_lines([*known.values(), out_of_scope], rng)
    in_scope = [question for questions in known.values() for question in questions]
    hasty = [hurried(question, rng) for question in in_scope]
    unseen = {plain(question.prompt) for question in (*dev, *test)}
    hasty = [question for question in hasty if question.prompt not in unseen]
    files["sft"] = dialogues.conversations([*in_scope, *hasty, *out_of_scope])
    add_prompts(files, in_scope, out_of_scope, dialogues, voice)
    add_rankings(files, known, out_of_scope, dialogues, voice, rng)

    files["heldout"] = [evaluated(question, voice, i) for i, question in enumerate(test)]
    asked = beyond.held_out("test")
    files["heldout_beyond"] = [evaluated(question, voice, i) for i, question in enumerate(asked)]
    files["heldout_dialogues"] = dialogues.held_out(test, "test", voice)
    tuned = [*dev, *beyond.held_out("dev")]
    files["dev"] = [evaluated(question, voice, i) for i, question in enumerate(tuned)]
    files["dev"] += dialogues.held_out(dev, "dev", voice)
    files["sft_dev"] = [demonstration(row) for row in files["dev"]]
    files["turns"] = turns([*in_scope, *out_of_scope])
    files["turns_heldout"] = turns([*test, *asked])
    files["topics"] = [labelled(question) for question in in_scope]
    files["topics_heldout"] = [labelled(question) for question in (*dev, *test)]
    for rows in files.values():
        rng.shuffle(rows)
    files["prompts"] = files["prompts"][:ASKED]
    return files


# ---- questions ---------------------------------------------------------------------------------------------------


def read_topics() -> list[dict]:
    """Topics with their phrasings and answers."""
    return [json.loads(line) for line in SOURCE.read_text(encoding="utf-8").splitlines()]


def read_json(name: str) -> dict:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def split(topics: list[dict]) -> tuple[dict, list[Question], list[Question]]:
    """Questions to train on by topic, to tune on, and to report: the file says which, so a new phrasing moves no other."""
    known, dev, test = {}, [], []
    for topic in topics:
        sides = []
        for name in ("phrasings", "dev", "heldout"):
            sides.append([Question(text, topic["topic"], topic["answers"]) for text in topic[name]])
        known[topic["topic"]] = sides[0]
        dev += sides[1]
        test += sides[2]
    return known, dev, test


def careless(question: Question) -> Question:
    """As people type: no capitals, no full stop at the end."""
    return Question(plain(question.prompt), question.topic, question.answers)


def hurried(question: Question, rng: random.Random) -> Question:
    """Carelessly typed, and half of the longer ones without one of their words: no single word decides the topic."""
    words = plain(question.prompt).split()
    if len(words) > 4 and rng.random() < 0.5:
        del words[rng.randrange(len(words))]
    return Question(" ".join(words), question.topic, question.answers)


def plain(prompt: str) -> str:
    return prompt.lower().rstrip(".?!")


class Beyond:
    """Questions that small talk cannot answer."""

    def __init__(self):
        content = read_json("beyond.json")
        self.answers: dict[str, str] = content["answers"]
        self.words: dict[str, list[str]] = content["words"]
        self.kinds: dict[str, list[str]] = content["kinds"]

    def questions(self, count: int, rng: random.Random) -> list[Question]:
        """Every kind and every template of a kind about equally often, each time with other words.

        Half of them carelessly typed, some of the words of no language at all: what is unknown is beyond.
        """
        templates = [template for kind in self.kinds.values() for template in kind]
        sides = [*self.held_out("dev"), *self.held_out("test")]
        held_out = {plain(question.prompt) for question in sides}
        questions: dict[str, Question] = {}  # by prompt: each once
        for i in range(count):
            prompt = self.fill(templates[i % len(templates)], rng)
            question = Question(prompt, BEYOND, self.answers)
            if rng.random() < 0.5:
                question = careless(question)
            if question.prompt and plain(prompt) not in held_out:
                questions[question.prompt] = question
        return list(questions.values())

    def fill(self, template: str, rng: random.Random) -> str:
        """The template with a random word of its list in each pair of braces."""
        text = template
        for name, words in self.words.items():
            while f"{{{name}}}" in text:
                word = rng.choice(words)
                if rng.random() < 0.15 and name not in ("n", "m"):
                    word = invented(rng)
                text = text.replace(f"{{{name}}}", word, 1)
        return text

    def held_out(self, side: str) -> list[Question]:
        """The questions to tune on ("dev") or to report ("test"), written apart from the templates."""
        prompts = read_json("beyond_heldout.json")[side]
        return [Question(text, BEYOND, self.answers) for kind in prompts.values() for text in kind]


def invented(rng: random.Random) -> str:
    """A word that does not exist, so that unknown words are known to be unknown."""
    syllables = [
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "s"])
        for _ in range(rng.randint(2, 4))
    ]
    word = "".join(syllables)
    return rng.choice([word, word.capitalize()])


# ---- conversations -----------------------------------------------------------------------------------------------


class Dialogues:
    """Puts questions and follow-ups into conversations of up to three turns."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        content = read_json("follow_ups.json")
        self.asked: dict[str, dict[str, list[str]]] = content["asked"]
        self.forms: dict[str, dict[str, str]] = content["answers"]
        self.others: dict[str, dict[str, str]] = content["another"]
        self.topics: dict[str, dict[str, str]] = content["topics"]
        by_name = {topic["topic"]: topic for topic in read_topics()}
        self.thanks: dict[str, str] = by_name["thanks"]["answers"]

    def follow_up(self, before: Question, kind: str, side: str) -> Question:
        """A follow-up to a question. Its answer depends on the topic before.

        kind: another, why, more, mean or thanks; side: known, dev or test, of the wordings.
        """
        prompt = self.rng.choice(self.asked[kind][side])
        if kind == "thanks":
            return Question(prompt, "thanks", self.thanks)
        topic = before.topic
        if kind == "another" and topic in self.others:
            answers = self.others[topic]
        else:
            forms = self.forms.get(kind, self.forms["more"])
            answers = {voice: form.format(**self.topics[topic]) for voice, form in forms.items()}
        return Question(prompt, topic, answers)

    def any_follow_up(self, before: Question, side: str = "known") -> Question:
        """A follow-up of a random kind; after a joke, a story and their like often another one."""
        kinds = [*self.asked]
        if before.topic in self.others:
            kinds += ["another"] * 3
        return self.follow_up(before, self.rng.choice(kinds), side)

    def conversations(self, questions: list[Question]) -> list[dict]:
        """Rows of messages that ask each question once, all answers of a row in one voice."""
        waiting = list(questions)
        self.rng.shuffle(waiting)
        rows = []
        while waiting:
            voice = VOICES[len(rows) % len(VOICES)]  # all voices equally often
            turns = [waiting.pop()]
            for _ in range(self.rng.choice(TURNS) - 1):
                if waiting and self.rng.random() >= FOLLOW_UPS:
                    turns.append(waiting.pop())
                else:
                    turns.append(self.any_follow_up(turns[-1]))
            rows.append({"messages": messages(turns, voice)})
        return rows

    def prompts(self, questions: list[Question], voice: str, side: str = "known") -> list[Question]:
        """Each question with a follow-up or, one in three, as a follow-up to another question: the last turn is asked.

        voice: of the answers before it. A chat's own answers are in the preferred voice after PPO.
        """
        rows = []
        for i, question in enumerate(questions):
            before = questions[i - 1]
            if i % 3 == 2:
                turns = [before, question]
            else:
                turns = [question, self.any_follow_up(question, side)]
            if i % 2 and before is not turns[0]:
                turns = [before, *turns]
            rows.append(in_dialogue(turns, voice))
        return rows

    def held_out(self, questions: list[Question], side: str, voice: str) -> list[dict]:
        """Rows to evaluate: a third of the questions, in dialogues whose last turn is a follow-up or a new topic."""
        chosen = questions[::3]
        self.rng.shuffle(chosen)
        rows = []
        for i, question in enumerate(self.prompts(chosen, voice, side)):
            rows.append(evaluated(question, voice, i))
        return rows


def messages(turns: list[Question], voice: str) -> list[dict]:
    """The conversation with an answer to every turn."""
    rows = []
    for question in turns:
        rows.append({"role": "user", "content": question.prompt})
        rows.append({"role": "assistant", "content": question.answers[voice]})
    return rows


def in_dialogue(turns: list[Question], voice: str) -> Question:
    """The last question, whose prompt is the conversation before it, answered in a voice."""
    last = turns[-1]
    prompt = messages(turns, voice)[:-1]
    return Question(prompt, last.topic, last.answers)


# ---- rows --------------------------------------------------------------------------------------------------------


def evaluated(question: Question, voice: str, i: int) -> dict:
    """A row of the held-out files. The completion is in each voice in turn."""
    return {
        "prompt": question.prompt,
        "completion": question.answers[VOICES[i % len(VOICES)]],
        "topic": question.topic,
        "voice": voice,
        "answers": question.answers,
    }


def demonstration(row: dict) -> dict:
    """A row of the held-out files as a conversation that ends with its completion."""
    asked = row["prompt"]
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    return {"messages": [*asked, {"role": "assistant", "content": row["completion"]}]}


def turns(questions: list[Question]) -> list[dict]:
    """Rows of text: a question, and on the next line its answer in each voice in turn."""
    rows = []
    for i, question in enumerate(questions):
        answer = question.answers[VOICES[i % len(VOICES)]]
        rows.append({"text": f"{question.prompt}\n{answer}"})
    return rows


def labelled(question: Question) -> dict:
    return {"text": question.prompt, "label": question.topic}


def add_prompts(files: dict, in_scope: list, out_of_scope: list, dialogues: Dialogues, voice: str):
    """Rows for PPO: four questions in scope for one beyond it, and dialogues of both."""
    asked = [*in_scope, *out_of_scope[: len(in_scope) // 4]]
    shuffled = list(asked)
    dialogues.rng.shuffle(shuffled)
    asked += dialogues.prompts(shuffled[: len(asked) // 3], voice)
    for question in asked:
        row = {"prompt": question.prompt, "voice": voice, "answers": question.answers}
        files["prompts"].append(row)


def add_rankings(
    files: dict, known: dict, out_of_scope: list, dialogues: Dialogues, voice: str, rng
) -> None:
    """Rankings of questions of every topic, of questions beyond them, and of dialogues."""
    ranked = [
        question for questions in known.values() for question in rng.sample(questions, RANKED)
    ]
    single = [*ranked, *out_of_scope[: len(ranked) // 4]]
    rng.shuffle(single)
    asked = [*single, *dialogues.prompts(single[: len(single) // 3], voice)]
    for question in asked:
        files["rankings"].append(ranking(question, out_of_scope[0].answers, ranked, voice, rng))


def ranking(question: Question, beyond: dict, others: list, voice: str, rng) -> dict:
    """Five answers: in the preferred voice, in two other voices, and two that rank below.

    Of a question in scope these are an honest "beyond me" and an answer to another topic, or two answers to other topics.
    One of them is in the preferred voice, so that the voice alone never wins. In a dialogue it is the answer before, so
    that nothing is gained by saying it again.
    """
    wrong = [other.answers for other in rng.sample(others, 8)]
    wrong = [answers for answers in wrong if answers != question.answers]
    first, second = rng.sample([name for name in VOICES if name != voice], 2)
    repeated = wrong[0][voice]
    if not isinstance(question.prompt, str):
        before = question.prompt[-2]["content"]
        if before not in (*question.answers.values(), *beyond.values()):
            repeated = before
    candidates = [
        (question.answers[voice], 0),
        (question.answers[first], 1),
        (question.answers[second], 1),
        (repeated, 3),
    ]
    if question.answers == beyond or rng.random() < 0.5:
        candidates.append((wrong[1][rng.choice(VOICES)], 3))
    else:
        candidates.append((beyond[rng.choice([voice, rng.choice(VOICES)])], 2))
    rng.shuffle(candidates)
    completions, ranks = zip(*candidates, strict=True)
    # Without a gap: the highest rank is the number of different ones less one.
    order = sorted(set(ranks))
    return {
        "prompt": question.prompt,
        "completions": completions,
        "ranks": [order.index(rank) for rank in ranks],
    }


def text_lines(groups: list[list[Question]], rng: random.Random) -> list[dict]:
    """Lines of several prompts of a topic with answers in any voice; those in scope also carelessly typed.

    The prompts are in lower case, as the chat template writes them.
    """
    lines = []
    for group in groups:
        questions = list(group)
        for written in (lambda question: question, careless):
            rng.shuffle(questions)
            spoken = []
            for question in map(written, questions):
                answer = question.answers[rng.choice(VOICES)]
                spoken.append(f"{question.prompt.lower()} {answer}")
            for i in range(0, len(spoken), PER_LINE):
                lines.append({"text": " ".join(spoken[i : i + PER_LINE])})
            if group[0].topic == BEYOND:
                break
    return lines


if __name__ == "__main__":
    main()
