"""What a few dozen answers say of a cascade, and what they do not: sentences, and how to know it on one's own data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from confcascade.bench.metrics.ranking import auroc
from confcascade.cost import break_even_retention
from confcascade.demo.asking import P_T, Answered
from confcascade.demo.comparison import Comparison
from confcascade.guarantee.planner import fewest_examples
from confcascade.guarantee.promise import Promise

__all__ = ["caution", "drafts_of", "next_steps", "verdict"]

_PROMISE = Promise(max_drop=0.01)


def drafts_of(answered: Sequence[Answered], stage: int, name: str) -> str:
    """What became of a smaller model's drafts, and whether its P(T) tells right ones from wrong ones."""
    drafts = [(each.outcome.record.attempts[stage], each.right[stage]) for each in answered if len(each.right) > stage]
    kept = [right for attempt, right in drafts if attempt.decision == "accept"]
    escalated = [right for attempt, right in drafts if attempt.decision != "accept"]
    told = f"{name} kept {_count(len(kept))} of {len(drafts)} answers"
    told += f", {_count(sum(kept))} of them right" if kept else ""
    told += f", and escalated {_count(len(escalated))}"
    told += f", {_count(sum(escalated))} of which would have been right." if escalated else "."
    if failed := sum(attempt.error is not None for attempt, _ in drafts):
        told += f" {failed} of its calls failed, and count as free."
    scores = [(attempt.scores[P_T].value, right) for attempt, right in drafts if P_T in attempt.scores]
    known = [(value, right) for value, right in scores if value is not None]
    if drafts and not known:
        return f"{told} None of its answers had a P(T): `confcascade check` says why."
    ranked = auroc([right for _, right in known], [value for value, _ in known]) if known else None
    if ranked is None:
        return told
    return f"{told} A right answer had a higher P(T) than a wrong one in {ranked:.0%} of all pairs (chance is 50%)."


def _count(number: int) -> str:
    return str(number or "none")


def verdict(compared: Comparison, *, models: int) -> str:
    """Whether the cascade paid on these questions.

    Args:
        compared: The cascade, and its smallest and largest model alone.
        models: How many models the cascade has.
    """
    smallest, cascade, largest = compared.smallest, compared.cascade, compared.largest
    n, fewer = len(largest.right), sum(largest.right) - sum(cascade.right)
    got = f"{abs(fewer)} of {n} {'fewer' if fewer > 0 else 'more'} right" if fewer else "as many right"
    if not any(largest.right + cascade.right):
        return "Not one answer was right, so that nothing can be said of the cascade."
    if sum(smallest.right) >= sum(largest.right):
        at_a_cost = "" if compared.unit == "tokens" else f". It costs {compared.share(smallest):.0%} of that"
        return (
            f"No cascade is needed here: {smallest.name} alone gets {sum(smallest.right)} of {n} right, and "
            f"{largest.name} {sum(largest.right)}{at_a_cost}."
        )
    if compared.unit == "tokens":
        return (
            f"The cascade got {got}, compared with {largest.name} alone. What it saved is not known: a token of one "
            "model does not cost what a token of another does. Give --prices MODEL=INPUT,OUTPUT of each model."
        )
    share = compared.share(cascade)
    if share < 1:
        remedy = " A higher --threshold loses fewer and saves less." if fewer > 0 else ""
        return f"The cascade saved {1 - share:.0%} of what {largest.name} alone costs, and got {got}.{remedy}"
    told = f"The cascade does not pay here: it cost {share:.0%} of what {largest.name} alone costs, and got {got}."
    even = break_even_retention(compared.share(smallest), 1.0)
    if models > 2 or not even:
        return told
    if even >= 1:
        return f"{told} {smallest.name} alone costs more than that, so no threshold can save anything."
    return (
        f"{told} {smallest.name} alone costs {even:.0%} of it, and so has to keep more than {even:.0%} of its answers "
        "before anything is saved. A lower --threshold keeps more."
    )


def caution(n: int) -> str:
    """What so few questions of ours are worth, and how many of one's own a promise takes."""
    return (
        f"{n} questions of ours promise nothing about yours. To promise, with {_PROMISE.confidence:.0%} confidence, "
        f"that at most {_PROMISE.max_drop:.0%} of accuracy is lost takes at least {fewest_examples(_PROMISE)} graded "
        "questions of your own, and usually more. This is how:"
    )


def next_steps(models: Sequence[str], threshold: float) -> str:
    """How to fit a cascade of the models on one's own questions, and to use it: what to write, and what to type.

    Args:
        models: Model strings, as the command got them.
        threshold: Likewise.
    """
    listed = "\n".join(f"    - {json.dumps(_from_anywhere(model), ensure_ascii=False)}" for model in models)
    return f"""\
cascade.yaml
  models:
{listed}
  threshold: {threshold:g}

questions.jsonl, a line for each
  {{"question": "...", "reference": "..."}}

confcascade collect questions.jsonl -o rec.jsonl --cascade cascade.yaml --grader normalized
confcascade fit rec.jsonl -o policy.json --cascade cascade.yaml --max-drop {_PROMISE.max_drop:g}
confcascade ask "..." --cascade cascade.yaml --policy policy.json

Other graders: confcascade collect --help. In LangChain and LlamaIndex:
ConfidenceCascadeLLM(models=[...], policy="policy.json")
"""


def _from_anywhere(model: str) -> str:
    """A model string whose path, if it is one that exists, holds beside any cascade file."""
    kind, _, place = model.partition(":")
    path = Path(place).expanduser()
    return f"{kind}:{path.resolve()}" if kind in ("local", "llamacpp") and path.exists() else model
