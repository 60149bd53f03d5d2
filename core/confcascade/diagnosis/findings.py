"""What is wrong with what a stage has shown, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, fsum
from typing import Literal

from confcascade.attempts import OnError
from confcascade.decoding import asked_with
from confcascade.diagnosis.abilities import Ability
from confcascade.diagnosis.probing import Call, Probed, thinks
from confcascade.errors import kept_of, status_of
from confcascade.models.logprobs import are_none
from confcascade.signals import Signal
from confcascade.signals.token_probability import TokenProbability
from confcascade.stage import Stage
from confcascade.tools import CUT
from confcascade.types import Response, Token
from confcascade.unusable import FILTERED, why_unusable

__all__ = ["Finding", "findings_of"]

Level = Literal["fails", "warning", "note"]

_CONSTANT_FROM = 3  # tokens
_STARTED = {  # how a server gives hidden states
    "sglang": "SGLang has --enable-return-hidden-states for that.",
    "vllm": "vLLM has the speculative method extract_hidden_states and its connector for that.",
}
_APART = 0.02  # by which the P(T) of one text may differ, streamed and whole: servers round
# how servers say that an answer has come to its end, or to its limit
_ENDS = frozenset(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls", *CUT)) | FILTERED


@dataclass(frozen=True)
class Finding:
    """Something to know about a stage.

    Attributes:
        level: "fails": the stage cannot work; "warning": it works otherwise than it seems; "note": as it should be, and
            good to know.
        kind: A word that stays the same, such as "never_scored", for programs.
        text: What was seen, and what to do, in a few sentences.
    """

    level: Level
    kind: str
    text: str


def findings_of(
    stage: Stage, probed: Probed, abilities: dict[str, Ability], *, last: bool, on_error: OnError, own_question: bool
) -> tuple[Finding, ...]:
    """The worst first.

    Args:
        stage: That was asked.
        probed: What came.
        abilities: What that shows.
        last: Whether it is the last of its cascade, which answers whatever its answer scores.
        on_error: Of its cascade.
        own_question: Whether it was asked a question of the user's, at the limit that it has live.
    """
    whole = probed.calls["whole"]
    if whole.response is None:
        why = "no answer" if whole.error is None else kept_of(whole.error).rstrip(".")
        return (Finding("fails", "error", f"It does not answer: {why}. {_hint(whole.error)}".strip()),)
    found = [
        *_scores(stage, probed, last=last),
        *_unusable(stage, probed, last=last),
        *_logprobs(stage, probed, abilities, last=last),
        *_temperature(stage, last=last),
        *_refused(probed),
        *_thoughts(stage, probed),
        *_ends(probed, own_question=own_question),
        *_streams(probed, fatal=last or on_error == "raise"),
        *_continues(probed, abilities),
        *_usage(stage, probed, abilities),
    ]
    return tuple(sorted(found, key=lambda each: ("fails", "warning", "note").index(each.level)))


def _hint(error: Exception | None) -> str:
    """What an error of a call usually means."""
    if error is None:
        return ""
    status, name = status_of(error), type(error).__name__
    if status in (401, 403):
        refuses = "refuses the key" if status == 401 else "does not allow this with the key"
        return f"The server {refuses}: set OPENAI_API_KEY, or the variable that `api_key_env` names."
    if status == 404:
        return "The server does not know this model, or the address is wrong: `base_url` often ends in /v1."
    if status == 429:
        return "There are too many calls, or no credit is left."
    if status is not None and status >= 500:
        return "The server itself fails: see its own log."
    if status is not None and status >= 400:
        return "The server refuses a parameter: see the model's `options` and `unsupported`."
    if "Timeout" in name or isinstance(error, TimeoutError):
        return "Is the server loading its model, or overloaded? `timeout_s` says how long is waited."
    if "Connection" in name or isinstance(error, OSError):
        return "Nothing answers there: is the server running, and its `base_url` right?"
    return ""


# ---------------------------------------------------------------------- what judges its answers


def _scores(stage: Stage, probed: Probed, *, last: bool) -> Iterator[Finding]:
    if last:
        return
    failed = None if "prefill" not in probed.calls else probed.calls["prefill"].error
    unread = () if failed is None else tuple(each.name for each in stage.signals if each.layers(stage.model))
    if failed is not None and unread:
        told = f"{' and '.join(unread)} needs hidden states, and reading them fails: {kept_of(failed)}"
        yield Finding("fails", "error", told)
    for signal in stage.signals:
        judged = None if signal.name in unread else probed.scores.get(signal.name)
        if judged is None or not judged.unavailable:
            continue
        if judged.threshold == "always":
            yield Finding(
                "note",
                "unscored",
                f"{signal.name} has no score ({judged.unavailable}), and keeps answers all the same.",
            )
        elif (lacks := _lacking(signal, stage, probed)) is not None:
            paid = "Every answer escalates: its calls are paid for and save nothing."
            other = "Use Verbalized(), which needs only text, or a LearnedScorer, or put this model last."
            if lacks == "log-probabilities" and _thinks(probed):
                other += " Some models report them once they do not think."
            elif lacks == "hidden states" and (engine := stage.model.capability.engine):
                other = f"Is its server started to give them? {_STARTED.get(engine, '')}".rstrip()
            told = f"{signal.name} needs {lacks}, and gets none that it could use. {paid} {other}"
            yield Finding("fails", "never_scored", told)
        else:
            yield Finding(
                "warning",
                "unscored",
                f"{signal.name} could not score this answer: {judged.unavailable.rstrip('.')}. Such answers escalate. "
                "Check with a question of your own.",
            )


def _lacking(signal: Signal, stage: Stage, probed: Probed) -> str | None:
    """What a signal needs of every attempt and did not get; None if only this answer gave it no score."""
    response, read = probed.judged, probed.calls.get("prefill")
    if signal.layers(stage.model) and (read is None or read.prefilled is None or not read.prefilled.hidden_states):
        return "hidden states"
    if response is None:
        return None
    if signal.answer_layers(stage.model) and not response.hidden_states:
        return "hidden states"
    told = response.tokens is not None or not response.answer.strip()
    if not signal.logprobs or told:
        return None
    if probed.in_pieces and probed.answer is not None and probed.answer.tokens is not None:
        return "log-probabilities of streamed answers, since it decides before they are whole"
    return "log-probabilities"


def _unusable(stage: Stage, probed: Probed, *, last: bool) -> Iterator[Finding]:
    """Whether a cascade would keep such an answer, however sure; one that the check's own limit has cut aside."""
    response = probed.answer
    assert response is not None
    labels = {label for signal in stage.signals for label in signal.labels}
    problem = why_unusable(probed.calls["whole"].request, response, "keep", labels=labels)
    if problem is not None and response.finish_reason not in CUT:
        then = "It is shown all the same." if last else "Such answers escalate, whatever they score."
        yield Finding("warning", "unusable", f"Its answer cannot be used: {problem}. {then}")


