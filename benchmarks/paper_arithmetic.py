"""The cost tables of "Confidence-Driven Multi-Scale Model Selection", computed again from its own counts.

    python benchmarks/paper_arithmetic.py

From Table 8 (how many of the 1,430 questions each model answers) and the models' sizes: Appendix D's operations, the
reductions of Table 1, and what they are once every model that ran is charged; then the dollars of Table 13. No model
runs here, and nothing is measured: it is arithmetic, with the library's own cost functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import typer
from confcascade import Architecture, Usage
from confcascade.cost import break_even_retention, chain_cost, forward_flops
from rich.console import Console
from rich.table import Table

QUESTIONS = 1430
NOMINAL = {"3B": 3e9, "8B": 8e9, "70B": 70e9}  # as the paper counts parameters
ACTUAL = {"3B": 3.213e9, "8B": 8.030e9, "70B": 70.554e9}  # as the models have them
# Table 8: questions answered by each stage, and what Table 1 says is saved, in percent
KEPT: dict[tuple[str, ...], tuple[int, ...]] = {
    ("3B", "8B"): (487, 943),
    ("3B", "70B"): (487, 943),
    ("8B", "70B"): (594, 836),
    ("3B", "8B", "70B"): (487, 198, 745),
}
TABLE_1 = {("3B", "8B"): 20.34, ("3B", "70B"): 32.47, ("8B", "70B"): 36.46, ("3B", "8B", "70B"): 44.48}
# Table 3 (Qwen3) and Table 6 (8B -> 70B on GPQA): sizes, and what is said to be saved, in percent
PAIRS = {
    "4B -> 8B": (4e9, 8e9, 17.80),
    "4B -> 32B": (4e9, 32e9, 52.70),
    "8B -> 32B": (8e9, 32e9, 33.18),
    "8B -> 70B, GPQA": (8e9, 70e9, 3.93),
}
# Table 13: dollars for all questions
DOLLARS_ALONE = {"3B": 0.017, "8B": 0.021, "70B": 0.129}
DOLLARS = {("3B", "8B"): 0.020, ("3B", "70B"): 0.096, ("8B", "70B"): 0.089, ("3B", "8B", "70B"): 0.080}


def query_flops(parameters: float) -> float:
    """The paper's equation 6: 2N for a query, as if it were one token without context."""
    return forward_flops(Architecture(int(parameters), layers=0, hidden_size=0), Usage(0, 1))


def flops(chain: tuple[str, ...], sizes: Mapping[str, float]) -> tuple[float, float]:
    """Operations for all questions: of every stage that ran, and of the answering stage alone."""
    return chain_cost(KEPT[chain], [query_flops(sizes[model]) for model in chain])


def reductions(chain: tuple[str, ...], sizes: Mapping[str, float]) -> tuple[float, float]:
    """What is saved of the largest model's operations, in percent, in both accountings."""
    alone = QUESTIONS * query_flops(sizes[chain[-1]])
    every, answering = flops(chain, sizes)
    return 100 * (1 - every / alone), 100 * (1 - answering / alone)


def implied(small: float, large: float, saved: float) -> tuple[float, float]:
    """What a pair must have kept to save `saved` percent, the answering stage alone being charged; and what it saves.

    Args:
        small: Parameters of the first model.
        large: Of the second.
        saved: Printed, in percent.

    Returns:
        The share that the first model keeps, and what is saved in percent if every stage is charged.
    """
    kept = saved / 100 / (1 - small / large)
    every, _ = chain_cost([kept, 1 - kept], [small, large])
    return kept, 100 * (1 - every / large)


@dataclass(frozen=True)
class Dollars:
    """One row of Table 13.

    Attributes:
        printed: By the paper.
        by_questions: The answering stage alone, if all questions had the same number of tokens.
        last_share: Of all tokens, the share that the last stage must have answered for the printed sum to be right.
        every_stage: With those shares of tokens, what every stage that ran costs.
    """

    printed: float
    by_questions: float
    last_share: float
    every_stage: float


