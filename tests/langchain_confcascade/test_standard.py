"""LangChain's own standard tests: what every chat model must do, a cascade does.

Three topologies of rule-based chat models, with every switch on that a chat model can have; then the cases that need no
intelligence, over the bundled models in this process and over `ChatOpenAI` and a real server. No case is overridden or
expected to fail: each passes, or is skipped by the suite's own switches.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

pytest.importorskip("langchain_tests")

from confcascade.errors import ConfigurationError
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableParallel, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_confcascade import ConfidenceCascadeLLM

# of a case that measures only what was recorded over HTTP, which nothing is here
pytestmark = pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")

# ---------------------------------------------------------------------- a chat model that follows rules

_BLOCKS = {"text", "image", "image_url", "file", "audio", "input_audio", "tool_use", "tool_call", "thinking"}


class RuleBased(BaseChatModel):
    """Rules in the place of weights; in all else what a provider's class is.

    It streams (tool calls in fragments), stops, counts tokens, calls tools, writes JSON, reads attachments, and tells
    log-probabilities if asked, those of its tool calls too.

    Attributes:
        model: Its name.
        probability: Of each of its tokens.
        broken: It calls tools that nobody has, and writes JSON that nobody wants.
    """

    model: str
    probability: float = 0.99
    broken: bool = False
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def _llm_type(self) -> str:
        return "rule-based"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, method: str = "function_calling", **kwargs: Any
    ) -> Any:
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        json_schema = convert_to_json_schema(schema)
        wanted = {"type": "json_schema", "json_schema": {"name": json_schema["title"], "schema": json_schema}}
        told = {"kwargs": {"method": method}, "schema": json_schema}
        model = self.bind(
            response_format={"type": "json_object"} if method == "json_mode" else wanted,
            ls_structured_output_format=told,
        )
        is_class = isinstance(schema, type) and hasattr(schema, "model_json_schema")
        parser: Any = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
        if not include_raw:
            return model | parser
        read = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        unread = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableParallel(raw=model) | read.with_fallbacks([unread], exception_key="parsing_error")

    # ------------------------------------------------------------------ calls

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        text, call = self._reply(messages, **kwargs)
        for each in stop or ():
            text = text.split(each)[0]
        words = re.findall(r"\s*\S+", text)
        told = functools.partial(self._told, kwargs.get("logprobs"))
        for word in words:
            yield ChatGenerationChunk(message=AIMessageChunk(content=word, response_metadata=told([word])))
        written = [] if call is None else re.findall(r"\w+|\W", json.dumps(call, ensure_ascii=False))
        if call is not None:
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            half = len(arguments) // 2
            for name, piece in ((call["name"], ""), (None, arguments[:half]), (None, arguments[half:])):
                fragment = tool_call_chunk(name=name, args=piece, id="call_1" if name else None, index=0)
                metadata = told(written) if name else {}
                message = AIMessageChunk(content="", tool_call_chunks=[fragment], response_metadata=metadata)
                yield ChatGenerationChunk(message=message)
        read, said = sum(len(str(message.content).split()) for message in messages), len(words) + len(written)
        last = AIMessageChunk(
            content="",
            usage_metadata=UsageMetadata(input_tokens=read, output_tokens=said, total_tokens=read + said),
            response_metadata={"model_name": self.model, "finish_reason": "stop" if call is None else "tool_calls"},
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)

    def _told(self, wanted: bool | None, tokens: list[str]) -> dict[str, Any]:
        if not wanted:
            return {}
        logprob = math.log(self.probability)
        return {"logprobs": {"content": [{"token": token, "logprob": logprob} for token in tokens]}}

    # ------------------------------------------------------------------ rules

    def _reply(
        self,
        messages: list[BaseMessage],
        tools: Sequence[Any] = (),
        tool_choice: Any = None,
        response_format: Any = None,
        **_: Any,
    ) -> tuple[str, dict[str, Any] | None]:
        """A text and a tool call, if any."""
        blocks = [block for message in messages if isinstance(message.content, list) for block in message.content]
        unread = {block["type"] for block in blocks if isinstance(block, dict)} - _BLOCKS
        if unread:
            raise ConfigurationError(f"There is no rule for {unread}.")
        last = messages[-1]
        asked = str(last.text)
        if response_format is not None:
            schema = response_format.get("json_schema", {}).get("schema")
            quoted = re.findall(r"'(\w+)'", asked)  # of JSON mode, the keys are in the prompt
            return json.dumps(
                {} if self.broken else filled(schema, asked) if schema else dict.fromkeys(quoted, "x")
            ), None
        forced = tool_choice if isinstance(tool_choice, str) else (tool_choice or {}).get("function", {}).get("name")
        if tools and (forced or isinstance(last, HumanMessage)):
            functions = {each["function"]["name"]: each["function"] for each in tools}
            named = forced if forced in functions else next((name for name in functions if name in asked), None)
            function = functions[named or next(iter(functions))]
            name = "nobodys_tool" if self.broken else function["name"]
            return "", {"name": name, "arguments": filled(function["parameters"], asked)}
        words = len(asked.split())
        return f"Thank you for {words} words; {len(blocks)} blocks came along. Signed: {self.model}", None


def filled(schema: dict[str, Any], asked: str) -> dict[str, Any]:
    """An object that fits `schema`, with the numbers and the quoted words of the question in it, in their order."""
    numbers, quoted = iter(re.findall(r"-?\d+", asked)), iter(re.findall(r"'([^']+)'", asked))
    definitions = schema.get("$defs", {})

    def value(key: str, part: dict[str, Any]) -> Any:
        if "$ref" in part:
            part = definitions[part["$ref"].rsplit("/", 1)[-1]]
        part = next((each for each in part.get("anyOf", ()) if each.get("type") != "null"), part)
        match part.get("type"):
            case "integer" | "number":
                return int(next(numbers, 1))
            case "object":
                return {name: value(name, each) for name, each in part.get("properties", {}).items()}
            case "array":
                return [value(key, part.get("items", {}))]
            case "boolean":
                return True
        return next(quoted, f"some {key}")

    return value("", {"type": "object", **schema})


class Forbidden(RuleBased):
    """The larger model of a cascade whose smaller one is sure: it must not be asked."""

    def _stream(self, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        raise AssertionError("the larger model was asked")
        yield


# ---------------------------------------------------------------------- three topologies


class AllSwitchesOn:
    """All that a chat model can be said to do; files that the suite would fetch come from here."""

    chat_model_class: type[BaseChatModel] = ConfidenceCascadeLLM
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_pdf_inputs = True
    supports_audio_inputs = True
    supports_video_inputs = True
    supports_anthropic_inputs = True
    supports_image_tool_message = True
    supports_pdf_tool_message = True
    enable_vcr_tests = True  # nothing goes over HTTP, so there is nothing to record
    supports_model_override = False  # a cascade's models are its stages

    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("httpx.get", lambda url, **_: SimpleNamespace(content=b"a file"))
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "nobody is asked")


class OverRules(AllSwitchesOn):
    """A cascade, whose keys may come from the environment."""

    init_from_env_params = (
        {"OPENAI_API_KEY": "from the environment"},
        {"models": ["openai:gpt-4o-mini", "openai:gpt-4o"], "threshold": 0.9},
        {"threshold": 0.9},
    )


class OneStage(OverRules):
    """The cascade of one model."""

    chat_model_params: ClassVar[dict[str, Any]] = {"models": [RuleBased(model="only")]}


class Accepted(OverRules):
    """The small model is sure; the large one would fail the case."""

    chat_model_params: ClassVar[dict[str, Any]] = {
        "models": [RuleBased(model="small"), Forbidden(model="large")],
        "threshold": 0.9,
        "on_exhausted": "raise",
    }


class Escalated(OverRules):
    """The small model is unsure, and what it says would fail the case; structured output goes by JSON schema."""

    chat_model_params: ClassVar[dict[str, Any]] = {
        "models": [RuleBased(model="small", probability=0.1, broken=True), RuleBased(model="large")],
        "threshold": 0.9,
    }
    structured_output_kwargs: ClassVar[dict[str, Any]] = {"method": "json_schema"}


@pytest.mark.parametrize(
    ("topology", "decisions"),
    [(OneStage, ["accept"]), (Accepted, ["accept"]), (Escalated, ["escalate", "accept"])],
)
def test_a_topology_is_what_it_says(topology: Any, decisions: list[str]) -> None:
    """Also where tools are called and structured output is given: the suite does not look who answered."""
    llm = ConfidenceCascadeLLM(**topology.chat_model_params)
    messages = [llm.invoke("Hello"), *llm.stream("Hello")]
    schema = {"title": "Pet", "description": "A pet.", "type": "object", "properties": {"name": {"type": "string"}}}
    structured = llm.with_structured_output(schema, include_raw=True)
    messages += [llm.bind_tools([schema]).invoke("Which?"), structured.invoke("Which?")["raw"]]
    records = [each.response_metadata["confcascade"] for each in messages if "confcascade" in each.response_metadata]
    assert len(records) == 4
    assert all([attempt["decision"] for attempt in record["attempts"]] == decisions for record in records)


class TestRulesAlone(AllSwitchesOn, ChatModelIntegrationTests):
    """The rules pass by themselves: what fails over them is the cascade's doing."""

    chat_model_class = RuleBased
    chat_model_params: ClassVar[dict[str, Any]] = {"model": "alone"}


