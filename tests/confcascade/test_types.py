from __future__ import annotations

import dataclasses

import pytest
from confcascade import ConfigurationError, Message, OutputSchema, Request, Tool, ToolCall, Usage
from confcascade.extending import Prefilled, Response
from hypothesis import given
from hypothesis import strategies as st

HELLO = (Message("user", "Hello"),)


@pytest.mark.parametrize(
    "given",
    [
        "Hello",
        Message("user", "Hello"),
        {"role": "user", "content": "Hello"},
        ["Hello"],
        [Message("user", "Hello")],
        [("user", "Hello")],
        [["user", "Hello"]],
        [{"role": "user", "content": "Hello", "name": "ignored"}],
        iter(["Hello"]),
    ],
    ids=lambda written: type(written).__name__,
)
def test_a_message_may_be_written_in_many_ways(given):
    """A string, a Message, a pair and a mapping are the same message, alone or in a list."""
    assert Message.parse(given) == HELLO


def test_messages_keep_their_order_and_roles():
    """A conversation stays the conversation it was, whatever mixture of forms it came in."""
    parsed = Message.parse(
        [("system", "Be brief."), "Hi", {"role": "assistant", "content": "Hello."}, Message("user", "?")]
    )

    assert parsed == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello."),
        Message("user", "?"),
    )


def test_a_turn_without_content_is_empty():
    """A turn that only called tools has no content, and is an empty text."""
    assert Message.parse([{"role": "assistant", "content": None}]) == (Message("assistant", ""),)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "`messages` is empty"),
        (None, "NoneType"),
        (7, "int"),
        ([7], "int"),
        ([("user", "Hello", "again")], "tuple"),
        ([(1, "Hello")], "tuple"),
        ([("user", b"Hello")], "bytes"),
        ({"content": "Hello"}, "dict"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], "content of type list"),
    ],
    ids=str,
)
def test_anything_else_is_refused_and_named(given, named):
    """What is not a message is refused with its type; its text never gets lost in silence."""
    with pytest.raises(ConfigurationError, match=named):
        Message.parse(given)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"messages": ()}, "`messages` is empty"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
        ({"stop": "END"}, "`stop` must be a sequence of strings, such as ['END']"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(wrong, said):
    """No messages, no room for an answer, and a stop string that would be read letter by letter are refused."""
    with pytest.raises(ConfigurationError) as raised:
        Request(**{"messages": HELLO, **wrong})

    assert said in str(raised.value)


def test_values_cannot_be_changed():
    """What passes between flows and models is frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request(HELLO).max_tokens = 3  # type: ignore[misc]


usages = st.builds(Usage, st.integers(0, 10**9), st.integers(0, 10**9), st.booleans())


@given(a=usages, b=usages)
def test_usage_adds_up(a: Usage, b: Usage):
    """Sums count every token once, and stay marked as estimated if any part is."""
    both = a + b

    assert both.total_tokens == a.total_tokens + b.total_tokens
    assert (both.input_tokens, both.output_tokens) == (
        a.input_tokens + b.input_tokens,
        a.output_tokens + b.output_tokens,
    )
    assert both.estimated == (a.estimated or b.estimated)
    assert Usage() + a == a


@pytest.mark.parametrize(
    ("response", "empty"),
    [
        (Response(""), True),
        (Response(" \n\t"), True),
        (Response("4"), False),
        (Response("", finish_reason="tool_calls"), False),
        (Response("", finish_reason="length"), True),
    ],
)
def test_an_answer_is_empty_if_there_is_nothing_to_show(response: Response, empty: bool):
    """White space is nothing to show; a tool call is something, even without text."""
    assert response.is_empty is empty


def test_replace_leaves_the_original():
    """`replace` makes a changed copy."""
    response = Response("4", usage=Usage(3, 1))

    assert response.replace(text="5") == Response("5", usage=Usage(3, 1))
    assert response.text == "4"


def test_closing_a_prefill_frees_its_state():
    """`close` reaches the model's own state, and is harmless where there is none."""

    class State:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    state = State()
    Prefilled(Usage(3), state=state).close()
    Prefilled(Usage(3)).close()

    assert state.closed == 1


def test_a_mapping_may_carry_tool_calls_and_the_call_it_answers():
    """OpenAI's form, as transcripts have it."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}

    calling, answering = Message.parse(
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1", "tool_call_id": "c1"},
        ]
    )

    assert calling == Message("assistant", "", (ToolCall("add", {"a": 1}, "c1"),))
    assert answering == Message("tool", "1", tool_call_id="c1")


@pytest.mark.parametrize("call", [3, {}, {"function": {"name": "f", "arguments": "{"}}])
def test_tool_calls_of_another_form_are_refused(call):
    with pytest.raises(ConfigurationError, match="`tool_calls` of a message must be"):
        Message.parse({"role": "assistant", "content": None, "tool_calls": [call]})


def test_an_answer_that_only_calls_tools_is_not_empty():
    assert not Response("", tool_calls=(ToolCall("add", {}),)).is_empty
    assert not Response("", finish_reason="tool_calls").is_empty
    assert Response(" ").is_empty


def test_a_request_is_for_tools_or_for_structured_output():
    tools, output = (Tool("f"),), OutputSchema("S", {})

    assert Request(HELLO, tools=tools).judged_whole
    assert Request(HELLO, output=output).judged_whole
    assert not Request(HELLO).judged_whole
    with pytest.raises(ConfigurationError, match="either `tools` or `output`"):
        Request(HELLO, tools=tools, output=output)
