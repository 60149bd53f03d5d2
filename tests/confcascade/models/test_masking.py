"""No key leaves in an error, wherever in it a server may have put it."""

from __future__ import annotations

from confcascade.models.masking import masked

KEY = "sk-0123456789"


def test_keys_are_masked_wherever_there_is_text():
    """In arguments, attributes, nested bodies, and in what an error came from."""
    cause = ValueError(f"sent {KEY}")
    error = RuntimeError(f"wrong key {KEY}", 3)
    error.body = {"error": {"message": f"{KEY}?", KEY: [KEY, 1]}}  # type: ignore[attr-defined]
    error.__cause__ = cause

    assert masked(error, [KEY]) is error
    assert error.args == ("wrong key ***", 3)
    assert error.body == {"error": {"message": "***?", "***": ["***", 1]}}  # type: ignore[attr-defined]
    assert cause.args == ("sent ***",)


def test_what_only_stands_for_a_key_is_no_secret():
    """ "none" and "EMPTY" are given to servers that want no key, and are words of errors as well."""
    assert masked("none of these", ["none"]) == "none of these"