def _logprobs(stage: Stage, probed: Probed, abilities: dict[str, Ability], *, last: bool) -> Iterator[Finding]:
    response = probed.judged or probed.answer
    assert response is not None
    tokens: Sequence[Token] = response.tokens or ()
    values = {token.logprob for token in tokens}
    if are_none(tokens):
        judged = not last and any(signal.logprobs for signal in stage.signals)
        yield Finding(
            "fails" if judged else "warning",
            "no_logprobs",
            "Every log-probability is 0 or -9999, which servers write where they have none: by them answers score 0.",
        )
    elif len(tokens) >= _CONSTANT_FROM and len(values) == 1 and values != {0.0}:
        yield Finding(
            "warning",
            "constant_logprobs",
            f"All {len(tokens)} tokens have the same log-probability, {next(iter(values)):.4g}: that is not measured. "
            "Do not judge answers by it.",
        )
    labels = next((signal.labels for signal in stage.signals if signal.labels), ())
    if labels and tokens and not any(token.top for token in tokens) and "prefill" not in probed.calls:
        yield Finding(
            "warning",
            "no_alternatives",
            "No alternatives are listed, from which the probability of a label is read: answers that give one have no "
            "score. Judge them as free text (leave `labels` out), or use another server.",
        )
    calls = probed.calls.get("tools")
    if calls is not None and calls.response is not None and calls.response.tool_calls and tokens:
        how = abilities["tool calls"].how
        if "never scored" in how and any(isinstance(signal, TokenProbability) for signal in stage.signals):
            yield Finding("note", "tool_calls_unscored", "Its tool calls have no score, so they always escalate.")


