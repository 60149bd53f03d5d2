"""How servers are asked to continue an answer that has been begun, and what of their responses is not new.

- llama.cpp's server renders the prompt on ``/apply-template`` and completes texts on ``/v1/completions``: what was
  written goes behind the prompt as it is. Its chat endpoint takes a last message of the assistant, too, but where a
  template can think it puts ``<think></think>`` before it (build of October 2026), and older builds refuse it.
- vLLM and SGLang take ``continue_final_message``. In vLLM, templates that trim messages (Llama 3) lose the blanks at
  its end (huggingface/transformers#34214, #36404), and the model writes them again.
- Mistral and DeepSeek (under ``/beta``) take a last message with ``prefix``. Mistral repeats it in its response
  (vercel/ai#3256), DeepSeek does not.
- Others continue a last message of the assistant by itself. SGLang would give it to the user (its ``serving_chat.py``),
  and Claude's endpoints refuse one that ends in a blank.

Where a step ends: with ``stop``, servers do not say whether the delimiter or the end of the answer was met. llama.cpp's
does, in its verbose form. From the others the answer is read as it comes, and left behind the delimiter.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

from confcascade.asks import Generate
from confcascade.errors import ModelError
from confcascade.models.body import Body
from confcascade.types import Response

__all__ = [
    "Continues",
    "Overlap",
    "as_completion",
    "body_fields",
    "carried_problem",
    "check_one_text",
    "continued",
    "continues_problem",
    "final_fields",
    "in_turn",
    "is_repeated",
    "rest_of",
    "stopped_at",
    "to_render",
]

Continues: TypeAlias = Literal["llama.cpp", "continue_final_message", "prefix", "trailing"]

_OF_CHATS = {"messages", "tools", "tool_choice", "response_format", "top_logprobs", "max_completion_tokens"}


def continues_problem(continues: Any) -> str | None:
    """Why this cannot be how a server continues answers; None if it can."""
    forms = get_args(Continues)
    return None if continues is None or continues in forms else f"must be one of {', '.join(forms)}. Got {continues!r}"


def carried_problem(continues: Any, carried: Collection[str], whose: str) -> str | None:
    """Why a class of another library cannot let its server continue answers so; None if it can.

    Args:
        continues: How it should.
        carried: What its messages and parameters can say.
        whose: The name of the class.
    """
    if continues is None or continues in carried:
        return None
    if (problem := continues_problem(continues)) is not None:
        return problem
    can = f"can be told only {' or '.join(map(repr, carried))}" if carried else "cannot be told how"
    return f"is {continues!r}, and {whose} {can}. For such a server use OpenAICompatibleModel(continues={continues!r})"


def in_turn(ask: Generate) -> bool:
    """Whether an ask is for raw text of an answer that is written step by step."""
    return bool(ask.until or ask.request.written or ask.session is not None)


def is_repeated(how: Continues | None) -> bool | None:
    """Whether a server repeats what was written; None if that is never sent as a message."""
    return None if how in (None, "llama.cpp") else how == "prefix"


def final_fields(how: Continues | None) -> dict[str, Any]:
    """What the last message says of itself, beside its text."""
    return {"prefix": True} if how == "prefix" else {}


def body_fields(how: Continues | None) -> dict[str, Any]:
    """What the body of a call says beside its messages, where the last of them is to be continued."""
    return {"continue_final_message": True, "add_generation_prompt": False} if how == "continue_final_message" else {}


def check_one_text(ask: Generate, response: Response) -> None:
    """Refuse to continue an answer whose text lacks its thoughts.

    Raises:
        ModelError: If they were told apart.
    """
    if in_turn(ask) and response.thoughts:
        raise ModelError(
            f"The server of model '{ask.model.name}' told its thoughts apart from its text, so that the answer cannot "
            "be continued as one text. Start it without a reasoning parser, or switch the thoughts off, with "
            '`options={"chat_template_kwargs": {"enable_thinking": False}}` as a rule.'
        )


def continued(body: Body, ask: Generate, how: Continues) -> None:
    """Let a call continue what was written, and end where it is asked to, where the server can tell that it did."""
    written = ask.request.written
    extra: dict[str, Any] = {}
    if how == "llama.cpp":
        if ask.until:
            body.given["stop"] = [*ask.request.stop, ask.until]
            extra["verbose"] = True
    elif written:
        message = {"role": "assistant", "content": written, **final_fields(how)}
        extra |= body_fields(how)
        body.given["messages"] = [*body.given["messages"], message]
    if extra:
        body.given["extra_body"] = {**(body.given.get("extra_body") or {}), **extra}


def to_render(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's server renders as a prompt: the messages of a call, and the arguments of its template."""
    return {"messages": parameters["messages"], **(parameters.get("extra_body") or {})}


