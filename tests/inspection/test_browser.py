"""The page of inspect-attn in headless Chromium: it loads quietly, and clicking and hovering do what they should.

Needs the "browser" extra and a Chromium: the one at /usr/bin/chromium, or at GPTCLI_TEST_CHROMIUM.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_checkpoint

CHROMIUM = Path(os.environ.get("GPTCLI_TEST_CHROMIUM", "/usr/bin/chromium"))
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ATTACK = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}; GPTCLI_TEST_CHROMIUM names another")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of 400 px whose every complaint and request is kept in ``page.heard``."""
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="light")
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("dialog", lambda dialog: page.heard.append(dialog.message))
    page.on("request", lambda request: page.heard.append(request.url))
    yield page
    page.close()


def open_attention(gptcli: Any, tmp_path: Path, page: Any, text: str) -> Any:
    """The page of a text; its weights (L, H, T, T) as --npz has them."""
    path = tiny_checkpoint(tmp_path / "tiny", context_length=64)
    result = gptcli("inspect-attn", text, "-c", path, "--html", "a.html", "--npz", "a.npz")
    assert result.code == 0, result.err
    url = (tmp_path / "a.html").as_uri()
    page.goto(url)
    assert page.heard == [url], "no request but the page itself, no error, no dialog"
    return np.load("a.npz")["weights"]


def links(page: Any) -> list[str]:
    return [item.inner_text() for item in page.locator("#links li").all()]


def expected(weights: Any, label: str, text: str, layer: int, head: int, token: int) -> list[tuple[float, int]]:
    row = weights[layer, head, token]
    return [(round(float(row[j]), 4), int(j)) for j in row.argsort()[::-1][:6] if row[j] > 5e-5]


def test_choosing_a_head_and_looking_at_tokens(gptcli: Any, tmp_path: Path, page: Any) -> None:
    text = "the ferry and the bell"
    weights = open_attention(gptcli, tmp_path, page, text)
    assert page.locator("#grid button").count() == 6
    assert page.locator("#tokens button").count() == len(text)
    for layer, head, token in ((0, 0, 21), (1, 2, 7)):
        page.locator(f'#grid button[data-place="{layer}.{head}"]').click()
        assert f"Layer {layer}, head {head}" in page.locator("#name").inner_text()
        assert page.locator('#grid button[aria-pressed="true"]').count() == 1
        page.locator("#tokens button").nth(token).hover()
        first, *rest = links(page)
        assert f"({token}) attends to" in first
        for line, (weight, place) in zip(rest, expected(weights, "", text, layer, head, token), strict=True):
            assert float(line.split()[0].split("\n")[0][:6]) == pytest.approx(weight, abs=1.01e-4)
            assert f"({place})" in line or weights[layer, head, token, place] == pytest.approx(weight, abs=1e-4)
    shares = page.locator("#scores").inner_text()
    assert "bits" in shares
    assert "induction" in shares


def test_pinning_holds_until_it_is_let_go(gptcli: Any, tmp_path: Path, page: Any) -> None:
    open_attention(gptcli, tmp_path, page, "the ferry and the bell")
    tokens = page.locator("#tokens button")
    tokens.nth(9).click()
    tokens.nth(3).hover()
    assert "(9) attends to — pinned" in links(page)[0]
    page.keyboard.press("Escape")
    tokens.nth(4).hover()
    assert "(4) attends to" in links(page)[0]


def test_the_keyboard_does_it_too(gptcli: Any, tmp_path: Path, page: Any) -> None:
    open_attention(gptcli, tmp_path, page, "the ferry")
    page.locator('#grid button[aria-pressed="true"]').focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "Layer 1, head 1" in page.locator("#name").inner_text()
    page.keyboard.press("a")
    assert page.locator("#arcs path").count() > 5
    assert not page.locator("#map").is_visible()
    page.keyboard.press("m")
    assert page.locator("#map").is_visible()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("d")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.locator("#tokens button").nth(2).focus()
    page.keyboard.press("Enter")
    assert "(2) attends to — pinned" in links(page)[0]


def test_hovering_the_map_looks_at_its_rows(gptcli: Any, tmp_path: Path, page: Any) -> None:
    open_attention(gptcli, tmp_path, page, "the ferry")
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    margin, cell = page.evaluate("[margin, cell]")
    page.mouse.move(box["x"] + margin + 3, box["y"] + margin + 4.5 * cell)
    assert "(4) attends to" in links(page)[0]


def test_hostile_text_is_text(gptcli: Any, tmp_path: Path, page: Any) -> None:
    open_attention(gptcli, tmp_path, page, ATTACK)
    assert page.locator("img").count() == 0
    shown = "".join(button.inner_text() for button in page.locator("#tokens button").all())
    assert shown == ATTACK.replace(" ", "·")
    assert len(page.heard) == 1


def test_nothing_is_wider_than_400_pixels_or_lost_in_print(gptcli: Any, tmp_path: Path, page: Any) -> None:
    open_attention(gptcli, tmp_path, page, "the ferry and the bell")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.emulate_media(media="print")
    assert page.locator("#map").is_visible()
    assert page.locator("#scores").is_visible()
    assert not page.locator("#grid").is_visible()


def test_reports_load_quietly_too(gptcli: Any, tmp_path: Path, page: Any) -> None:
    path = tiny_checkpoint(tmp_path / "tiny", context_length=64)
    assert gptcli("inspect-logits", ATTACK, "-c", path, "--html", "b.html").code == 0
    url = (tmp_path / "b.html").as_uri()
    page.goto(url)
    assert [entry for entry in page.heard if not entry.startswith("data:image/png")] == [url]
    assert page.locator("img").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
