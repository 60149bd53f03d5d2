"""Structured output: asked of each stage in its own way, judged inside the cascade, carried out with the answer.

A LlamaIndex LLM's own `structured_predict` asks for the object and reads it: by a JSON Schema, a call of a tool, or in
words, as the LLM's class has it.  It runs here over the LLM as it is, but that its `chat` is this adapter's, which adds
log-probabilities and keeps the response.  What became of the response travels with it, in `Parsed`, to the cascade's
own `structured_predict`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from confcascade import OutputSchema
from confcascade.extending import Generate, Response, misfit, parse_problem
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.bridge.pydantic import BaseModel, PrivateAttr, ValidationError
from llama_index.core.llms.llm import LLM
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.core.prompts.base import ChatPromptTemplate

from llamaindex_confcascade.asking import Template, as_chat, core_messages
from llamaindex_confcascade.reading import response_from

__all__ = ["Asking", "BoundSchema", "Parsed", "Structured", "parsed_from", "problem_with"]


@dataclass(frozen=True)
class Structured:
    """What `structured_predict` was given.

    Attributes:
        output_cls: The pydantic class of the object.
    """

    output_cls: type[BaseModel]

    @property
    def output(self) -> OutputSchema:
        """The same as the core sees it."""
        schema = self.output_cls.model_json_schema()
        parser = PydanticOutputParser(self.output_cls)

        def check(text: str) -> str | None:
            try:
                parser.parse(text)
            except Exception as error:
                return parse_problem(error, schema)
            return None

        return OutputSchema(
            name=schema.get("title", self.output_cls.__name__),
            schema=schema,
            check=check,
            instructions=parser.get_format_string(escape_json=False).strip(),
            native=self,
        )

    def is_refused_by(self, error: Exception) -> bool:
        """Whether `error` is pydantic's, of an answer that is not an object of the class."""
        title = self.output_cls.model_config.get("title") or self.output_cls.__name__
        return isinstance(error, ValidationError) and error.title == title


class BoundSchema(dict[str, Any]):
    """A wanted object in OpenAI's form, for whatever reads a call's parameters, and in LlamaIndex's for stages."""

    def __init__(self, structured: Structured) -> None:
        self.output = structured.output
        schema = {"name": self.output.name, "schema": self.output.schema}
        super().__init__(type="json_schema", json_schema=schema)


class Parsed(ChatResponse):
    """A response with what was read from it, which is neither shown nor serialized."""

    _value: Any = PrivateAttr(default=None)
    _error: Exception | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, response: ChatResponse, value: Any, error: Exception | None) -> Parsed:
        parsed = cls(**dict(response))
        parsed._value, parsed._error = value, error
        return parsed

    def carried_by(self, response: ChatResponse) -> Parsed:
        """`response` with the same object."""
        return Parsed.of(response, self._value, self._error)

    def unwrap(self) -> Any:
        """The object; raises the error that came instead."""
        if self._error is not None:
            raise self._error
        return self._value


def parsed_from(response: ChatResponse, output_cls: type[BaseModel]) -> Any:
    """The object in a cascade's answer: what the stage made of it, or, of a core model's, what its JSON says.

    Raises:
        Exception: What the last stage's LLM raises alone.
    """
    if isinstance(response, Parsed):
        return response.unwrap()
    return PydanticOutputParser(output_cls).parse(response.message.content or "")


def problem_with(response: Response, error: Exception | None, output: OutputSchema) -> str | None:
    """Why an answer gave no object, in one line, without what the model said; None if it gave one."""
    if error is None:
        return None
    for call in response.tool_calls:  # LlamaIndex's programs raise errors that hide the rule that was broken
        if why := misfit(call.arguments, output.schema):
            return f"the structured output does not fit: {why}"
    return parse_problem(error, output.schema)


class Asking:
    """One request for structured output, while the LLM's own `structured_predict` runs.

    Args:
        ask: What is asked.
        native: The LLM.

    Attributes:
        completion: The answer of an LLM that completes prompts.
    """

    completion: CompletionResponse

    def __init__(self, ask: Generate, native: LLM) -> None:
        self._ask = ask
        self._native = native
        self._seen: ChatResponse | None = None

    def arguments(self) -> dict[str, Any]:
        """Of `structured_predict`."""
        request, asked = self._ask.request, self._ask.request.native
        assert request.output is not None
        template: Template | None = getattr(asked, "template", None)
        if template is None:
            messages = core_messages(request) if asked is None else list(asked)
            template = Template(ChatPromptTemplate(message_templates=messages), {})
        prompt = copy.deepcopy(template.prompt)  # LlamaIndex's programs give it a parser, which the next would find
        given = {"output_cls": request.output.native.output_cls, "prompt": prompt}
        return {**given, "llm_kwargs": dict(request.options), **template.values}

    def keep(self, response: ChatResponse) -> ChatResponse:
        self._seen = response
        return response

    def keep_completion(self, completion: CompletionResponse) -> ChatResponse:
        self.completion = completion
        return self.keep(as_chat(completion))

    def response(self, value: Any, error: Exception | None) -> Response:
        """The answer, with the object or the error that came of it."""
        seen, output = self._seen, self._ask.request.output
        assert output is not None
        if seen is None:
            if error is not None and not output.native.is_refused_by(error):  # the LLM failed, not its answer
                raise error
            # of a class that asks its client without `chat`: no more is known
            text = "" if value is None else value.model_dump_json()
            seen = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text))
        response = response_from(seen, self._ask, self._native)
        return response.replace(native=Parsed.of(seen, value, error), problem=problem_with(response, error, output))
