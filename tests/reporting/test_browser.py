"""The page in a real browser, from the file system: it renders, asks for nothing, reacts, and prints whole.

Needs Debian's packages `chromium` and `chromium-driver` and PyPI's `selenium`. Where they are absent the tests are
skipped, unless the environment says SSL_MEDNET_BROWSER=required.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip


def missing() -> str:
    """Why there is no browser, empty where there is one."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"no {program} on this machine"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return ""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if reason := missing():
        if os.environ.get("SSL_MEDNET_BROWSER") == "required":
            pytest.fail(f"{reason}, and SSL_MEDNET_BROWSER=required")
        pytest.skip(f"{reason}: apt-get install chromium chromium-driver; pip install selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, written: list[Path]) -> Any:
    """The report, freshly opened, light, 1280 pixels wide."""
    emulate(browser, "light", 1280)
    browser.get(written[0].as_uri())
    return browser


def emulate(browser: Any, scheme: str, width: int, media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_it_renders_without_a_word_in_the_console_and_asks_for_nothing(browser: Any, written: list[Path]) -> None:
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(written[0].as_uri())
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:image/")} == {written[0].as_uri()}
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in fetched if not name.startswith("data:image/")] == []


def test_the_network_is_shut_to_whatever_gets_into_the_page(page: Any) -> None:
    """The policy holds even for a script that someone smuggles in."""
    script = """
      const done = arguments[arguments.length - 1], image = new Image();
      addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
      image.src = "http://127.0.0.1:9/x.png";
      setTimeout(() => done("nothing was refused"), 3000);
    """
    assert page.execute_async_script(script) == "img-src"


def test_every_figure_can_be_seen_and_read(page: Any) -> None:
    script = """
      document.querySelectorAll("details").forEach((d) => (d.open = true));
      const figures = [...document.querySelectorAll("svg.plot, .map svg, img.drawn, .thumb")];
      return figures.filter((e) => !e.closest(".tip")).map((e) => {
        const a = e.getBoundingClientRect(), texts = e.querySelectorAll("text");
        const inside = [...texts].every((t) => { const b = t.getBoundingClientRect();
          return Math.min(b.left - a.left, a.right - b.right, b.top - a.top, a.bottom - b.bottom) >= -1 });
        return [e.getAttribute("class"), a.width, a.height, inside, texts.length];
      });
    """
    figures = page.execute_script(script)
    assert sum(kind == "plot" for kind, *_ in figures) > 40
    for kind, width, height, inside, texts in figures:
        assert min(width, height) >= 60, kind
        assert inside, kind
        assert texts >= 6 or kind != "plot"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_itself_never_scrolls_sideways(page: Any, width: int) -> None:
    emulate(page, "light", width)
    page.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_what_scrolls_shows_it_at_its_edge(page: Any) -> None:
    emulate(page, "light", 400)
    box = page.find_element("css selector", ".scroll:has(.board)")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", box)
    picture = np.asarray(Image.open(BytesIO(box.screenshot_as_png)).convert("L"), int)
    assert box.get_property("scrollWidth") > box.get_property("clientWidth")
    outer, inner = (np.median(picture[:, -column]) for column in (2, 30))
    assert inner - outer > 20  # there is more to the right
    assert abs(np.median(picture[:, 1]) - np.median(picture[:, 30])) < 4  # and nothing to the left
    page.execute_script("arguments[0].scrollLeft = arguments[0].scrollWidth", box)
    picture = np.asarray(Image.open(BytesIO(box.screenshot_as_png)).convert("L"), int)
    assert np.median(picture[:, 30]) - np.median(picture[:, 1]) > 20


def tip_of(box: Any) -> Any:
    return box.find_element("css selector", ".tip")


def test_pointing_at_a_mark_shows_its_image(page: Any) -> None:
    from selenium.webdriver import ActionChains

    box = page.find_element("css selector", ".map")
    svg = box.find_element("css selector", "svg")
    data = json.loads(box.find_element("css selector", "script").get_attribute("textContent"))
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", svg)
    assert not tip_of(box).is_displayed()
    seen = set()
    for x, y, column, line, is_, decided in data["points"][:6]:
        across, down = x - svg.size["width"] / 2, y - svg.size["height"] / 2
        ActionChains(page, duration=0).move_to_element_with_offset(svg, round(across), round(down)).perform()
        tip = tip_of(box)
        assert tip.is_displayed()
        picture = tip.find_element("css selector", ".thumb")
        place = page.execute_script("return ['--x', '--y'].map((n) => arguments[0].style.getPropertyValue(n))", picture)
        if place == [str(column), str(line)]:  # marks may lie on top of each other
            said = "\n".join(data["texts"][i] for i in (is_, decided)).replace("\u00a0", " ")
            assert tip.text == said
        assert page.execute_script("return getComputedStyle(arguments[0]).backgroundImage", picture).startswith("url(")
        inside = page.execute_script(
            "const a = arguments[0].getBoundingClientRect(); return a.left >= 0 && a.right <= innerWidth", tip
        )
        assert inside
        seen.add(tuple(place))
    assert len(seen) > 3
    ActionChains(page, duration=0).move_to_element(page.find_element("css selector", "h1")).perform()
    assert not tip_of(box).is_displayed()


def test_the_map_can_be_read_with_the_keyboard_and_by_touch(page: Any) -> None:
    from selenium.webdriver import Keys

    box = page.find_elements("css selector", ".map")[1]
    svg = box.find_element("css selector", "svg")
    page.execute_script("arguments[0].focus()", svg)
    said = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_DOWN):
        page.switch_to.active_element.send_keys(key)
        ring = box.find_element("css selector", ".ring")
        said.append((ring.get_attribute("cx"), ring.get_attribute("cy")))
        assert tip_of(box).is_displayed()
    assert float(said[1][0]) > float(said[0][0])
    assert len(set(said)) >= 3
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not tip_of(box).is_displayed()
    touch = """
      const svg = arguments[0], frame = svg.getBoundingClientRect(), at = { pointerType: "touch", bubbles: true };
      const [x, y] = JSON.parse(svg.parentElement.querySelector("script").textContent).points[0];
      const place = { clientX: frame.left + x + 5, clientY: frame.top + y };
      svg.dispatchEvent(new PointerEvent("pointerdown", { ...at, ...place }));
      svg.dispatchEvent(new PointerEvent("pointerleave", at));
    """
    page.execute_script(touch, svg)
    assert tip_of(box).is_displayed()  # a finger that is lifted leaves it there


