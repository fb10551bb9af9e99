"""Many requests at once: the line, its limits, cancelling in it, models that come and go, threads that die."""

import gc
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rlhf.errors import UserError
from rlhf.serving.engine import worker as worker_module
from rlhf.serving.engine.engine import Engine
from rlhf.serving.engine.models import load_for_answers
from rlhf.serving.engine.requests import (
    Busy,
    Completion,
    Limits,
    SamplingSettings,
    StreamEnd,
    TextChunk,
    Waiting,
    WorkerFailed,
)

from .test_engine import ANSWER, GREEDY, HI, drain, policy_of, wait_for

FREE = SamplingSettings(temperature=1.5, max_new_tokens=12)
ONE = Limits(running=1, waiting=2, per_client=2)


def seeded(seed):
    return SamplingSettings(temperature=1.5, max_new_tokens=8, seed=seed)


@pytest.fixture
def make(runs):
    """Engines of this test, closed at its end."""
    engines = []

    def make_engine(batching="auto", **options):
        served = {"ppo": runs / "demo" / "ppo", "base": runs / "demo" / "pretrain"}
        rewards = {"reward": runs / "demo" / "reward"}
        engine = Engine(served, reward_runs=rewards, batching=batching, **options)
        engines.append(engine)
        return engine

    yield make_engine
    for engine in engines:
        engine.close()


class Gate:
    """A model that waits for one `open()` per forward pass."""

    def __init__(self, engine, name="base"):
        self.permits = threading.Semaphore(0)
        policy = policy_of(engine, name)
        forward = policy.forward

        def wait(*args, **kwargs):
            assert self.permits.acquire(timeout=20)
            return forward(*args, **kwargs)

        policy.forward = wait

    def open(self, count=10_000):
        self.permits.release(count)


@pytest.mark.parametrize("batching, count", [("auto", 100), ("off", 12)])
def test_many_requests_at_once_are_neither_lost_nor_mixed(make, batching, count):
    engine = make(batching)
    alone = {}
    for seed in range(10):
        alone[seed] = drain(engine.stream("base", HI, seeded(seed)))[0]
    assert len(set(alone.values())) == 10
    with ThreadPoolExecutor(count) as pool:
        streams = pool.map(lambda i: drain(engine.stream("base", HI, seeded(i % 10))), range(count))
        results = list(streams)
    assert len(results) == count
    for i, (text, done) in enumerate(results):
        assert (text, done.seed) == (alone[i % 10], i % 10)
    assert engine.load_report()["running"] == engine.load_report()["waiting"] == 0


def test_requests_are_generated_together(make):
    engine = make()
    gate = Gate(engine)
    streams = [engine.stream("base", HI, seeded(seed)) for seed in range(8)]
    wait_for(lambda: engine.load_report()["running"] >= 1)
    gate.open(18)  # 8 answers of 8 tokens one by one would need 64
    for stream in streams:
        assert drain(stream)[1].finish in ("length", "stop")


# ---- the line ----------------------------------------------------------------------------------------------------


def test_a_full_line_is_busy_and_says_when_to_come_back(make):
    engine = make(limits=ONE)
    gate = Gate(engine)
    streams = [engine.stream("base", HI, FREE) for _ in range(3)]  # one runs, two wait
    wait_for(lambda: engine.load_report()["running"] == 1)
    with pytest.raises(Busy, match="3 requests are running or in line") as refusal:
        engine.stream("base", HI, FREE)
    assert 1 <= refusal.value.retry_after <= 60
    with pytest.raises(Busy):
        engine.sample("ppo", HI, FREE, 1)  # of another model: the limit is for all together
    report = engine.load_report()
    assert (report["running"], report["waiting"], report["refused"]) == (1, 2, 2)
    gate.open()
    assert all(drain(stream)[1].tokens > 0 for stream in streams)
    assert drain(engine.stream("ppo", HI, GREEDY))[0] == ANSWER


def test_one_client_cannot_take_the_whole_line(make):
    engine = make(limits=Limits(running=1, waiting=10, per_client=2))
    gate = Gate(engine)
    own = [engine.stream("base", HI, FREE, client="a") for _ in range(2)]
    with pytest.raises(Busy, match="you have 2 requests"):
        engine.stream("base", HI, FREE, client="a")
    other = engine.stream("base", HI, FREE, client="b")
    nobody = [engine.stream("base", HI, FREE) for _ in range(3)]
    gate.open()
    for stream in [*own, other, *nobody]:
        drain(stream)
    drain(engine.stream("base", HI, FREE, client="a"))


