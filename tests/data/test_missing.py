"""Names of texts that are not there, and files that are no text: what was meant, and what makes a text of them."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from gptcli.data import documents
from gptcli.errors import GptcliError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(source: str) -> str:
    with pytest.raises(GptcliError) as found:
        documents.read_documents([source])
    return str(found.value)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("https://example.com/books/a.txt", "a.txt"),
        ("HTTP://example.com/a.txt?x=1&y=2", "a.txt"),
        ("https://example.com/", "text.txt"),
        ("ftp://example.com", "text.txt"),
    ],
)
def test_an_address_is_shown_as_it_was_typed(address: str, target: str) -> None:
    message, hint = refused(address).splitlines()
    assert message.startswith(f"{address} is an address")
    assert f"curl -L -o {target} " in hint
    assert address in hint


def test_a_file_one_or_two_folders_down_or_up_is_found() -> None:
    Path("texts/below").mkdir(parents=True)
    Path("texts/one.txt").write_text("one", encoding="utf-8")
    Path("texts/below/two.txt").write_text("two", encoding="utf-8")
    assert f"Did you mean {Path('texts/one.txt')}?" in refused("one.txt")
    assert f"Did you mean {Path('texts/below/two.txt')}?" in refused("two.txt")
    assert f"Did you mean {Path('texts/one.txt')}?" in refused("nowhere/one.txt")
    assert f"Did you mean {Path('texts/one.txt')}?" in refused("texts/oen.txt")
    assert "mean" not in refused("zzzzzz")
    assert "mean" not in refused("texts/quiet.txt")  # the ending alone is the same


def test_a_run_and_a_text_itself_are_no_files() -> None:
    Path("checkpoints/run").mkdir(parents=True)
    Path("checkpoints/run/config.json").write_text("{}", encoding="utf-8")
    assert "--resume" in refused("run")
    assert "If this is the text itself" in refused("Once upon a time there was a text")


def zipped(name: str, *files: str) -> str:
    with zipfile.ZipFile(name, "w") as archive:
        for file in files:
            archive.writestr(file, "application/epub+zip" if file == "mimetype" else "text " * 9)
    return name


def test_what_is_no_text_comes_with_the_program_that_makes_one() -> None:
    Path("my paper.pdf").write_bytes(b"%PDF-1.7\n...")
    assert "pdftotext 'my paper.pdf' 'my paper.txt'" in refused("my paper.pdf")
    Path("b.rtf").write_bytes(b"{\\rtf1 text}")
    assert "pandoc b.rtf" in refused("b.rtf")
    Path("c.doc").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    assert "libreoffice" in refused("c.doc")
    Path("d").write_bytes(b"\xfd7zXZ\x00")
    assert "xz -dc d > d.txt" in refused("d")
    assert "an EPUB book" in refused(zipped("a.epub", "mimetype", "x.xhtml"))
    assert "pandoc b.docx -t plain -o b.txt" in refused(zipped("b.docx", "[Content_Types].xml", "word/document.xml"))
    assert "unzip c.zip -d c" in refused(zipped("c.zip", "c.txt"))
    assert "Give a plain-text file." in refused(zipped("e.npz", "x.npy"))


def test_a_readme_is_left_out_of_a_folder_unless_it_is_named() -> None:
    Path("texts").mkdir()
    for name in ("a.txt", "README.md", "readme.txt", "readme-not.txt"):
        Path("texts", name).write_text(f"text of {name}", encoding="utf-8")
    (found,) = documents.find(["texts"])
    assert [path.name for path in found.files if path] == ["a.txt", "readme-not.txt"]
    assert [path.name for path in found.left_out] == ["README.md", "readme.txt"]
    assert len(documents.find(["texts"], readmes=True)[0].files) == 4
    assert documents.read_documents(["texts/README.md"])[0].text == "text of README.md"
    Path("texts/a.txt").unlink()
    Path("texts/readme-not.txt").unlink()
    assert "README.md, which describes a folder" in refused("texts")


def test_a_name_with_spaces_that_was_given_without_quotes(gptcli: Any, tmp_path: Path) -> None:
    (tmp_path / "My diary.txt").write_text("abc", encoding="utf-8")
    gptcli("train", "My", "diary.txt").assert_user_error("No such file: My", 'as in "My diary.txt"')
