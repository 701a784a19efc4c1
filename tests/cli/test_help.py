"""Every --help and --help-all at 80 columns is the committed one."""

import re

import pytest
from help_screens import FOLDER, NAMES, screens


@pytest.mark.parametrize("name", NAMES)
def test_help_is_as_committed(name: str) -> None:
    assert screens(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), "make reference writes it anew"


def test_every_screen_is_of_a_command_and_fits() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert max(map(len, text.splitlines())) <= 80
        assert not re.search(r"\w…", text), "a name is cut"
