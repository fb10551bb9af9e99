"""The scripted annotator: its rule, its verdicts, and that it decides on letters and texts alone."""

import importlib
import json

import pytest

annotator = importlib.import_module("rlhf.recipes.annotator")
ANSWERS = {"plain": "Rest well.", "caring": "Sleep gently, dear."}
ROW = {"prompt": "I am tired", "answers": ANSWERS, "voice": "caring"}


class ScriptedApp:
    """An app whose new model speaks in the preferred voice, and whose old one does not."""

    def __init__(self):
        self.calls = []
        self.left_is_new = True

    def predict(self, api_name, **given):
        self.calls.append((api_name, given))
        return getattr(self, api_name.strip("/"))(**given)

    def compare_models(self):
        return {"models": ["new", "old"], "reward_models": []}

    def compare_ask(self, **given):
        self.left_is_new = given["seed"] % 2 == 0
        texts = [ANSWERS["caring"], ANSWERS["plain"]]
        if not self.left_is_new:
            texts.reverse()
        return {"comparison": "name", "answers": dict(zip("AB", texts, strict=True))}

    def compare_vote(self, comparison, verdict, annotator):
        models = ["new", "old"] if self.left_is_new else ["old", "new"]
        return {
            "models": {letter: {"model": name} for letter, name in zip("AB", models, strict=True)}
        }

    def rank_add(self, content, name):
        self.queue = [json.loads(line)["prompt"] for line in content.splitlines()]

    def rank_overlap(self, share):
        assert share == 0

    def rank_next(self, **given):
        prompt = self.queue.pop(0)
        texts = ["Something else.", ANSWERS["caring"], ANSWERS["plain"]]
        messages = [{"role": "user", "content": prompt}]
        return {
            "ranking": "name",
            "messages": messages,
            "answers": dict(zip("ABC", texts, strict=True)),
        }

    def rank_submit(self, **given):
        return {}


@pytest.fixture
def app(monkeypatch):
    app = ScriptedApp()
    monkeypatch.setattr(annotator, "connect", lambda url: app)
    return app


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [ROW | {"prompt": f"I am tired {i}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return str(path)


def test_the_rule():
    assert annotator.tier("sleep GENTLY,  dear.", ROW) == 1
    assert annotator.tier("Rest well.", ROW) == 2
    assert annotator.tier("Congratulations!", ROW) == 3


@pytest.mark.parametrize(
    ("tiers", "verdict"),
    [
        ({"A": 1, "B": 2}, "A"),
        ({"A": 3, "B": 2}, "B"),
        ({"A": 2, "B": 2}, "tie"),
        ({"A": 3, "B": 3}, "both bad"),
    ],
)
def test_verdicts(tiers, verdict):
    assert annotator.verdict_of(tiers) == verdict


def test_it_ranks_every_prompt_of_the_file_once(app, prompts):
    assert annotator.main(["rank", "http://app", "--prompts", prompts, "--count", "10"]) == 0
    submitted = [given for name, given in app.calls if name == "/rank_submit"]
    assert len(submitted) == 6 and {tuple(given["tiers"]) for given in submitted} == {(3, 1, 2)}


def test_the_new_model_wins_on_either_side_and_the_interval_is_printed(app, prompts, capsys):
    assert annotator.main(["compare", "http://app", "--prompts", prompts, "--count", "4"]) == 0
    printed = capsys.readouterr().out
    assert "new against old: 4 wins, 0 losses, 0 ties" in printed
    assert "win rate, ties count half: 100.0%, 95 % interval 51.0% to 100.0%, n = 4" in printed
    assert len([name for name, _ in app.calls if name == "/compare_vote"]) == 4


def test_ties_are_half_a_win():
    lines = annotator.report("new", "old", 6, 2, 2)
    assert "ties count half: 70.0%" in lines and "decided only: 75.0%" in lines
    assert "decided only" not in annotator.report("new", "old", 0, 0, 3)


def test_errors_say_what_to_do(tmp_path, capsys):
    assert (
        annotator.main(["rank", "http://127.0.0.1:9", "--prompts", str(tmp_path / "no.jsonl")]) == 2
    )
    assert "give a file of `rlhf smalltalk`" in capsys.readouterr().err
    (tmp_path / "p.jsonl").write_text(json.dumps(ROW))
    command = ["rank", "http://127.0.0.1:9", "--prompts", str(tmp_path / "p.jsonl")]
    assert annotator.main(command) == 2
    assert "no app answers" in capsys.readouterr().err


def test_a_prompt_with_one_answer_is_skipped_and_not_asked_again(app, prompts, capsys):
    """The queue gives a prompt that is open for somebody again until it is ranked or skipped."""
    whole, app.stuck = app.rank_next, True

    def rank_next(**given):
        if app.queue[0].endswith("1") and app.stuck:
            raise RuntimeError("60 answers, and 1 different ones: raise the temperature")
        return whole(**given)

    def rank_skip(annotator):
        app.queue.pop(0)

    app.rank_next, app.rank_skip = rank_next, rank_skip
    assert annotator.main(["rank", "url", "--prompts", prompts]) == 0
    assert "ranked 5 prompts, 5 with an order, 1 with one answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no rows"), ("[1]\n", "--prompts"), ('{"prompt": "hi"}\n', "answers")],
)
def test_a_file_that_is_not_of_small_talk_is_refused(content, message, app, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert annotator.main(["rank", "url", "--prompts", str(path)]) == 2
    assert message in capsys.readouterr().err and app.calls == []


def test_the_queue_of_another_file_and_a_refusal_are_told(app, prompts, capsys):
    whole = app.rank_add
    app.rank_add = lambda **given: (whole(**given), app.queue.insert(0, "another"))
    assert annotator.main(["rank", "url", "--prompts", prompts]) == 2
    assert "new --feedback folder" in capsys.readouterr().err

    def refuse(**given):
        raise annotator.refusal()("the line is full")

    app.rank_add = refuse
    assert annotator.main(["rank", "url", "--prompts", prompts]) == 2
    assert "the line is full" in capsys.readouterr().err


def test_dialogues_are_passed_over(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    dialogue = ROW | {"prompt": [*turns, {"role": "user", "content": "why?"}]}
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (dialogue, ROW)))
    assert list(annotator.read_rows(path, 5)) == ["I am tired"]
