"""One way to serve a model, asked by `run.py`: reads "USERS" lines, writes one line of JSON for each.

    worker.py WAY FOLDER TOKENS PORT

`ttft` are the seconds from the question to the first text of each user, `wall` those until the last answer, `cpu` the
processor seconds of whoever generates, `memory` its resident bytes.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.serving.make_model import questions  # noqa: E402

LONG = 300.0  # seconds
READY = 90.0


class InProcess:
    """Ways that need no server."""

    def __init__(self, folder: str, tokens: int):
        from rlhf.data.chat import encode_prompt
        from rlhf.models.load import load_policy, load_tokenizer
        from rlhf.models.parts import freeze

        self.folder, self.tokens = folder, tokens
        self.process = psutil.Process()
        self.tokenizer = load_tokenizer(folder)
        self.model = freeze(load_policy(folder))
        self.encode = lambda text: encode_prompt(self.tokenizer, text)

    def close(self) -> None:
        pass


class Generate(InProcess):
    """transformers' generate, one question after the other: the first text of each comes when it has its turn."""

    def __init__(self, folder: str, tokens: int):
        super().__init__(folder, tokens)
        self.turn = threading.Lock()

    def ask(self, text: str) -> float:
        import torch

        asked, first = time.perf_counter(), []

        class Watch:
            """A streamer: generate calls it with the prompt and then with each token."""

            calls = 0

            def put(self, value):
                self.calls += 1
                if self.calls == 2:
                    first.append(time.perf_counter() - asked)

            def end(self):
                pass

        with self.turn, torch.inference_mode():
            ids = torch.tensor([self.encode(text)])
            mask = torch.ones_like(ids)
            row = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.tokens, streamer=Watch()
            )
            self.tokenizer.decode(row[0, ids.shape[1] :])
        return first[0]


class Prefill(InProcess):
    """The forward pass over a prompt and nothing else: the first token cannot come earlier."""

    def ask(self, text: str) -> float:
        import torch

        ids = torch.tensor([self.encode(text)])
        asked = time.perf_counter()
        with torch.inference_mode():
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return time.perf_counter() - asked


class Library(InProcess):
    """transformers' own continuous batching, without a server."""

    def __init__(self, folder: str, tokens: int):
        import torch
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        super().__init__(folder, tokens)
        config = GenerationConfig(
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=False,
        )
        pages = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=2048)
        with torch.inference_mode():
            self.manager = self.model.init_continuous_batching(
                generation_config=config, continuous_batching_config=pages
            )
            self.manager.start()
        self.waiting: dict[str, list] = {}
        self.count = 0
        self.lock = threading.Lock()
        self.reader = threading.Thread(target=self.route, daemon=True)
        self.reader.start()

    def route(self) -> None:
        for result in self.manager:
            started, first, done = self.waiting[result.request_id]
            if not first:
                first.append(time.perf_counter() - started)
            if result.is_finished():
                done.set()

    def ask(self, text: str) -> float:
        with self.lock:
            self.count += 1
            name = f"r{self.count}"
        entry = [time.perf_counter(), [], threading.Event()]
        self.waiting[name] = entry
        self.manager.add_request(
            self.encode(text), request_id=name, max_new_tokens=self.tokens, streaming=True
        )
        assert entry[2].wait(LONG)
        return entry[1][0]

    def close(self) -> None:
        self.manager.stop(block=True, timeout=5)


class OurEngine:
    """rlhf.serving.engine.engine, asked from a thread per user."""

    def __init__(self, folder: str, tokens: int):
        from rlhf.serving.engine.engine import Engine

        self.process, self.tokens = psutil.Process(), tokens
        self.engine = Engine({"model": folder})

    def ask(self, text: str) -> float:
        from rlhf.serving.engine.requests import SamplingSettings, StreamEnd, TextChunk

        settings = SamplingSettings(temperature=0, max_new_tokens=self.tokens)
        asked, first = time.perf_counter(), None
        for event in self.engine.stream("model", [{"role": "user", "content": text}], settings):
            if isinstance(event, TextChunk) and first is None:
                first = time.perf_counter() - asked
            if isinstance(event, StreamEnd):
                assert event.tokens == self.tokens, event
        return first

    def close(self) -> None:
        self.engine.close()


class Server:
    """A server with OpenAI's endpoint, in a process of its own."""

    def __init__(self, command: list[str], model: str, tokens: int, port: int):
        self.url, self.model, self.tokens = f"http://127.0.0.1:{port}", model, tokens
        self.server = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        self.process = psutil.Process(self.server.pid)
        end = time.monotonic() + READY
        while not self.is_ready():
            if self.server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {' '.join(command)}")
            time.sleep(0.5)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                return True
        except OSError:
            return False

    def ask(self, text: str) -> float:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": True,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        asked, first = time.perf_counter(), None
        with urllib.request.urlopen(request, timeout=LONG) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                [choice] = json.loads(line[6:])["choices"] or [{}]
                if first is None and choice.get("delta", {}).get("content"):
                    first = time.perf_counter() - asked
        return first

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(timeout=20)


def open_way(way: str, folder: str, tokens: int, port: int):
    if way == "transformers serve":
        binary = str(Path(sys.executable).parent / "transformers")
        command = [binary, "serve", folder, "--port", str(port), "--host", "127.0.0.1"]
        command += ["--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "1024"]
        return Server([*command, "--device", "cpu"], folder, tokens, port)
    if way == "our server":
        command = [sys.executable, "app.py", folder, "--port", str(port)]
        server = Server([*command, "--device", "cpu", "--precision", "fp32"], "", tokens, port)
        with urllib.request.urlopen(f"{server.url}/v1/models", timeout=10) as answer:
            server.model = json.load(answer)["data"][0]["id"]
        return server
    ways = {"generate": Generate, "prefill": Prefill, "library": Library, "our engine": OurEngine}
    return ways[way](folder, tokens)


def main() -> None:
    way, folder, tokens, port = sys.argv[1:]
    try:
        served = open_way(way, folder, int(tokens), int(port))
        served.ask(questions(1)[0])  # loads and warms up
    except (RuntimeError, ImportError, OSError) as error:  # a missing package, endpoint or server
        print(json.dumps({"missing": f"{type(error).__name__}: {error}"}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        users = int(line)
        before, started = cpu_seconds(served.process), time.perf_counter()
        with ThreadPoolExecutor(users) as pool:
            ttft = list(pool.map(served.ask, questions(users)))
        result = {"ttft": ttft, "wall": time.perf_counter() - started}
        result["cpu"] = cpu_seconds(served.process) - before
        result["memory"] = served.process.memory_info().rss
        print(json.dumps(result), flush=True)
    served.close()


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
