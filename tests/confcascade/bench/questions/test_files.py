"""Files of records, in every form and gzipped, and the words for what is wrong with them."""

from __future__ import annotations

import csv
import gzip
import json
import warnings

import pytest
from confcascade.bench.questions.files import records
from confcascade.errors import ConfigurationError
from hypothesis import given
from hypothesis import strategies as st

ROWS = [{"question": "Who, and\nwhy?", "group": 'a "b"'}, {"question": "Où?", "group": "c,d"}]


def write(path, rows):
    """`rows` as a file of the form that its name tells."""
    opener = gzip.open if path.suffix == ".gz" else open
    form = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if form in ("csv", "tsv"):
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if form == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
        elif form == "json":
            json.dump(rows, file)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_cells_are_as_long_as_they_are(tmp_path, form):
    """The limit of the module `csv` is that of others, who find it as they left it: while rows are read, too."""
    before = csv.field_size_limit()
    rows = [{"question": "q", "context": "word " * 60_000}] * 2
    limits = [csv.field_size_limit() for _ in records(write(tmp_path / f"rows.{form}", rows))]
    assert limits == [before] * 2
    assert [dict(record) for _, record in records(tmp_path / f"rows.{form}")] == rows
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("form", ["jsonl", "ndjson", "json", "csv", "tsv"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_form_holds_the_same_records(tmp_path, form, packed):
    path = write(tmp_path / f"rows.{form}{packed}", ROWS)
    assert [dict(record) for _, record in records(path)] == ROWS


text = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1)


@given(st.lists(st.tuples(text, text).filter(lambda pair: any(cell.strip() for cell in pair)), min_size=1))
def test_csv_survives_a_round_trip(tmp_path_factory, pairs):
    """Commas, quotation marks, tabs and lines within cells come back as they were."""
    rows = [{"question": question, "group": group} for question, group in pairs]
    path = write(tmp_path_factory.mktemp("csv") / "rows.csv", rows)
    assert [dict(record) for _, record in records(path)] == rows


def test_a_record_is_named_by_the_line_on_which_it_begins(tmp_path):
    """A quoted cell over several lines and a blank line do not put the count out."""
    path = tmp_path / "rows.csv"
    path.write_text('question,group\n"a\nb\nc",x\n\nlast,y\n')
    assert [where for where, _ in records(path)] == ["line 2", "line 6"]


def test_excels_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("\ufeffquestion,group\na,b\n".encode())
    assert next(records(path))[1]["question"] == "a"


def test_a_json_file_of_several_lists_wants_one_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"name": "x", "dev": [{"question": "a"}], "test": [{"question": "b"}]}))
    assert [record["question"] for _, record in records(path, "test")] == ["b"]
    with pytest.raises(ConfigurationError, match="several lists, dev, test: say which as `part`"):
        list(records(path))
    with pytest.raises(ConfigurationError, match="'val' is none of them"):
        list(records(path, "val"))


def test_the_only_list_of_a_json_file_is_taken(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": [{"question": "a"}]}))
    assert [record["question"] for _, record in records(path)] == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"question": "a"}\n{"question"\n', "Line 2 of .* is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1 of .* must be a JSON object. Got list"),
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"3", "must hold a list"),
        ("a.csv", b"question,group\na\n", "Line 2 of .* has 1 cells, its header 2"),
        ("a.csv", b'question,group\nx,y\n"a"b,c\n', "row from line 3 of .* cannot be read"),
        ("a.csv", b'question,group\n"a,c\n', "row from line 2 of .* cannot be read"),
        ("a.csv", b"question,question\na,b\n", "more than one column 'question'"),
        ("a.csv.gz", b"question\na\n", "cannot be read"),
        ("a.parquet", b"PAR1", r"must end in \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        list(records(tmp_path / name))


def test_a_part_is_asked_only_of_what_has_parts(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ConfigurationError, match="has no parts"):
        list(records(path, "test"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.filterwarnings("ignore:.*Windows-1252")
def test_tables_as_excel_writes_them(tmp_path, encoding, delimiter, quoting):
    """Between the cells a comma, a semicolon or a tab, in Unicode or in the code page of western Windows."""
    rows = [{"question": "Où, à Zürich; et \t quoi?", "reference": "“ici”\n"}, {"question": "2,5 €", "reference": "x"}]
    with open(tmp_path / "rows.csv", "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)

    assert [dict(record) for _, record in records(tmp_path / "rows.csv")] == rows


def test_excels_own_line_names_the_delimiter(tmp_path):
    (tmp_path / "rows.csv").write_text("sep=;\nquestion;reference\n\nWhat?;that\n", encoding="utf-8")

    assert list(records(tmp_path / "rows.csv")) == [("line 4", {"question": "What?", "reference": "that"})]


def test_a_guessed_encoding_is_said_once(tmp_path):
    """Windows-1252 cannot be told from its neighbours, so the user looks."""
    (tmp_path / "rows.csv").write_text("question\nÀ quoi?\n", encoding="cp1252")

    with pytest.warns(UserWarning, match="is not in UTF-8, and is read as Windows-1252"):
        assert [record["question"] for _, record in records(tmp_path / "rows.csv")] == ["À quoi?"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(records(tmp_path / "rows.csv"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.filterwarnings("ignore:.*Windows-1252")
def test_what_is_not_text_is_refused_in_plain_words(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"question": "\x81\xff"}')

    with pytest.raises(ConfigurationError, match="save it as UTF-8"):
        list(records(tmp_path / name))
