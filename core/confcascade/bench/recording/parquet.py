"""Recordings as Parquet: smaller than lines, open to other tools, and read as columns without a look at each row.

A row of the recording is a row of the file, its fields columns of the same names; ``usage`` is three columns, and
``labels``, ``scores`` and ``tokens`` are lists of structs, which every tool reads (not so maps). A score's ``details``,
which have no common form, are a JSON text. Files are written once, whole: what is being collected grows as JSON Lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from confcascade.bench.recording.columns import Gathering
from confcascade.bench.recording.row import Row
from confcascade.errors import ConfigurationError, require
from confcascade.types import Token, Usage

__all__ = ["gather_parquet", "read_parquet", "write_parquet"]

_FORMAT = {b"confcascade": b"recording 1"}
_ROWS = 8_192  # at a time: a row group
_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())  # what `str.strip` takes away; none lies beyond
_PLAIN = tuple(
    "question model group prompt reference answer grade refused predicted error problem finish_reason latency_s "
    "prefill_s build prompt_version drawn before_answer thoughts flops usd gate_input_tokens gate_output_tokens".split()
)
_USAGE = ("input_tokens", "output_tokens", "estimated", "usage_details")
# of files that were written before there were such columns
_LATER = {
    "drawn": 1,
    "before_answer": 0,
    "thoughts": "",
    "usage_details": "{}",
    "gate_input_tokens": 0,
    "gate_output_tokens": 0,
}
_LATER_NULL = ("problem", "flops", "usd")
_DETAILS = ("input_details", "output_details")
_NUMBERS = (
    "question",
    "model",
    "group",
    "answer",
    "grade",
    "refused",
    "error",
    "problem",
    "before_answer",
    *_USAGE[:2],
    "latency_s",
    "prefill_s",
    "flops",
    "usd",
    "drawn",
    "gate_input_tokens",
    "gate_output_tokens",
)


def _schema() -> Any:
    pa = require("pyarrow", "parquet")
    text, number = pa.string(), pa.float64()

    def rows_of(**fields: Any) -> Any:
        return pa.list_(pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()]))

    score = [
        pa.field("name", text, nullable=False),
        pa.field("value", number),
        pa.field("phase", text, nullable=False),
        pa.field("prefill", pa.bool_(), nullable=False),
        pa.field("depth", number),
        pa.field("upper", rows_of(tokens=pa.int64(), bound=number), nullable=False),
        pa.field("details", text, nullable=False),
        pa.field("lower", number),
    ]
    kinds = dict.fromkeys(_PLAIN, text) | {"grade": number, "refused": pa.bool_()}
    kinds |= {"flops": number, "usd": number}
    kinds |= {"latency_s": number, "prefill_s": number, "drawn": pa.int64(), "before_answer": pa.int64()}
    kinds |= {"gate_input_tokens": pa.int64(), "gate_output_tokens": pa.int64()}
    kinds |= {"input_tokens": pa.int64(), "output_tokens": pa.int64(), "estimated": pa.bool_()}
    kinds["usage_details"] = text
    kinds["labels"] = rows_of(label=text, logprob=number)
    kinds["scores"] = pa.list_(pa.struct(score))
    kinds["tokens"] = rows_of(text=text, logprob=number, top=rows_of(text=text, logprob=number))
    always = {"question", "model", "answer", "refused", *_LATER, *_USAGE, "labels", "scores"}
    fields = [pa.field(name, kind, nullable=name not in always) for name, kind in kinds.items()]
    return pa.schema(fields, metadata=_FORMAT)


# ---------------------------------------------------------------------- rows


def write_parquet(rows: Iterable[Row], path: str | Path) -> int:
    """Write a recording, some thousand rows at a time; the file is there when it is whole.

    Returns:
        How many rows there were.

    Raises:
        MissingExtraError: Without pyarrow.
    """
    pa, pq, schema = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet"), _schema()
    path, count, left = Path(path), 0, iter(rows)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            while batch := [_values(row) for row in islice(left, _ROWS)]:
                columns = zip(schema, zip(*batch, strict=True), strict=True)
                writer.write_batch(pa.RecordBatch.from_arrays([_array(f.type, c) for f, c in columns], schema=schema))
                count += len(batch)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def read_parquet(path: str | Path, opened: BinaryIO | None = None) -> Iterator[Row]:
    """The rows of a recording, some thousand in memory at a time.

    Args:
        path: The file.
        opened: It, where it is open already.

    Raises:
        ConfigurationError: If the file is none of `write_parquet`, or a row is none (naming it).
        MissingExtraError: Without pyarrow.
    """
    number, names = 0, _schema().names
    for batch in _batches(path, names, 1_024, opened):
        for values in zip(*(_lists(batch.column(name)) for name in names), strict=True):
            number += 1
            try:
                yield _row(*values)
            except ValidationError as error:
                first = error.errors()[0]
                where = "".join(f"{part}: " for part in first["loc"])
                raise ConfigurationError(
                    f"Row {number} of '{path}' is not a row of a recording: {where}{first['msg']}."
                ) from error


def _values(row: Row) -> tuple[Any, ...]:
    """A row in the order of `_schema`, structs as tuples."""
    scores = [
        (
            name,
            s.value,
            s.phase,
            s.prefill,
            s.depth,
            s.upper,
            json.dumps(dict(s.details), ensure_ascii=False) if s.details else "{}",
            s.lower,
        )
        for name, s in row.scores.items()
    ]
    tokens = None if row.tokens is None else [(token.text, token.logprob, token.top) for token in row.tokens]
    told = row.usage.as_dict()
    details = {name: told[name] for name in _DETAILS if name in told}
    usage = *(told[name] for name in _USAGE[:3]), json.dumps(details)
    return *(getattr(row, name) for name in _PLAIN), *usage, list(row.labels.items()), scores, tokens


def _row(*values: Any) -> Row:
    """The row of such values."""
    *plain, read, written, estimated, details, labels, scores, tokens = values
    return Row.model_validate(
        dict(zip(_PLAIN, plain, strict=True))
        | {
            "usage": Usage(read, written, estimated, **json.loads(details)),
            "labels": dict(labels),
            "scores": {
                name: {
                    "value": value,
                    "phase": phase,
                    "prefill": prefill,
                    "depth": depth,
                    "upper": upper,
                    "details": json.loads(details),
                    "lower": lower,
                }
                for name, value, phase, prefill, depth, upper, details, lower in scores
            },
            "tokens": None if tokens is None else tuple(Token(text, p, tuple(top)) for text, p, top in tokens),
        }
    )


def _array(kind: Any, values: Sequence[Any]) -> Any:
    """Python values as an Arrow array, of which a list of structs is a sequence of tuples; made field by field."""
    import pyarrow as pa

    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    fields = list(kind.value_type)
    flat = list(zip(*chain.from_iterable(filter(None, values)), strict=True)) or [()] * len(fields)
    inner = [_array(field.type, column) for field, column in zip(fields, flat, strict=True)]
    offsets = pa.array(np.cumsum([0, *(len(each or ()) for each in values)]), pa.int32())
    missing = pa.array([each is None for each in values], pa.bool_()) if None in values else None
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(inner, fields=fields), kind, mask=missing)


def _lists(array: Any) -> list[Any]:
    """The reverse of `_array`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(array.type):
        plain = not array.null_count or pa.types.is_string(array.type)  # numbers would have NaN for None
        return list(array.to_numpy(zero_copy_only=False).tolist() if plain else array.to_pylist())
    flat = array.flatten()
    inner = list(zip(*(_lists(flat.field(i)) for i in range(array.type.value_type.num_fields)), strict=True))
    counts, begin, lists = pc.list_value_length(array).to_pylist(), 0, []
    for count in counts:
        lists.append(None if count is None else inner[begin : begin + count])
        begin += count or 0
    return lists


