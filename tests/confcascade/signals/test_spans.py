"""Of calls, objects and thoughts those tokens are judged that say something, however they are written."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from confcascade import Message, OutputSchema, Request, SignalUnavailableError, Tool, ToolCall
from confcascade.answers import parted
from confcascade.extending import Response, Token
from confcascade.signals.spans import call_tokens, thought_tokens, value_tokens, wants_object
from hypothesis import given, settings
from hypothesis import strategies as st

PARIS = ToolCall("weather", {"city": "Paris"})
ROME = ToolCall("weather", {"city": "Rome"})
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'


def request(**options: Any) -> Request:
    return Request((Message("user", "q"),), **({"tools": (Tool("weather"), Tool("now"))} | options))


def tokens_of(text: str) -> tuple[Token, ...]:
    """Words, and what is between them; each has a log-probability of its own."""
    return tuple(Token(found[0], -0.01 * (i + 1)) for i, found in enumerate(re.finditer(r"\w+|\s+|[^\w\s]", text)))


def last(tokens: Any, text: str) -> list[Token]:
    """The last tokens with the words of `text`, in its order."""
    found: list[Token] = []
    rest = list(tokens)
    for word in reversed(text.split()):
        while rest[-1].text != word:
            rest.pop()
        found.insert(0, rest.pop())
    return found


def judged(text: str, *calls: ToolCall, shown: str = "", thoughts: str = "", **options: Any) -> tuple[Any, Any]:
    """The tokens that count of what a model wrote, and all of them."""
    asked, tokens = request(**options), tokens_of(text)
    response = parted(asked, Response(shown, tokens, tool_calls=calls, thoughts=thoughts))
    return list(call_tokens(asked, response)), tokens


# ---------------------------------------------------------------------- tool calls


@pytest.mark.parametrize(
    "written",
    [
        HERMES % "Paris",
        'weather {"city": "Paris"}',
        '[TOOL_CALLS]weather{"city": "Paris"}</s>',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]',
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}<|eom_id|>',
        '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city":"Paris"}<|call|>',
        '```json\n{"name": "weather", "arguments": {\n "city": "Paris"\n}}\n```',
    ],
)
@pytest.mark.parametrize(
    "before",
    [
        "",
        'I could call weather {"city": "Paris"} now.\n',
        'Maybe {"city": "Paris"} hmm or Rome with weather?\n',
        f"<think>\n{HERMES % 'Paris'}\nsaid I.\n</think>\n\n",
        f"<think>{HERMES % 'Rome'}</think>",
    ],
)
def test_the_call_counts_and_not_its_rehearsal(before, written):
    """In the thoughts, or in words before it."""
    found, tokens = judged(before + written, PARIS)

    assert found == last(tokens, "weather Paris")


def test_a_name_behind_its_arguments_is_the_calls_own():
    """Not one that is only talked about before."""
    for before in ("", "I take weather, then. "):
        found, tokens = judged(before + '{"arguments": {"city": "Paris"}, "name": "weather"}', PARIS)
        assert found == last(tokens, "Paris weather")
    found, tokens = judged('{"arguments": {"city": "Paris"}, "id": "1", "name": "weather"}', PARIS)
    assert found == last(tokens, "Paris weather")


@pytest.mark.parametrize("written", ["{}\n{}", "[{}, {}]", "<tool_call>{}</tool_call>\n<tool_call>{}</tool_call>"])
@pytest.mark.parametrize("calls", [(PARIS, ROME), (PARIS, PARIS), (ToolCall("now", {}), PARIS)])
def test_parallel_calls_each_have_their_own_tokens(written, calls):
    """In their order, equal ones too."""
    pieces = [json.dumps({"name": call.name, "arguments": call.arguments}) for call in calls]
    text = written.replace("{}", "%s") % tuple(pieces)

    found, tokens = judged("Paris or Rome: weather now? " + text, *calls)

    assert found == last(tokens, " ".join(f"{call.name} {call.arguments.get('city', '')}" for call in calls))


@pytest.mark.parametrize(
    ("written", "choice", "counted"),
    [
        ('{"city": "Paris"}', "weather", "Paris"),  # under a grammar of the arguments alone
        ('[{"name": "weather", "parameters": {"city": "Paris"}}]', "weather", "Paris"),
        ('[{"name": "weather", "parameters": {"city": "Paris"}}]', "required", "weather Paris"),
        ('[{"name": "weather", "parameters": {"city": "Paris"}}]', "now", "weather Paris"),
        ('{"city": "Paris"}', {"type": "function", "function": {"name": "weather"}}, "Paris"),
    ],
)
def test_a_name_that_the_request_gave_does_not_count(written, choice, counted):
    """It was no choice of the model's, and need not be in the text."""
    found, tokens = judged(written, PARIS, tool_choice=choice)

    assert found == last(tokens, counted)


def test_of_an_object_by_a_call_the_values_count():
    """Its tool is the schema's."""
    found, tokens = judged('{"city": "Paris"}', PARIS, tools=(), output=OutputSchema("weather", {}))

    assert found == last(tokens, "Paris")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ('I could call weather {"city": "Paris"} now', {}),
        ('I could call weather {"city": "Paris"} now', {"thoughts": 'I could call weather {"city": "Paris"} now'}),
        ('<think>weather {"city": "Paris"}</think>', {"thoughts": 'weather {"city": "Paris"}'}),
        ('<think>weather {"city": "Paris"} it is.</think>\n', {}),
        ('I call weather {"city": "Paris"}', {"shown": 'I call weather {"city": "Paris"}'}),
        ("Let me see.", {"shown": "Let me see."}),
        ('<function=weather>{"city": "Rome"}</function>', {}),
        ("[weather(city='Paris')]", {}),
        ('{"city": "Paris"}', {}),  # nobody chose a name
        (1000 * '{"a":', {}),
    ],
)
def test_where_the_call_itself_is_not_told_there_is_no_score(text, options):
    """A rehearsal does not stand for it, nor do the tokens of the text."""
    with pytest.raises(SignalUnavailableError):
        judged(text, PARIS, **options)


