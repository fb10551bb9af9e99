"""List the benchmarks, or run one: python benchmarks [NAME [ARGS ...]], or make bench NAME=demo ARGS='...'"""

import ast
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def main() -> int:
    name, *arguments = sys.argv[1:] or [""]
    benchmarks = find_benchmarks()
    if name in benchmarks:
        command = [sys.executable, str(benchmarks[name]), *arguments]
        return subprocess.run(command, cwd=ROOT).returncode
    if name:
        known = ", ".join(benchmarks)
        print(f"error: no benchmark {name!r}: choose one of {known}", file=sys.stderr)
        return 2
    print("make bench NAME=... ARGS='...' runs one of these. FOLDER holds data that you bring.\n")
    for name, path in benchmarks.items():
        print(describe(name, path) + "\n")
    return 0


def find_benchmarks() -> dict[str, Path]:
    """Every script of a folder that has flags: "demo" for demo/run.py, "bert/tasks" for bert/tasks.py."""
    benchmarks = {}
    for path in sorted(HERE.glob("*/*.py")):
        if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8"):
            name = path.parent.name if path.stem == "run" else f"{path.parent.name}/{path.stem}"
            benchmarks[name] = path
    return benchmarks


def describe(name: str, path: Path) -> str:
    """The question of a benchmark and its commands, the first indented lines of its docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    question, *lines = docstring.splitlines()
    commands = []
    for line in lines:
        if line.startswith("    "):
            commands.append(line)
        elif commands:
            break
    return "\n".join([f"{name}: {question}", *commands])


if __name__ == "__main__":
    sys.exit(main())
