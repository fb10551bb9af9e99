"""A recipe that trains nothing, for tests of the line: `fake_recipe.py sft --seconds 1 --ends 0 --output_dir FOLDER`."""

import json
import signal
import sys
import time
from pathlib import Path


def flags(argv: list[str]) -> dict[str, str]:
    values = {}
    for name, value in zip(argv[::2], argv[1::2], strict=True):
        values[name.removeprefix("--")] = value
    return values


def main() -> int:
    values = flags(sys.argv[2:])
    folder = Path(values["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)

    def stop(number, frame):
        (folder / "checkpoint-3").mkdir()
        print(
            "stopped by SIGTERM at step 3: continue with --resume_from_checkpoint true", flush=True
        )
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    record = {
        "recipe": sys.argv[1],
        "status": "running",
        "config": {},
        "started": "2026-01-01T00:00:00Z",
    }
    (folder / "run.json").write_text(json.dumps(record))
    with open(folder / "order.txt", "a") as file:
        file.write(f"{time.time()}\n")
    print("working", flush=True)
    end = time.monotonic() + float(values.get("seconds", 0))
    while time.monotonic() < end:
        time.sleep(0.01)
    code = int(values.get("ends", 0))
    if code:
        print("Traceback ...\nerror: the rows are bad: fix row 3", file=sys.stderr)
        return code
    record["status"] = "done"
    (folder / "run.json").write_text(json.dumps(record))
    with open(folder / "order.txt", "a") as file:
        file.write(f"{time.time()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