def dollars(chain: tuple[str, ...]) -> Dollars:
    """Table 13's sum for a chain, and what lies between it and Table 8's counts.

    In the chain of three, the first stage is taken to keep the same tokens as in 3B -> 70B, whose gate it shares.
    """
    prices = [DOLLARS_ALONE[model] for model in chain]
    shares = [kept / QUESTIONS for kept in KEPT[chain]]
    _, by_questions = chain_cost(shares, prices)
    printed = DOLLARS[chain]
    if len(chain) == 2:
        last = (printed - prices[0]) / (prices[1] - prices[0])
        tokens = [1 - last, last]
    else:
        first = 1 - dollars((chain[0], chain[2])).last_share
        last = (printed - first * prices[0] - (1 - first) * prices[1]) / (prices[2] - prices[1])
        tokens = [first, 1 - first - last, last]
    every, _ = chain_cost(tokens, prices)
    return Dollars(printed, by_questions, last, every)


def main() -> None:
    console = Console(width=max(Console().width, 132))  # narrower, figures would be cut
    console.print("Appendix D, GFLOPs of the answering stage alone (2 N k):")
    for chain in (("3B", "8B", "70B"), ("8B", "70B")):
        console.print(f"  {' -> '.join(chain)}: {flops(chain, NOMINAL)[1] / 1e9:,.0f}")

    table = Table(
        "chain",
        "Table 1",
        "answering stage, N = 3/8/70",
        "answering stage, actual N",
        "every stage, N = 3/8/70",
        "every stage, actual N",
        "kept by the first stage / break-even",
        title="Operations saved, percent",
    )
    for chain, printed in TABLE_1.items():
        (honest, answering), (honest_actual, answering_actual) = (
            reductions(chain, NOMINAL),
            reductions(chain, ACTUAL),
        )
        even = f" / {break_even_retention(NOMINAL[chain[0]], NOMINAL[chain[1]]):.1%}" if len(chain) == 2 else ""
        table.add_row(
            " -> ".join(chain),
            f"{printed:.2f}",
            f"{answering:.2f}",
            f"{answering_actual:.2f}",
            f"{honest:.1f}",
            f"{honest_actual:.1f}",
            f"{KEPT[chain][0] / QUESTIONS:.1%}{even}",
        )
    console.print(table)

    table = Table("pair", "printed", "kept, implied", "break-even", "every stage", title="Other pairs, percent saved")
    for pair, (small, large, printed) in PAIRS.items():
        kept, honest = implied(small, large, printed)
        table.add_row(
            pair, f"{printed:.2f}", f"{kept:.1%}", f"{break_even_retention(small, large):.1%}", f"{honest:.1f}"
        )
    console.print(table)

    table = Table(
        "chain",
        "Table 13",
        "from Table 8, all questions alike",
        "last stage: share of questions",
        "last stage: share of tokens that Table 13 implies",
        "every stage",
        "saved, Table 13",
        "saved, every stage",
        title="Dollars",
    )
    for chain in DOLLARS:
        row, alone = dollars(chain), DOLLARS_ALONE[chain[-1]]
        table.add_row(
            " -> ".join(chain),
            f"{row.printed:.3f}",
            f"{row.by_questions:.4f}",
            f"{KEPT[chain][-1] / QUESTIONS:.1%}",
            f"{row.last_share:.1%}",
            f"{row.every_stage:.3f}",
            f"{1 - row.printed / alone:.1%}",
            f"{1 - row.every_stage / alone:.1%}",
        )
    console.print(table)
    console.print(
        "Table 13 charges the answering stage alone, by tokens: the questions that escalate are longer, so the "
        "last stage\nhas a larger share of the tokens than of the questions. Its sums are rounded to a tenth of a cent."
    )


if __name__ == "__main__":
    typer.run(main)
