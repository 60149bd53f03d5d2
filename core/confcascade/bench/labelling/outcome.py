"""What bought labels came to: a policy with its promise, what they cost, and what it would still take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from confcascade.bench.fitting.candidates import Candidates
from confcascade.bench.fitting.policy_file import Described, fitted_policy, saving_of
from confcascade.bench.labelling.buying import Bought
from confcascade.bench.labelling.task import LabelTask
from confcascade.guarantee import Certificate, Promise
from confcascade.policy import Policy

__all__ = ["Labelled", "labelled"]

_ENDED = {
    "reached": "The saving aimed at is certified.",
    "enough": "Further labels would cost more than they are worth: doubling them would raise the saving by less than a "
    "twentieth.",
    "most": "So many labels were allowed.",
    "paused": "More labels are wanted; the next run goes on from here.",
    "all certified": "Every policy that was made is certified.",
    "out of reach": "The questions that are left could not certify the next policy, whatever their labels.",
    None: "",
}


@dataclass(frozen=True)
class Labelled:
    """What labels came to.

    Attributes:
        policy: The certified policy that saves most; None if there is none.
        bought: How it ended, and what it cost.
        next_saved: What the next policy would save, which is not certified yet; None if all are.
        next_labels: About how many more labels that takes; None if no number is known that would do.
        notes: What a reader should know.
    """

    policy: Policy | None
    bought: Bought
    next_saved: float | None
    next_labels: int | None
    notes: tuple[str, ...]

    def describe(self) -> str:
        """Several lines: what is promised or why nothing is, what was bought, and what it would still take."""
        bought = self.bought
        lines = ["Nothing can be promised yet."] if self.policy is None else [self.policy.describe()]
        spent = [f"{bought.labels:,} labels"]
        if bought.usd is not None:
            spent.append(f"${bought.usd:,.4g}")
        if bought.seconds is not None:
            spent.append(f"{bought.seconds / 60:.1f} minutes")
        told = f"Bought: {', '.join(spent)}."
        if bought.skipped:
            told += f" {bought.skipped:,} of them nobody could tell: they count as lost."
        lines += ["", told, _ENDED[bought.ended]]
        if self.next_saved is not None:
            what = f"the next policy, which saves {self.next_saved:.1%} of the largest model's cost"
            if self.next_labels is None:
                lines.append(f"By what was seen, no number of labels is known that certifies {what}.")
            else:
                lines.append(f"It takes about {self.next_labels:,} more labels to certify {what}.")
        return "\n".join([*lines, *self.notes])


def labelled(
    task: LabelTask,
    promise: Promise,
    bought: Bought,
    *,
    described: Mapping[str, Described] | None = None,
    folder: Path | None = None,
) -> Labelled:
    """The policy that saves most of those certified, and what it would still take to the next.

    Args:
        task: What was labelled.
        promise: What is promised.
        bought: Of `buy`.
        described: By model, how its signals are made live.
        folder: Where the policy will be kept; paths in it are relative to this.
    """
    path, notes = bought.path, list(task.whole.notes)
    policy: Policy | None = None
    if (best := bought.best) is not None:
        columns, stages = task.material.columns, task.policies[best]
        certified = [task.policies[i] for i in range(path.certified)]
        saved = saving_of(columns, certified, best, task.largest, task.bill)
        if saved.low < 0:
            notes.append(f"Whether this saves anything is not sure: its interval reaches below 0, to {saved.low:.1%}.")
        cost = float(task.bill.means(columns, [stages])[0])
        shown = path.examined(best, cost=cost, error=promise.error)
        shown = replace(shown, bound=min(shown.bound, promise.max_drop or 1.0))  # beyond it by rounding alone
        certificate = Certificate.of(shown, promise, repeated=task.whole.repeated)
        policy = fitted_policy(
            task.whole,
            Candidates(columns),
            stages,
            [certificate],
            saved,
            described=described or {},
            seed=task.seed,
            folder=folder,
        )
    ahead = path.certified if path.certified < len(task.policies) else None
    return Labelled(
        policy,
        bought,
        None if ahead is None else float(task.saved[ahead]),
        None if ahead is None else path.outlook(ahead),
        tuple(notes),
    )
