"""Rows of examples in every file that people keep them in, and what is said of those that cannot be used."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from gptcli.data import rows
from gptcli.data.documents import Document
from gptcli.errors import GptcliError


def read(text: str, name: str = "rows.jsonl") -> list[tuple[int, dict[str, Any]]]:
    def refuse(error: rows.BadRowError) -> None:
        raise error

    return [(row.line, row.fields) for row in rows.read(Document(name, text), refuse)]


def refused(text: str, name: str) -> GptcliError:
    with pytest.raises(GptcliError) as caught:
        read(text, name)
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint
    return caught.value


def test_every_kind_of_file_gives_the_same_rows() -> None:
    expected = [{"text": "one", "label": "a"}, {"text": 'two, "or" more', "label": "b"}]
    for name, text in {
        "r.jsonl": '{"text": "one", "label": "a"}\n{"text": "two, \\"or\\" more", "label": "b"}',
        "r.json": '[{"text": "one", "label": "a"},\n {"text": "two, \\"or\\" more", "label": "b"}]\n',
        "r.csv": 'text,label\none,a\n"two, ""or"" more",b\n',
        "r.tsv": 'text\tlabel\none\ta\n"two, ""or"" more"\tb\n',
        "s.csv": 'text;label\none;a\n"two, ""or"" more";b',
        "p.CSV.gz": 'text|label\none|a\n"two, ""or"" more"|b',
    }.items():
        assert [fields for _, fields in read(text, name)] == expected, name
    assert [fields for _, fields in read('{"text": "one"}\n', "lines.json")] == [{"text": "one"}]
    assert [fields for _, fields in read('[{"text": "one"}]', "list.jsonl")] == [{"text": "one"}]


def test_rows_know_their_lines() -> None:
    assert [line for line, _ in read('\n{"a": 1}\n\n{"a": 2}\n')] == [2, 4]
    assert [line for line, _ in read('[\n{"a":\n1}, {"a": 2},\n\n{"a": 3}]', "r.json")] == [2, 3, 5]
    assert [line for line, _ in read('a,b\n\n1,"two\nlines"\n,\n2,3\n', "r.csv")] == [3, 6]


def test_rows_without_any_value_are_left_out() -> None:
    assert read('{"a": ""}\n{"a": null}\n{}\n{"a": 0}\n') == [(4, {"a": 0})]
    assert read("a,b\n,\n\n1,\n", "r.csv") == [(4, {"a": "1", "b": ""})]
    assert read(" \n", "r.csv") == [] == read("a,b\n", "r.csv") == read("[]", "r.json")


def test_a_column_without_a_name_is_no_field() -> None:
    assert read(",text\n0,one\n", "pandas.csv") == [(2, {"text": "one"})]


def test_a_field_of_a_table_may_be_long() -> None:
    assert read(f"text\n{'x' * 300_000}\n", "r.csv") == [(2, {"text": "x" * 300_000})]


def test_marks_of_byte_order_and_newlines_of_other_systems(tmp_path: Path) -> None:
    for name, data in {
        "bom.csv": b'\xef\xbb\xbftext\r\n"one\r\ntwo"\r\n',
        "utf16.csv": '\ufefftext\n"one\ntwo"\n'.encode("utf-16-le"),
        "packed.jsonl.gz": gzip.compress(b'{"text": "one\\r\\ntwo"}'),
    }.items():
        (tmp_path / name).write_bytes(data)
        (document,) = rows.read_files([str(tmp_path / name)])
        assert rows.is_rows(document.name)
        assert [fields for _, fields in read(document.text, document.name)] == [{"text": "one\ntwo"}], name


def test_a_folder_gives_rows_and_texts(tmp_path: Path) -> None:
    for name in ("a.csv", "b.txt", "c.jsonl", "d.png"):
        (tmp_path / name).write_text("text\none\n", encoding="utf-8")
    assert [Path(document.name).name for document in rows.read_files([str(tmp_path)])] == ["a.csv", "b.txt", "c.jsonl"]


BAD = [
    ("no JSON", "r.jsonl", '{"a": 1}\n{"a"\n', "r.jsonl, line 2 is no JSON: Expecting ':'"),
    ("no object", "r.jsonl", '{"a": 1}\n"text"\n', 'r.jsonl, line 2 is "text", not an object'),
    ("no object in a list", "r.json", '[{"a": 1},\n 7]', "r.json, line 2 is 7, not an object"),
    ("a field twice", "r.jsonl", '{"a": 1, "a": 2}', "r.jsonl, line 1 has the field 'a' twice"),
    ("a field twice in a list", "r.json", '[{"a": 1, "a": 2}]', "r.json, line 1 has the field 'a' twice"),
    ("too many cells", "r.csv", "a,b\n1,2\n1,2,3\n", "r.csv, line 3 has 3 fields, but line 1 names 2: a, b."),
    ("too few cells", "r.tsv", "a\tb\n1\n", "r.tsv, line 2 has 1 fields"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_a_bad_row_is_named_and_may_be_left_out(name: str, text: str, said: str) -> None:
    error = refused(text, name)
    assert said in error.message
    assert "skip_bad" in error.hint
    left_out: list[rows.BadRowError] = []
    document = Document(name, text)
    rest = [*rows.read(document, left_out.append)]
    assert [each.message for each in left_out] == [error.message]
    assert [row.fields["a"] for row in rest] in ([], [1], ["1"])


WHOLE = [
    ("an object over lines", "r.json", '{"data":\n [{"a": 1}]\n}', "is one JSON object over several lines"),
    ("a list without an end", "r.json", '[{"a": 1}', "is no JSON list: Expecting ',' or ']'"),
    ("a comma too many", "r.json", '[{"a": 1},]', "is no JSON list"),
    ("text after the list", "r.json", '[{"a": 1}] x', "is no JSON list: Extra data"),
    ("two columns of a name", "r.csv", "a,b,a\n1,2,3\n", "has 2 columns of the name 'a'"),
    ("a quote without an end", "r.csv", 'a\n1\n"2\n3\n', "r.csv, line 3: a quote has no end"),
    ("text after a quote", "r.csv", 'a,b\n"1" or,2\n', "r.csv, line 2: ',' expected after '\"'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said"), [each[1:] for each in WHOLE], ids=[each[0] for each in WHOLE])
def test_a_file_that_cannot_be_read_is_refused(name: str, text: str, said: str) -> None:
    def leave_out(error: rows.BadRowError) -> None:
        pass

    assert said in refused(text, name).message
    with pytest.raises(GptcliError):
        [*rows.read(Document(name, text), leave_out)]
