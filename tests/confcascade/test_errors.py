from __future__ import annotations

import pickle
import sys

import confcascade
import pytest
from confcascade import errors
from confcascade.errors import MissingExtraError, joined, kept_of, require
from pydantic import TypeAdapter, ValidationError


def test_the_tree_is_as_drawn():
    """The drawing at the top of the module shows every error below its parent."""
    parents: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), None)
        if name is None:
            continue
        depth = line.index(name) // 4
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1] if depth else None

    assert set(drawn) == set(errors.__all__)
    for name, parent in drawn.items():
        assert parent is None or getattr(errors, parent) in getattr(errors, name).__bases__


def test_every_error_is_public():
    """Whatever is raised on purpose can be caught by its name in `confcascade`, or by the root of them all."""
    for name in errors.__all__:
        assert issubclass(getattr(confcascade, name), confcascade.ConfcascadeError)


def test_errors_are_the_built_in_kind_too():
    """Code that expects a ValueError or an ImportError catches ours."""
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_require_gives_the_module():
    """A package that is there is imported."""
    assert require("json", "local").dumps([1]) == "[1]"


def test_require_names_the_command(monkeypatch):
    """A package that is missing is an error with the very command that installs it, and with its cause."""
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingExtraError) as raised:
        require("torch", "local")

    assert 'pip install "confcascade[local]"' in str(raised.value)
    assert "`torch`" in str(raised.value)
    assert isinstance(raised.value.__cause__, ImportError)


class _ApiError(Exception):
    def __init__(self, **fields):
        super().__init__("the key sk-secret, the prompt and the answer")
        vars(self).update(fields)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"status_code": 429, "code": "rate_limit_exceeded"}, "_ApiError (429, rate_limit_exceeded)"),
        ({"status_code": 400, "param": "messages[0].content"}, "_ApiError (400, parameter messages[0].content)"),
        ({"status_code": 400, "code": 400}, "_ApiError (400)"),
        ({"errno": 111}, "_ApiError (111)"),
        ({"code": "sk-secret-123456789", "param": "the prompt of mine"}, "_ApiError"),
        ({"status": "sk-secret", "response": None}, "_ApiError"),
        ({"code": lambda: "callable, as grpc has it"}, "_ApiError"),
    ],
)
def test_of_an_error_its_kind_is_kept_and_never_its_text(fields, kept):
    assert kept_of(_ApiError(**fields)) == kept


def test_what_an_error_without_a_status_comes_from_is_kept():
    error = ConnectionError("https://user:password@host")
    error.__cause__ = TimeoutError("sk-secret")

    assert kept_of(error) == "ConnectionError (from TimeoutError)"


def test_our_own_texts_are_kept():
    assert kept_of(confcascade.ModelError("No choice.")) == "ModelError: No choice."


class RateLimitedError(Exception):
    def __init__(self, message, *, retry_after):
        super().__init__(message)
        self.retry_after = retry_after


def test_an_exhausted_cascade_is_an_instance_of_the_providers_error():
    """So what is keyed on it, such as retries, works as around the model itself; its text is ours."""
    theirs = RateLimitedError("sk-secret", retry_after=3)
    error = joined(confcascade.CascadeExhaustedError("No answer.", ["a"], ["b"]), theirs)

    assert isinstance(error, confcascade.CascadeExhaustedError)
    assert isinstance(error, RateLimitedError)
    assert (error.attempts, error.responses, error.retry_after) == (("a",), ("b",), 3)
    assert (str(error), repr(error)) == ("No answer.", "CascadeExhaustedError('No answer.')")
    assert error.__cause__ is theirs
    restored = pickle.loads(pickle.dumps(error))
    assert type(restored) is confcascade.CascadeExhaustedError
    assert (str(restored), restored.attempts) == ("No answer.", ("a",))


@pytest.mark.parametrize(
    "theirs", [KeyError("key"), OSError(111, "refused"), UnicodeDecodeError("utf-8", b"", 0, 1, "odd")], ids=repr
)
def test_errors_of_python_join_as_well(theirs):
    error = joined(confcascade.ModelError("It broke."), theirs)

    assert isinstance(error, type(theirs))
    assert str(error) == "It broke."
    assert getattr(error, "errno", None) == getattr(theirs, "errno", None)


def test_what_an_error_holds_outside_of_its_dict_comes_along():
    class SlottedError(Exception):
        __slots__ = ("body",)

    theirs = SlottedError()
    theirs.body = {"code": 7}

    assert joined(confcascade.ModelError("It broke."), theirs).body == {"code": 7}
    assert joined(confcascade.ModelError("It broke."), FileNotFoundError(2, "no", "a.txt")).filename == "a.txt"
    assert joined(confcascade.ModelError("It broke."), ImportError("no", name="openai")).name == "openai"


def test_of_an_error_that_fails_when_it_is_looked_at_the_type_is_kept():
    class TouchyError(Exception):
        @property
        def response(self):
            raise RuntimeError

        status_code = code = param = response

    assert kept_of(TouchyError("sk-secret")) == "TouchyError"


def test_an_error_of_a_final_class_is_the_cause_only():
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(int).validate_python("x")
    error = joined(confcascade.ModelError("It broke."), raised.value)

    assert type(error) is confcascade.ModelError
    assert error.__cause__ is raised.value
