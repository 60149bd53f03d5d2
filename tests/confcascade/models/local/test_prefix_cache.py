"""What prompts have in common is read once; answers and hidden states are what they are without."""

from functools import cache

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from confcascade import ConfigurationError, TransformersModel
from confcascade.asks import Generate, Prefill
from confcascade.models.bundled import bundled_model
from confcascade.types import Message, Request

SYSTEM = "Answer in one word. " + " ".join(f"Where was {name} born? In Oslo." for name in ("Bren", "Tasu", "Ilo") * 4)
NAMES = ("Mira", "Oda", "Peki", "Runo", "Sol", "Bren")


def request(name, system=SYSTEM):
    return Request(Message.parse([("system", system), ("user", f"Where was {name} born?")]), max_tokens=12)


@cache
def small():
    return bundled_model("small")


def made(prefix_cache_mb=None):
    return TransformersModel(small().model, small().tokenizer, prefix_cache_mb=prefix_cache_mb)


@pytest.fixture
def widths():
    """How many tokens each pass reads, of all rows."""
    seen = []
    handle = small().model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield seen
    handle.remove()


def read(model, requests, layer=2):
    found = model.prefill([Prefill(model, each, (layer,)) for each in requests])
    for prefilled in found:
        prefilled.close()
    return [prefilled.hidden_states[layer] for prefilled in found]


def without(requests, layer=2):
    """Of a model that shares nothing, asked one by one."""
    model = made(0)
    return [read(model, [each], layer)[0] for each in requests]


def test_a_prompt_that_begins_as_two_before_reads_its_own_end_only(widths):
    """The first is read, the second shows what comes again, the third gains."""
    model, requests = made(100), [request(name) for name in NAMES[:3]]
    expected = without(requests)
    length = len(model.encode(requests[0]))
    widths.clear()
    counts = []
    for each, state in zip(requests, expected, strict=True):
        assert read(model, [each])[0] == pytest.approx(state, abs=1e-4)
        counts.append(sum(widths))
        widths.clear()
    assert counts[0] == length
    assert counts[2] < length / 4


def test_in_one_pass_it_is_read_once(widths):
    """Six prompts of one call."""
    model, requests = made(100), [request(name) for name in NAMES]
    expected = without(requests)
    length = len(model.encode(requests[0]))
    widths.clear()
    for state, other in zip(read(model, requests), expected, strict=True):
        assert state == pytest.approx(other, abs=1e-4)
    assert sum(widths) < 2 * length


def test_answers_are_the_same():
    """Prompts of different lengths, whose ends are padded behind what they share."""
    model, plain = made(100), made(0)
    requests = [request(name + " of the old town" * i) for i, name in enumerate(NAMES)]
    asks = [Generate(model, each, top_logprobs=2) for each in requests]
    for _ in range(2):
        for response, each in zip(model.generate(asks), requests, strict=True):
            (alone,) = plain.generate([Generate(plain, each, top_logprobs=2)])
            assert response.text == alone.text
            assert response.usage == alone.usage
            assert [t.logprob for t in response.tokens] == pytest.approx([t.logprob for t in alone.tokens], abs=1e-4)


def test_the_same_prompt_again():
    """One token is read, for its logits."""
    model = made(100)
    expected = without([request("Mira")])[0]
    for _ in range(4):
        assert read(model, [request("Mira")])[0] == pytest.approx(expected, abs=1e-4)


def test_rows_go_on_from_what_each_has_in_common_with_others(widths):
    """Prompts of two systems in one pass, beside one that is like none."""
    model = made(100)
    systems = [SYSTEM, "In one word. " + SYSTEM[30:]]
    for system in systems:
        for name in NAMES[:2]:
            read(model, [request(name, system)])
    requests = [request(name, system) for name in NAMES[2:4] for system in systems] + [request("Sol", "Yes?")]
    expected = without(requests)
    length = len(model.encode(requests[0]))
    widths.clear()
    for state, other in zip(read(model, requests), expected, strict=True):
        assert state == pytest.approx(other, abs=1e-4)
    assert sum(widths) < length


def test_a_question_behind_an_answer_reads_neither_again(widths):
    """A signal's own, asked in the conversation that the answer belongs to."""
    model, first = made(100), request("Mira")
    (answer,) = model.generate([Generate(model, first, followed=True)])
    again = Request(
        Message.parse(
            [
                *((message.role, message.content) for message in first.messages),
                ("assistant", answer.text),
                ("user", "Are you sure?"),
            ]
        ),
        max_tokens=4,
    )
    (expected,) = without([again])
    widths.clear()
    (state,) = read(model, [again])
    assert state == pytest.approx(expected, abs=1e-4)
    assert sum(widths) < len(model.encode(again)) - len(model.encode(first))


def test_memory_is_bounded(widths):
    """What was used last stays; what does not fit is not kept."""
    model = made(100)
    systems = [f"{i} {SYSTEM}" for i in range(4)]
    for system in systems:
        for name in NAMES[:2]:
            read(model, [request(name, system)])
    (tokens,) = {len(kept.ids) for kept in model._prefix_cache._kept}
    tight = made(2.5 * tokens * model._decoder.token_bytes / 2**20)
    for system in systems:
        for name in NAMES[:2]:
            read(tight, [request(name, system)])
    assert [kept.ids for kept in tight._prefix_cache._kept] == [kept.ids for kept in model._prefix_cache._kept][-2:]
    nothing = made(0)
    for name in NAMES[:3]:
        read(nothing, [request(name)])
    assert not nothing._prefix_cache._kept


def test_a_negative_size_is_refused():
    """Before anything is read."""
    with pytest.raises(ConfigurationError, match="prefix_cache_mb"):
        made(-1)
