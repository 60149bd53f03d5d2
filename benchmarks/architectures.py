"""Every type of causal language model of the installed `transformers`, through `TransformersModel`.

    python benchmarks/architectures.py OUT

Makes a tiny random model of each type (4 blocks, 32 wide, over the tokenizer of the bundled models), saves it, loads it
with `TransformersModel.from_pretrained`, and compares, for prompts of 2 to 97 tokens, with plain `generate` and one
forward pass: answers and log-probabilities alone, in a batch padded on the left, in a batch whose answers end at
different times, and read together but continued in parts and in another order; what is left of a batch of which some
rows are ended behind one block or another; hidden states alone and in a batch; the operations of one token with those
that torch counts.

A type is equal, or refused in one line when it is loaded, or asked one by one (said in a warning), or it differs: then
something is wrong, and the script ends with 1. Each type runs in a process of its own, with a time limit. What is
found goes to OUT/TYPE.json, and is not found again.

What it does not tell: how types do at their real size, in half precision, or with trained weights.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from architectures_checks import LENGTHS, SAME, Found, check, prompts
from architectures_tiny import WINDOW
from rich.console import Console
from rich.progress import track

DECODERS = "+is_decoder"  # of types that are encoders unless they are told otherwise


def types() -> list[str]:
    """Those of the installed `transformers`; encoders twice, as they are and as decoders."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found.append(kind)
        if CONFIG_MAPPING[kind].__module__.split(".")[-2] in ENCODERS:
            found.append(kind + DECODERS)
    return found


ENCODERS = (
    "bert", "bert_generation", "big_bird", "camembert", "data2vec", "electra", "ernie", "megatron_bert", "rembert",
    "roberta", "roberta_prelayernorm", "roc_bert", "roformer", "xlm_roberta", "xlm_roberta_xl", "xmod",
)  # fmt: skip


def _worker(kind: str, path: Path) -> None:
    import warnings

    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    name = kind.removesuffix(DECODERS)
    options: dict[str, Any] = {} if name == kind else {"is_decoder": True}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = check(name, Path(folder), **options)
        except BaseException as error:
            found = Found(kind, "crashed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            traceback.print_exc()
    found.kind = kind
    path.write_text(json.dumps(found.as_dict(), indent=1))


def find(kind: str, path: Path, seconds: float) -> Found:
    """In a process of its own; what is in `path` already is read."""
    if not path.exists():
        process = multiprocessing.get_context("fork").Process(target=_worker, args=(kind, path))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
        if not path.exists():
            late = process.exitcode == -9
            why = f"no end after {seconds:g} s" if late else f"the process ended with {process.exitcode}"
            path.write_text(json.dumps(Found(kind, "crashed", why).as_dict(), indent=1))
    return Found(**json.loads(path.read_text()))


# ---------------------------------------------------------------------- the table


def table(found: Sequence[Found]) -> str:
    """As Markdown: what differs first, then what works, then what is refused."""
    order = ["differs", "crashed", "equal", "equal, one by one", "refused", "not built"]
    rows = sorted(found, key=lambda each: (order.index(each.verdict), each.kind))
    lines = [
        "| type | verdict | largest difference | hidden states | stops | 2N / counted |",
        "|---|---|---:|---|---|---:|",
    ]
    for each in rows:
        verdict = each.verdict + (f": {each.why}" if each.why else "") + (f" ({each.note})" if each.note else "")
        most = max(each.differences.values(), default=None)
        shown = "" if most is None else f"{most:.1g}"
        ratio = "" if each.products is None or not each.products[1] else f"{each.products[0] / each.products[1]:.2f}"
        lines.append(
            f"| `{each.kind}` | {verdict.replace('|', '/')} | {shown} | {each.hidden} | {each.stops} | {ratio} |"
        )
    return "\n".join(lines)


def page(found: Sequence[Found], command: str) -> str:
    """`docs/design/architectures.md`."""
    import torch
    import transformers

    counts = Counter(each.verdict for each in found)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    lines = [
        "# Architectures",
        "",
        f"Every type of causal language model of transformers {transformers.__version__}, with torch "
        f"{torch.__version__}, {datetime.now(UTC):%Y-%m-%d}: {summary}.",
        "",
        f"`{command}` makes this page; the script's `--help` says what is compared, and what that does not show.",
        "",
        f"- *Equal*: greedy answers, their log-probabilities and every batch differ by at most {SAME:g} from plain "
        "`generate` and from one forward pass; the largest difference is given.",
        "- *Equal, one by one*: the trial pass at loading showed that a batch would change answers, or that rows of "
        "the cache cannot be selected. The model is asked one by one, and a warning says so.",
        "- *Refused*: `TransformersModel` raises `ConfigurationError` when the model is loaded, with this reason.",
        "- *Not built*: transformers itself does not make a model that answers a prompt from the tiny configuration, "
        "or not without another package.",
        '- *Hidden states*: of blocks 1 to n, alone and in a batch, against `output_hidden_states` (relative). "None" '
        "are models whose blocks do not return (rows, tokens, width): P(IK) is refused for them, all else works.",
        '- *Stops*: a pass over prompts ends where a gate says so, for "each row" of a batch, or for "a pass" once all '
        "of its rows are ended, because its rows cannot be taken out between two blocks.",
        "- *2N / counted*: twice `architecture.parameters`, over what torch's `FlopCounterMode` counts in a pass over "
        "a second token. The counter sees neither norms nor element-wise states, and counts attention, too. "
        "(transformers computes all experts of Llama 4; those that the token is not sent to are not counted in N.)",
        "",
        "Limits of what is compared:",
        "",
        f"- Prompts have {LENGTHS[0]} to {LENGTHS[-1]} tokens. Sliding windows and chunks of {WINDOW} are crossed by "
        "them, sparse attention is not: indexes (`index_topk`, `indexer_budget`) and MiniMax-M3's blocks cover all "
        "of a prompt. What they choose beyond that is not compared, and whether it is the same in a padded batch.",
        "- Decoders like RoBERTa count positions from the padding token on, if they are given none. They are compared "
        "at the positions at which `generate` puts them.",
        "- Models are tiny, random and in float32, on a CPU.",
        "",
        table(found),
    ]
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path, typer.Argument(help="Folder for what is found: a JSON file for each type.")],
    kinds: Annotated[list[str] | None, typer.Option("--type", help="Only this type; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Time limit of a type.")] = 120.0,
    jobs: Annotated[int, typer.Option(min=1, help="Types that are compared at a time.")] = 1,
    write: Annotated[Path | None, typer.Option(help="Write the page of the design notes to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Compare every architecture with plain transformers: equal, refused in one line, or wrong (exit 1).

    Examples (all types take about ten minutes; a second run takes what OUT holds):

        python benchmarks/architectures.py out --write docs/design/architectures.md

        python benchmarks/architectures.py out --type qwen3_next --type jamba
    """
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401  # once, before the processes part

    out.mkdir(parents=True, exist_ok=True)
    prompts()
    wanted = kinds or types()
    with ThreadPoolExecutor(jobs) as pool:
        running = pool.map(lambda kind: find(kind, out / f"{kind}.json", seconds), wanted)
        found = list(track(running, "Comparing", total=len(wanted), console=Console(stderr=True)))
    if write is not None:
        write.write_text(page(found, f"python benchmarks/architectures.py OUT --write {write}"))
    print(json.dumps([each.as_dict() for each in found], indent=1) if as_json else table(found))
    wrong = [each.kind for each in found if each.verdict in ("differs", "crashed")]
    if wrong:
        print(f"\n{len(wrong)} types differ: {', '.join(wrong)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
