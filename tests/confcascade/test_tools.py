"""Whether tool calls and structured output can be used."""

from __future__ import annotations

import pytest
from confcascade import Message, OutputSchema, Request, Tool, ToolCall
from confcascade.extending import Response
from confcascade.tools import forced_call, in_words, json_problem, misfit, parse_problem
from confcascade.unusable import problem_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "label": {"type": ["string", "null"], "maxLength": 3}},
    "required": ["x"],
    "additionalProperties": False,
}


def request(**parameters: object) -> Request:
    return Request((Message("user", "q"),), **parameters)  # type: ignore[arg-type]


TOOLS = (Tool("plot", POINT), Tool("search"))


@pytest.mark.parametrize(
    ("value", "schema", "why"),
    [
        ({"x": 1}, POINT, None),
        ({"x": 1.0, "label": None}, POINT, None),
        ({"x": 1.5}, POINT, "'x' must be of type integer"),
        ({"x": True}, POINT, "'x' must be of type integer"),
        ({"x": "1"}, POINT, "'x' must be of type integer"),
        ({}, POINT, "'x' is missing"),
        ({"x": 1, "y": 2}, POINT, "the whole has a key that is not allowed"),
        ({"x": 1, "label": 5}, POINT, "'label' must be of type string or null"),
        ({"x": 1, "label": "long"}, POINT, "'label' is out of range"),
        ([1], POINT, "the whole must be of type object"),
        ({"p": [{"x": 1}, {"x": ""}]}, {"properties": {"p": {"items": POINT}}}, "'p[1].x' must be of type integer"),
        ({"a": {"b": 1}}, {"additionalProperties": {"type": "string"}}, "the whole must be of type string"),
        ("red", {"enum": ["red", "blue"]}, None),
        ("green", {"enum": ["red", "blue"]}, "the whole is none of the allowed values"),
        (2, {"const": 1}, "the whole is none of the allowed values"),
        (None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("a", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "the whole fits none of its alternatives"),
        ("a", {"oneOf": [{"type": "integer"}]}, "the whole fits none of its alternatives"),
        (5, {"allOf": [{"type": "integer"}, {"maximum": 4}]}, "the whole is out of range"),
        (5, {"exclusiveMaximum": 5}, "the whole is out of range"),
        (0, {"exclusiveMinimum": 0}, "the whole is out of range"),
        ([], {"minItems": 1}, "the whole is out of range"),
        ("x1", {"pattern": "^[a-z]+$"}, "the whole does not match its pattern"),
        ("x1", {"pattern": "(?<dialect>x)"}, None),
        (
            {"p": {"x": "1"}},
            {"properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": POINT}},
            "'p.x' must be of type integer",
        ),
        ({"p": 1}, {"properties": {"p": {"$ref": "https://elsewhere.org/schema"}}}, None),
        ({"p": 1}, {"properties": {"p": {"$ref": "#/nowhere"}}}, None),
        (1, {"$ref": "#"}, None),
        (1, {"type": "something", "format": "email", "if": {}}, None),
        (1, True, None),
        (1, False, "the whole is not allowed"),
    ],
)
def test_a_value_is_checked_against_its_schema(value, schema, why):
    assert misfit(value, schema) == why


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_reasons_never_repeat_a_value(value):
    """Whatever a model writes, what is said of it comes from the schema."""
    fits = value is None or (isinstance(value, str) and len(value) <= 3)

    said = misfit({"x": 1, "label": value}, POINT)

    assert (said is None) == fits
    assert said in (None, "'label' must be of type string or null", "'label' is out of range")


def test_recursive_schemas_end_with_the_value():
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False}

    assert misfit({"child": {"child": {}}}, tree) is None
    assert misfit({"child": {"child": 1}}, tree) == "'child.child' must be of type object"


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        (None, None),
        (False, None),
        ("auto", None),
        ("none", None),
        ("nothing", None),
        (True, ""),
        ("any", ""),
        ("required", ""),
        ("plot", "plot"),
        ({"type": "function", "function": {"name": "plot"}}, "plot"),
        ({"type": "function", "name": "plot"}, "plot"),
        ({"type": "tool", "name": "search"}, "search"),
        ({"type": "any"}, ""),
        ({"type": "auto"}, None),
        ({"type": "allowed_tools", "mode": "required"}, None),
    ],
)
def test_a_choice_of_tools_is_read_in_every_providers_form(choice, forced):
    assert forced_call(request(tools=TOOLS, tool_choice=choice)) == forced