def test_the_place_in_line_is_told_and_falls(make):
    engine = make(limits=Limits(running=1))
    gate = Gate(engine)
    first, second, third = [engine.stream("base", HI, FREE) for _ in range(3)]
    wait_for(lambda: engine.load_report()["running"] == 1)
    assert next(second) == Waiting(0)
    assert next(third) == Waiting(1)
    second.close()
    assert next(third) == Waiting(0)
    gate.open()
    drain(first)
    assert drain(third)[1].tokens > 0


def test_a_reader_in_line_is_woken_every_second(make):
    """So that one whose client is gone can notice it."""
    engine = make(limits=Limits(running=1))
    gate = Gate(engine)
    first, second = [engine.stream("base", HI, FREE) for _ in range(2)]
    started = time.monotonic()
    assert next(second) == next(second) == Waiting(0)
    assert time.monotonic() - started < 3
    gate.open()
    drain(first)


def test_loading_is_told(make, monkeypatch):
    engine = make()
    load, loaded = engine._shared.load, threading.Event()

    def slow_load(name):
        assert loaded.wait(20)
        return load(name)

    engine._shared.load = slow_load
    stream = engine.stream("ppo", HI, GREEDY)
    assert next(stream) == Waiting(0, loading=True)
    assert engine.load_report()["loading"] == 1
    loaded.set()
    assert drain(stream)[0] == ANSWER


@pytest.mark.parametrize("batching", ["auto", "off"])
@pytest.mark.parametrize("how", ["cancel", "close", "drop"])
def test_leaving_the_line_frees_the_slot_at_once(make, batching, how):
    engine = make(batching, limits=Limits(running=1))
    gate = Gate(engine)
    first = engine.stream("base", HI, FREE)
    wait_for(lambda: engine.load_report()["running"] == 1)
    second = engine.stream("base", HI, FREE, request="second")
    assert len(engine._requests) == 2
    if how == "cancel":
        assert engine.cancel("second")
        assert next(second).finish == "cancelled"
    elif how == "close":
        second.close()
    else:
        del second
    assert len(engine._requests) == 1  # the model has not moved
    gate.open()
    drain(first)


def test_a_request_that_is_cancelled_on_its_way_to_the_line_leaves_it(make, monkeypatch):
    engine = make(limits=Limits(running=1))
    gate = Gate(engine)
    first = engine.stream("base", HI, FREE)
    wait_for(lambda: engine.load_report()["running"] == 1)
    submit = worker_module.Worker.submit

    def cancelled_just_before(worker, request):
        engine.cancel(request.name)
        return submit(worker, request)

    with monkeypatch.context() as patch:
        patch.setattr(worker_module.Worker, "submit", cancelled_just_before)
        second = engine.stream("base", HI, FREE)
    assert next(second).finish == "cancelled"
    gate.open()
    drain(first)


def test_a_sample_in_line_can_be_cancelled(make):
    engine = make(limits=Limits(running=1))
    gate = Gate(engine)
    first = engine.stream("base", HI, FREE)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(engine.sample, "base", HI, FREE, 2, request="s")
        wait_for(lambda: "s" in engine._requests)
        engine.cancel("s")
        assert [one.finish for one in future.result(timeout=5)] == ["cancelled"] * 2
    gate.open()
    drain(first)


def test_a_request_that_never_begins_is_busy_in_the_end(make):
    engine = make(limits=Limits(running=1, seconds=0.4))
    gate = Gate(engine)
    first, second = [engine.stream("base", HI, FREE) for _ in range(2)]
    with pytest.raises(Busy, match="did not begin"):
        drain(second)
    gate.open()
    assert drain(first)[1].finish == "time"


def test_closing_the_engine_ends_everything(make):
    engine = make(limits=Limits(running=1))
    gate = Gate(engine)
    streams = [engine.stream("base", HI, FREE) for _ in range(3)]
    wait_for(lambda: engine.load_report()["running"] == 1)
    threads = [worker._thread for worker in engine._workers.values()]
    closing_thread = threading.Thread(target=engine.close)
    closing_thread.start()
    gate.open()
    closing_thread.join(timeout=10)
    assert [drain(stream)[1].finish for stream in streams] == ["cancelled"] * 3
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(Busy, match="closing"):
        engine.stream("base", HI, FREE)
    engine.close()  # a second time does no harm