# ---------------------------------------------------------------------- structured output

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(0, 999) | st.text('abé ,:{}[]"\\', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=3),
    max_leaves=6,
)
FORMS: dict[str, Any] = {
    "compact": lambda value: json.dumps(value, separators=(",", ":")),
    "spaced": json.dumps,
    "pretty-printed": lambda value: json.dumps(value, indent=2),
    "fenced": lambda value: f"```json\n{json.dumps(value, indent=1)}\n```\n",
    "in words": lambda value: f"Here it is:\n{json.dumps(value)}\nThat is all.",
}


@settings(deadline=None)
@given(value=st.dictionaries(st.text("ab", min_size=1), VALUE, min_size=1, max_size=3))
def test_an_object_has_the_same_tokens_however_it_is_written(value):
    """Of its values: neither white space, nor a fence, nor words around it change the score."""
    found = [[token.text for token in value_tokens(tokens_of(form(value)))] for form in FORMS.values()]

    assert all(each == found[0] for each in found[1:]) or not _has_scalars(value)


def _has_scalars(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return True if inner is None else any(map(_has_scalars, inner))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_only_values_count(form):
    """Not keys that are equal to them."""
    tokens = tokens_of(form({"number": 3, "total": [True, None, {"total": "number"}]}))

    found = value_tokens(tokens)

    assert found == last(tokens, "3 true null number")


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("{}", "{}"),
        ('Sure: {"a": []}.', "[]"),
        ('{"a": ""}', '"'),  # an empty value was a choice, too: that of the quote that closes it
        ('{"a": "", "b": 5}', '"5'),
        ('{x} is [ {"a": 5}', "5"),
    ],
)
def test_an_object_is_never_without_tokens(text, counted):
    """Where nothing has been said, that was said."""
    assert "".join(token.text for token in value_tokens(tokens_of(text))).replace(" ", "") == counted.replace(" ", "")


@pytest.mark.parametrize("text", ["", "no JSON", "{a: 1}", '{"a": 1', 100_000 * "["])
def test_without_an_object_there_is_no_score(text):
    """It cannot be found."""
    with pytest.raises(SignalUnavailableError, match="cannot be found among the tokens"):
        value_tokens((Token(text, -0.1),))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, False),
        ({"tools": (), "output": OutputSchema("S", {})}, True),
        ({"options": {"response_format": {"type": "json_object"}}}, True),
        ({"options": {"response_format": {"type": "text"}}}, False),
        ({"options": {"response_format": None}}, False),
    ],
)
def test_an_object_is_asked_for_in_several_ways(options, wanted):
    """As the schema of the request, or in the provider's own words."""
    assert wants_object(request(**options)) is wanted


# ---------------------------------------------------------------------- thoughts


@pytest.mark.parametrize(
    ("pieces", "counted"),
    [
        (["<think>", "\n", "hm", ", 4", "\n", "</think>", "\n\n", "4"], ["hm", ", 4"]),
        (["<", "think", ">", "hm", "</", "think", ">", "4"], ["hm"]),
        (["<|channel|>", "analysis", "<|message|>", "hm", "<|end|>", "<|start|>", "assistant", "<|channel|>", "final",
          "<|message|>", "4"], ["hm"]),
        (["hm", "</think>", "<", "response", ">", "4"], ["hm"]),
        (["<|START_THINKING|>", "hm", "<|END_THINKING|>", "<|START_RESPONSE|>", "4"], ["hm"]),
        (["◁think▷", "hm", "◁/think▷", "4"], ["hm"]),
        (["<think>\nhm", " so</think>\n", "4"], ["<think>\nhm", " so</think>\n"]),  # across the mark they count
    ],
)  # fmt: skip
def test_of_thoughts_neither_marks_nor_blanks_count(pieces, counted):
    """However marks are cut."""
    tokens = tuple(Token(piece, -0.1) for piece in pieces)
    response = parted(request(), Response("".join(pieces), tokens))

    assert [token.text for token in thought_tokens(response)] == counted


def test_thoughts_without_tokens_have_no_score():
    """Nor are there any where a model does not think."""
    with pytest.raises(SignalUnavailableError, match="returned no log-probabilities of its thoughts"):
        thought_tokens(parted(request(), Response("4", (Token("4", -0.1),), thoughts="hm")))
    with pytest.raises(SignalUnavailableError, match="there are no thoughts"):
        thought_tokens(parted(request(), Response("4", (Token("4", -0.1),))))
    with pytest.raises(SignalUnavailableError, match="there are no thoughts"):
        thought_tokens(parted(request(), Response("<think></think>4", (Token("<think></think>", 0), Token("4", -0.1)))))


def test_a_call_behind_gpt_oss_thoughts_is_found():
    """Its analysis ends where the channel of calls begins, and rehearses the call."""
    request = Request((Message("user", "q"),), tools=(Tool("weather"),))
    thoughts = ["<|channel|>analysis<|message|>", 'Need {"city": "Paris"} of weather', "<|end|><|start|>assistant"]
    call = ["<|channel|>", "commentary to=functions.", "weather", '<|message|>{"city": "', "Paris", '"}', "<|call|>"]
    tokens = tuple(Token(word, -0.1) for word in [*thoughts, *call])
    told = Response("", tokens, tool_calls=(ToolCall("weather", {"city": "Paris"}),), finish_reason="tool_calls")

    assert [token.text for token in call_tokens(request, parted(request, told))] == ["weather", "Paris"]
