"""Statements of confidence: the forms that models use, and what only looks like one."""

import pytest
from confcascade.signals.stated import statement_in, statement_of
from confcascade.signals.stated_values import value_of
from hypothesis import given
from hypothesis import strategies as st

# an answer, the confidence in it, and what is left of it
STATED = [
    ("Paris\n<confidence>0.9</confidence>", 0.9, "Paris"),
    ("Paris\n<CONFIDENCE> 90% </CONFIDENCE>\n", 0.9, "Paris"),
    ("Paris\n<confidence>90", 0.9, "Paris"),
    ("<answer>4</answer><confidence>0.9</confidence>", 0.9, "<answer>4</answer>"),
    # of Qwen2.5-Coder-0.5B-Instruct
    ("504\n<0.99>0.99</confidence>", 0.99, "504"),
    ("504\n<0.9999999999999999>PROBABILITY</confidence>", 1.0, "504"),
    ("504\n0.9</confidence>", 0.9, "504"),
    # of SmolLM2-135M-Instruct
    ("504\nP(correct) = 2/4 = 1/2", 0.5, "504"),
    ("504\nProbability that my answer is correct = 504/456 ≈ 0.9", 0.9, "504"),
    ("Paris\n\nConfidence: 90%", 0.9, "Paris"),
    ("Paris. Confidence: 90 %", 0.9, "Paris."),
    ("Paris Confidence: 90%", 0.9, "Paris"),
    ("Paris\nConfidence: .9", 0.9, "Paris"),
    ("Paris\nConfidence: 9/10", 0.9, "Paris"),
    ("Paris\nConfidence: 9.5/10", 0.95, "Paris"),
    ("Paris\nconfidence: 9 out of 10", 0.9, "Paris"),
    ("Paris\nConfidence: 3 in 4", 0.75, "Paris"),
    ("Paris\nConfidence (0-10): 8", 0.8, "Paris"),
    ("Paris\nConfidence (0-100): 85", 0.85, "Paris"),
    ("Paris\nconfidence level: 95 percent", 0.95, "Paris"),
    ("Paris\nConfidence: 99.99%", 0.9999, "Paris"),
    ("Paris\nConfidence: 100%", 1.0, "Paris"),
    ("Paris\nConfidence: ~0.75", 0.75, "Paris"),
    ("Paris\nConfidence: at least 75%", 0.75, "Paris"),
    ("**Answer:** Paris\n\n**Confidence:** **90%**", 0.9, "**Answer:** Paris"),
    ("**Answer**: Paris\n**Confidence**: 0.9", 0.9, "**Answer**: Paris"),
    ("Paris\n*Confidence Level: 94%*", 0.94, "Paris"),
    ("Paris\n> **Confidence:** 95%+", 0.95, "Paris"),
    ("Paris\n### Confidence\n0.9", 0.9, "Paris"),
    ("Paris\n---\nConfidence: 0.9", 0.9, "Paris"),
    ("Paris\nConfidence: \\boxed{0.9}", 0.9, "Paris"),
    ("Paris\nKonfidenz: 0,9", 0.9, "Paris"),
    ("Paris\nConfiance : 90 %", 0.9, "Paris"),
    ("Paris\nConfidence：９０％", 0.9, "Paris"),
    ("Paris\nConfidence: 80-90%", 0.85, "Paris"),
    ("Paris\nConfidence: 0.8 to 0.9", 0.85, "Paris"),
    ("Confidence: 50%\nParis\nConfidence: 80%", 0.8, "Paris"),
    ("Confidence: 90%. The answer is Paris.", 0.9, "The answer is Paris."),
    ("Confidence: 90%, Answer: Paris", 0.9, "Answer: Paris"),
    ("Paris (confidence: 90%)", 0.9, "Paris"),
    ("CLASSIFICATION: BENIGN | CONFIDENCE: 0.9", 0.9, "CLASSIFICATION: BENIGN"),
    ("Paris\nconfidence: 0.9 - it is well known", 0.9, "Paris"),
    ("Paris\nCONFIDENCE: 0.9 (high)", 0.9, "Paris"),
    ('{"answer": "Paris", "confidence": 0.9}', 0.9, '{"answer": "Paris"}'),
    ('{"confidence": "90%", "answer": "Paris"}', 0.9, '{"answer": "Paris"}'),
    ("Answer and Confidence (0-100): B, 80%", 0.8, "Answer: B"),
    ("It boils.\nAnswer and Confidence (0-100): C) 100 degrees, 85", 0.85, "It boils.\nAnswer: C) 100 degrees"),
    ("**Answer and Confidence (0-10):** B, 8", 0.8, "**Answer:** B"),
    ("Paris\nMy confidence in this answer is 85%.", 0.85, "Paris"),
    ("Paris\nProbability that my answer is correct: 0.8", 0.8, "Paris"),
    ("Paris\nConfidence: high", 0.7, "Paris"),
    ("Paris\nConfidence: very high", 0.9, "Paris"),
    ("Paris\nConfidence: medium-high.", 0.6, "Paris"),
    ("Paris\nConfidence: High (90%)", 0.9, "Paris"),
    ("Paris\nConfidence: almost certain", 0.95, "Paris"),
    ("Paris. I am 90% sure.", 0.9, "Paris."),
    ("There is a 70% chance that this is correct.\nParis", 0.7, "Paris"),
    ("504\n\nThis is a 2.5% chance of being correct.", 0.025, "504\n\nThis is a 2.5% chance of being correct."),
    ("I'm about 80% confident that it's Paris.", 0.8, "I'm about 80% confident that it's Paris."),
    ("I am fairly sure that it is Paris.", 0.7, "I am fairly sure that it is Paris."),
    ("It is Paris.\nI am not very confident.", 0.3, "It is Paris."),
]
# stated, and no number: cut, but not scored
UNREADABLE = [
    ("42\nConfidence: 150%", "42"),
    ("Paris\nConfidence: -0.5", "Paris"),
    ("Paris\nConfidence: 8", "Paris"),  # of ten, or of a hundred?
    ("Paris\nConfidence: 1,000", "Paris"),
    ("Paris\nConfidence: 11/10", "Paris"),
    ("Paris\n<confidence>0.0-1.0</confidence>", "Paris"),  # the form that was asked for, repeated
    ("Paris\n<confidence>PROBABILITY</confidence>", "Paris"),
    ("Paris\n<confidence>a number between 0.0 and 1.0</confidence>", "Paris"),
    ("Confidence: 50%\nParis\nConfidence: 500%", "Paris"),  # the last counts
    ("Paris\nConfidence: N/A", "Paris"),
    ("Paris\n**Confidence:** [number]", "Paris"),
    ("Paris\nConfidence: <0.0 to 1.0>", "Paris"),
    ("Paris\nConfidence: x%", "Paris"),
]
# no statement of the answer's confidence
NONE = [
    "The tax is 20%.",
    "The answer is 0.9",
    "0.5",
    "Probability: 0.25",
    "The probability of two heads is 0.25.",
    "There is a 90% chance of rain.",
    "It is <b>0.9</b>",
    "The 95% confidence interval is 3 to 5.",
    "**Confidence:** 95% confidence intervals on all metrics",
    "Consumer confidence: 95.2 in May.",
    "It boosts confidence and 3 other things.",
    "Confidence: the key to success.",
    "Dear sir,\nI am sure you know this.\nYours",
    "```python\nconfidence = 0.95\nx = 3\nprint(x)\n```",
    "I cannot be 90% sure about that.",
    "",
]


