"""A cascade file's data is what YAML and TOML say, and every key has its line."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from confcascade import ConfigurationError
from confcascade.cascade_file.source import Source
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.text(string.ascii_lowercase, min_size=1, max_size=5)
# with whatever may confuse whoever looks for lines: brackets, quotes, comment signs, line breaks
TEXTS = st.text('ab[]{}#"=\n :', max_size=8)
VALUES = st.recursive(
    TEXTS | st.integers(-9, 9) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=4)


def read(folder: Path, name: str, text: str) -> Source:
    path = folder / name
    path.write_text(text)
    return Source.read(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source")


def keys_of(data: Any, keys: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: list[Any] = []
    if isinstance(data, dict):
        inner = list(data.items())
    if isinstance(data, list):
        inner = list(enumerate(data))
    return [keys, *(each for key, value in inner for each in keys_of(value, (*keys, key)))]


@given(data=DOCUMENTS)
def test_yaml_is_read_as_pyyaml_reads_it(folder: Path, data: dict[str, Any]):
    """Data as `safe_load` gives it; the line of each key of a mapping shows this key."""
    text = yaml.safe_dump(data, default_flow_style=False, sort_keys=False)
    source = read(folder, "a.yaml", text)

    assert source.data == yaml.safe_load(text) == data
    rows = text.split("\n")
    for keys in keys_of(data)[1:]:
        if isinstance(keys[-1], str):
            row = rows[source.line(keys) - 1]
            assert f"{keys[-1]}:" in row or f"{keys[-1]}'" in row  # y, n, on and the like are quoted


class Toml:
    """Writes TOML, a key or an element of an array a line, and notes the lines."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.rows: list[str] = []
        self.lines: dict[tuple[str | int, ...], int] = {}
        for key, value in data.items():
            self.value((key,), value, f"{key} = ", "")

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def value(self, keys: tuple[str | int, ...], value: Any, before: str, after: str) -> None:
        self.lines[keys] = len(self.rows) + 1
        if isinstance(value, list):
            self.rows += [f"{before}[  # ]", ""]
            for i, each in enumerate(value):
                self.value((*keys, i), each, "  ", ",")
            self.rows.append(f"]{after}")
        else:
            for inner in keys_of(value, keys):  # an inline table is one line
                self.lines[inner] = len(self.rows) + 1
            self.rows.append(f"{before}{self.inline(value)}{after}  # = [")

    def inline(self, value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {self.inline(each)}" for key, each in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(self.inline, value)) + "]"
        return json.dumps(value)


@given(data=DOCUMENTS)
def test_toml_lines_are_those_that_were_written(folder: Path, data: dict[str, Any]):
    """Whatever stands in strings and comments, each key and each element of an array has its line."""
    written = Toml(data)
    source = read(folder, "a.toml", written.text)

    assert source.data == data
    assert {keys: source.line(keys) for keys in written.lines} == written.lines


def test_toml_tables_and_long_strings_have_lines(tmp_path: Path):
    """Headers of tables, dotted keys, and a text of several lines, which is where it begins."""
    text = (
        '# a comment\nprompt = """\n[[stages]]\nmodel = 1\n"""\n[[stages]]\nmodel = "a"\n'
        'thresholds.p_t = 0.9\n\n[[stages]]\nmodel = "b"\n[stages.prices]\ninput_usd = 1\n'
    )
    source = read(tmp_path, "a.toml", text)

    lines = {
        ("prompt",): 2,
        ("stages",): 6,
        ("stages", 0): 6,
        ("stages", 0, "model"): 7,
        ("stages", 0, "thresholds", "p_t"): 8,
        ("stages", 1): 10,
        ("stages", 1, "model"): 11,
        ("stages", 1, "prices"): 12,
        ("stages", 1, "prices", "input_usd"): 13,
        ("stages", 1, "prices", "output_usd"): 12,  # not there: that of the table that lacks it
    }
    assert {keys: source.line(keys) for keys in lines} == lines


def test_yaml_defaults_can_be_shared(tmp_path: Path):
    """Anchors, aliases and merged keys work as in any YAML file, a key's own value before a merged one."""
    text = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc: *b\nd: [*b, *b]\n"
    source = read(tmp_path, "a.yaml", text)

    assert source.data == yaml.safe_load(text)
    assert source.data["c"] == {"x": 1, "y": 3}
    assert [source.line(keys) for keys in [("b", "x"), ("b", "y"), ("c",), ("d", 1)]] == [1, 4, 5, 2]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "a: 1\nb:\n  c: 1\n  c: 2\n", "a.yaml, line 4: the key `c` is there twice"),
        ("a.yaml", "a: [1\nb: 2\n", "a.yaml, line 2: not valid YAML"),
        ("a.yaml", "a: \x01\n", "a.yaml: not valid YAML"),
        ("a.yaml", "a: 1\n2: b\n", 'a.yaml, line 2: a key must be text; write "2" with quotes'),
        ("a.yaml", "on: 1\n", 'line 1: a key must be text; write "on" with quotes'),
        ("a.yaml", "a: 1\nb: &b [*b]\n", "a.yaml, line 2: an alias must not contain itself"),
        ("a.yaml", "a: 1\nb: !!python/name:os.system\n", "a.yaml, line 2: not a value that a cascade file can hold"),
        ("a.yaml", "a: 2026-13-45\n", "a.yaml, line 1: not a value that a cascade file can hold"),
        ("a.yaml", "a: 1\n---\nb: 2\n", "a.yaml, line 2: not valid YAML"),
        ("a.yaml", "", "a.yaml: a cascade file holds keys such as `models` or `stages`. Got nothing"),
        ("a.yml", "- a\n- b\n", "Got a list"),
        ("a.yml", "a\n", "Got a str"),
        ("a.toml", "", "Got nothing"),
        ("a.toml", "a = 1\na = 2\n", "a.toml: not valid TOML: Cannot overwrite a value (at line 2"),
        ("a.toml", "a = [\n", "a.toml: not valid TOML"),
        ("a.json", "{}", "A cascade file ends in .yaml, .yml or .toml"),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path: Path, name: str, text: str, says: str):
    """A file that is no YAML or TOML with keys is one line with the place in it."""
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, name, text)

    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path):
    """Both are one line that names the file."""
    with pytest.raises(ConfigurationError, match=r"none\.yaml' cannot be read: No such file"):
        Source.read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    with pytest.raises(ConfigurationError, match=r"latin\.yaml' cannot be read: it is not UTF-8"):
        Source.read(tmp_path / "latin.yaml")
