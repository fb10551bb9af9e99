"""Several commands from one process: each as in a process of its own, and the first failure ends the line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.errors import UserError
from rlhf.serving.jobs.process import start_time
from rlhf.stages import read_commands

ROOT = Path(__file__).resolve().parents[1]


def run_stages(lines: str, **options):
    command = [sys.executable, "-m", "rlhf.stages"]
    return subprocess.run(
        command, input=lines, capture_output=True, text=True, cwd=ROOT, timeout=900, **options
    )


def test_each_line_is_a_command_in_order_and_comments_are_passed_over():
    done = run_stages("# first\nconfigs sft\n\nlayouts one_process  # last\n")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.index("$ rlhf configs sft"), done.stdout.index("$ rlhf layouts")
    assert first < done.stdout.index("sft/demo") < second < done.stdout.index("use_cpu: true")


def test_a_failing_command_ends_the_line_with_its_exit_code():
    done = run_stages("configs pp\nlayouts\n")
    assert done.returncode == 2
    assert "no recipe with configs 'pp'" in done.stderr
    assert "stopped at: rlhf configs pp" in done.stderr and "$ rlhf layouts" not in done.stdout


def test_all_lines_are_read_before_the_first_command_runs():
    done = run_stages("configs\nstf --config demo\n")
    assert done.returncode == 1 and "$ rlhf" not in done.stdout
    assert "error: line 2: no command 'stf'" in done.stderr
    with pytest.raises(UserError, match="line 1: No closing quotation"):
        read_commands(['sft --config "demo'])


def test_a_folder_with_a_space_stays_one_argument():
    assert read_commands(['sft --output_dir "my runs/sft"\n']) == [
        ["sft", "--output_dir", "my runs/sft"]
    ]


@pytest.mark.slow
def test_a_stage_of_one_process_has_the_weights_of_a_process_of_its_own(tmp_path):
    lines = [f"fox {i} met dog {i + 1} near house {i % 7}" for i in range(80)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    text = str(tmp_path / "text.txt")
    flags = f"--dataset_name {text} --report_to none"
    tokenizer = (
        f"tokenizer --config ladder {flags} --vocab_size 300 --output_dir {tmp_path}/RUN/tokenizer"
    )
    base = f"pretrain --config demo {flags} --tokenizer_name_or_path {tmp_path}/RUN/tokenizer "
    base += f"--output_dir {tmp_path}/RUN/base --hidden_size 16 --heads 2 --layers 1 --max_steps 4 "
    base += "--context 32 --block_size 16 --eval_fraction 0.2"
    done = run_stages(f"{tokenizer}\n{base}\n".replace("RUN", "stages"))
    assert done.returncode == 0, done.stderr
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file"]
    launch += [str(ROOT / "recipes" / "accelerate" / "one_process.yaml"), "-m", "rlhf"]
    for stage in (tokenizer, base):
        argv = stage.replace("RUN", "launched").split()
        subprocess.run([*launch, *argv], check=True, cwd=ROOT, capture_output=True, timeout=900)
    first, second = (
        load_file(tmp_path / name / "base" / "model.safetensors") for name in ("stages", "launched")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


SLEEPERS = """
import os, signal, sys, time
from rlhf import stages

def command(argv):
    if argv == ["text"]:
        return "no data"
    if argv == ["late"]:  # a signal comes while it is ending well
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(stages, "over", True))
    print(os.getpid(), flush=True)
    while not hasattr(stages, "over"):
        time.sleep(0.01)
    return 0

stages.run_command = command
for name in sys.argv[1:]:
    code = stages.run_forked([name])
    if code:
        sys.exit(code)
"""


def start_sleepers(*names: str):
    """(the process, the id of the one that runs the first command)."""
    command = [sys.executable, "-c", SLEEPERS, *names]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    return process, int(process.stdout.readline())


needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux")


@needs_fork
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_no_other_command_starts_though_this_one_ended_well(number):
    process, _ = start_sleepers("late", "late")
    os.killpg(process.pid, number)
    assert process.communicate(timeout=60) == ("", None)
    assert process.returncode == 128 + number


@needs_fork
def test_a_command_does_not_outlive_the_process_of_the_stages():
    process, child = start_sleepers("sleep")
    process.kill()
    process.communicate(timeout=60)  # the child has closed its output
    end = time.monotonic() + 10
    while start_time(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert start_time(child) == ""


@needs_fork
def test_a_command_that_is_killed_or_gives_a_reason_has_its_exit_code():
    process, child = start_sleepers("sleep", "late")
    os.kill(child, signal.SIGKILL)
    assert process.communicate(timeout=60) == ("", None) and process.returncode == 137
    done = subprocess.run([sys.executable, "-c", SLEEPERS, "text"], capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, b"no data\n")
