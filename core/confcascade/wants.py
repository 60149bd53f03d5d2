"""What the signals of a stage want of an attempt, all of them together."""

from __future__ import annotations

from collections.abc import Sequence

from confcascade.signals import Signal

__all__ = ["NOTHING", "Wants"]


class Wants:
    """The same for every query, so it is found out once for a stage.

    Attributes:
        signals: All of them.
        before: Those that judge before the answer.
        after: Those that judge the answer.
        prefill: Whether any may want a pass over the prompt (`confcascade.flow.prefill_for`).
        asks: Whether any wants the request asked in another way (`confcascade.flow.begun_for`).
        reads: Whether any has something of its own in the answer (`confcascade.flow.read_for`).
        logprobs: Whether the log-probabilities of tokens are wanted.
        top_logprobs: How many alternatives at each position.
        early: Whether an answer may be ended or released before it is whole.
        states: Whether any wants hidden states with the answer (`confcascade.flow.answer_layers`).
        follows_up: Whether any may ask further in the same conversation.
        labels: Of those that judge the answer.
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        self.signals = tuple(signals)
        self.before = tuple(signal for signal in signals if signal.phase == "pre")
        self.after = tuple(signal for signal in signals if signal.phase == "post")
        self.prefill = any(each.labels or each.following or _overrides(each, "layers") for each in signals)
        self.asks = any(each.prefix is not None or _overrides(each, "asks") for each in signals)
        self.reads = any(_overrides(each, "reads") for each in signals)
        self.logprobs = any(each.logprobs for each in signals)
        self.top_logprobs = max((each.top_logprobs for each in signals), default=0)
        self.early = any(each.early for each in self.after) and not any(each.rewords for each in self.after)
        self.states = any(_overrides(each, "answer_layers") for each in self.after)
        self.follows_up = any(each.follows_up for each in self.after)
        self.labels = frozenset(label for each in self.after for label in each.labels)


def _overrides(signal: Signal, method: str) -> bool:
    return getattr(type(signal), method) is not getattr(Signal, method)


NOTHING = Wants(())