# ---- threads that die or do not move -----------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["auto", "off"])
def test_a_dead_thread_fails_its_requests_and_is_rebuilt(make, batching, monkeypatch):
    engine = make(batching, limits=Limits(running=1))
    gate = Gate(engine)
    streams = [engine.stream("base", HI, FREE) for _ in range(3)]
    wait_for(lambda: engine.load_report()["running"] == 1)

    def die(worker):
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(worker_module.Worker, "_collect", die)
        gate.open()
        for stream in streams[1:]:
            with pytest.raises(WorkerFailed, match=r"base: its thread died \(SystemExit: killed\)"):
                drain(stream)
    assert drain(engine.stream("base", HI, FREE))[1].tokens > 0
    report = engine.load_report()
    assert (report["rebuilt"], report["running"], report["waiting"]) == (1, 0, 0)
    wait_for(lambda: engine._shared.running.count == 0)


def test_a_thread_that_does_not_move_is_given_up(make, monkeypatch):
    monkeypatch.setattr(worker_module, "STUCK_SECONDS", 0.3)
    engine = make()
    gate = Gate(engine)
    streams = [engine.stream("base", HI, FREE) for _ in range(2)]
    for stream in streams:
        with pytest.raises(WorkerFailed, match="took longer"):
            drain(stream)
    monkeypatch.setattr(worker_module, "STUCK_SECONDS", 60)
    assert drain(engine.stream("ppo", HI, GREEDY))[0] == ANSWER  # its turn is free
    assert drain(engine.stream("base", HI, FREE))[1].tokens > 0  # a new thread, and a new model
    assert engine.load_report()["rebuilt"] == 1
    gate.open()


def test_a_model_that_cannot_be_loaded_is_an_error_and_is_tried_again(make):
    engine = make()
    load, broken = engine._shared.load, [True]

    def sometimes(name):
        if broken[0]:
            raise UserError("half a file")
        return load(name)

    engine._shared.load = sometimes
    with pytest.raises(UserError, match="half a file"):
        drain(engine.stream("ppo", HI, GREEDY))
    broken[0] = False
    assert drain(engine.stream("ppo", HI, GREEDY))[0] == ANSWER


# ---- models in memory --------------------------------------------------------------------------------------------


def test_at_most_keep_models_are_loaded(runs):
    path = str(runs / "demo" / "ppo")
    with closing(Engine({"a": path, "b": path, "c": path}, keep=2)) as engine:
        for name in ("a", "b", "a", "c"):
            engine.sample(name, HI, GREEDY, 1)
        loaded = [worker.name for worker in engine._shared.memory.loaded]
        assert sorted(loaded) == ["a", "c"]  # b was used least recently
        assert engine.load_report()["loaded"] == 2


def test_two_busy_models_share_room_for_one(runs):
    """Neither waits for ever, whoever asks more."""
    path = str(runs / "demo" / "ppo")
    with closing(Engine({"a": path, "b": path}, keep=1)) as engine:
        with ThreadPoolExecutor(12) as pool:
            names = ["a", "b", "a"] * 4
            texts = list(pool.map(lambda name: drain(engine.stream(name, HI, GREEDY))[0], names))
        assert texts == [ANSWER] * 12
        assert len(engine._shared.memory.loaded) <= 1


def test_an_unused_model_is_unloaded(make, monkeypatch):
    engine = make()
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.2)
    drain(engine.stream("ppo", HI, GREEDY))
    wait_for(lambda: engine.load_report()["loaded"] == 0)
    assert drain(engine.stream("ppo", HI, GREEDY))[0] == ANSWER


def test_a_preloaded_model_is_ready_before_the_first_question(make):
    engine = make()
    engine.preload("ppo")
    wait_for(lambda: engine.load_report()["loaded"] == 1)
    events = list(engine.stream("ppo", HI, GREEDY))
    assert not any(isinstance(event, Waiting) and event.loading for event in events)


def test_refresh_replaces_what_is_served(make, runs):
    engine = make()
    ppo, base = str(runs / "demo" / "ppo"), str(runs / "demo" / "pretrain")
    before = drain(engine.stream("base", HI, GREEDY))[0]
    engine.refresh({"base": ppo, "new": ppo}, {"judge": runs / "demo" / "reward"})
    assert drain(engine.stream("base", HI, GREEDY))[0] == ANSWER != before
    assert engine.facts("base").path == ppo
    assert drain(engine.stream("new", HI, GREEDY))[0] == ANSWER
    assert engine.score("judge", HI, ["a"])
    with pytest.raises(UserError, match="no model 'ppo': choose one of 'base', 'new'"):
        engine.stream("ppo", HI, GREEDY)
    with pytest.raises(UserError, match="no reward model 'reward'"):
        engine.score("reward", HI, ["a"])
    engine.refresh({"base": base}, {})
    assert drain(engine.stream("base", HI, GREEDY))[0] == before