def test_details_open(page: Any) -> None:
    details = page.find_element("css selector", "section details")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", details)
    body = details.find_element("css selector", "table")
    assert not body.is_displayed()
    details.find_element("css selector", "summary").click()
    assert body.is_displayed()


CONTRASTS = """
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data] };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { const own = rgba(getComputedStyle(e).backgroundColor), a = own[3] / 255;
    if (a > 0.99 || !e.parentElement) return own;
    const below = ground(e.parentElement); return own.map((v, i) => v * a + below[i] * (1 - a)) };
  document.querySelectorAll("details").forEach((d) => (d.open = true));
  const worst = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const e = node.parentElement;
    if (!node.textContent.trim() || e.closest("script, style, noscript, [hidden], title, .skip")) continue;
    const style = getComputedStyle(e), text = e.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(rgba(text)), light(ground(e))].sort();
    const name = e.tagName + "." + (e.getAttribute("class") || ""), ratio = (b + 0.05) / (a + 0.05);
    if (!(worst[name] <= ratio)) worst[name] = ratio;
  }
  return [worst, rgba(getComputedStyle(document.body).backgroundColor).slice(0, 3)];
"""


def test_light_and_dark_are_both_readable(page: Any) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        emulate(page, scheme, 1280)
        worst, grounds[scheme] = page.execute_script(CONTRASTS)
        assert len(worst) > 20
        assert {name: ratio for name, ratio in worst.items() if ratio < 4.5} == {}
    assert min(grounds["light"]) > 240
    assert max(grounds["dark"]) < 40


def test_on_paper_it_is_light_and_nothing_is_folded(page: Any) -> None:
    emulate(page, "dark", 1280, media="print")
    root = "getComputedStyle(document.documentElement)"
    assert page.execute_script(f"return {root}.getPropertyValue('--paper')") == "#ffffff"
    emulate(page, "dark", 1280)
    count_open = "document.querySelectorAll('details[open]').length"
    page.execute_script(f"addEventListener('beforeprint', () => (window.open_ = {count_open}))")
    folded = page.execute_script("return document.querySelectorAll('details:not([open])').length")
    assert folded > 10
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 5
    assert page.execute_script("return window.open_") == folded  # all were open while it was printed
    assert page.execute_script(f"return {count_open}") == 0  # and are not after it
