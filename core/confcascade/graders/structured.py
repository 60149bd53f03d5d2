"""Structured output: JSON that a pydantic class accepts, and whose fields are the reference's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from confcascade.errors import ConfigurationError
from confcascade.graders.example import Example
from confcascade.graders.grade import Grade
from confcascade.graders.grader import REFUSAL, Grader
from confcascade.tools import parse_problem

__all__ = ["StructuredMatch"]

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


class StructuredMatch(Grader):
    """Right if the answer is JSON that `schema` accepts, and says what a reference says.

    The JSON may stand in a fenced block. What does not validate is wrong, with the reason: the field and the rule, not
    the value.

    Args:
        schema: A pydantic class.
        key: Compare this field alone; a reference is then its value ("positive"), or JSON of the class. Without it,
            every field counts, and a reference is JSON of the class.
        refusal: See `Grader`.

    Raises:
        ConfigurationError: If `schema` is no pydantic class, or has no field `key`.
    """

    name: ClassVar[str] = "structured"

    def __init__(self, schema: type[BaseModel], *, key: str | None = None, refusal: str = REFUSAL) -> None:
        super().__init__(refusal=refusal)
        if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            raise ConfigurationError(f"`schema` must be a pydantic class. Got {schema!r}.")
        if key is not None and key not in schema.model_fields:
            raise ConfigurationError(
                f"`{schema.__name__}` has no field `{key}`; it has {', '.join(schema.model_fields)}."
            )
        self._schema = schema
        self._key = key
        field = None if key is None else schema.model_fields[key]
        self._field: TypeAdapter[Any] | None = None if field is None else TypeAdapter(field.rebuild_annotation())

    def __repr__(self) -> str:
        return f"Structured({self._schema.__name__}, key={self._key!r})"

    def compare(self, example: Example, answer: str) -> Grade:
        wanted = [told for told in map(self._reference, example.references) if told is not None]
        try:
            said = self._told(answer)
        except ValidationError as error:
            problem = parse_problem(error, self._schema.model_json_schema())
            return Grade(0.0 if wanted else None, reason=problem)
        predicted = said[self._key] if self._key else said
        shown = predicted if isinstance(predicted, str) else json.dumps(predicted, sort_keys=True, ensure_ascii=False)
        if not wanted:
            return Grade(None, predicted=shown, reason=f"the reference does not validate as {self._schema.__name__}")
        keys = [self._key] if self._key else list(said)
        wrong = min(([key for key in keys if said[key] != told[key]] for told in wanted), key=len)
        return Grade(float(not wrong), predicted=shown, reason=f"{', '.join(wrong)} differ" if wrong else "")

    def _told(self, text: str) -> dict[str, Any]:
        fenced = _FENCE.findall(text)
        told = self._schema.model_validate_json(fenced[-1] if fenced else text.strip())
        return told.model_dump(mode="json")

    def _reference(self, text: str) -> Mapping[str, Any] | None:
        try:
            return self._told(text)
        except ValidationError:
            if self._field is None or self._key is None:
                return None
        try:
            return {self._key: self._field.dump_python(self._field.validate_python(text), mode="json")}
        except ValidationError:
            return None

    def identity(self) -> Mapping[str, Any]:
        schema = json.dumps(self._schema.model_json_schema(), sort_keys=True)
        return {
            **super().identity(),
            "schema": f"{self._schema.__module__}:{self._schema.__qualname__}",
            "schema_digest": hashlib.sha256(schema.encode()).hexdigest()[:12],
            "key": self._key,
        }
