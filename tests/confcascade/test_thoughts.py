"""Thoughts are told from the answer by the marks of the families, and nothing else is taken for thoughts."""

from __future__ import annotations

import pytest
from confcascade.thoughts import Parted, closed_after, may_open, part
from hypothesis import given, settings
from hypothesis import strategies as st

# by family: what opens thoughts, what closes them, what ends the answer
FAMILIES = {
    "Qwen3": ("<think>\n", "\n</think>\n\n", ""),
    "DeepSeek R1, opened by the prompt": ("", "\n</think>\n\n", ""),
    "SmolLM3": ("<think>", "</think>", ""),
    "gpt-oss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
    ),
    "gpt-oss, the turn opened too": (
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
        "<|return|>",
    ),
    "gpt-oss without special tokens": ("analysis", "assistantfinal", ""),
    "Mistral": ("[THINK]", "[/THINK]", ""),
    "Granite 3.2": ("Here is my thought process:\n", "\n\nHere is my response:\n", ""),
    "Granite 3.2, short": ("Here's my thought process:", "Here's my response:", ""),
    "Granite 3.3": ("<think>", "</think><response>", "</response>"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
    "Kimi": ("◁think▷", "◁/think▷", ""),
    "Kimi K3": ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>", "<|close|>response<|sep|>"),
    "Seed": ("<seed:think>", "</seed:think>", ""),
    "EXAONE": ("<thought>\n", "\n</thought>\n\n", ""),
    "Gemma 4": ("<|channel>thought\n", "<channel|>", ""),
    "Hunyuan": ("<think>\n", "\n</think>\n<answer>\n", "\n</answer>"),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>", ""),
}
families = pytest.mark.parametrize(("opening", "closing", "end"), FAMILIES.values(), ids=FAMILIES)
# text without marks; a capital first, as "analysis" without special tokens wants it
words = st.text(st.sampled_from("abc XY.,\n0'`é漢"), max_size=20).map(lambda text: "W" + text.rstrip())


@families
@settings(max_examples=25, deadline=None)
@given(thoughts=words, answer=words, begin=st.sampled_from(["", "\n", " "]))
def test_marks_part_thoughts_from_the_answer(opening, closing, end, thoughts, answer, begin):
    """Whatever they are, between the marks of a family they come back, without the marks."""
    found = part(f"{begin}{opening}{thoughts}{closing}{answer}{end}")

    assert found == Parted(thoughts, answer)


@families
@settings(max_examples=25, deadline=None)
@given(thoughts=words, cut=st.integers(1, 100))
def test_thoughts_are_no_answer_however_far_they_have_come(opening, closing, end, thoughts, cut):
    """From the opening mark on to that which closes it, there is none, or it is not known yet."""
    text = f"{opening}{thoughts}"[:cut]
    found = part(text)

    assert not opening or found.thinking or may_open(text) or len(text) < 4
    assert not found.thinking or (found.answer == "" and found.thoughts == text[len(opening) :].strip())


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\n\n</think>\n\nLyon", "", "Lyon"),  # Qwen3, told not to think
        ("<|channel>thought\n<channel|>Lyon", "", "Lyon"),  # Gemma 4, likewise
        ("</think>Lyon", "", "Lyon"),
        ("<think>a</think>\n<think>b</think>Lyon", "a\nb", "Lyon"),
        ("<think>It is `</think>`, not </think>", "It is `", "`, not </think>"),  # a mark is a mark while it thinks
        ("analysis5, or 6?assistantfinal6", "5, or 6?", "6"),
        ("<think>hm</think>", "hm", ""),
        ("<|channel|>final<|message|>Lyon<|return|>", "", "Lyon"),  # gpt-oss need not think
        ("In a fence:\n```\n1", "", "In a fence:\n```\n1"),
        ("It is\n```\n1\n```\n</think>\nLyon", "It is\n```\n1\n```", "Lyon"),
        ("It is\n```\n1\n</think>\nLyon", "It is\n```\n1", "Lyon"),  # nothing opened in a fence, so it closes
    ],
)
def test_turns_that_a_text_may_take(text, thoughts, answer):
    """Empty thoughts, thoughts twice, none at all, and none of it opened by the model."""
    assert (part(text).thoughts, part(text).answer) == (thoughts, answer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  Lyon \n",
        "42<|im_end|>",
        "`<think>` opens thoughts and `</think>` closes them.",
        "Split at \"</think>\", or at '[/THINK]'.",
        'Write "hm</think>" yourself.',
        "In the text:\n```xml\n<think>\nhm\n</think>\n```\nThat is all.",
        "<p>Hi <b>you</b></p>",
        "<html><head></head></html>",
        "<thinking-face> </thinking-face>",
        "<answer>Lyon</answer>",
        "[1] a, [/1] b",
        "[TOOL_CALLS][]",
        "analysis of the data shows a rise",
        "analysis: it rose",
        "Analysis\n\nIt rose.",
        "assistants help",
        "Here is the list:\n1. a",
        "Here is my thought process: I add, and get 4.",
        "if a <b> c: x = y[a]\nreturn x</b>",
        "def f():\n    return '<|im_end|>'",
        "<tool_call>\n{}\n</tool_call>",
    ],
)
def test_plain_answers_are_left_as_they_are(text):
    """HTML, code, marks that are only spoken of, and first words that a mark could have."""
    assert part(text) == Parted("", text)


@given(words)
def test_text_without_marks_is_all_answer(text):
    """To the last blank."""
    assert part(text) == Parted("", text)


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("", False),
        ("<", True),
        (" <th", True),
        ("<think>", True),
        ("<p", False),
        ("<|chan", True),
        ("[THI", True),
        ("[1", False),
        ("a", False),  # an answer of one letter need not wait
        ("Here", True),
        ("Here is my", True),
        ("Here is the", False),
        ("analysis", True),
        ("analysis of", False),
        ("Lyon", False),
        # until what closes these has come, they may be thoughts or not
        ("Here is my thought process: hm", True),
        ("analysis5, or", True),
        ("assistantanalysis'", True),
        # behind thoughts
        ("<resp", True),
        ("<answer>", True),
    ],
)
def test_what_has_just_begun_may_be_a_mark(text, may):
    """As long as some mark begins so."""
    assert may_open(text) is may


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>\n", "\n</think>\n\n"),
        ("<think>", "</think>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought\n", "\n<channel|>\n\n"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        (
            "<|start|>assistant<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        ("", ""),
    ],
)
def test_thoughts_that_are_none_are_closed(opened: str, closed: str):
    """By the mark of the family that has opened them; what follows is the answer."""
    assert closed_after(opened) == closed
    if opened:
        assert part(f"{opened}{closed}The answer") == Parted("", "The answer")
