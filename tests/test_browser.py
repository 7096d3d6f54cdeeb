"""The demo in a real browser: what a visitor sees, on a wide and on a narrow screen."""

import gc
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
import demo  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
IMAGES = "[data-testid=matplotlib] img"
TWO_FIGURES = f"() => document.querySelectorAll('{IMAGES}').length === 2"
pytestmark = [
    pytest.mark.browser,
    # Gradio leaves event loops and their sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    page = demo.build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.launch_options())
    yield url
    page.close()
    gc.collect()


class Visit:
    """A page that was opened, and what it said and asked meanwhile."""

    def __init__(self, browser: "sync_api.Browser", url: str, width: int, theme: str) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))
        self.page.goto(f"{url}?__theme={theme}")
        self.page.wait_for_function(TWO_FIGURES, timeout=60_000)

    def figures(self) -> list[str]:
        """The two figures, as data URLs."""
        return self.page.eval_on_selector_all(IMAGES, "images => images.map(i => i.src)")

    def press(self) -> None:
        self.page.get_by_role("button", name="Forecast", exact=True).click()


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1)])
def test_opens_on_a_result(browser: "sync_api.Browser", url: str, width: int, columns: int, theme: str) -> None:
    visit = Visit(browser, url, width, theme)
    assert "times as" in visit.page.locator("#result").inner_text()
    assert all(" ms" in text for text in visit.page.locator(".latency").all_inner_texts())
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = [image.bounding_box() for image in visit.page.locator(IMAGES).all()]
    assert all(box["width"] > 280 and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert len({round(box["x"]) for box in boxes}) == columns
    assert visit.complaints == []
    assert visit.hosts - {""} == {urlparse(url).netloc}
    visit.page.close()


def test_button_gives_a_new_result(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    before = visit.figures()
    visit.page.get_by_label("Seed of the noise").fill("7")
    visit.press()
    changed = f"before => [...document.querySelectorAll('{IMAGES}')].every((image, i) => image.src !== before[i])"
    visit.page.wait_for_function(changed, arg=before)
    assert "times as" in visit.page.locator("#result").inner_text()
    assert visit.complaints == []
    visit.page.close()


def test_pasted_values_and_a_sentence_for_bad_ones(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.page.get_by_label("Your own values").check()
    values = visit.page.get_by_label("Values, oldest first")
    values.fill("1, 2, three")
    visit.press()
    toast = visit.page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "Value 3 of the series is “three”" in toast.inner_text()
    before = visit.figures()
    values.fill(" ".join(str(10 + i % 12) for i in range(200)))
    visit.press()
    visit.page.wait_for_function(f"src => document.querySelector('{IMAGES}').src !== src", arg=before[0])
    visit.page.close()


def test_inputs_have_labels(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    for label in ("Left runtime", "Right runtime", "Seed of the noise", "Sunspots", "GRU"):
        assert visit.page.get_by_label(label).first.is_visible(), label
    visit.page.close()
