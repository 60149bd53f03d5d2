"""A whole cascade, checked: each stage asked, what it can do, what the cascade will therefore do, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from confcascade.asks import LanguageModel
from confcascade.cascade import Cascade
from confcascade.cost import attempt_cost, break_even_retention
from confcascade.diagnosis.abilities import Ability, abilities_of
from confcascade.diagnosis.findings import Finding, findings_of
from confcascade.diagnosis.forecast import Rules, forecast
from confcascade.diagnosis.probing import Judged, Probe, Probed
from confcascade.drivers import run
from confcascade.errors import ConfigurationError
from confcascade.stage import Stage
from confcascade.stepwise_cascade import StepwiseCascade
from confcascade.types import Cost, Message, Usage

__all__ = ["Diagnosis", "StageDiagnosis", "diagnose"]

_TYPICAL = Usage(500, 100)
_ONCE = " Logged once"  # how notices of models end


@dataclass(frozen=True)
class StageDiagnosis:
    """What one stage can do.

    Attributes:
        model: Its model's name.
        abilities: What was seen, by name; only "answers" where it does not answer.
        scores: What its signals made of the answer.
        findings: What is wrong with it, the worst first.
        then: What the cascade will therefore do, in a sentence.
        usage: Tokens that the check has used.
        cost: What that cost.
        typical: What a typical query costs at this stage.
    """

    model: str
    abilities: dict[str, Ability]
    scores: dict[str, Judged]
    findings: tuple[Finding, ...]
    then: str
    usage: Usage
    cost: Cost
    typical: Cost

    @property
    def works(self) -> bool:
        """Whether it answers, and its answers can be judged where they must be."""
        return all(finding.level != "fails" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "works": self.works,
            "abilities": {name: asdict(ability) for name, ability in self.abilities.items()},
            "scores": {name: {**asdict(judged), "passed": judged.passed} for name, judged in self.scores.items()},
            "findings": [asdict(finding) for finding in self.findings],
            "then": self.then,
            "usage": self.usage.as_dict(),
            "cost": self.cost.as_dict(),
            "typical": self.typical.as_dict(),
        }


@dataclass(frozen=True)
class Diagnosis:
    """What every stage of a cascade can do.

    Attributes:
        stages: Smallest first.
        typical: Tokens of a typical query, on which the costs of one are reckoned.
    """

    stages: tuple[StageDiagnosis, ...]
    typical: Usage

    @property
    def works(self) -> bool:
        """Whether every stage does."""
        return all(stage.works for stage in self.stages)

    @property
    def cost(self) -> Cost:
        """Of the check."""
        return sum((stage.cost for stage in self.stages), Cost())

    def answered_by(self, stage: int) -> Cost:
        """What a typical query costs that a stage answers, with all those that were asked before it."""
        return sum((each.typical for each in self.stages[: stage + 1]), Cost())

    @property
    def break_even(self) -> float | None:
        """The share of queries that the first of two stages must keep before the cascade costs less than the second.

        In dollars, or in operations where those are known and dollars are not; None for other numbers of stages, and
        where neither is known.
        """
        if len(self.stages) != 2:
            return None
        for unit in ("usd", "flops"):
            small, large = (getattr(stage.typical, unit) for stage in self.stages)
            if small is not None and large:
                return break_even_retention(small, large)
        return None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "works": self.works,
            "stages": [stage.as_dict() for stage in self.stages],
            "cost": self.cost.as_dict(),
            "typical": {
                "usage": self.typical.as_dict(),
                "answered_by": [self.answered_by(i).as_dict() for i in range(len(self.stages))],
                "break_even": self.break_even,
            },
        }


def diagnose(
    cascade: Cascade | Sequence[Stage],
    *,
    question: Any = None,
    typical: Usage = _TYPICAL,
    on_call: Callable[[int, str], None] | None = None,
) -> Diagnosis:
    """Ask each stage a few tokens, and say what it can do, what the cascade will therefore do and what that costs.

    Up to eight short calls a stage, one after another: an answer (whole, and streamed), one that is cut after a token,
    a tool call, two answers at once; where the model can, a pass over the prompt, and the rest of an answer that was
    begun; and, of a model that thinks, one answer at its own limit. A stage that does not answer is asked nothing more.

    Args:
        cascade: A `Cascade` (of `ConfidenceCascadeLLM`, its attribute ``cascade``), or stages, whose models must be
            `LanguageModel` objects. Thresholds may be missing.
        question: What to ask instead of a question of three words, as of `Message.parse`; it is answered with the
            stage's own limit, and so costs what it costs.
        typical: Tokens of a typical query.
        on_call: Called before each call with the stage's index and what is asked.

    Raises:
        ConfigurationError: If there is no stage, or a signal cannot be asked what its stage asks of it. An error of a
            model is a finding.

    >>> from confcascade import TokenProbability
    >>> from confcascade.testing import ScriptedModel
    >>> small = Stage(ScriptedModel("small", logprobs=None), [TokenProbability()], {"p_t": 0.9})
    >>> found = diagnose([small, Stage(ScriptedModel("large"))])
    >>> found.works, found.stages[0].abilities["log-probabilities"].how
    (True, 'yes')
    """
    stages = cascade.stages if isinstance(cascade, Cascade) else tuple(cascade)
    if not stages:
        raise ConfigurationError("There is no stage to check; the list is empty.")
    for stage in stages:
        if not isinstance(stage.model, LanguageModel):
            raise ConfigurationError(
                f"The model of a stage to check must be a LanguageModel. Got {type(stage.model).__name__}; a Cascade, "
                "and that of a ConfidenceCascadeLLM (its attribute `cascade`), makes one of strings and frameworks' "
                "models."
            )
    messages = None if question is None else Message.parse(question)
    rules = Rules(
        cascade.on_error if isinstance(cascade, Cascade) else "escalate", isinstance(cascade, StepwiseCascade)
    )
    found = []
    for index in range(len(stages)):
        told = None if on_call is None else partial(on_call, index)
        last = index == len(stages) - 1
        probe = Probe(_once(stages[index]), messages, last=last, on_call=told)
        found.append(_diagnosed(stages, index, rules, probe, typical))
    return Diagnosis(tuple(found), typical)


def _once(stage: Stage) -> Stage:
    """The stage, whose model tries each call once where it can: of a server that is down that is soon known."""
    unretried = getattr(stage.model, "unretried", None)
    # a copy of one that computes here would load its weights again
    return stage if unretried is None or stage.model.capability.local else replace(stage, model=unretried())


def _diagnosed(stages: Sequence[Stage], index: int, rules: Rules, probe: Probe, typical: Usage) -> StageDiagnosis:
    stage, last = probe.stage, index == len(stages) - 1
    with _logged() as notices:
        probed = run(probe.flow())
    abilities = abilities_of(stage, probed)
    findings = findings_of(
        stage, probed, abilities, last=last, on_error=rules.on_error, own_question=probe.own_question
    )
    if not hasattr(stage.model, "refused"):  # all that this model knows of what its server refuses is what it logs
        findings += tuple(Finding("note", "logged", notice) for notice in dict.fromkeys(notices))
    return StageDiagnosis(
        model=stage.model.name,
        abilities=abilities,
        scores=probed.scores,
        findings=findings,
        then=forecast(stages, index, rules, findings),
        usage=probed.usage,
        cost=_cost(stage, probed),
        typical=_typical(stage, probed, typical, last=last),
    )


def _typical(stage: Stage, probed: Probed, usage: Usage, *, last: bool) -> Cost:
    """Of a query that the stage answers; a gate at a server reads the prompt in a call of its own."""
    read = probed.calls.get("prefill")
    gated = not last and any(signal.layers(stage.model) for signal in stage.signals)
    calls = [usage]
    if gated and read is not None and read.prefilled is not None and read.prefilled.apart:
        calls.append(Usage(usage.input_tokens, 1))
    return sum((attempt_cost(each, 0.0, stage.model.architecture, stage.prices) for each in calls), Cost())


def _cost(stage: Stage, probed: Probed) -> Cost:
    """Of all calls; what answers tell of their own cost comes first, as in a cascade."""
    cost = attempt_cost(probed.usage, probed.seconds, stage.model.architecture, stage.prices)
    responses = [call.response for call in probed.calls.values() if call.response is not None]
    told = [response.cost for response in responses if response.cost is not None]
    if not told:
        return cost
    whole = sum(told, Cost())
    return replace(cost, flops=whole.flops, usd=cost.usd if whole.usd is None else whole.usd)


class _Notices(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage().partition(_ONCE)[0])


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What the logger ``confcascade`` says in the meantime, as it goes to its other handlers, too."""
    log, handler = logging.getLogger("confcascade"), _Notices()
    log.addHandler(handler)
    try:
        yield handler.said
    finally:
        log.removeHandler(handler)
