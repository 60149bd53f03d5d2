"""A draft that cannot be kept says why, by its structure alone; an ordinary answer is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confcascade import Message, OutputSchema, Request, Tool, ToolCall
from confcascade.answers import parted
from confcascade.extending import CUT, CheckedTool, Response
from confcascade.unusable import FILTERED, why_unusable
from hypothesis import given
from hypothesis import strategies as st

WEATHER = Tool("weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CALL = {"name": "weather", "arguments": {"city": "SECRET"}}
CUT_OFF = "it was cut off at its most tokens"
LEFT = "a tool call was left in its text"


def why(text: str = "", reason: str | None = "stop", on_cut: Any = "escalate", **options: Any) -> str | None:
    """Of a draft with tools bound; `options` of the request and of the response by their names."""
    labels = options.pop("labels", ())
    request = {key: options.pop(key) for key in ("tools", "tool_choice", "output") if key in options}
    asked = Request((Message("user", "q"),), **({"tools": (WEATHER, Tool("now"))} | request))
    return why_unusable(asked, parted(asked, Response(text, finish_reason=reason, **options)), on_cut, labels=labels)


@pytest.mark.parametrize("reason", [*sorted(FILTERED), "SAFETY", "PROHIBITED_CONTENT", "Refusal"])
@pytest.mark.parametrize("text", ["", "half a sentence"])
def test_what_the_provider_ended_is_not_kept(reason, text):
    """Whichever provider says so, in letters of either case."""
    assert why(text, reason) == "the provider filtered it"


@pytest.mark.parametrize("reason", CUT)
def test_what_was_cut_off_is_not_kept_unless_wanted(reason):
    """In words; a call or an object is of no use at all."""
    assert why("a b", reason) == CUT_OFF
    assert why("a b", reason, "keep") is None
    assert why("(B)", reason, labels={"A", "(B)"}) is None
    assert why("B because", reason, labels={"A", "B"}) == CUT_OFF
    assert why("", reason, "keep", tool_calls=(ToolCall("now", {}),)) == CUT_OFF
    assert why('{"a": 1}', reason, "keep", tools=(), output=OutputSchema("S", {})) == CUT_OFF


@pytest.mark.parametrize(
    ("text", "reason", "thoughts", "said"),
    [
        ("", "stop", "", "empty answer"),
        (" \n", "length", "", "empty answer"),
        ("", "stop", "hm", "it has thoughts, and no answer"),
        ("<think>hm</think>\n", "stop", "", "it has thoughts, and no answer"),
        ("<think>hm", "length", "", "it was cut off in its thoughts"),
        ("", "length", "hm", "it was cut off in its thoughts"),
        ("<think>hm</think>4", "stop", "", None),
    ],
)
@pytest.mark.parametrize("tools", [(), (WEATHER,)])
def test_without_an_answer_it_is_told_what_there_is(text, reason, thoughts, said, tools):
    """Also where no tokens are told, and where a text that was cut off is kept."""
    assert why(text, reason, "keep", thoughts=thoughts, tools=tools) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"problem": "no JSON"}, "no JSON"),
        ({"tool_calls": (ToolCall("rain", {}),)}, "unknown tool 'rain'"),
        (
            {"tool_calls": (ToolCall("weather", {"city": 5}),)},
            "the arguments of its call to 'weather' do not fit: 'city' must be of type string",
        ),
        ({"text": "no", "tool_choice": "weather"}, "no call to 'weather', which was wanted"),
        ({"text": "no", "tool_choice": "any"}, "no tool call, where one was wanted"),
        ({"tool_calls": (ToolCall("weather", {"city": "Lyon"}),)}, None),
        ({"tool_calls": (ToolCall("now", {}),), "reason": "tool_calls"}, None),
        ({"reason": "tool_calls"}, None),  # a call that nobody could read
    ],
)
def test_a_call_must_fit_its_tool(options, said):
    """Its name, its arguments, and the request's choice."""
    assert why(**options) == said


