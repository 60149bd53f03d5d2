"""The figures of `confidence_driven` as the Markdown tables of ``docs/papers/confidence-driven.md``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confcascade.cost import break_even_retention

SIZES = ("small", "medium", "large")
PAPERS = 0.9  # the threshold of its main tables
# of the paper: points lost and percent saved (Tables 1, 5, 6), dollars saved (13), probes' accuracy, F1 and AUROC (14),
# accuracy and percent saved at four thresholds (15)
TABLE_1 = {"sm": (-0.77, 20.34), "sl": (-1.68, 32.47), "ml": (-0.35, 36.46), "sml": (-2.03, 44.48)}
TABLE_5 = {"ml": (-1.26, 36.83), "sml": (-4.27, 47.17)}
TABLE_6 = {"ml": (-0.44, 3.93), "sml": (-0.67, 5.11)}
TABLE_11 = {"sm": (33.17, 49.23), "sl": (61.31, 35.47), "ml": (64.59, 34.22), "sml": (60.75, 36.03)}
TABLE_11 |= {"small": (26.89, 41.69), "medium": (33.87, 46.79), "large": (65.85, 32.08)}
TABLE_13 = {"sm": 4.76, "sl": 25.58, "ml": 31.01, "sml": 37.98}
TABLE_14 = {"small": (69.16, 62.76, 75.17), "medium": (76.50, 69.21, 81.78)}
TABLE_15 = {
    True: {0.95: (83.50, 33.25), 0.9: (83.22, 36.46), 0.7: (82.87, 38.56), 0.5: (82.66, 39.33)},
    False: {0.95: (83.50, 29.69), 0.9: (82.31, 38.15), 0.7: (79.23, 56.19), 0.5: (74.55, 74.24)},
}


def markdown(figures: Mapping[str, Any]) -> dict[str, str]:
    """Every table, by its title."""
    return {
        "Tables 1 and 9: letters": table_1(figures),
        "Tables 2 and 8: letters": table_2(figures),
        "Table 5: with and without P(IK)": table_5(figures),
        "Table 5 at equal cost": equal_cost(figures),
        "Table 6: two steps, out of distribution": table_6(figures),
        "Tables 10 and 11: facts and strangers": table_11(figures),
        "Table 13: dollars": table_13(figures),
        "Table 14: probes": table_14(figures),
        "Table 15: thresholds": table_15(figures),
        "Checks": checks(figures),
    }


# ---------------------------------------------------------------------- cells


def lines(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return "\n".join([body[0], "|" + "---|" * len(header), *body[1:]])


def runs_of(
    figures: Mapping[str, Any], asked: str, p_ik: bool = True, threshold: float = PAPERS
) -> list[dict[str, Any]]:
    return [run for run in figures["runs"] if (run["set"], run["p_ik"], run["threshold"]) == (asked, p_ik, threshold)]


def name(run: Mapping[str, Any]) -> str:
    return " → ".join(run["chain"])


def initials(run: Mapping[str, Any]) -> str:
    return "".join(size[0] for size in run["chain"])


def accuracy(each: Mapping[str, Any]) -> str:
    return share(each["right"], each["n"])


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"


def points(run: Mapping[str, Any]) -> str:
    low, high = run["points_interval"]
    return f"{run['points']:+.2f} ({low:+.2f} to {high:+.2f})"


def test(run: Mapping[str, Any]) -> str:
    return f"{run['mcnemar_p']:.2g} ({run['harms']}/{run['benefits']})"


def all_stages(run: Mapping[str, Any]) -> str:
    saved, low, high = run["flops_saved"]
    return f"**{saved:.1f} %** ({low:.1f} to {high:.1f})"


def percent(value: float) -> str:
    return f"{value:.1f} %"


def gap(run: Mapping[str, Any]) -> str:
    return "–" if run["gap_closed"] is None else f"{run['gap_closed']:.2f}"


def two(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:+.2f}, {pair[1]:.2f} %"


def kept(run: Mapping[str, Any]) -> str:
    return share(run["answered_by"][0], run["n"])


def break_even(figures: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if len(run["chain"]) > 2:
        return "–"
    small, large = (figures["alone"][run["set"]][size]["flops"] for size in run["chain"])
    return f"{break_even_retention(small, large):.1%}"


# ---------------------------------------------------------------------- tables


def table_1(figures: Mapping[str, Any]) -> str:
    header = (
        "",
        "accuracy",
        "points (95 %)",
        "McNemar p (harms/benefits)",
        "operations saved, all stages (95 %)",
        "saved, answering stage",
        "gap to the oracle closed",
        "printed: points, saved",
    )
    alone = [(size, accuracy(figures["alone"]["letters"][size]), *("–",) * 6) for size in SIZES]
    chains = [
        (
            name(run),
            accuracy(run),
            points(run),
            test(run),
            all_stages(run),
            percent(run["flops_saved_answering_stage"]),
            gap(run),
            two(TABLE_1[initials(run)]),
        )
        for run in runs_of(figures, "letters")
    ]
    return lines(header, [*alone, *chains])


def table_2(figures: Mapping[str, Any]) -> str:
    header = ("", "precision", "recall", "F1", "answered by each stage", "kept by the first / break-even")
    alone = [(size, *macro(figures["alone"]["letters"][size]), "–", "–") for size in SIZES]
    chains = [
        (
            name(run),
            *macro(run),
            " / ".join(map(str, run["answered_by"])),
            f"{kept(run)} / {break_even(figures, run)}",
        )
        for run in runs_of(figures, "letters")
    ]
    return lines(header, [*alone, *chains])


def macro(each: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{score:.4f}" for score in each["macro"])


def table_5(figures: Mapping[str, Any]) -> str:
    header = (
        "",
        "with: points",
        "saved, all stages",
        "saved, answering stage",
        "without: points",
        "saved, all stages",
        "saved, answering stage",
        "printed: with",
        "printed: without",
    )
    rows = []
    for run, bare in zip(runs_of(figures, "letters"), runs_of(figures, "letters", p_ik=False), strict=True):
        cells = [
            cell
            for each in (run, bare)
            for cell in (
                f"{each['points']:+.2f}",
                f"**{each['flops_saved'][0]:.1f} %**",
                percent(each["flops_saved_answering_stage"]),
            )
        ]
        printed = TABLE_5.get(initials(run))
        rows.append((name(run), *cells, two(TABLE_1[initials(run)] if printed else None), two(printed)))
    return lines(header, rows)


def equal_cost(figures: Mapping[str, Any]) -> str:
    sets = list(figures["sets"])
    found = {(each["set"], name(each), each["p_ik"]): each["mean_accuracy"] for each in figures["areas"]}
    chains = dict.fromkeys(chain for _, chain, _ in found)
    return lines(
        ("mean accuracy, with / without P(IK)", *sets),
        [
            (chain, *(f"{found[asked, chain, True]:.1%} / {found[asked, chain, False]:.1%}" for asked in sets))
            for chain in chains
        ],
    )


def table_6(figures: Mapping[str, Any]) -> str:
    header = (
        "",
        "accuracy",
        "points (95 %)",
        "McNemar p (harms/benefits)",
        "kept by the first",
        "operations saved, all stages (95 %)",
        "saved, answering stage",
        "gap to the oracle closed",
        "printed: points, saved",
    )
    alone = [(size, accuracy(figures["alone"]["two steps"][size]), *("–",) * 7) for size in SIZES]
    chains = [
        (
            name(run),
            accuracy(run),
            points(run),
            test(run),
            kept(run),
            all_stages(run),
            percent(run["flops_saved_answering_stage"]),
            gap(run),
            two(TABLE_6.get(initials(run))),
        )
        for run in runs_of(figures, "two steps")
    ]
    return lines(header, [*alone, *chains])


def table_11(figures: Mapping[str, Any]) -> str:
    header = (
        "",
        "facts: accuracy",
        "hallucination rate",
        '"I don\'t know"',
        "points (95 %)",
        "operations saved, all stages",
        "saved, answering stage",
        'strangers: "I don\'t know", which is right',
        "hallucination rate",
        "printed: accuracy, hallucination rate",
    )

    def row(label: str, key: str, facts: Mapping[str, Any], strangers: Mapping[str, Any], *cells: str) -> list[str]:
        return [
            label,
            accuracy(facts),
            f"{facts['hallucination_rate']:.1%}",
            share(facts["refused"], facts["n"]),
            *cells,
            share(strangers["refused"], strangers["n"]),
            f"{strangers['hallucination_rate']:.1%}",
            "{:.2f} %, {:.2f} %".format(*TABLE_11[key]),
        ]

    rows = [
        row(size, size, figures["alone"]["facts"][size], figures["alone"]["strangers"][size], "–", "–", "–")
        for size in SIZES
    ]
    for run, strangers in zip(runs_of(figures, "facts"), runs_of(figures, "strangers"), strict=True):
        saved = f"**{run['flops_saved'][0]:.1f} %**", percent(run["flops_saved_answering_stage"])
        rows.append(row(name(run), initials(run), run, strangers, points(run), *saved))
    return lines(header, rows)


def table_13(figures: Mapping[str, Any]) -> str:
    header = (
        "",
        "dollars for a million questions, all stages",
        "answering stage",
        "saved, all stages",
        "saved, answering stage",
        "printed: saved",
    )

    def dollars(per_thousand: float) -> str:
        return f"{1000 * per_thousand:.2f}"

    alone = [(size, dollars(figures["alone"]["letters"][size]["usd_per_1000"]), *("–",) * 4) for size in SIZES]
    chains = [
        (
            name(run),
            dollars(run["usd_per_1000"]),
            dollars(run["usd_per_1000_answering_stage"]),
            f"**{run['usd_saved']:.1f} %**",
            percent(run["usd_saved_answering_stage"]),
            percent(TABLE_13[initials(run)]),
        )
        for run in runs_of(figures, "letters")
    ]
    return lines(header, [*alone, *chains])


def table_14(figures: Mapping[str, Any]) -> str:
    header = (
        "asked",
        "model",
        "probe learnt from",
        "accuracy",
        "always the same",
        "macro F1",
        "AUROC",
        "P(IK) ≥ 0.9, of them right",
        "printed: accuracy, F1, AUROC",
    )
    rows = []
    for each in figures["probes"]:
        passing, right = each["passing"]["0.9"]
        alike = each["set"] == each["learnt"] == "letters"
        rows.append(
            (
                f"{each['set']} ({each['n']})",
                each["model"],
                {"shipped": "all tasks (shipped)", "open": "facts, strangers"}.get(each["learnt"], each["learnt"]),
                f"{each['accuracy']:.1%}",
                f"{each['majority']:.1%}",
                f"{each['macro_f1']:.3f}",
                "–" if each["auroc"] is None else f"{each['auroc']:.3f}",
                f"{share(passing, each['n'])}, {share(right, passing) if passing else '–'}",
                "{:.1f} %, {:.3f}, {:.3f}".format(
                    TABLE_14[each["model"]][0], *(x / 100 for x in TABLE_14[each["model"]][1:])
                )
                if alike
                else "–",
            )
        )
    return lines(header, rows)


def table_15(figures: Mapping[str, Any]) -> str:
    header = (
        "",
        "P(IK)",
        "threshold",
        "accuracy",
        "points (95 %)",
        "relative",
        "McNemar p (harms/benefits)",
        "kept by the first",
        "saved, all stages",
        "saved, answering stage",
        "printed: accuracy, saved",
    )
    rows = []
    for chain in (["small", "large"], ["medium", "large"]):
        for p_ik in (True, False):
            for threshold in TABLE_15[p_ik]:
                (run,) = (run for run in runs_of(figures, "letters", p_ik, threshold) if run["chain"] == chain)
                rows.append(
                    (
                        name(run),
                        "with" if p_ik else "without",
                        f"{threshold:g}",
                        accuracy(run),
                        points(run),
                        f"{run['relative']:+.2f} %",
                        test(run),
                        kept(run),
                        f"**{run['flops_saved'][0]:.1f} %**",
                        percent(run["flops_saved_answering_stage"]),
                        "{:.2f} %, {:.2f} %".format(*TABLE_15[p_ik][threshold]) if chain[0] == "medium" else "–",
                    )
                )
    return lines(header, rows)


def checks(figures: Mapping[str, Any]) -> str:
    replayed = figures["replay"]
    rows: list[tuple[str, str]] = [
        (
            "questions",
            ", ".join(
                f"{asked} {each['n']}" + (f" (for {each['stands_for']})" if each["stands_for"] else "")
                for asked, each in figures["sets"].items()
            ),
        ),
        ("live runs, each replayed from one recording", f"{replayed['runs']}"),
        ("their answers, without those left out", f"{replayed['answers']:,}"),
        ("left out: a score within 0.0001 of its threshold", f"{replayed['near']}"),
        ("decided otherwise live than in replay, or at another cost", f"**{replayed['differing']}**"),
    ]
    for asked, each in figures["normalised"].items():
        otherwise = ", ".join(f"{n} at {t}" for t, n in each["decided_otherwise"].items())
        mass = f"{each['mean_label_mass']:.4f}, {each['least_label_mass']:.4f}"
        rows.append((f"{asked}: probability of A to D together, mean and least", mass))
        rows.append((f"{asked}: of {each['answers']:,} P(T), passing otherwise if normalised over A to D", otherwise))
    told = ", ".join(f"{size} {right:.1%}" for size, right in figures["paper_prompt"].items())
    rows.append(("letters, asked in the words of Table 7: accuracy", told))
    return lines(("", ""), rows)