@pytest.mark.parametrize(
    ("response", "choice", "problem"),
    [
        (Response("text"), None, None),
        (Response("", tool_calls=(ToolCall("plot", {"x": 1}),)), None, None),
        (Response("", tool_calls=(ToolCall("search", {"anything": "goes"}),)), None, None),
        (Response("", tool_calls=(ToolCall("draw", {}),)), None, "unknown tool 'draw'"),
        (Response("", tool_calls=(ToolCall("d" * 99, {}),)), None, f"unknown tool '{'d' * 61}...'"),
        (
            Response("", tool_calls=(ToolCall("search", {}), ToolCall("plot", {}))),
            None,
            "the arguments of its call to 'plot' do not fit: 'x' is missing",
        ),
        (Response("text"), "any", "no tool call, where one was wanted"),
        (Response("", tool_calls=(ToolCall("search", {}),)), "any", None),
        (Response("", tool_calls=(ToolCall("search", {}),)), "plot", "no call to 'plot', which was wanted"),
        (
            Response("", tool_calls=(ToolCall("search", {}),), finish_reason="length"),
            None,
            "it was cut off at its most tokens",
        ),
        (Response("text", finish_reason="length"), None, None),
        (Response("", problem="the adapter's own"), "any", "the adapter's own"),
    ],
)
def test_an_answer_with_tools_is_judged(response, choice, problem):
    assert problem_of(request(tools=TOOLS, tool_choice=choice), response) == problem


def test_without_tools_only_the_adapters_word_counts():
    assert problem_of(request(), Response("", tool_calls=(ToolCall("draw", {}),))) is None
    wanted = request(output=OutputSchema("Point", POINT))
    assert problem_of(wanted, Response("{}", problem="no")) == "no"
    for reader in (None, "the structured output is not JSON"):
        cut = Response("{", finish_reason="max_tokens", problem=reader)
        assert problem_of(wanted, cut) == "it was cut off at its most tokens"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"x": 1}', None),
        ('{"x": "one"}', "the structured output does not fit: 'x' must be of type integer"),
        ("{", "the structured output is not JSON"),
        ("", "the structured output is not JSON"),
    ],
)
def test_text_is_checked_as_structured_output(text, problem):
    assert json_problem(text, OutputSchema("Point", POINT)) == problem


def test_text_that_fits_its_schema_is_checked_by_the_rules_beyond_it():
    wanted = OutputSchema("Point", POINT, check=lambda text: "no" if "7" in text else None)

    assert [json_problem(text, wanted) for text in ('{"x": 1}', '{"x": 7}')] == [None, "no"]
    assert json_problem('{"x": "7"}', wanted) == "the structured output does not fit: 'x' must be of type integer"


def test_asked_in_words_a_request_wants_plain_text():
    wanted = OutputSchema("Point", POINT, instructions="Answer in JSON.")
    asked = in_words(request(output=wanted))

    assert asked.messages[-1].content.endswith("\n\nAnswer in JSON.")
    assert asked.output is None
    silent = request(output=OutputSchema("Point", POINT))
    assert in_words(silent) is silent


def test_what_could_not_be_parsed_is_told_without_its_values():
    class Point(BaseModel):
        x: int

    with pytest.raises(ValidationError) as invalid:
        Point.model_validate({"x": "my-secret"})
    wrapped = RuntimeError("my-secret")
    wrapped.__cause__ = invalid.value

    for error in (invalid.value, wrapped):
        assert parse_problem(error, POINT) == "the structured output does not validate ('x': int_parsing)"
    assert parse_problem(ValueError("my-secret"), POINT) == "the structured output cannot be read (ValueError)"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "required": None, "properties": None, "minProperties": None},
        {"type": "object", "properties": {"a": {"enum": None, "anyOf": None, "minLength": None}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"a": {"minLength": "three"}}},
    ],
)
def test_what_cannot_be_read_of_a_schema_excludes_nothing(schema):
    assert misfit({"a": "text"}, schema) is None


def test_null_may_be_the_value_that_is_wanted():
    assert misfit(None, {"const": None}) is None
    assert misfit(1, {"const": None}) is not None