LEFT_CALLS = [
    json.dumps(CALL),
    json.dumps([CALL, CALL], indent=1),
    f"```json\n{json.dumps(CALL)}\n```",
    f"```\n{json.dumps(CALL)}",
    json.dumps({"name": "weather", "parameters": {"city": "SECRET"}}),  # Llama 3
    json.dumps({"tool": "weather", "args": {}}),
    json.dumps({"function": "weather", "input": {}}),
    json.dumps({"type": "function", "function": CALL}),
    json.dumps({"tool_calls": [{"id": "1", "type": "function", "function": CALL}]}),
    f"Let me see.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>",  # Hermes, Qwen3
    "<function=weather>\n<parameter=city>SECRET</parameter>\n</function>",  # Qwen3 Coder, Llama
    '<tool_calls>[{"name": "rain"}]</tool_calls>',  # Hunyuan
    '<function_calls><invoke name="weather">',
    f"[TOOL_CALLS]weather{json.dumps(CALL['arguments'])}",  # Mistral
    f"functools[{json.dumps(CALL)}]",  # Phi-4
    "<|python_tag|>weather.call(city='SECRET')",  # Llama 3.1
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0",  # Kimi K2
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather",  # DeepSeek
    "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{}",  # gpt-oss
    "commentary to=functions.weather json{}",
    "<|START_ACTION|>[]<|END_ACTION|>",  # Cohere
    "<think>hm</think>" + json.dumps(CALL),
]


@pytest.mark.parametrize("text", LEFT_CALLS)
def test_a_call_that_a_server_left_in_the_text_is_no_answer(text):
    """With tools bound, in every family's form; without, it is a text like others."""
    assert why(text) == LEFT
    assert why(text, tools=()) is None


@pytest.mark.parametrize(
    "text",
    [
        "Use weather for that, or now: weather(city) tells the weather of a city.",
        "I called `weather` with {'city': 'Lyon'}.",
        "The arguments are city and name.",
        '{"name": "Lyon", "arguments": ["for", "against"]}',
        '{"name": "weather", "temperature": 20}',
        '{"name": ["weather"], "arguments": {}}',
        '{"function": {"name": "Lyon"}, "input": 1}',
        '{"tool_calls": []}',
        "{}",
        "[]",
        "[1, 2]",
        "null",
        "42",
        '"weather"',
        "```json\n[]\n```",
        "<p>a</p>",
        "f[x] = <function at 0x1>",
        100_000 * "[",
    ],
)
def test_an_answer_that_only_speaks_of_tools_is_kept(text):
    """Prose, and JSON that calls none of the request's."""
    assert why(text) is None


@pytest.mark.parametrize(
    ("text", "circles"),
    [
        ("The city is " + 4 * "Lyon, or Paris, or ", True),
        (20 * "no ", True),
        (40 * "0", True),
        ("Intro.\n" + 5 * "A line of the same.\n", True),
        (3 * "Lyon, or Paris, or ", False),
        ("1000000000", False),
        ("......", False),
        ("ha ha ha ha", False),
        ("Row, row, row your boat\nGently down the stream\nMerrily, merrily, merrily, merrily\nLife is but a", False),
    ],
)
def test_what_goes_round_in_circles_is_not_kept_when_cut_off(text, circles):
    """Even where cut off texts are kept; of one that came to its end, it is a refrain."""
    assert why(text, "length", "keep") == ("it repeats itself" if circles else None)
    assert why(text, "length") == CUT_OFF
    assert why(text) is None


@given(st.text(min_size=3, max_size=30).filter(lambda text: text.strip()), st.integers(16, 40), st.text(max_size=50))
def test_any_circle_is_found(unit, times, before):
    """Whatever is repeated, and whatever comes before it."""
    assert why(before + times * unit, "length", "keep", tools=()) == "it repeats itself"


@pytest.mark.parametrize("text", LEFT_CALLS)
@pytest.mark.parametrize("reason", ["stop", "length", "safety"])
def test_no_reason_repeats_a_value(text, reason):
    """Records hold no texts."""
    assert "SECRET" not in why(text, reason)
    assert "SECRET" not in why(tool_calls=(ToolCall("weather", {"city": 1, "SECRET": "SECRET"}),))


def test_the_name_of_an_unknown_tool_is_cut_short():
    """A model may make one up of any length."""
    assert len(why(tool_calls=(ToolCall("x" * 1000, {}),))) < 100


@pytest.mark.parametrize(("said", "problem"), [(None, None), ("no such city", "do not fit: no such city")])
def test_a_tool_that_knows_better_decides_instead_of_its_schema(said, problem):
    """Both ways: what the schema refuses may be kept, and what it allows may escalate."""
    for arguments in ({"city": 3}, {"city": "SECRET"}):
        tool = CheckedTool("weather", WEATHER.parameters, check=lambda _: said)
        told = why(tool_calls=(ToolCall("weather", arguments),), tools=(tool,))
        assert told == (problem and f"the arguments of its call to 'weather' {problem}")
