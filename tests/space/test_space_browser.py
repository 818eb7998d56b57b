"""The page as a person uses it, in a real browser: every tab, on a desktop and a phone, in light and dark.

With SPAFIT_SCREENSHOTS=1 pictures of what was looked at lie in build/screenshots/ afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import browsing
import pytest
from stand_ins import Launched

pytest.importorskip("playwright", reason="the tests in a browser need playwright: pip install spafit-hf[dev]")

from playwright.sync_api import Browser, Page, expect, sync_playwright

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
VIEWS = [("desktop", 1280, 860, "light"), ("phone", 390, 844, "dark")]
"""Nothing on the page depends on the size and the colors together."""
WORDS = ".sf-hero p, .sf-chip span, .sf-about p, .sf-cannot, .sf-hint, .sf-strata p, .sf-what, .sf-cell:not(.sf-none)"
"""Text of which some stands on a color."""
LOWEST_CONTRAST = """(words) => {
  const parse = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const ratio = (node) => {
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  return Math.min(...[...document.querySelectorAll(words)].filter((node) => node.offsetParent).map(ratio));
}"""
"""Of text to its ground, as WCAG 2 defines it; 4.5 is what it asks for."""
PATIENCE = 60_000
"""Milliseconds: the machine may be busy."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = browsing.find_browser()
    if path is None:
        pytest.skip("no browser: install chromium (make browser), or name one in SPAFIT_BROWSER")
    # A root user's chromium has no sandbox; it opens nothing but the page under test.
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[3]}")
def page(request: pytest.FixtureRequest, browser: Browser, launched: Launched) -> Iterator[Page]:
    name, width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda sent: elsewhere.append(sent.url) if _is_elsewhere(sent.url, launched.url) else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(launched.url)
    opened.locator("#one-ask").wait_for()
    opened.screenshot_name = f"{name}-{scheme}"  # type: ignore[attr-defined]
    yield opened
    assert elsewhere == [], "the page must ask no other server for anything"
    assert errors == []
    context.close()


def _is_elsewhere(url: str, own: str) -> bool:
    return not url.startswith((own, "data:", "blob:"))


def _look(page: Page, name: str) -> None:
    """What holds of the page in every state; a picture of it, if wanted."""
    if os.environ.get("SPAFIT_SCREENSHOTS"):
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(300)  # movements end
        page.screenshot(path=SHOTS / f"{page.screenshot_name}-{name}.png", full_page=True)  # type: ignore[attr-defined]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert page.evaluate(LOWEST_CONTRAST, WORDS) >= 4.5
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark is page.screenshot_name.endswith("dark")  # type: ignore[attr-defined]


@pytest.mark.slow
def test_every_tab_as_a_person_uses_it(page: Page) -> None:
    expect.set_options(timeout=PATIENCE)
    for tab in ("One task", "Every task", "Compare", "Results"):
        expect(page.get_by_role("tab", name=tab, exact=True)).to_be_visible()

    # A mistake is a sentence.
    page.locator("#one-ask").click()
    toast = page.locator(".toast-body")
    expect(toast).to_contain_text("There is no text yet")
    assert "Traceback" not in page.content()
    _look(page, "0-mistake")
    toast.locator(".toast-close").click()

    # One task: an example answers at once, where one looks; then a text of one's own, then a task on pairs.
    page.evaluate("window.scrollTo(0, 0)")
    page.locator("#one-examples button").first.dispatch_event("click")  # which by itself scrolls nowhere
    answer = page.locator("#one-answer")
    expect(answer.locator(".sf-verdict")).to_be_in_viewport()
    expect(answer.locator(".sf-bar")).to_have_count(2)
    expect(answer.locator(".sf-facts")).to_contain_text("adapter")
    expect(page.locator("#one-strata .sf-cell.sf-lora").first).to_be_visible()
    expect(page.locator("#one-pair textarea")).to_be_hidden()
    _look(page, "1-sentiment")
    page.get_by_label("Grammar", exact=True).check()
    expect(answer.locator(".sf-hint")).to_be_visible()
    page.locator("#one-text textarea").focus()
    page.keyboard.type("Bold, bright and far too short.")
    page.keyboard.press("Shift+Enter")  # as with the keyboard alone
    expect(answer.locator(".sf-verdict")).to_be_visible()
    page.get_by_label("Inference", exact=True).check()
    expect(page.get_by_label("Premise")).to_have_value("")
    page.get_by_label("Premise").fill("Every seat on the boat is taken.")
    page.get_by_label("Hypothesis").fill("The boat is empty.")
    page.locator("#one-ask").click()
    expect(answer.locator(".sf-bar")).to_have_count(3)
    expect(answer).to_contain_text("contradicts")
    assert "LABEL_" not in answer.inner_text()
    page.get_by_label("Similarity", exact=True).check()
    expect(answer.locator(".sf-hint")).to_be_visible()
    page.locator("#one-examples button").nth(1).click()
    expect(answer.locator(".sf-scale")).to_be_visible()
    _look(page, "1-similarity")

    # Every task: a single text, then a pair.
    page.get_by_role("tab", name="Every task", exact=True).click()
    page.locator("#all-text textarea").fill("The soup was cold and so was the waiter.")
    page.locator("#all-ask").click()
    expect(page.locator("#all-answers .sf-card")).to_have_count(3)
    page.locator("#all-examples button").last.click()
    expect(page.locator("#all-answers .sf-card")).to_have_count(7)
    expect(page.locator("#all-answers")).to_contain_text("7 answers in one pass")
    _look(page, "2-every-task")

    # Compare: SPAFIT against LoRA, then against full fine-tuning.
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator("#two-examples button").first.click()
    expect(page.locator("#two-answers .sf-card")).to_have_count(2)
    expect(page.locator("#two-answers")).to_contain_text("LoRA-II")
    _choose(page, "#two-right", "full fine-tuning")
    page.locator("#two-ask").click()
    expect(page.locator("#two-answers")).to_contain_text("every weight")
    _look(page, "3-compare")

    page.get_by_role("tab", name="Results", exact=True).click()
    expect(page.locator(".sf-chart")).to_be_visible()
    expect(page.locator(".sf-results")).to_contain_text(".83 (paper .93)")
    _look(page, "4-results")


def _choose(page: Page, dropdown: str, words: str) -> None:
    page.locator(f"{dropdown} input").click()
    page.get_by_role("option").filter(has_text=words).first.click()


def test_a_page_without_adapters_says_so_and_takes_one(browser: Browser, launched_open: Launched) -> None:
    expect.set_options(timeout=PATIENCE)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(PATIENCE)
    page.screenshot_name = "phone-light"  # type: ignore[attr-defined]
    page.goto(launched_open.url)
    expect(page.get_by_text("No adapters are here")).to_be_visible()
    expect(page.get_by_role("tab", name="One task")).to_have_count(0)
    _look(page, "6-empty")
    page.get_by_role("tab", name="Add", exact=True).click()
    page.locator("#add-repo input, #add-repo textarea").fill("user/stsb")
    page.locator("#add-button").click()
    expect(page.locator("#add-done")).to_contain_text("user/stsb is here")
    _look(page, "7-added")
    page.close()
