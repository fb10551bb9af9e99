"""The output folder of a run: none is written over, and several machines must share it."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import torch

from rlhf.runs.output_folder import check_output_dir, check_shared_folder, remove_unfinished
from rlhf.runs.record import RunRecord


def test_a_folder_that_holds_a_run_is_never_written_over(tmp_path, refused):
    record = RunRecord.begin("sft", config={}, seed=0)
    record.status = "done"
    record.save(tmp_path)
    message = refused(check_output_dir, str(tmp_path), None)
    # there is nothing to continue from
    assert "already holds a run (run.json)" in message and "resume" not in message
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    message = refused(check_output_dir, str(tmp_path), None)
    assert "already holds a run" in message and "resume" not in message
    record.status = "interrupted"
    record.save(tmp_path)
    message = refused(check_output_dir, str(tmp_path), None)
    assert "--resume_from_checkpoint true" in message
    check_output_dir(str(tmp_path), str(checkpoint))
    check_output_dir(str(tmp_path / "new"), None)


def test_a_checkpoint_of_another_folder_does_not_open_a_folder_that_holds_a_run(tmp_path, refused):
    for name in ("sft", "ppo"):
        record = RunRecord.begin(name, config={}, seed=0)
        record.save(tmp_path / name)
    checkpoint = tmp_path / "ppo" / "checkpoint-8"
    checkpoint.mkdir()
    message = refused(check_output_dir, str(tmp_path / "sft"), str(checkpoint))
    assert "already holds a run" in message and "is of another folder" in message
    check_output_dir(str(tmp_path / "new"), str(checkpoint))


def test_a_failed_run_that_has_saved_its_model_is_kept(tmp_path, refused):
    record = RunRecord.begin("sft", config={}, seed=0)
    record.status = "failed"
    record.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert "already holds a run" in refused(check_output_dir, str(tmp_path), None)
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "run.json").is_file()


def test_an_output_dir_that_cannot_be_written_is_one_line(tmp_path, refused):
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(check_output_dir, str(tmp_path / "file"), None)
    assert "cannot be made" in refused(check_output_dir, str(tmp_path / "file" / "run"), None)
    assert "cannot be made" in refused(check_output_dir, "/proc/x", None)


def test_a_failed_run_without_a_checkpoint_makes_room(tmp_path, refused):
    record = RunRecord.begin("sft", config={}, seed=0)
    record.status = "failed"
    record.save(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    check_output_dir(str(tmp_path), None)
    assert list(tmp_path.iterdir()) == []
    record.save(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    assert "already holds a run" in refused(check_output_dir, str(tmp_path), None)


# ---- several machines --------------------------------------------------------------------------------------------


def look_for_the_folder(rank: int, root: str, shared: bool, port: int) -> None:
    """One of two processes, each on a machine of its own."""
    os.environ |= {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    folder = Path(root) / ("shared" if shared else f"own-{rank}")
    folder.mkdir(parents=True, exist_ok=True)
    args = SimpleNamespace(output_dir=str(folder), world_size=2, process_index=rank)
    message = ""
    try:
        check_shared_folder(args)
    except ValueError as error:
        message = str(error)
    (Path(root) / f"{shared}-{rank}").write_text(message)
    torch.distributed.destroy_process_group()


def test_weights_that_a_killed_run_was_writing_are_removed(tmp_path):
    unfinished = tmp_path / "value_model" / ".tmp5MBTAT"
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"half")
    remove_unfinished(tmp_path)
    assert unfinished.exists()  # no run has written here
    RunRecord.begin("ppo", config={}, seed=0).save(tmp_path)
    remove_unfinished(tmp_path)
    assert not unfinished.exists() and (tmp_path / "run.json").exists()


def test_machines_that_do_not_share_the_folder_are_refused(tmp_path):
    for shared in (True, False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = torch.multiprocessing.get_context("fork")
        processes = []
        for rank in range(2):
            process = context.Process(
                target=look_for_the_folder, args=(rank, str(tmp_path), shared, port)
            )
            process.start()
            processes.append(process)
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        said = [(tmp_path / f"{shared}-{rank}").read_text() for rank in range(2)]
        if shared:
            assert said == ["", ""]
        else:
            assert all("processes 1 do not see" in text for text in said)
    assert not list((tmp_path / "shared").iterdir())


def test_one_machine_is_not_asked(tmp_path):
    check_shared_folder(SimpleNamespace(output_dir=str(tmp_path / "none"), world_size=1))
    assert not (tmp_path / "none").exists()