# ---------------------------------------------------------------------- how it decodes


def _temperature(stage: Stage, *, last: bool) -> Iterator[Finding]:
    refused: frozenset[str] = getattr(stage.model, "refused", frozenset())
    temperature = asked_with(stage.model, stage.decoding, {}).get("temperature")
    if "temperature" in refused:
        yield Finding(
            "note" if last else "warning",
            "temperature_refused",
            "The server takes no temperature: it samples at its own, usually 1. The same question can get another "
            "answer and another score.",
        )
    elif temperature is None and not stage.model.capability.local:
        yield Finding(
            "note" if last else "warning",
            "default_temperature",
            "No temperature is set, so the server samples at its own, usually 1: the same question can get another "
            "answer and another score. Set `decoding: {temperature: 0}`, in Python Decoding(temperature=0).",
        )
    elif temperature:
        yield Finding("note", "sampled", f"It samples, at temperature {temperature:g}: answers and scores vary.")


def _refused(probed: Probed) -> Iterator[Finding]:
    """What was learned at the price of refused calls."""
    if learned := sorted(probed.learned - {"logprobs"}):  # a cascade asks for those only where it needs them
        yield Finding(
            "note",
            "refused",
            f"Its server refuses {', '.join(learned)}, which costs a refused call for each kind of call. "
            f"`unsupported: [{', '.join(learned)}]` saves it.",
        )


def _thinks(probed: Probed) -> bool:
    return any(call.response is not None and thinks(call.response) for call in probed.calls.values())


def _thoughts(stage: Stage, probed: Probed) -> Iterator[Finding]:
    response = probed.answer
    assert response is not None
    if not _thinks(probed):
        return
    off = (
        "`options: {chat_template_kwargs: {enable_thinking: false}}` (vLLM, SGLang, llama.cpp), `{reasoning_effort: "
        "none}` (OpenAI) or `template_options: {enable_thinking: false}` (local models) switches it off"
    )
    if any(signal.labels for signal in stage.signals):
        yield Finding(
            "warning",
            "thinks_with_labels",
            f"It thinks before it gives a label, and every thought is paid for: {off}. The label is judged behind "
            "the thoughts.",
        )
    else:
        yield Finding(
            "note",
            "thinks",
            f"It thinks before it answers, and every thought is paid for: {off}.",
        )
    if "thinking" in probed.calls and not response.answer.strip() and response.finish_reason in CUT:
        used = response.usage.output_tokens
        yield Finding(
            "warning",
            "cut_in_thoughts",
            f"It was still thinking when {used} tokens were used up, and such answers escalate. Set a higher "
            f"`max_tokens`, or switch the thinking off: {off}.",
        )


# ---------------------------------------------------------------------- how its answers end


def _ends(probed: Probed, *, own_question: bool) -> Iterator[Finding]:
    response, whole = probed.answer, probed.calls["whole"].response
    assert response is not None
    assert whole is not None
    for reason in dict.fromkeys(
        call.response.finish_reason for call in probed.calls.values() if call.response is not None
    ):
        if reason is None:
            yield Finding(
                "warning",
                "no_finish_reason",
                "It does not say why an answer ended: one that was cut off looks whole, and can be kept.",
            )
        elif reason.lower() not in {each.lower() for each in _ENDS}:
            yield Finding(
                "warning",
                "odd_finish_reason",
                f"It ended an answer with '{reason}', which is not known here: whether such an answer was cut off or "
                "filtered cannot be told.",
            )
    cut = probed.calls["cut"]
    if cut.error is not None:
        yield Finding(
            "note",
            "cut_fails",
            f"An answer of one token is an error here ({kept_of(cut.error)}): so may be any that reaches its limit.",
        )
    if cut.response is not None and whole.usage.output_tokens > 2 and not whole.usage.estimated:
        yield from _limit(cut, whole)
    if response.finish_reason in CUT and response.answer.strip():
        limit = (probed.calls["thinking"] if "thinking" in probed.calls else probed.calls["whole"]).request.max_tokens
        if own_question:
            yield Finding(
                "warning",
                "cut",
                f"The answer was cut off at {limit or 'some'} tokens, and such answers escalate. Raise `max_tokens`"
                " of its `decoding`.",
            )


