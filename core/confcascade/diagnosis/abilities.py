"""What the calls of a check have shown that a stage can do, in a few words each."""

from __future__ import annotations

from dataclasses import dataclass

from confcascade.diagnosis.probing import BEGUN, Call, Probed, thinks
from confcascade.errors import SignalUnavailableError, kept_of
from confcascade.models.logprobs import are_none
from confcascade.models.openai import OpenAICompatibleModel
from confcascade.signals.spans import call_tokens
from confcascade.stage import Stage
from confcascade.types import Response

__all__ = ["Ability", "abilities_of"]


@dataclass(frozen=True)
class Ability:
    """Something that a stage can do.

    Attributes:
        can: Whether it can; None where that was not asked, or the answer did not show it.
        how: In a few words.
    """

    can: bool | None
    how: str


def abilities_of(stage: Stage, probed: Probed) -> dict[str, Ability]:
    """What was seen, by name; only "answers" where none came."""
    whole = probed.calls["whole"]
    found = {"answers": _answers(probed.ended)}
    if probed.answer is None or whole.response is None:
        return found
    served = getattr(whole.response.native, "model", None)
    if isinstance(served, str) and served not in ("", stage.model.name):
        found["model"] = Ability(True, f"calls itself '{served}'")
    found["log-probabilities"] = _logprobs(probed.answer, probed.calls["cut"].response)
    found["streamed"] = _streamed(probed.calls["streamed"])
    found["tool calls"] = _tools(probed.calls.get("tools"))
    found["thoughts"] = _thoughts(probed)
    found["hidden states"] = _hidden_states(stage, probed.calls.get("prefill"))
    found["continues"] = _continues(probed.calls.get("continued"))
    found["usage"] = _usage(probed)
    found["n"] = _choices(stage, probed.calls.get("choices"))
    return found


def _answers(call: Call) -> Ability:
    response = call.response
    if response is None:
        return Ability(False, "no: " + ("no answer" if call.error is None else kept_of(call.error)))
    usage = response.usage
    ended = f"ended by '{response.finish_reason}'" if response.finish_reason else "without a reason for its end"
    counts = f"{usage.input_tokens} tokens read, {usage.output_tokens} written"
    return Ability(True, f"in {call.seconds:.2f} s, {counts}, {ended}")


def _logprobs(response: Response, cut: Response | None) -> Ability:
    """Of an answer; how many alternatives there can be, another of one token shows."""
    if response.tokens is None:
        if not response.answer.strip():
            return Ability(None, "not seen: no answer came to judge")
        return Ability(False, "no: " + (response.unscored or "none came, though they were asked for"))
    if are_none(response.tokens):
        return Ability(False, "no: every one is 0 or -9999, which stands for none")
    shown = (*response.tokens, *(() if cut is None else (*(cut.tokens or ()), *(cut.thought_tokens or ()))))
    listed = max((len(token.top) for token in shown), default=0)
    also = ", after the thoughts" if thinks(response) else ""
    return Ability(True, f"yes{also}, with {listed} alternatives for each token" if listed else f"yes{also}")


def _streamed(call: Call) -> Ability:
    response = call.response
    if response is None:
        return Ability(False, "no: " + ("nothing came" if call.error is None else kept_of(call.error)))
    if (response.tokens and not are_none(response.tokens)) or response.thought_tokens:
        return Ability(True, "yes, with log-probabilities")
    return Ability(True, "yes, without log-probabilities" if response.answer.strip() else "yes, without an answer")


def _tools(call: Call | None) -> Ability:
    if call is None:
        return Ability(False, "no: the model cannot be given tools")
    response = call.response
    if response is None:
        return Ability(False, "no: " + ("nothing came" if call.error is None else kept_of(call.error)))
    if response.problem is not None:
        return Ability(None, f"not seen: {response.problem}")
    if not response.tool_calls:
        return Ability(None, "not seen: the model made no call, though one was required")
    try:
        call_tokens(call.request, response)
    except SignalUnavailableError as error:
        return Ability(True, f"yes, never scored: {error}")
    return Ability(True, "yes, with log-probabilities of what they say")


def _thoughts(probed: Probed) -> Ability:
    seen = [call.response for call in probed.calls.values() if call.response is not None and thinks(call.response)]
    if not seen:
        return Ability(False, "none seen")
    response = max(seen, key=lambda each: len(each.thoughts))
    counted = response.usage.output_details.get("reasoning", 0)
    tokens = f", {counted} tokens" if counted else ""
    if not response.thoughts:
        return Ability(True, f"yes, paid for and not shown{tokens}")
    where = "apart from the text" if response.thoughts_apart else "in the text, between marks"
    return Ability(True, f"yes, {where}{tokens}")


def _hidden_states(stage: Stage, call: Call | None) -> Ability:
    if call is None:
        if isinstance(stage.model, OpenAICompatibleModel):
            return Ability(None, "not asked: SGLang and vLLM can give them (`hidden_states`)")
        return Ability(False, "no: the model does not show its pass over the prompt")
    if call.prefilled is None:
        return Ability(False, "no: " + ("nothing came" if call.error is None else kept_of(call.error)))
    told, can = call.prefilled.hidden_states, stage.model.capability
    if not told:
        if can.engine:
            return Ability(False, f"no: the server gave none, though it is set to (`hidden_states: {can.engine}`)")
        return Ability(False, "no, but how likely each label is behind the prompt")
    wide = len(next(iter(told.values())))
    blocks = ", ".join(map(str, sorted(told)))
    apart = ", by a call for one token" if can.engine else ""
    return Ability(True, f"yes, of block {blocks} of {can.layers}, {wide} numbers each{apart}")


def _continues(call: Call | None) -> Ability:
    if call is None:
        return Ability(None, "not asked: needed only to write step by step (`continues`)")
    if call.response is None:
        return Ability(False, "no: " + ("nothing came" if call.error is None else kept_of(call.error)))
    if call.response.text.strip().lower().startswith(BEGUN.lower()):
        return Ability(False, "no: it began the answer anew")
    return Ability(True, "yes, it goes on with an answer that was begun")


def _usage(probed: Probed) -> Ability:
    answers = {name: probed.calls[name].response for name in ("whole", "streamed")}
    usages = {name: response.usage for name, response in answers.items() if response is not None}
    missing = [name for name, usage in usages.items() if usage.estimated]
    if not missing:
        return Ability(True, f"reported, {' and '.join(usages)}")
    return Ability(False, f"estimated where the answer is {' or '.join(missing)}: the server does not report it")


def _choices(stage: Stage, call: Call | None) -> Ability:
    if call is None:
        together = stage.model.capability.batch_size > 1
        return Ability(None, "not asked: " + ("many queries are answered in one pass" if together else "a call each"))
    if call.response is None:
        return Ability(False, "no: " + ("nothing came" if call.error is None else kept_of(call.error)))
    count = len(call.response.native.choices)
    return Ability(count > 1, f"{count} answers in one call" if count > 1 else "one answer, though two were asked for")