class TestOneStageUnits(OneStage, ChatModelUnitTests):
    pass


class TestOneStage(OneStage, ChatModelIntegrationTests):
    pass


class TestAcceptedUnits(Accepted, ChatModelUnitTests):
    pass


class TestAccepted(Accepted, ChatModelIntegrationTests):
    pass


class TestEscalatedUnits(Escalated, ChatModelUnitTests):
    pass


class TestEscalated(Escalated, ChatModelIntegrationTests):
    pass


# ---------------------------------------------------------------------- real models: what needs no intelligence


class OverBundled:
    """The demo's cascade: models in this process, with P(IK) and P(T)."""

    chat_model_class = ConfidenceCascadeLLM
    has_tool_calling = False
    has_structured_output = False
    supports_model_override = False

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"stages": bundled()}


@functools.cache
def bundled() -> list[Any]:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from confcascade.demo import bundled_stages

    return bundled_stages()


class OverServed:
    """Bundled models behind a real server, and LangChain's own class for it."""

    chat_model_class = ConfidenceCascadeLLM
    has_tool_calling = False
    has_structured_output = False
    supports_model_override = False

    @pytest.fixture(autouse=True)
    def _server(self, chat_openai: Any) -> None:
        self.chat_openai = chat_openai

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"models": [self.chat_openai(size, max_tokens=64) for size in ("small", "large")], "threshold": 0.9}


class TestBundledUnits(OverBundled, ChatModelUnitTests):
    pass


class TestBundled(OverBundled, ChatModelIntegrationTests):
    pass


class OverBundledInTurn(OverBundled):
    """The small and the large of the bundled models, which write each answer in turn."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        from confcascade import Steps, TokenProbability

        models = [stage.model for stage in (bundled()[0], bundled()[-1])]
        judged = {"signals": [TokenProbability(aggregate="min")], "threshold": 0.9}
        return {"mode": "stepwise", "models": models, "steps": Steps(delimiter="\n"), **judged}


class TestBundledInTurnUnits(OverBundledInTurn, ChatModelUnitTests):
    """The same, without calls."""


class TestBundledInTurn(OverBundledInTurn, ChatModelIntegrationTests):
    """The same, with them."""


class TestServedUnits(OverServed, ChatModelUnitTests):
    pass


class TestServed(OverServed, ChatModelIntegrationTests):
    pass
