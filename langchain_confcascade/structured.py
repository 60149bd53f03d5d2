"""Structured output: asked of each stage in its own way, judged inside the cascade, carried out with the answer.

A stage's own `with_structured_output(schema, include_raw=True)` is a model followed by a parser.  Taken apart, the
model is called as any other, with log-probabilities, streaming and all that a call brings, and the parser judges it.
What it made of the message travels on it, under ``additional_kwargs["parsed"]`` (as `ChatOpenAI` does it, too) or
``["parsing_error"]``, through caches and streams to `StructuredOutputParser`, which stands behind the cascade.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from confcascade import ConfigurationError, OutputSchema, Usage
from confcascade.extending import Generate, Response, estimated_usage, misfit, parse_problem
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, message_chunk_to_message
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableParallel, RunnableSequence
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import SkipValidation, ValidationError

from langchain_confcascade.tools import can_call_tools

__all__ = [
    "CARRIED",
    "Structured",
    "StructuredOutputParser",
    "can_give_structured_output",
    "is_lost",
    "judged",
    "taken_apart",
    "unread_output",
]

CARRIED = ("parsed", "parsing_error")


class CarriedError(str):
    """Why a message could not be read, on that message: text to a cache or a checkpoint, the error itself here.

    Attributes:
        error: What the stage's parser, or its client, raised.
    """

    error: BaseException

    @classmethod
    def of(cls, error: BaseException) -> CarriedError:
        """Carries `error`."""
        carried = cls(f"{type(error).__name__}: {error}")
        carried.error = error
        return carried


def is_lost(message: AIMessage) -> bool:
    """Whether `message` came out of a cache that kept the text of an error, and holds nothing that could fail again."""
    failed = message.additional_kwargs.get("parsing_error")
    unread = not (message.content or message.tool_calls or message.invalid_tool_calls)
    return unread and isinstance(failed, str) and not isinstance(failed, CarriedError)


@dataclass(frozen=True)
class Structured:
    """What `with_structured_output` was given: a schema (a pydantic class, a TypedDict, a mapping) and options.

    Raises:
        ConfigurationError: If the schema cannot be read.
    """

    schema: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            _ = self.json_schema
        except Exception as error:
            raise ConfigurationError(
                "A schema must be a pydantic class, a TypedDict, or a JSON Schema with a title. "
                f"Got {self.schema!r}, which LangChain cannot read ({type(error).__name__})."
            ) from error

    def __repr__(self) -> str:
        # part of the key of LangChain's cache: a class is known by what it asks for, not by its name
        return f"Structured({json.dumps(self.json_schema, sort_keys=True, default=str)}, {dict(self.options)})"

    @cached_property
    def json_schema(self) -> dict[str, Any]:
        return convert_to_json_schema(self.schema)

    @cached_property
    def output(self) -> OutputSchema:
        """The same as the core sees it."""
        schema = self.json_schema
        return OutputSchema(schema["title"], schema, check=self._invalid if self.is_class else None, native=self)

    @property
    def is_class(self) -> bool:
        """Whether the output is an instance of the schema, and not a mapping."""
        return isinstance(self.schema, type) and is_basemodel_subclass(self.schema)

    @property
    def class_title(self) -> str:
        """What pydantic calls the class in its errors."""
        return str(self.schema.model_config.get("title") or self.schema.__name__)

    def _invalid(self, text: str) -> str | None:
        """What the class's own validators say of a core model's answer; a chat model's own parser asks them itself."""
        try:
            PydanticOutputParser(pydantic_object=self.schema).parse(text)
        except Exception as error:
            return _problem(None, error, self.json_schema)
        return None


def can_give_structured_output(chat: BaseChatModel) -> bool:
    """Whether a chat model can be asked for structured output."""
    return can_call_tools(chat) or type(chat).with_structured_output is not BaseChatModel.with_structured_output


def taken_apart(chat: BaseChatModel, structured: Structured) -> tuple[Runnable[Any, Any], Runnable[Any, Any]]:
    """The model that gives structured output its own way, and the parser that follows it.

    Raises:
        ConfigurationError: If its runnable is of a form that LangChain's own integrations do not have.
    """
    runnable = chat.with_structured_output(structured.schema, include_raw=True, **structured.options)
    if isinstance(runnable, RunnableSequence):
        first, *rest = runnable.steps
        if isinstance(first, RunnableParallel) and set(first.steps__) == {"raw"} and rest:
            return first.steps__["raw"], RunnableSequence(*rest) if len(rest) > 1 else rest[0]
    raise ConfigurationError(
        f"The structured output of {type(chat).__name__} is not a model followed by a parser, so no call can be made "
        "with parameters of its own. Put this model last in a chain of its own."
    )


