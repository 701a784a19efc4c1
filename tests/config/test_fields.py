"""What a field says about itself is what is checked, in terms of fields for code and of options for a command."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from gptcli.config.fields import check, fields_of, setting
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig, split
from gptcli.config.sampling import SamplingConfig
from gptcli.errors import SettingError


@dataclass(frozen=True)
class Example:
    count: int = setting(4, "How many.", at_least=1)
    share: float | None = setting(None, above=0, at_most=1, hint="Half of {count}.")
    kind: Literal["one", "two"] = setting("one")
    on: bool = setting(False)

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"count": 0}, "count is 0, but it must be at least 1.", "Leave it out for the default, 4."),
        ({"count": "3"}, "count is '3', but it must be a whole number.", "Leave it out for the default, 4."),
        ({"count": 2.0}, "count is 2.0, but it must be a whole number.", "Leave it out for the default, 4."),
        ({"count": True}, "count is True, but it must be a whole number.", "Leave it out for the default, 4."),
        ({"count": None}, "count is None, but it must be a whole number.", "Leave it out for the default, 4."),
        ({"share": 0}, "share is 0, outside (0, 1].", "Half of count."),
        ({"share": float("nan")}, "share is nan, outside (0, 1].", "Half of count."),
        ({"kind": "three"}, "kind is 'three', which is not one of its values.", "Choose one of: one, two."),
        ({"on": 1}, "on is 1, but it must be true or false.", "Leave it out for the default, False."),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(SettingError) as caught:
        Example(**given)
    assert (caught.value.message, caught.value.hint) == (message, hint)
    named = caught.value.named(lambda name: f"--{name}", str)
    field = next(iter(given))
    assert f"--{field}" in named.message


def test_what_is_taken() -> None:
    assert Example(1, 1, "two", True).share == 1
    assert Example(share=0.5).kind == "one"


@pytest.mark.parametrize("config", [GPTConfig, RecipeConfig, RuntimeConfig, SamplingConfig])
def test_every_field_is_a_setting_with_a_help_text(config: Any) -> None:
    of_the_data = {"labels"}  # no one sets them
    assert list(fields_of(config)) == [name for name in config.__dataclass_fields__ if name not in of_the_data]
    for each in fields_of(config).values():
        assert each.setting.help.endswith(".")
        assert each.setting.panel


def test_what_resuming_may_change() -> None:
    assert all(each.setting.on_resume for each in fields_of(RuntimeConfig).values())
    may = {name for name, each in fields_of(RecipeConfig).items() if each.setting.on_resume}
    assert may == {"epochs", "max_steps", "max_time", "early_stop", "final", "schedule_steps"}


def test_older_snapshots_have_both_in_one_table() -> None:
    assert split({"epochs": 3, "keep": 5}) == (RecipeConfig(epochs=3), RuntimeConfig(keep=5))
