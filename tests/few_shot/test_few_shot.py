"""Prompts, scores and draws of shots against values worked by hand or computed a second way."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlhf.comparison.compare import ChatRun
from rlhf.errors import UserError
from rlhf.few_shot.evaluate import (
    Cell,
    Evaluator,
    FewShotSettings,
    accuracies,
    evaluate_run,
    fitting_questions,
)
from rlhf.few_shot.export import export
from rlhf.few_shot.prompts import Candidates, PromptWriter, check_template
from rlhf.few_shot.questions import (
    Question,
    Questions,
    draw_shots,
    label_texts,
    majority_baseline,
    make_questions,
    random_baseline,
)
from rlhf.few_shot.scores import (
    answer_log_probs,
    best,
    calibrate,
    content_free_bias,
    method_scores,
)
from rlhf.statistics import two_way_bootstrap

TEMPLATE = "Text: {text}\nLabel:"


def settings(**changes) -> FewShotSettings:
    values = {"shots": (0, 2), "draws": 2, "seed": 0, "batch_size": 4, "max_answer_length": 5}
    return FewShotSettings(**(values | {"answer_unit": "word"} | changes))


def question(text: str, gold: int = 0, answers=("a red bridge", "river")) -> Question:
    return Question({"text": text}, answers, gold, (answers[gold],))


@pytest.fixture
def run(bytes_tokenizer, make_policy) -> ChatRun:
    model = make_policy(bytes_tokenizer, seed=1, context=128).eval()
    return ChatRun("tiny", "tiny", None, model, bytes_tokenizer)


def writer_of(run: ChatRun, chat: bool = False) -> PromptWriter:
    return PromptWriter(run.tokenizer, TEMPLATE, ("a red bridge", "river"), chat)


def by_hand(model, ids: list[int], start: int) -> float:
    """log p of the ids from `start` on, by one pass of the whole model over one row."""
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))


# ---- log-probabilities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_log_probs_equal_the_models_own_in_every_batch(run, chat, batch_size):
    writer = writer_of(run, chat)
    items = []
    for text in ("river", "a bridge over the red river"):
        items.append(writer.candidates([question("the")], {"text": text}, ("river", "bridge over")))
    sums = answer_log_probs(run.model, items, pad_token_id=0, batch_size=batch_size)
    for item, values in zip(items, sums):
        expected = [by_hand(run.model, ids, item.start) for ids in item.sequences]
        assert values.tolist() == pytest.approx(expected, abs=1e-5)
        assert expected[0] != pytest.approx(expected[1], abs=1e-2)


def test_answers_of_one_token_share_a_pass(run, monkeypatch):
    writer = PromptWriter(run.tokenizer, TEMPLATE, (), False)
    item = writer.candidates([], {"text": "x"}, ("x", "y"))
    last = [ids[-1] for ids in item.sequences]
    assert last[0] != last[1] and item.sequences[0][:-1] == item.sequences[1][:-1]
    sizes = []
    model = run.model
    forward = model.transformer.forward
    answer_log_probs(model, [item], pad_token_id=0, batch_size=8)  # measures how logits are made

    def counted(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.transformer, "forward", counted)
    answer_log_probs(model, [item], pad_token_id=0, batch_size=8)
    assert sizes == [1]


def shared_questions(shots: list[int]) -> list[Candidates]:
    """A question with many answers and two with few, after the same shots."""
    many = [[*shots, 5, 6, answer, answer + 1] for answer in (7, 9, 11, 13)]
    few = [[[*shots, word, 8, 10], [*shots, word, 12, 4, 16]] for word in (15, 17)]
    sequences = [many, *few]
    starts = [len(shots) + 2, len(shots) + 1, len(shots) + 1]
    return [Candidates(rows, start, [1] * len(rows)) for rows, start in zip(sequences, starts)]


@pytest.mark.parametrize(
    "model_type", ["gpt2", "llama", "opt", "bloom", "gpt_neo", "mistral", "mamba"]
)
def test_shots_that_are_read_once_change_nothing(model_type, make_architecture, monkeypatch):
    model = make_architecture(model_type)
    items = shared_questions([3, 9, 14, 20, 21, 2, 8, 6, 11])
    options = {"pad_token_id": 0, "batch_size": 3}
    again = answer_log_probs(model, items, **options)
    monkeypatch.setattr("rlhf.few_shot.scores.keeps_all_keys", lambda model: False)
    for values, expected in zip(again, answer_log_probs(model, items, **options)):
        assert values.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_shots_are_read_once(make_architecture):
    model = make_architecture("gpt2")
    items = shared_questions([3, 9, 14, 20, 21, 2, 8, 6, 11])
    answer_log_probs(model, items, pad_token_id=0, batch_size=8)  # tries the output layer
    shapes = []

    def see(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    model.transformer.register_forward_pre_hook(see, with_kwargs=True)
    answer_log_probs(model, items, pad_token_id=0, batch_size=8)
    # The question and its four answers, then the shots and the others, each from its last shared token on.
    assert shapes == [(1, 10), (4, 2), (1, 9), (4, 3)]


def test_the_prompt_and_its_answer_are_encoded_together(run):
    item = writer_of(run).candidates([], {"text": "the"}, ("river", "bridge"))
    encode = run.tokenizer.encode
    prompt = encode("Text: the\nLabel:")
    assert item.start == len(prompt)
    assert item.sequences == [encode("Text: the\nLabel: river"), encode("Text: the\nLabel: bridge")]
    assert item.lengths == [5, 6]


def test_a_merge_over_the_boundary_moves_the_start_of_all_answers():
    # ": " is one token before "a" and two before "b", which takes the space.
    pieces = ["<eos>", "x", ":", " ", "a", "b", ": ", " b"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, [(" ", "b"), (":", " ")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    assert tokenizer.encode("x:") == [1, 2]
    item = PromptWriter(tokenizer, "{text}:", (), False).candidates([], {"text": "x"}, ("a", "b"))
    assert item.sequences == [[1, 6, 4], [1, 2, 7]]
    assert item.start == 1  # not 2: the colon is a part of both scores


def test_an_answer_without_tokens_is_refused(run):
    inner = Tokenizer(models.BPE({"<eos>": 0, "x": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    with pytest.raises(UserError, match="'y' has no tokens"):
        PromptWriter(tokenizer, "{text}", (), False).candidates([], {"text": "x"}, ("x", "y"))


def test_methods_by_hand(run):
    item = writer_of(run).candidates([], {"text": "the"}, ("river", "é"))
    tokens = [len(ids) - item.start for ids in item.sequences]
    scores = method_scores(torch.tensor([-6.0, -4.0]), item, torch.tensor([-1.0, -3.0]))
    assert scores["sum"].tolist() == [-6, -4]
    assert scores["per_token"].tolist() == pytest.approx([-6 / tokens[0], -4 / tokens[1]])
    assert scores["per_byte"].tolist() == pytest.approx([-6 / 5, -4 / 2])  # é has two bytes
    assert scores["calibrated"].tolist() == [-5, -1]


def test_calibration_by_hand():
    # p_cf is the mean of (0.9, 0.1) and (0.7, 0.3); p = (0.7, 0.3) is less of the first than without any content.
    free = [torch.tensor([0.9, 0.1]).log() - 5, torch.tensor([0.7, 0.3]).log()]
    bias = content_free_bias(free)
    assert bias.exp().tolist() == pytest.approx([0.8, 0.2])
    log_probs = torch.tensor([0.7, 0.3]).log()
    q = calibrate(log_probs, bias).exp()
    assert q.tolist() == pytest.approx([0.7 / 0.8, 0.3 / 0.2])
    assert best(log_probs) == (0, False) and best(q) == (1, False)


def mean_of_prompts(run, prompts: list[str]) -> list[float]:
    """p_cf of "a red bridge" and "river", counted by hand."""
    means = torch.zeros(2, dtype=torch.float64)
    for prompt in prompts:
        start = len(run.tokenizer.encode(prompt))
        sums = []
        for answer in ("a red bridge", "river"):
            sums.append(by_hand(run.model, run.tokenizer.encode(f"{prompt} {answer}"), start))
        means += torch.tensor(sums, dtype=torch.float64).softmax(-1) / len(prompts)
    return means.tolist()


def test_the_bias_comes_from_texts_without_content(run):
    evaluator = Evaluator(run, writer_of(run), settings())
    bias = evaluator.bias(question("the river"), [])
    prompts = [f"Text: {text}\nLabel:" for text in ("N/A", "[MASK]", "")]
    assert bias.exp().tolist() == pytest.approx(mean_of_prompts(run, prompts), rel=1e-4)


def test_an_empty_prompt_is_not_a_text_without_content(run):
    # The template is the text alone: "" would leave nothing to read before the answer.
    writer = PromptWriter(run.tokenizer, "{text}", (), False)
    bias = Evaluator(run, writer, settings()).bias(question("the river"), [])
    expected = mean_of_prompts(run, ["N/A", "[MASK]"])
    assert bias.exp().tolist() == pytest.approx(expected, rel=1e-4)


def test_the_first_of_equal_answers_wins():
    assert best(torch.tensor([1.0, 2.0, 2.0])) == (1, True)


def test_weights_with_nan_are_an_error(run):
    with torch.no_grad():
        run.model.transformer.ln_f.weight.fill_(float("nan"))
    item = writer_of(run).candidates([], {"text": "the"}, ("river", "bridge"))
    with pytest.raises(UserError, match="not finite"):
        answer_log_probs(run.model, [item], pad_token_id=0, batch_size=8)


# ---- questions and shots -----------------------------------------------------------------------------------------


def rows_of(count: int) -> list[dict]:
    return [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(count)]


def test_shots_are_rows_that_are_not_evaluated():
    questions = make_questions(
        rows_of(10), None, "classification", num_rows=4, label_names=None, seed=0
    )
    texts = [item.texts["text"] for item in questions.evaluated + questions.pool]
    assert len(questions.evaluated) == 4 and sorted(texts) == [f"text {i}" for i in range(10)]


def test_rows_of_the_pool_that_repeat_a_question_are_dropped():
    pool = [{"text": " Text  1 ", "label": "a"}, {"text": "new", "label": "b"}]
    questions = make_questions(
        rows_of(4), pool, "classification", num_rows=9, label_names=None, seed=0
    )
    assert questions.duplicates == 1
    assert [item.texts["text"] for item in questions.pool] == ["new"]


def test_more_shots_keep_the_nearest_ones():
    pool = [question(f"{i}") for i in range(20)]
    few = draw_shots(pool, 3, seed=0, draw=1)
    assert draw_shots(pool, 8, seed=0, draw=1)[-3:] == few
    assert draw_shots(pool, 3, seed=0, draw=2) != few
    assert len({item.texts["text"] for item in draw_shots(pool, 20, seed=0, draw=0)}) == 20
    with pytest.raises(UserError, match="needs 21 rows .* there are 20"):
        draw_shots(pool, 21, seed=0, draw=0)


def test_label_names():
    rows = [{"label": 10}, {"label": 2}]
    with pytest.raises(UserError, match="--label_names"):
        label_texts(rows, None)
    assert list(label_texts(rows, ["2=low", "10=high"]).values()) == ["low", "high"]
    assert label_texts([{"label": 0}, {"label": 1}], ["no", "yes"]) == {"0": "no", "1": "yes"}
    with pytest.raises(UserError, match="no text for 10"):
        label_texts(rows, ["zero", "one", "two"])
    with pytest.raises(UserError, match="two labels"):
        label_texts(rows, ["2=low", "10=low"])
    with pytest.raises(UserError, match="all rows have the label 'x'"):
        label_texts([{"label": "x"}], None)
    with pytest.raises(UserError, match="one label per row"):
        label_texts([{"label": ["x", "y"]}, {"label": ["x"]}], None)


def test_baselines_by_hand():
    evaluated = [question("1", 0), question("2", 1), question("3", 1)]
    evaluated.append(question("4", 0, answers=("a", "b", "c", "d")))
    questions = Questions("classification", evaluated, [question("5", 1)], ())
    assert random_baseline(evaluated) == pytest.approx((3 / 2 + 1 / 4) / 4)
    assert majority_baseline(questions) == 0.5  # the pool's most frequent answer is the second


def test_prompts(run):
    shots = [question("{text} and {labels}", 1), question("two", 0)]
    writer = writer_of(run)
    assert writer.text(shots, {"text": "three"}) == (
        "Text: {text} and {labels}\nLabel: river\n\nText: two\nLabel: a red bridge\n\nText: three\nLabel:"
    )
    roles = [turn["role"] for turn in writer.messages(shots, {"text": "three"})]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("template", "message"),
    [("{txt}:", "not a column"), ("Label:", "no text of the row"), ("{text} ", "white space")],
)
def test_bad_templates(template, message):
    with pytest.raises(UserError, match=message):
        check_template(template, "classification", ["text"])


def test_a_template_from_the_shell():
    assert check_template("{labels}?\\n{text}:", "classification", ["text"]) == "{labels}?\n{text}:"


# ---- evaluation --------------------------------------------------------------------------------------------------


def test_shots_that_do_not_fit_are_dropped_from_the_front(run):
    evaluator = Evaluator(run, writer_of(run), settings())
    evaluator.limit = evaluator.size(question("z"), [question("y")])[1]
    item, kept = evaluator.fit(question("z"), [question("x"), question("y")])
    assert [shot.texts["text"] for shot in kept] == ["y"]
    # The last token of an answer is not read.
    assert max(map(len, item.sequences)) == evaluator.limit + 1
    cell = Cell("tiny", 2, {})
    evaluator.rank([question("z")], [question("x"), question("y")], cell)
    assert cell.dropped_shots == 1


def test_questions_that_do_not_fit_are_not_asked(run):
    long = question("river " * 200)
    questions = Questions("classification", [long, question("z")], [], ())
    assert fitting_questions([(run, writer_of(run))], questions, settings()) == [question("z")]


def counting_model(tokenizer, make_llama):
    """A Llama by hand: attention without queries is the mean of all tokens, and the most frequent token is likely."""
    model = make_llama(tokenizer)
    size = model.config.vocab_size
    config = type(model.config)(
        **model.config.to_dict()
        | {
            "hidden_size": size + size % 2,
            "head_dim": size + size % 2,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
        }
    )
    model = type(model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 else 0.0)
        layer = model.model.layers[0].self_attn
        for matrix in (layer.v_proj.weight, layer.o_proj.weight, model.lm_head.weight):
            torch.nn.init.eye_(matrix)
        torch.nn.init.eye_(model.model.embed_tokens.weight)
    return model


def test_a_model_that_copies_gains_from_shots(tokenizer, make_llama):
    model = counting_model(tokenizer, make_llama)
    run = ChatRun("copy", "copy", None, model, tokenizer)
    # The second label is right, and the shots show it.
    evaluated = [question(f"c {word}", 1, answers=("a", "b")) for word in "cdefgh"]
    pool = [question(f"d {word}", 1, answers=("a", "b")) for word in "cdefgh"]
    questions = Questions("classification", evaluated, pool, ("a", "b"))
    cells = evaluate_run(run, writer_of(run), questions, settings(), lambda: None)
    zero, two = cells
    assert zero.correct["sum"] == [[0.0] * 6]  # equal: the first answer counts
    assert zero.ties["sum"] == 6
    assert two.correct["sum"] == [[1.0] * 6] * 2 and two.ties["sum"] == 0
    assert two.log_probs[0][0][1] > two.log_probs[0][0][0]


def test_generated_answers_equal_a_greedy_loop(run):
    free = Question({"context": "the river", "question": "over"}, (), -1, ("bridge",))
    writer = PromptWriter(run.tokenizer, "{context} {question}", (), False)
    evaluator = Evaluator(run, writer, settings())
    cell = Cell("tiny", 0, {})
    short = Question({"context": "a", "question": "b"}, (), -1, ("c",))
    evaluator.generate([free, short], [], cell)
    for item, text in zip((free, short), cell.answers[0]):
        ids = run.tokenizer.encode(" ".join(item.texts.values()))
        start = len(ids)
        for _ in range(5):
            ids.append(int(run.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == run.tokenizer.eos_token_id:
                break
        expected = run.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        assert text == expected.split("\n")[0].strip()
    assert len(cell.correct["f1"][0]) == 2


def test_intervals():
    one_draw = Cell("tiny", 0, {"sum": [[1.0, 0.0, 1.0, 1.0]]})
    [result] = accuracies(one_draw, seed=0)
    # Wilson by hand: p = 3/4, n = 4, z = 1.96
    assert (result.low, result.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    values = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert two_way_bootstrap(values, resamples=500, seed=0) == (0.0, 1.0)
    assert two_way_bootstrap(torch.ones(2, 5), resamples=50, seed=0) == (1.0, 1.0)


def test_the_bootstrap_agrees_with_the_normal_interval_of_independent_rows():
    values = (torch.arange(400) % 4 == 0).double().unsqueeze(0)  # p = 1/4
    low, high = two_way_bootstrap(values, resamples=2000, seed=0)
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)


def test_exported_prompts_are_ours(run, tmp_path):
    evaluated = [question("x", 0), question("y", 1)]
    pool = [question(f"{i}", 1) for i in range(5)]
    questions = Questions("classification", evaluated, pool, ("a red bridge", "river"))
    evaluator = Evaluator(run, writer_of(run), settings())
    names = export(tmp_path, "toy", questions, evaluator)
    assert names == ["toy_0_shots_draw_0", "toy_2_shots_draw_0", "toy_2_shots_draw_1"]
    task = json.loads((tmp_path / f"{names[1]}.yaml").read_text())
    lines = (tmp_path / f"{names[1]}.jsonl").read_text().splitlines()
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / f"{names[1]}.jsonl")
    row = json.loads(lines[1])
    shots = draw_shots(pool, 2, seed=0, draw=0)
    _, kept = evaluator.fit(evaluated[1], shots)
    assert row == {
        "prompt": evaluator.writer.text(kept, {"text": "y"}),
        "choices": ["a red bridge", "river"],
        "gold": 1,
    }