def left_of(answer, told):
    for begin, end in reversed(told.cut):
        answer = answer[:begin] + answer[end:]
    return answer.strip()


@pytest.mark.parametrize(("answer", "value", "left"), STATED)
def test_forms(answer, value, left):
    """What models write is read, and taken off where it is no part of a sentence of the answer."""
    told = statement_in(answer)
    assert told.value == pytest.approx(value)
    assert left_of(answer, told) == left


@pytest.mark.parametrize(("answer", "left"), UNREADABLE)
def test_what_is_no_number_is_no_score(answer, left):
    """It is known for a statement, so that it is not shown; no value is made of it."""
    told = statement_in(answer)
    assert told.value is None
    assert left_of(answer, told) == left


@pytest.mark.parametrize("answer", NONE)
def test_the_answers_own_numbers(answer):
    assert statement_in(answer) is None


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("0.85", 0.85),
        ("85", 0.85),
        ("**85%**", 0.85),
        ("Probability: 0.85", 0.85),
        ("The probability that my guess is correct is 0.65.", 0.65),
        ("I think that it is right.\n\n0.8", 0.8),
        ("I'd say 0.7", 0.7),
        ("likely", 0.7),
        ("There is an 80% probability that it is correct", 0.8),
        ("5", None),
        ("150%", None),
    ],
)
def test_replies(reply, value):
    """Asked for a probability and nothing else, a bare number is one."""
    told = statement_of(reply)
    assert told is not None
    assert told.value == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize("reply", ["I cannot say.", "Paris", "Between 3 and 5 of my 7 sources agree.", ""])
def test_replies_without(reply):
    assert statement_of(reply) is None


@given(st.integers(0, 100), st.sampled_from(["decimal", "percent", "spaced", "comma", "fraction", "words"]))
def test_round_trip(hundredths, form):
    """A number that is written in any of the forms is the number that is read, in a label and in a tag."""
    value = hundredths / 100
    written = {
        "decimal": f"{value:.2f}",
        "percent": f"{hundredths}%",
        "spaced": f"{hundredths}.0 %",
        "comma": f"{value:.2f}".replace(".", ","),
        "fraction": f"{hundredths}/100",
        "words": f"{hundredths} out of 100",
    }[form]
    assert value_of(written) == pytest.approx(value)
    for answer in (f"It is so.\nConfidence: {written}", f"It is so.\n<confidence>{written}</confidence>"):
        told = statement_in(answer)
        assert told.value == pytest.approx(value)
        assert left_of(answer, told) == "It is so."


@given(st.text(max_size=300))
def test_any_text(text):
    """Whatever a model writes is read without an error: values are shares, cuts are in order and in the text."""
    for told in (statement_in(text), statement_of(text)):
        if told is not None:
            assert told.value is None or 0 <= told.value <= 1
            ends = [end for span in told.cut for end in span]
            assert ends == sorted(ends)
            assert all(0 <= end <= len(text) for end in ends)


@given(st.text(alphabet="ab .\n", min_size=1, max_size=40), st.floats(0, 1))
def test_the_answer_stays(answer, value):
    """Nothing but the statement and blanks around it is taken off."""
    whole = f"{answer}\n<confidence>{value:.2f}</confidence>"
    assert left_of(whole, statement_in(whole)) == answer.strip()


def test_long_texts_take_no_time():
    """Hostile repetition is no matter of seconds."""
    import time

    pieces = (
        "Confidence: 90%\n",
        "90% sure. ",
        "I am sure. ",
        "<confidence>0.9</confidence>\n",
        "(0-",
        "9",
        "**",
        "my ",
    )
    for piece in pieces:
        begun = time.perf_counter()
        statement_in(piece * 1000)
        statement_of(piece * 1000)
        assert time.perf_counter() - begun < 10, piece  # a second at most, on a machine that does nothing else