def test_refresh_lets_a_model_finish_its_line(make):
    engine = make(limits=Limits(running=1))
    gate = Gate(engine)
    streams = [engine.stream("base", HI, FREE) for _ in range(2)]
    wait_for(lambda: engine.load_report()["running"] == 1)
    engine.refresh({"ppo": engine.runs["ppo"]}, {})
    gate.open()
    assert all(drain(stream)[1].finish in ("stop", "length") for stream in streams)


def test_a_folder_that_changes_is_served_anew_and_one_that_is_gone_is_no_hub_id(
    runs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "demo" / "pretrain", "policy")
    shutil.copytree(runs / "demo" / "reward", "judge")
    with closing(Engine({"policy": "policy"}, reward_runs={"judge": "judge"})) as engine:
        assert drain(engine.stream("policy", HI, GREEDY))[0] != ANSWER
        first = engine.score("judge", HI, ["yes"])
        shutil.rmtree("policy")
        shutil.copytree(runs / "demo" / "ppo", "policy")
        assert drain(engine.stream("policy", HI, GREEDY))[0] == ANSWER
        weights = Path("judge/model.safetensors")
        tensors = load_file(weights)
        save_file(
            {name: tensor + 0.1 for name, tensor in tensors.items()}, weights, {"format": "pt"}
        )
        assert engine.score("judge", HI, ["yes"]) != first
        shutil.rmtree("policy")
        shutil.rmtree("judge")
        for ask in (
            lambda: engine.stream("policy", HI, GREEDY),
            lambda: engine.facts("policy"),
            lambda: engine.score("judge", HI, ["yes"]),
        ):
            with pytest.raises(UserError, match="is gone"):
                ask()


def test_a_model_that_is_replaced_while_it_is_loaded_says_so(make):
    engine = make()
    load = engine._shared.load

    def late(name):
        engine.refresh({}, {})
        return load(name)

    engine._shared.load = late
    with pytest.raises(UserError, match="no model is here yet"):
        drain(engine.stream("ppo", HI, GREEDY))


def test_a_full_line_refuses_before_it_reads_the_prompt(make, monkeypatch):
    engine = make(limits=Limits(running=1, waiting=0))
    gate = Gate(engine)
    stream = engine.stream("base", HI, FREE)
    monkeypatch.setattr(engine, "_read_known", lambda model: 1 / 0)
    with pytest.raises(Busy):
        engine.stream("base", HI, FREE)
    stream.close()
    gate.open()


def test_batching_has_two_values(runs):
    with pytest.raises(UserError, match="batching='on'"):
        Engine({}, batching="on")


# ---- for long ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_conversations_leave_nothing_behind(make):
    """Three turns each, some closed in mid-answer, 20 at a time."""
    engine = make()

    def converse(i):
        messages = []
        for turn in range(3):
            messages.append({"role": "user", "content": f"q{i % 7}"})
            events = engine.stream("ppo", messages, seeded(i))
            if (i + turn) % 5 == 0:
                next(events)
                events.close()
                return
            messages.append({"role": "assistant", "content": drain(events)[0] or "."})

    def objects():
        wait_for(lambda: not engine._requests)
        gc.collect()
        kinds = (Completion, TextChunk, StreamEnd, Waiting)
        ours = [
            one for one in gc.get_objects() if str(type(one).__module__).startswith("rlhf.serving")
        ]
        tensors = [one for one in gc.get_objects() if type(one).__name__ == "Tensor"]
        return len(ours) + sum(isinstance(one, kinds) for one in ours), len(tensors)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(converse, range(100)))
        before = objects()
        threads = threading.active_count()
        list(pool.map(converse, range(1000)))
        after = objects()
    assert after[0] <= before[0] + 20 and after[1] <= before[1] + 200
    assert threading.active_count() <= threads


def test_models_can_be_loaded_at_the_same_time(runs):
    """transformers' own loading cannot: one of two loses its tied weights."""
    folders = [str(runs / "demo" / name) for name in ("ppo", "pretrain")] * 4
    with ThreadPoolExecutor(2) as pool:
        loaded = list(pool.map(lambda folder: load_for_answers(folder, "fp32", "cpu"), folders))
    assert all(served.model.lm_head.weight.isfinite().all() for served in loaded)
