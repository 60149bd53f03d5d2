from __future__ import annotations

import pytest
from confcascade import Message, ModelError, Request
from confcascade.asks import Answer, Generate, Prefill, ask
from confcascade.testing import ScriptedModel

REQUEST = Request((Message("user", "Hello"),))


def test_an_answer_is_its_value():
    """`unwrap` gives the value, be it as false as can be."""
    assert Answer("yes").unwrap() == "yes"
    assert Answer(0).unwrap() == 0


def test_an_answer_raises_its_error():
    """`unwrap` raises the very error that came instead of a value."""
    error = ModelError("down")

    with pytest.raises(ModelError) as raised:
        Answer(error=error, elapsed_s=1.0).unwrap()

    assert raised.value is error


def test_asking_one_thing():
    """`ask` yields a tuple of one, and returns the one answer; an error is not raised behind the flow's back."""
    wanted = Generate(ScriptedModel("m"), REQUEST)
    for answer in (Answer("text"), Answer(error=ModelError("down"))):
        asking = ask(wanted)
        assert next(asking) == (wanted,)
        with pytest.raises(StopIteration) as stopped:
            asking.send((answer,))
        assert stopped.value.value is answer


def test_by_default_nothing_may_be_shown():
    """An answer is a draft unless the flow says that it is live."""
    plain = Generate(ScriptedModel("m"), REQUEST)

    assert (plain.live, plain.watch, plain.prefilled) == (False, None, None)
    assert (Prefill(plain.model, REQUEST).layers, Prefill(plain.model, REQUEST).labels) == ((), ())
