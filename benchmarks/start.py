"""Time to the first answer: imports and commands, each in a fresh process, compared with what they are built on.

    python benchmarks/start.py                          # all rows
    python benchmarks/start.py --before ../older        # and the same rows of another checkout, in turns
    python benchmarks/start.py --only "import"          # rows whose names begin so

Each row is a command and a plain process that does the same without confcascade: the import of the framework, one call
of the `openai` client, or the bundled models loaded and asked by `transformers`. All run in turns; ratios are within
rounds, and the table gives medians, and quartiles in brackets. CPU time is the one to trust on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confcascade.models.bundled import bundled_folder

HERE = Path(__file__).parent
ASK = ("-m", "confcascade", "ask", "How does Nebros Krurer earn a living?", "--cascade")
OPENAI = """
import sys
from openai import OpenAI
client = OpenAI()
for chunk in client.chat.completions.create(
    model="large", messages=[{"role": "user", "content": "hello"}], stream=True, stream_options={"include_usage": True}
):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="")
"""
GENERATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("How does Nebros Krurer earn a living?", return_tensors="pt")
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0]))
"""


@dataclass(frozen=True)
class Row:
    """What is measured: arguments of Python, and those of what it is compared with."""

    name: str
    ours: Sequence[str]
    plain_name: str
    plain: Sequence[str]


def rows(folder: Path) -> list[Row]:
    """All of them; cascade files are written into a folder."""
    files = {
        "bundled": 'models: ["bundled:small", "bundled:large"]\nthreshold: 0.9\n',
        "sure": 'models: ["bundled:small", "bundled:large"]\nthreshold: always\n',
        "api": 'models: ["openai:small", "openai:large"]\nthreshold: 0.9\n',
    }
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    empty, chat = ("-c", "pass"), "from langchain_core.language_models import BaseChatModel"
    small, large = (str(bundled_folder(size)) for size in ("small", "large"))
    generate = ("-c", GENERATE)
    return [
        Row("import confcascade", ("-c", "import confcascade"), "python", empty),
        Row("import langchain_confcascade", ("-c", "import langchain_confcascade"), "BaseChatModel", ("-c", chat)),
        Row(
            "import llamaindex_confcascade",
            ("-c", "import llamaindex_confcascade"),
            "llama_index.core",
            ("-c", "import llama_index.core"),
        ),
        Row("confcascade --help", ("-m", "confcascade", "--help"), "import typer", ("-c", "import typer")),
        Row("confcascade fit --help", ("-m", "confcascade", "fit", "--help"), "import typer", ("-c", "import typer")),
        Row("ask, API models", (*ASK, str(folder / "api.yaml")), "openai, one call", ("-c", OPENAI)),
        Row(
            "ask, the small one keeps it",
            (*ASK, str(folder / "sure.yaml")),
            "transformers, small",
            (*generate, small),
        ),
        Row("ask, escalated", (*ASK, str(folder / "bundled.yaml")), "transformers, both", (*generate, small, large)),
    ]


@dataclass(frozen=True)
class Taken:
    """Seconds of one process: on the clock, and of CPU."""

    wall: float
    cpu: float


def run(arguments: Sequence[str], checkout: Path, port: int) -> Taken:
    """A fresh process, in which packages come from a checkout."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(checkout / "core"), str(checkout)]),
        "OMP_NUM_THREADS": "1",
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "HF_HUB_OFFLINE": "1",
    }
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read()
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)[:80]} ended with {process.returncode}:\n{said}")
    return Taken(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


@contextmanager
def server() -> Iterator[int]:
    """The port of a server that answers at once."""
    with subprocess.Popen([sys.executable, str(HERE / "instant_server.py")], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        yield int(it.stdout.readline())
        it.terminate()


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def line(row: Row, taken: dict[str, list[Taken]], who: str) -> str:
    """One line of the table."""
    ours, plain = taken[who], taken["plain"]
    cells = [row.name if who == "ours" else f"{row.name}, before"]
    for measure in ("cpu", "wall"):
        seconds = [getattr(each, measure) for each in ours]
        ratios = [mine / getattr(each, measure) for mine, each in zip(seconds, plain, strict=True)]
        cells += [spread(seconds, ".2f"), f"×{spread(ratios, '.2f')}"]
    return f"| {' | '.join(cells)} | {row.plain_name} |"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, help="another checkout, measured in the same rounds")
    parser.add_argument("--only", default="", help="rows whose names begin so")
    options = parser.parse_args()
    checkouts = {"ours": HERE.parent} | ({"before": options.before.resolve()} if options.before else {})
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| process | CPU seconds | over the plain one | seconds | over the plain one | plain |")
    print("|---|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as folder, server() as port:
        for row in rows(Path(folder)):
            if not row.name.startswith(options.only):
                continue
            taken: dict[str, list[Taken]] = {who: [] for who in ("plain", *checkouts)}
            for turn in range(options.rounds + 1):  # the first fills the disk's cache
                for who, found in taken.items():
                    found.append(run(row.plain if who == "plain" else row.ours, checkouts.get(who, HERE.parent), port))
                if turn == 0:
                    for found in taken.values():
                        found.clear()
            for who in checkouts:
                print(line(row, taken, who), flush=True)


if __name__ == "__main__":
    main()
