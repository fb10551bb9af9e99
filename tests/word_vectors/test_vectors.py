"""Word vectors without gensim: files, cosines, questions, the loss by hand, and the rows of an embedding matrix."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf.data.words import cut_words
from rlhf.statistics import spearman_interval
from rlhf.word_vectors.embeddings import embedding_matrix, start_embeddings
from rlhf.word_vectors.questions import (
    Analogy,
    RatedPair,
    analogy_report,
    check_answerable,
    pair_report,
    read_analogies,
    read_pairs,
)
from rlhf.word_vectors.train import (
    NONE,
    VectorSettings,
    check_min_count,
    cut_rows,
    held_out_examples,
    mean_of_contexts,
    negative_sampling_loss,
)
from rlhf.word_vectors.vectors import (
    WordVectors,
    load_vectors,
    principal_plane,
    shown_words,
    with_neighbours,
    words_of,
)

WORDS = ["man", "woman", "king", "queen", "red"]
VECTORS = [[1.0, 0, 0], [1.0, 1, 0], [1.0, 0, 2], [1.0, 1, 2], [0.0, -3, 0]]


@pytest.fixture
def vectors():
    table = torch.tensor(VECTORS)
    return WordVectors(WORDS, table, table + 1, torch.tensor([9, 8, 7, 6, 5]), lowercase=True)


def test_a_folder_gives_the_same_vectors_back(vectors, tmp_path):
    vectors.save(tmp_path)
    again = load_vectors(str(tmp_path))
    assert again.words == WORDS and again.lowercase is True
    for name in ("vectors", "outputs", "counts"):
        assert torch.equal(getattr(again, name), getattr(vectors, name))


def test_a_folder_that_is_not_of_one_run_is_refused(vectors, refused, tmp_path):
    assert "no word vectors" in refused(load_vectors, str(tmp_path))
    vectors.save(tmp_path)
    content = json.loads((tmp_path / "words.json").read_text())
    content["words"].append("blue")
    (tmp_path / "words.json").write_text(json.dumps(content))
    assert "6 words and word_vectors.safetensors vectors of 5" in refused(
        load_vectors, str(tmp_path)
    )
    vectors.vectors[0, 0] = math.nan
    vectors.save(tmp_path)
    assert "not finite" in refused(load_vectors, str(tmp_path))
    path = tmp_path / "word_vectors.safetensors"
    tensors = load_file(path)
    save_file({"vectors": tensors["vectors"]}, path)
    assert "no word vectors" in refused(load_vectors, str(tmp_path))


def test_texts_are_cut_into_words_and_signs():
    text = "Don't stop: 영화 최고 e\u0301"
    assert words_of(text, lowercase=True) == ["don", "'", "t", "stop", ":", "영화", "최고", "é"]
    assert words_of("Red", lowercase=False) == ["Red"]
    assert len(cut_words("well-known")) == 1 and len(words_of("well-known", lowercase=True)) == 3


def test_long_texts_become_several_rows_and_empty_ones_none():
    rows = cut_rows(["a " * 10_001, "", " \n", "b"], lowercase=True)
    assert [len(row) for row in rows] == [10_000, 1, 1]


def test_nearest_words_by_hand(vectors):
    # cosines with man: woman 1 / sqrt 2, king 1 / sqrt 5, queen 1 / sqrt 6, red 0
    (first, cosine), (second, other) = vectors.nearest(0, 2)
    assert (first, second) == ("woman", "king")
    assert (cosine, other) == pytest.approx((2**-0.5, 5**-0.5))
    assert len(vectors.nearest(0, 99)) == 4  # not the word itself
    assert with_neighbours(vectors, ["MAN", "king"], 1) == ["man", "woman", "king", "queen"]
    assert vectors.find("Man") == 0 and vectors.find("blue") is None


def test_shown_words_go_from_frequent_to_rare():
    words = [",", "a", *(f"w{'x' * i}" for i in range(1, 101))]
    table = torch.zeros(len(words), 2)
    vectors = WordVectors(words, table, table, torch.ones(len(words)), lowercase=True)
    shown = shown_words(vectors, 4)
    assert [len(word) - 2 for word in shown] == [0, 2, 9, 31]  # ranks 100 ** (i / 4), from 1
    signs = WordVectors([",", "."], table[:2], table[:2], torch.ones(2), lowercase=True)
    assert shown_words(signs, 4) == [",", "."]


def test_the_plane_of_most_variance():
    # Almost all variance is along (3, 4, 0), the rest along the third axis.
    points = torch.tensor([[3.0, 4, 0], [-3, -4, 0], [0, 0, 1], [0, 0, -1]])
    coordinates, shares = principal_plane(points)
    assert coordinates.abs()[:, 0].tolist() == pytest.approx([5, 5, 0, 0], abs=1e-5)
    assert coordinates.abs()[:, 1].tolist() == pytest.approx([0, 0, 1, 1], abs=1e-5)
    assert shares == pytest.approx([50 / 52, 2 / 52])
    same, _ = principal_plane(torch.ones(2, 3))
    assert same.tolist() == [[0, 0], [0, 0]]
    assert principal_plane(torch.tensor([[1.0], [2.0]]))[0].shape == (2, 2)


# ---- the loss ----------------------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    hidden = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    outputs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    losses = negative_sampling_loss(
        hidden, outputs, torch.tensor([0, 1]), torch.tensor([[1, 2], [1, 0]])
    )

    def log_s(x):
        return -math.log(1 + math.exp(-x))

    # u_0 h = 2; u_1 h = 1; u_2 h = -1
    assert losses[0].item() == pytest.approx(-log_s(2) - log_s(-1) - log_s(1))
    # the first draw is the word itself, and does not count: u_1 h = 0, u_0 h = 1
    assert losses[1].item() == pytest.approx(math.log(2) - log_s(-1))


def test_cbow_takes_the_mean_of_the_context():
    table = torch.tensor([[1.0, 3.0], [5.0, 1.0]])
    contexts = torch.tensor([[0, 1, NONE], [1, NONE, NONE]])
    assert mean_of_contexts(table, contexts).tolist() == [[3, 2], [5, 1]]


def test_held_out_examples_have_their_whole_window(vectors):
    rows = [["man", "blue", "king", "queen"], ["red"]]  # blue is unknown, and red has no context
    settings = VectorSettings(architecture="cbow", window=1, negative=3)
    examples = held_out_examples(rows, vectors, settings, seed=0)
    assert examples.targets.tolist() == [0, 2, 3]
    assert examples.contexts.tolist() == [[2, NONE], [0, 3], [2, NONE]]
    assert examples.negatives.shape == (3, 3)
    settings.architecture = "skipgram"
    examples = held_out_examples(rows, vectors, settings, seed=0)
    assert examples.contexts[0].tolist() == [2, NONE] and examples.contexts[1, 0] in (0, 3)
    assert (examples.contexts != NONE).sum(1).tolist() == [1, 1, 1]
    assert held_out_examples([["blue"], ["red"]], vectors, settings, seed=0) is None


def test_draws_follow_the_power_of_the_counts(vectors):
    vectors.counts = torch.tensor([16, 0, 0, 1, 0])
    settings = VectorSettings(window=1, negative=2000, ns_exponent=0.5)
    drawn = held_out_examples([["man", "red"]], vectors, settings, seed=0).negatives
    share = (drawn == 0).double().mean().item()  # 4 of 4 + 1
    assert share == pytest.approx(0.8, abs=0.03) and set(drawn.unique().tolist()) == {0, 3}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": 3, "b": 2, "c": 1}, "min_count=5: only 0 of the 3 words"),
        ({"a": 9, "b": 2, "c": 1}, "set min_count to at most 2"),
        ({"a": 9}, "only one word"),
    ],
)
def test_a_min_count_that_leaves_nothing_names_the_largest_that_does(refused, counts, said):
    assert said in refused(check_min_count, counts, 5)
    check_min_count({"a": 5, "b": 5}, 5)


# ---- questions ---------------------------------------------------------------------------------------------------


def test_analogies_by_hand(vectors):
    # On unit vectors woman - man + king has cosine 0.88 with queen, and the question back 0.94 with man.
    questions = [
        Analogy(("man", "woman", "king", "queen"), "people"),
        Analogy(("Queen", "king", "woman", "man"), "people"),
        Analogy(("man", "king", "woman", "red"), "wrong"),
        Analogy(("man", "king", "woman", "duchess"), "wrong"),
    ]
    report = analogy_report(vectors, questions)
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert (report["n"], report["unknown"]) == (3, 1)
    assert report["sections"]["people"]["accuracy"] == 1 and report["sections"]["wrong"]["n"] == 1
    assert report["accuracy_low"] < 2 / 3 < report["accuracy_high"]


def test_analogies_are_those_of_gensim():
    models = pytest.importorskip("gensim.models")
    torch.manual_seed(0)
    table = torch.randn(40, 8)
    words = [f"w{i}" for i in range(40)]
    vectors = WordVectors(words, table, table, torch.ones(40), lowercase=True)
    keyed = models.KeyedVectors(8)
    keyed.add_vectors(words, table.numpy())
    questions, expected = [], 0
    for i in range(0, 36, 4):
        a, b, c = words[i : i + 3]
        ((best, _),) = keyed.most_similar(positive=[b, c], negative=[a], topn=1)
        questions.append(Analogy((a, b, c, best if i % 8 else words[i + 3]), ""))
        expected += best == questions[-1].words[3]
    assert analogy_report(vectors, questions)["accuracy"] == pytest.approx(expected / 9)
    near, cosines = zip(*vectors.nearest(7, 5), strict=True)
    theirs = keyed.most_similar("w7", topn=5)
    assert [word for word, _ in theirs] == list(near)
    assert [value for _, value in theirs] == pytest.approx(cosines, abs=1e-6)


def test_pairs_by_hand(vectors):
    # cosines with man: woman 0.71, king 0.45, queen 0.41, red 0; the ratings swap the last two
    ratings = {"woman": 9, "king": 7, "queen": 0, "red": 2}
    pairs = [RatedPair(("man", word), rating) for word, rating in ratings.items()]
    report = pair_report(vectors, [*pairs, RatedPair(("man", "blue"), 1)])
    assert report["spearman"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert (report["n"], report["unknown"]) == (4, 1)
    assert report["spearman_low"] < 0.8 < report["spearman_high"]
    few = pair_report(vectors, pairs[:3])
    assert few == {"n": 3, "unknown": 0}


def test_an_interval_of_spearman_by_hand():
    # atanh 0.5 = 0.5493; 1.96 sqrt(1.125 / 9) = 0.6930
    low, high = spearman_interval(0.5, 12)
    assert (low, high) == pytest.approx((math.tanh(-0.14365), math.tanh(1.24227)), abs=1e-4)
    assert spearman_interval(1.0, 9) == (1.0, 1.0)


def test_files_of_questions(refused, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        ": people\nman woman king queen\n\n# a remark\n: colours\nred blue green grey\n"
    )
    first, second = read_analogies(str(path))
    assert first == Analogy(("man", "woman", "king", "queen"), "people")
    assert second.section == "colours"
    path.write_text("man woman king\n")
    assert f"{path}:1: 3 words" in refused(read_analogies, str(path))
    path.write_text(": people\n")
    assert "no analogy" in refused(read_analogies, str(path))
    assert "no such text file" in refused(read_analogies, str(tmp_path))
    for text in ("word 1\tword 2\tmean\nman\tking\t5.5\n", "man,king,5.5\n", "# x\nman king 5.5"):
        path.write_text(text)
        assert read_pairs(str(path)) == [RatedPair(("man", "king"), 5.5)]
    for text in ("man king\n", "man king 5\nman king five\n", "a b nan\n"):
        path.write_text(text)
        assert "two words and a number" in refused(read_pairs, str(path))
    path.write_text("# nothing\n")
    assert "no pair" in refused(read_pairs, str(path))


def test_questions_that_nobody_can_answer_are_refused(vectors, refused):
    unknown = Analogy(("man", "woman", "blue", "queen"), "")
    said = refused(check_answerable, vectors, [unknown], "analogies")
    assert said.startswith("analogies: each of the 1 lines")
    check_answerable(vectors, [unknown, RatedPair(("man", "king"), 1)], "analogies")


# ---- embeddings --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(vectors, tmp_path):
    vectors.save(tmp_path)
    return str(tmp_path)


def test_words_of_a_tokenizer_of_words(folder, make_tokenizer):
    tokenizer = make_tokenizer(["king", "##red", "Red", "blue", "man"], "bert")
    known = embedding_matrix(folder, tokenizer, 3)
    ids = tokenizer.convert_tokens_to_ids(["king", "Red", "man"])
    assert known.ids.tolist() == ids  # not ##red, which continues a word
    assert known.rows.tolist() == [VECTORS[2], VECTORS[4], VECTORS[0]]
    assert known.words == 3


def test_words_with_and_without_the_mark_of_a_space(vectors, tmp_path, bytes_tokenizer):
    table = torch.arange(6.0).view(3, 2)
    words = ["river", "bridge", "é"]
    own = WordVectors(words, table, table + 1, torch.ones(3), lowercase=True)
    own.save(tmp_path)
    known = embedding_matrix(str(tmp_path), bytes_tokenizer, 2)
    tokens = bytes_tokenizer.convert_ids_to_tokens(known.ids.tolist())
    for token, row in zip(tokens, known.rows.tolist(), strict=True):
        word = token.removeprefix("Ġ")
        assert row == table[words.index(word)].tolist()
    assert "Ġriver" in tokens and "Ġbridge" in tokens
    special = WordVectors(["<|endoftext|>", "a"], table[:2], table[:2] + 1, torch.ones(2), True)
    special.save(tmp_path)
    ids = embedding_matrix(str(tmp_path), bytes_tokenizer, 2).ids.tolist()
    assert bytes_tokenizer.eos_token_id not in ids


def test_sizes_and_languages_that_do_not_fit_are_refused(folder, refused, make_tokenizer):
    tokenizer = make_tokenizer(["king"], "bert")
    said = refused(embedding_matrix, folder, tokenizer, 16)
    assert "its vectors have 3 numbers, and hidden_size is 16" in said
    assert "hidden_size: 3" in said and "vector_size: 16" in said
    other = make_tokenizer(["왕"], "bert")
    assert "no token of" in refused(embedding_matrix, folder, other, 3)


def test_other_rows_of_a_new_model_stay_random(folder, make_tokenizer):
    tokenizer = make_tokenizer(["king", "blue"], "bert")
    model = torch.nn.Embedding(len(tokenizer), 3)
    model.get_input_embeddings = lambda: model
    before = model.weight.detach().clone()
    said = start_embeddings(model, tokenizer, folder)
    assert f"1 of {len(tokenizer)} tokens start from the vectors of 1 words" in said
    king = tokenizer.convert_tokens_to_ids("king")
    assert model.weight[king].tolist() == VECTORS[2] and model.weight.requires_grad
    others = torch.arange(len(tokenizer)) != king
    assert torch.equal(model.weight[others], before[others])
