"""Structured output: asked of each stage in its own way, judged inside the cascade, carried out with the answer.

A stage's own `with_structured_output(schema, include_raw=True)` is a model followed by a parser.  Taken apart, the
model is called as any other, with log-probabilities, streaming and all that a call brings, and the parser judges it.
What it made of the message travels on it, under ``additional_kwargs["parsed"]`` (as `ChatOpenAI` does it, too) or
``["parsing_error"]``, through caches and streams to `StructuredOutputParser`, which stands behind the cascade.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from confcascade import ConfigurationError, OutputSchema
from confcascade.extending import Generate, Response, estimated_usage, kept_of, misfit, openai_usage, parse_problem
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, message_chunk_to_message
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableParallel, RunnablePassthrough, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
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
        """Carries `error`; of its text, which quotes the model, nothing."""
        carried = cls(kept_of(error))
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
        return _nullable(convert_to_json_schema(self.schema), self.schema)

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


def _nullable(schema: dict[str, Any], hint: Any) -> dict[str, Any]:
    """`schema`, made of the type `hint`, with null where a TypedDict says ``Optional``: LangChain drops it."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        inner = _nullable(schema, kinds[0]) if len(kinds) == 1 else schema
        return {"anyOf": [inner, {"type": "null"}]} if NoneType in get_args(hint) else inner
    if is_typeddict(hint):
        hints, fields = get_type_hints(hint, include_extras=True), schema.get("properties", {})
        return schema | {"properties": {key: _nullable(rule, hints.get(key)) for key, rule in fields.items()}}
    if get_origin(hint) in (list, Sequence) and isinstance(schema.get("items"), dict):
        return schema | {"items": _nullable(schema["items"], get_args(hint)[0])}
    return schema


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
        parser = RunnableSequence(*rest) if len(rest) > 1 else rest[0]
        if isinstance(first, RunnableParallel) and set(first.steps__) == {"raw"}:
            return first.steps__["raw"], parser
        if _is_model(first):  # it ignores `include_raw`
            return first, _with_raw(parser)
    raise ConfigurationError(
        f"The structured output of {type(chat).__name__} must be a model followed by a parser, for the cascade to call "
        f"the model with parameters of its own. Got {type(runnable).__name__}. Use this model outside the cascade."
    )


def _is_model(runnable: Any) -> bool:
    while isinstance(runnable, RunnableBindingBase):
        runnable = runnable.bound
    return isinstance(runnable, BaseChatModel)


def _with_raw(parser: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """As LangChain's own integrations build it for ``include_raw=True``."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return parsed.with_fallbacks([failed], exception_key="parsing_error")


def judged(response: Response, output: OutputSchema, parser: Runnable[Any, Any]) -> Response:
    """A stage's answer with what its parser made of it, and the problem if that is not what was asked for."""
    result = parser.invoke({"raw": response.native}, {"callbacks": []})
    parsed, error = result["parsed"], result["parsing_error"]
    carried = {"parsed": parsed} if error is None else {"parsing_error": CarriedError.of(error)}
    native = response.native.model_copy(update={"additional_kwargs": response.native.additional_kwargs | carried})
    return response.replace(native=native, problem=_problem(parsed, error, output.schema))


def unread_output(error: Exception, structured: Structured, ask: Generate) -> Response | None:
    """The answer that a client refused to hand out, because it does not validate or was cut off (openai's does so).

    None if `error` is another. What the client does not report of its usage is estimated.
    """
    native = AIMessage("", additional_kwargs={"parsing_error": CarriedError.of(error)})
    if isinstance(error, ValidationError) and structured.is_class and error.title == structured.class_title:
        problem = _problem(None, error, structured.json_schema)
        return Response("", usage=estimated_usage(ask, "", None), problem=problem, native=native)
    if type(error).__name__ == "LengthFinishReasonError":
        told = error.completion.usage  # type: ignore[attr-defined]
        usage = openai_usage(told) if told else estimated_usage(ask, "", None)
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