def _limit(cut: Call, whole: Response) -> Iterator[Finding]:
    """Of the answer that was to end after one token."""
    response = cut.response
    assert response is not None
    used = response.usage.output_tokens
    if used > 2 and used >= whole.usage.output_tokens // 2:
        yield Finding(
            "warning",
            "limit_ignored",
            f"It wrote {used} tokens where one was asked for: limits (`max_tokens`) do not hold, and what they would "
            "save is paid for.",
        )
    elif response.finish_reason is not None and response.finish_reason not in CUT:
        yield Finding(
            "warning",
            "cut_looks_whole",
            f"An answer that was cut off after a token ended with '{response.finish_reason}', not 'length': cut "
            "answers look whole, and can be kept.",
        )


def _streams(probed: Probed, *, fatal: bool) -> Iterator[Finding]:
    whole, streamed = probed.calls["whole"].response, probed.calls["streamed"]
    assert whole is not None
    response = streamed.response
    if response is None:
        why = "" if streamed.error is None else f" ({kept_of(streamed.error).rstrip('.')})"
        if probed.in_pieces:
            then = "Its signals decide before an answer is whole, so all drafts are streamed: none comes. "
            then += 'Let them judge the whole answer, as TokenProbability(aggregate="mean") does.'
        else:
            then = "Streams that come to it fail." if fatal else "In a stream, its queries escalate."
        level: Level = "fails" if probed.in_pieces else "warning"
        yield Finding(level, "no_stream", f"It cannot be streamed{why}. {then}")
        return
    if not probed.in_pieces and whole.tokens and not response.tokens and response.answer.strip():
        yield Finding(
            "warning",
            "stream_unscored",
            f"It reports log-probabilities only of answers that come whole ({response.unscored or 'a stream has none'})"
            ": drafts of a stream escalate, where the same answer would be kept otherwise.",
        )
    if whole.text != response.text:
        return
    (a, b) = (_mean(each.tokens) for each in (whole, response))
    if a is not None and b is not None and abs(a - b) > _APART:
        yield Finding(
            "warning",
            "stream_differs",
            f"The same text has a mean probability of {a:.3f} whole and {b:.3f} streamed: decisions can differ.",
        )


def _continues(probed: Probed, abilities: dict[str, Ability]) -> Iterator[Finding]:
    if "continued" in probed.calls and not abilities["continues"].can:
        how = abilities["continues"].how.removeprefix("no: ")
        yield Finding(
            "warning",
            "not_continued",
            f"It was to go on with an answer that had been begun, and did not ({how}): is `continues` right for its "
            "server? Answers that are written step by step need it.",
        )


def _mean(tokens: Sequence[Token] | None) -> float | None:
    if not tokens:
        return None
    return exp(fsum(token.logprob for token in tokens) / len(tokens))


def _usage(stage: Stage, probed: Probed, abilities: dict[str, Ability]) -> Iterator[Finding]:
    if abilities["usage"].can is False:
        yield Finding(
            "warning",
            "usage_missing",
            f"Usage is {abilities['usage'].how}. Costs of this stage are guesses, at four characters to a token.",
        )
    assert probed.answer is not None
    if stage.prices is None and stage.model.architecture is None and probed.answer.cost is None:
        yield Finding(
            "note",
            "no_prices",
            "What it costs is not known. Give the stage `prices` in dollars per million tokens, or the model an "
            "`architecture`.",
        )
