"""What came of training a probe, in plain words: whether it can route, and where it saves."""

from __future__ import annotations

from confcascade.bench.training.probes import TrainedProbe

__all__ = ["can_route", "verdict"]

WEAK = 0.6  # a probe whose AUROC may be below this tells little
RISE = 0.01  # of AUROC from half of the examples to all: less is level


def can_route(trained: TrainedProbe) -> bool:
    """Whether `fit` would route by it, on the questions of the test."""
    return trained.test.health.can_route


def verdict(trained: TrainedProbe) -> list[str]:
    """A few sentences, the most important first."""
    test, card = trained.test, trained.probe.card
    area = f"test AUROC {test.auroc:.3f}, at least {test.low:.3f} ({test.n} questions, 95 % interval)"
    if not can_route(trained):
        said = [f"This probe cannot route: {area}. `fit` would leave it out: {'; '.join(test.health.reasons)}."]
    elif min(test.low, test.health.auroc_low or 0.0) < WEAK:
        said = [f"This probe can hardly route: {area}. It knows a little of what '{card.model}' knows."]
    else:
        said = [f"This probe can route: {area}."]
    if can_route(trained):
        (_, base, _), *_ = test.kept
        share, accuracy, wrong = next(each for each in test.kept if each[0] == 0.5)
        said.append(
            f"Where it saves: '{card.model}' answers {base:.1%} of all questions right, and {accuracy:.1%} of the "
            f"{share:.0%} with the highest P(IK). The others, passed on before a word is generated, it would have "
            f"answered wrong in {wrong:.1%} of the cases, against {1 - base:.1%} if they were drawn by lot."
        )
    if test.brier >= test.brier_base_rate:
        said.append(
            f"As a probability it is worth nothing: its Brier score is {test.brier:.3f}, that of always saying the "
            f"base rate {test.brier_base_rate:.3f}. Choose its threshold by `fit`, not by what the number seems to say."
        )
    said.append(_more(trained))
    return said


def _more(trained: TrainedProbe) -> str:
    *fewer, whole = trained.curve
    half = next((point for point in reversed(fewer) if point.examples <= 0.55 * whole.examples), None)
    if half is None:
        return f"It learned from {whole.examples} examples; whether more would help is not known."
    rise = whole.auroc - half.auroc
    if rise >= RISE:
        return (
            f"More examples would help: from {half.examples} to {whole.examples} its validation AUROC rose from "
            f"{half.auroc:.3f} to {whole.auroc:.3f}."
        )
    return (
        f"More examples would help little: {half.examples} gave a validation AUROC of {half.auroc:.3f}, "
        f"{whole.examples} of {whole.auroc:.3f}."
    )