def judged(response: Response, output: OutputSchema, parser: Runnable[Any, Any]) -> Response:
    """A stage's answer with what its parser made of it, and the problem if that is not what was asked for."""
    result = parser.invoke({"raw": response.native}, {"callbacks": []})
    parsed, error = result["parsed"], result["parsing_error"]
    carried = {"parsed": parsed} if error is None else {"parsing_error": CarriedError.of(error)}
    native = response.native.model_copy(update={"additional_kwargs": response.native.additional_kwargs | carried})
    return response.replace(native=native, problem=_problem(parsed, error, output.schema))


def unread_output(error: Exception, structured: Structured, ask: Generate) -> Response | None:
    """The answer that a client refused to hand out, because it does not validate or was cut off (openai's does so).

    None if `error` is another. What the client does not tell of its usage is estimated.
    """
    native = AIMessage("", additional_kwargs={"parsing_error": CarriedError.of(error)})
    if isinstance(error, ValidationError) and structured.is_class and error.title == structured.class_title:
        problem = _problem(None, error, structured.json_schema)
        return Response("", usage=estimated_usage(ask, "", None), problem=problem, native=native)
    if type(error).__name__ == "LengthFinishReasonError":
        told = error.completion.usage  # type: ignore[attr-defined]
        usage = Usage(told.prompt_tokens, told.completion_tokens) if told else estimated_usage(ask, "", None)
        return Response("", usage=usage, finish_reason="length", native=native)
    return None


def _problem(parsed: Any, error: BaseException | None, schema: Mapping[str, Any]) -> str | None:
    """In one line, without what the model said."""
    if error is not None:
        return parse_problem(error, schema)
    if parsed is None:
        return "there is no structured output"
    if isinstance(parsed, Mapping) and (why := misfit(parsed, schema)):  # which parsers of mappings do not check
        return f"the structured output does not fit: {why}"
    return None


class StructuredOutputParser(BaseOutputParser[Any]):
    """Takes structured output out of a cascade's message; fails as the stage that answered would alone.

    Args:
        structured: What was asked for.
        include_raw: Give a mapping with the message (``raw``), ``parsed`` and ``parsing_error``, and never raise.
    """

    structured: SkipValidation[Structured]
    include_raw: bool = False

    @property
    def _type(self) -> str:
        return "confcascade-structured-output"

    def parse(self, text: str) -> Any:
        return self.parse_result([Generation(text=text)])

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        del partial  # one object, at the end
        generation = result[0]
        whole = generation.message if isinstance(generation, ChatGeneration) else AIMessage(generation.text)
        message = message_chunk_to_message(whole)
        if not self.include_raw:
            return self._parsed(message)
        kept = {key: value for key, value in message.additional_kwargs.items() if key not in CARRIED}
        raw = message.model_copy(update={"additional_kwargs": kept})
        try:
            return {"raw": raw, "parsed": self._parsed(message), "parsing_error": None}
        except Exception as error:
            return {"raw": raw, "parsed": None, "parsing_error": error}

    def _parsed(self, message: Any) -> Any:
        carried = message.additional_kwargs
        if isinstance(error := carried.get("parsing_error"), CarriedError):
            raise error.error
        if "parsed" in carried:
            parsed = carried["parsed"]
            # a cache outside this process may have made a mapping of it
            return self.structured.schema(**parsed) if self._is_stale(parsed) else parsed
        # a core model's answer, JSON or a call; or a message out of a cache, which fails here as it did before
        return self._parser(message).parse_result([ChatGeneration(message=message)])

    def _is_stale(self, parsed: Any) -> bool:
        return self.structured.is_class and isinstance(parsed, Mapping)

    def _parser(self, message: AIMessage) -> BaseOutputParser[Any]:
        schema = self.structured.schema
        if self.structured.is_class:
            called = PydanticToolsParser(tools=[schema], first_tool_only=True)
            return called if message.tool_calls else PydanticOutputParser(pydantic_object=schema)
        if message.tool_calls:
            return JsonOutputKeyToolsParser(key_name=self.structured.output.name, first_tool_only=True)
        return JsonOutputParser()
