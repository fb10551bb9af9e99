"""The files and folders that settings name."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.multiprocessing

from rlhf.errors import UserError
from rlhf.runs.inputs import DATA_KEYS, MODEL_KEYS, check_inputs, check_same_rows

RECIPES = (
    "classification dpo ilql kto multiple_choice ner ppo pretrain question_answering reward seq2seq sft tokenizer "
    "word_vectors"
).split()


@pytest.fixture
def settings(tmp_path):
    """f(names) -> settings with data that exist, and these."""

    def settings(**names):
        (tmp_path / "rows.jsonl").write_text("{}")
        return SimpleNamespace(**{"dataset_name": str(tmp_path / "rows.jsonl")} | names)

    return settings


def test_every_key_is_one_of_a_recipe(recipe_module):
    import typing

    from rlhf.runs.settings import setting_names

    known = set()
    for recipe in RECIPES:
        hints = typing.get_type_hints(recipe_module(recipe).main)
        hints.pop("return")
        known |= set(setting_names(list(hints.values())))
    assert set(DATA_KEYS) | set(MODEL_KEYS) <= known


@pytest.mark.parametrize("key", DATA_KEYS)
def test_a_file_that_is_missing_or_unreadable_is_refused(settings, refused, tmp_path, key):
    missing = str(tmp_path / "row.jsonl")
    names = {"dataset_name": str(tmp_path / "rows.jsonl")} | {key: missing}
    assert "no such file; did you mean rows.jsonl?" in refused(check_inputs, settings(**names))
    (tmp_path / "rows.zip").write_text("")
    names[key] = str(tmp_path / "rows.zip")
    assert "unknown file type" in refused(check_inputs, settings(**names))


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_a_folder_that_is_missing_is_refused(settings, refused, tmp_path, key):
    missing = str(tmp_path / "runs" / "sft")
    value = (
        [str(tmp_path), missing] if key.endswith(("tokenizers", "reward_model_path")) else missing
    )
    if key == "watch_reward_model_path":
        value = missing
    assert f"{missing}: no such model folder" in refused(check_inputs, settings(**{key: value}))


def test_what_may_be_on_the_hub_is_not_looked_up(settings, tmp_path):
    check_inputs(settings(dataset_name="imdb", model_name_or_path="gpt2", value_model="shared"))
    check_inputs(settings(dataset_name=str(tmp_path), eval_dataset_name="owner/name"))
    check_inputs(settings(value_model="reward_model", reward_model_path=[]))


def test_the_default_model_of_a_model_from_scratch_is_not_looked_for(settings, tmp_path):
    names = {"from_scratch": True, "model_name_or_path": "no/such/folder"}
    check_inputs(settings(tokenizer_name_or_path=str(tmp_path), **names))


def test_no_data_are_refused(refused, settings):
    assert "dataset_name is not set" in refused(check_inputs, settings(dataset_name=None))


def _compare_rows(rank: int, root: str, hashes: list[str], port: int) -> None:
    """One of two processes, which has read rows with its hash."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    message = ""
    try:
        check_same_rows([{"name": "a.jsonl", "rows": 2, "sha256": hashes[rank]}])
    except UserError as error:
        message = str(error)
    (Path(root) / str(rank)).write_text(message)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("hashes", "said"),
    [("xx", ""), ("xy", "a.jsonl: the processes 1 have read other rows than the main process: ")],
)
def test_processes_that_read_different_rows_are_refused(tmp_path, hashes, said):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    processes = []
    for rank in range(2):
        process = context.Process(target=_compare_rows, args=(rank, str(tmp_path), hashes, port))
        process.start()
        processes.append(process)
    for rank, process in enumerate(processes):
        process.join(60)
        assert process.exitcode == 0
        message = (tmp_path / str(rank)).read_text()
        assert message.startswith(said) and bool(message) == bool(said)


def test_one_process_compares_nothing():
    check_same_rows([{"name": "a.jsonl", "rows": 2, "sha256": "x"}])