def _batches(path: str | Path, columns: list[str], size: int, opened: BinaryIO | None = None) -> Iterator[Any]:
    pa, pq = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    try:
        file = pq.ParquetFile(path if opened is None else opened)
    except pa.ArrowInvalid as error:
        raise ConfigurationError(f"'{path}' cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    with file:
        if not (file.schema_arrow.metadata or {}).items() >= _FORMAT.items():
            raise ConfigurationError(
                f"'{path}' is not a recording, which `confcascade convert` and `write_parquet` make."
            )
        for batch in file.iter_batches(size, columns=columns):
            for name in columns:
                if name in (*_LATER, *_LATER_NULL) and name not in batch.schema.names:
                    kind = _schema().field(name).type
                    batch = batch.append_column(name, pa.array([_LATER.get(name)] * len(batch), kind))
            yield _with_all_fields(batch)


def _with_all_fields(batch: Any) -> Any:
    """With the fields of scores that older files lack: `depth` and `lower`."""
    import pyarrow as pa

    at = batch.schema.get_field_index("scores")
    scores = batch.column(at)
    known = {field.name: i for i, field in enumerate(scores.type.value_type)}
    wanted = _schema().field("scores").type
    if all(field.name in known for field in wanted.value_type):
        return batch
    parts = [
        scores.values.field(known[field.name]) if field.name in known else pa.nulls(len(scores.values), field.type)
        for field in wanted.value_type
    ]
    made = pa.ListArray.from_arrays(scores.offsets, pa.StructArray.from_arrays(parts, fields=list(wanted.value_type)))
    return batch.set_column(at, "scores", made)


# ---------------------------------------------------------------------- columns


def gather_parquet(path: str | Path, gathering: Gathering) -> None:
    """Gather the columns of a file, those of `read_parquet` without making its rows.

    Raises:
        ConfigurationError: If the file is not a recording, or a signal is now of one kind, now of another.
        MissingExtraError: Without pyarrow.
    """
    leaves = [
        f"scores.list.element.{name}" for name in [field.name for field in _schema().field("scores").type.value_type]
    ]
    for batch in _batches(path, [*_NUMBERS, "predicted", "tokens.list.element.logprob", *leaves], _ROWS):
        _gather(gathering, batch)


def _gather(gathering: Gathering, batch: Any) -> None:
    import pyarrow.compute as pc

    known = {name: batch.column(name) for name in batch.schema.names}
    failed = _numbers(pc.is_valid(known["error"]))
    said = _numbers(pc.not_equal(pc.utf8_trim(known["answer"], _SPACE), ""))
    told = _numbers(pc.fill_null(pc.list_value_length(known["tokens"]), -1))
    numbers = np.column_stack(
        [
            _numbers(known["grade"]),
            said * (1 - failed) * _numbers(pc.is_null(known["problem"])),
            said * (1 - failed),
            failed,
            *(_numbers(known[name]) for name in ("refused", "input_tokens", "output_tokens")),
            np.where(told < 0, told, told + _numbers(known["before_answer"])),
            _numbers(known["before_answer"]),
            _numbers(known["latency_s"]),
            *(_numbers(known[name]) for name in ("prefill_s", "flops", "usd")),
            *(_numbers(known[name]) for name in ("gate_input_tokens", "gate_output_tokens")),
        ]
    )
    models = known["model"].to_pylist()
    questions, groups, drawn = (known[name].to_pylist() for name in ("question", "group", "drawn"))
    first = gathering.add_many(questions, models, groups, drawn, numbers)
    owner = _integers(pc.list_parent_indices(known["scores"]))
    scores = known["scores"].flatten()
    kinds: dict[tuple[str, str, str, bool, float | None], list[int]] = {}
    told_of = (scores.field(name).to_pylist() for name in ("name", "phase", "prefill", "depth"))
    for i, (row, *kind) in enumerate(zip(owner.tolist(), *told_of, strict=True)):
        kinds.setdefault((models[row], *kind), []).append(i)
    values, upper = _numbers(scores.field("value")), scores.field("upper")
    lower = _numbers(scores.field("lower"))
    predicted = known["predicted"].to_pylist()
    labels = [
        (json.loads(told) if '"label"' in told else {}, predicted[row])
        for row, told in zip(owner.tolist(), scores.field("details").to_pylist(), strict=True)
    ]
    counts, steps = _integers(pc.list_value_length(upper)), upper.flatten()
    tokens, bounds = _integers(steps.field("tokens")), _numbers(steps.field("bound"))
    ends = np.cumsum(counts)
    for (model, name, phase, prefill, depth), members in kinds.items():
        chosen = np.array(members)
        own = np.zeros(len(counts), dtype=bool)
        own[chosen] = True
        stepwise = np.repeat(own, counts) if len(ends) and ends[-1] else slice(0)
        question = known["question"][owner[chosen[0]]].as_py()
        gathering.signal(model, name, phase, prefill, depth, question).add_many(
            first + owner[chosen],
            values[chosen],
            lower[chosen],
            counts[chosen],
            tokens[stepwise],
            bounds[stepwise],
            [labels[i] for i in members],
        )


def _numbers(array: Any) -> NDArray[np.float64]:
    """Of an Arrow array, NaN where it is null."""
    return np.asarray(array.cast("float64").to_numpy(zero_copy_only=False), dtype=np.float64)


def _integers(array: Any) -> NDArray[np.int64]:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)