def as_completion(parameters: Mapping[str, Any], prompt: str, ask: Generate) -> dict[str, Any]:
    """The parameters of a chat's call, for a completion of this text.

    Raises:
        ModelError: If it has tools or is to be an object: that needs a chat.
    """
    if ask.request.tools or ask.request.output is not None:
        raise ModelError(
            f"Model '{ask.model.name}' continues answers as plain text: it cannot be given tools or an object to fill "
            "in the midst of one. Ask for those without steps."
        )
    kept = {key: value for key, value in parameters.items() if key not in _OF_CHATS}
    if kept.pop("logprobs", False):
        kept["logprobs"] = parameters["top_logprobs"]
    limit = parameters.get("max_tokens", parameters.get("max_completion_tokens"))
    if limit is not None:
        kept["max_tokens"] = limit
    known = {key: value for key, value in kept.items() if key in _known_to_the_client()}
    others = {key: value for key, value in kept.items() if key not in known}
    return known | {"prompt": prompt, "extra_body": {**others, **(known.get("extra_body") or {})}}


@cache
def _known_to_the_client() -> frozenset[str]:
    from openai.resources.completions import Completions

    return frozenset(inspect.signature(Completions.create).parameters)


def stopped_at(event: Any) -> str | None:
    """The stop string at which llama.cpp's server ended an answer, "" for its own end; None if it does not say."""
    told = (getattr(event, "model_extra", None) or {}).get("__verbose")
    word = told.get("stopping_word") if isinstance(told, Mapping) else None
    return word if isinstance(word, str) else None


def rest_of(text: str, until: str) -> str:
    """What a delimiter has beyond the end of a text that a server cut before it, or in the midst of it.

    >>> rest_of("One.", "###"), rest_of("One.#", "###")
    ('###', '##')
    """
    met = (text + until).find(until)
    begun = next((n for n in range(len(until) - 1, 0, -1) if text.endswith(until[:n])), 0) if met < len(text) else 0
    return until[begun:]


class Overlap:
    """Takes from the beginning of a response what it repeats of what was written before.

    The blanks at its end, which a model writes again where its server has trimmed them. All of it, where servers repeat
    that: one that does not, and continues an answer with the whole of it once more, loses the repetition.

    Args:
        written: Before.
        repeated: Whether all of it may be repeated.
    """

    def __init__(self, written: str, *, repeated: bool = False) -> None:
        self._written = written if repeated else ""
        self._blanks = written[len(written.rstrip()) :]
        self._held = ""

    def add(self, text: str, *, last: bool = False) -> str:
        """What is new in the text that has come, or in what was held back; after the `last`, nothing is."""
        if not (self._written or self._blanks):
            return text
        if self._written:
            self._held += text
            if not last and len(self._held) < len(self._written) and self._written.startswith(self._held):
                return ""
            text, self._held = self._held, ""
            if text.startswith(self._written):
                text, self._blanks = text[len(self._written) :], ""
            self._written = ""
        while text and self._blanks and text[0] == self._blanks[0]:
            text, self._blanks = text[1:], self._blanks[1:]
        if text:
            self._blanks = ""
        return text
