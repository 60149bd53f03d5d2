"""What a server tells of a text that was given to it: hidden states (`served_states`), and the log-probabilities of the
prompt, as tokens.

- vLLM takes ``prompt_logprobs`` on ``/v1/chat/completions`` (not streamed) and tells at each position of the prompt the
  token that stands there and the most probable ones, by their ids, with ``decoded_token`` (its ``protocol.py``). With
  ``return_token_ids`` it also tells which ids the prompt has. It reads such a prompt anew, whatever is cached
  (vllm-project/vllm#23399).
- SGLang tells them on ``/generate`` and ``/v1/completions`` only, which take a rendered prompt: its chat endpoint tells
  those of the answer (``logprob_start_len=-1`` in its ``serving_chat.py``).
- llama.cpp's server tells those of generated tokens only (ggml-org/llama.cpp#27174).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from confcascade.asks import Prefill, Session
from confcascade.errors import ModelError
from confcascade.models.served_states import ServedStates
from confcascade.types import Prefilled, Request, Token, Usage

__all__ = ["Reads", "prompt_tokens", "read_prompt", "reads_problem", "remember", "to_read", "unread"]

Reads: TypeAlias = Literal["prompt_logprobs"]

_ROUNDING = 0.01  # nats by which a log-probability may exceed 0
_BROKEN = "\ufffd"  # in the text of a token that is part of a character


def reads_problem(reads: Any, continues: Any) -> str | None:
    """Why this cannot be how a server tells what it makes of a text; None if it can."""
    if reads is None:
        return None
    if reads not in get_args(Reads):
        return f'must be "prompt_logprobs", as vLLM takes it, or None. Got {reads!r}'
    if continues != "continue_final_message":
        return f'is vLLM\'s, and goes with `continues="continue_final_message"`. Got {continues!r}'
    return None


def to_read(ask: Prefill, reads: Reads | None, states: ServedStates | None) -> Request | None:
    """The request by which a prompt is read: one token is written, since none cannot be. None if nothing is wanted.

    Args:
        ask: Of its `labels` and of what is `following` a server tells nothing before it has written.
        reads: How the server tells log-probabilities of the prompt, if it does.
        states: How it gives hidden states, if it does.

    Raises:
        ModelError: If hidden states of other blocks are asked for.
    """
    request = replace(ask.request, max_tokens=1, stop=())
    if tokens := _reads_tokens(ask, reads):
        request = replace(request, options={**request.options, "prompt_logprobs": 1, "return_token_ids": True})
    if ask.layers:
        if states is None:
            raise ModelError(f"Model '{ask.model.name}' is behind an API: its hidden states cannot be seen.")
        if (cannot := states.missing(ask.layers)) is not None:
            raise ModelError(f"The server of model '{ask.model.name}' {cannot}")
        request = states.asked(request)
    return request if tokens or ask.layers else None


def _reads_tokens(ask: Prefill, reads: Reads | None) -> bool:
    return reads is not None and ask.tokens and bool(unread(ask))


def read_prompt(
    completion: Any,
    ask: Prefill,
    usage: Usage,
    *,
    reads: Reads | None,
    states: ServedStates | None,
    patience_s: float,
) -> Prefilled:
    """What a server told of a prompt.

    Args:
        completion: As the client gives it.
        ask: What was asked by `to_read`.
        usage: Of the call.
        reads: As of `to_read`.
        states: As of `to_read`.
        patience_s: Longest wait for a file with them.

    Raises:
        ModelError: If it told something else.
    """
    told: tuple[Token, ...] = ()
    if _reads_tokens(ask, reads):
        told = prompt_tokens(completion, unread(ask), ask.model.name)
        remember(ask.session, ask.request.written)
    found: Mapping[int, Any] = {}
    if ask.layers and states is not None:
        found = states.read(completion, usage, ask.model.name, patience_s)
    return Prefilled(usage, {layer: found[layer] for layer in ask.layers if layer in found}, tokens=told, apart=True)


def prompt_tokens(completion: Any, text: str, model: str) -> tuple[Token, ...]:
    """The last tokens of a prompt, as its model reads them: those of the text with which it ends.

    Args:
        completion: As the client gives it.
        text: At the end of the prompt. Blanks at its end may be missing there.
        model: Its name, for errors.

    Raises:
        ModelError: If the server tells no log-probabilities of the prompt, or the prompt does not end so.
    """
    told, ids = (getattr(completion, name, None) for name in ("prompt_logprobs", "prompt_token_ids"))
    if not (isinstance(told, list) and isinstance(ids, list) and len(told) == len(ids)):
        raise ModelError(
            f"The server of model '{model}' tells no log-probabilities of the prompt. "
            '`reads="prompt_logprobs"` is for vLLM, of a version that has `return_token_ids`; leave it out for others, '
            "and use a signal that judges the model's own finished step, such as TokenProbability()."
        )
    entries = [_entry(position, token, model) for position, token in zip(told[1:], ids[1:], strict=True)]
    count = _covering([entry.text for entry in entries], text)
    if count is None:
        raise ModelError(
            f"The prompt that the server of model '{model}' has read does not end with the answer so far: does its "
            "chat template change an assistant's message? Then the model cannot judge what another has written."
        )
    return tuple(entries[len(entries) - count :])


def _entry(position: Any, token_id: Any, model: str) -> Token:
    """One position of the prompt: the token there, and the most probable ones."""
    own, *_ = found = _told(position, str(token_id))
    if own is None or not all(isinstance(value, float | int) and value <= _ROUNDING for _, value in found):
        raise ModelError(f"A log-probability of the prompt from the server of model '{model}' is missing or invalid.")
    texts = [(text, min(0.0, float(value))) for text, value in found]
    return Token(*texts[0], top=tuple(sorted(texts, key=lambda each: -each[1])))


def _told(position: Any, token_id: str) -> list[Any]:
    """(text, log-probability) of each token at a position, its own first; [None] if that is not there."""
    entries = position if isinstance(position, Mapping) else {}
    own = entries.get(token_id)
    told = [own, *(entry for key, entry in entries.items() if key != token_id)]
    if not all(isinstance(entry, Mapping) for entry in told):
        return [None]
    return [(entry.get("decoded_token") or "", entry.get("logprob", math.nan)) for entry in told]


def _covering(tokens: Sequence[str], text: str) -> int | None:
    """How many of the last tokens say a text; None if they say another.

    Blanks do not count: templates trim them, and tokens of SentencePiece lose them. A token that is part of a character
    may stand for any.

    >>> _covering(["Hi", ".", " Two", " plus"], "Two plus "), _covering(["Hi", "."], "Two")
    (2, None)
    """
    left, broken = "".join(text.split()), 0
    for count, token in enumerate(reversed(tokens)):
        if not left:
            return count
        said = "".join(token.split())
        if _BROKEN in said:
            broken += len(said)
            continue
        for cut in range(min(broken, len(left)) + 1):
            rest = left[: len(left) - cut]
            if not rest:
                return count
            if said.endswith(rest):
                return count + 1
            if rest.endswith(said):
                left, broken = rest[: len(rest) - len(said)], broken if not said else 0
                break
        else:
            return None
    return len(tokens) if len(left) <= broken else None


# ---------------------------------------------------------------------- what is known already


@dataclass(frozen=True)
class _Known:
    """What a model knows of an answer: where its last own piece began, and all up to its end."""

    began: int
    text: str


def unread(ask: Prefill) -> str:
    """What was written since the model last wrote, or was asked to read."""
    written, known = ask.request.written, None if ask.session is None else ask.session.state
    if not isinstance(known, _Known):
        return written
    if not written.startswith(known.text):  # its own piece was thrown away
        return written[known.began :]
    return written[len(known.text) :]


def remember(session: Session | None, written: str, more: str = "") -> None:
    """Keep in a session what its model knows: what was written, and what it wrote more."""
    if session is not None:
        session.state = _Known(len(written), written + more)
