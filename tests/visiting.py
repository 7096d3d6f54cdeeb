"""What the tests in a real browser share: how Chromium is started, and a visit to the page that notes what it says and
asks. The fixtures `browser` and `url` are in conftest.py; pictures of the page go where SEQEXPORT_SCREENSHOTS says."""

import os
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest

sync_api = pytest.importorskip("playwright.sync_api")

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
FIGURES = ".chart svg"
TWO_FIGURES = f"() => document.querySelectorAll('{FIGURES}').length === 2"
SCREENSHOTS = Path(os.environ.get("SEQEXPORT_SCREENSHOTS") or Path(__file__).with_name("screenshots"))
# Every module of browser tests says `pytestmark = MARKS`.
MARKS = [
    pytest.mark.browser,
    # Gradio leaves event loops and their sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning"),
    # Gradio sums up its queue with what pandas has deprecated; as an error it would end the event.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


def bring_onnxruntime_web() -> None:
    """onnxruntime-web's files, by the command that brings them, where they are not here yet."""
    from seqexport.errors import FileError
    from tabs import webfiles

    try:
        webfiles.onnxruntime_web()
    except FileError:
        assert webfiles.main() == 0


def open_tab(page: "sync_api.Page", name: str) -> None:
    """Choose a tab of the page; on a narrow screen it may be in the menu at the end of their row."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
        return
    page.locator(".overflow-menu > button").first.click()
    page.locator(".overflow-dropdown button", has_text=name).click()


class Visit:
    """A page that was opened, and what it said and asked meanwhile. until: what has to be true before the visit begins,
    in JavaScript; by default, that both figures of the first tab are there. locale: the browser's language."""

    def __init__(
        self,
        browser: "sync_api.Browser",
        url: str,
        width: int = 1280,
        theme: str = "light",
        locale: str = "en-US",
        until: str = TWO_FIGURES,
    ) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, locale=locale)
        self.name = f"{width}-{theme}-{locale}"
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))
        self.page.goto(f"{url}?__theme={theme}")
        self.page.wait_for_function(until, timeout=60_000)

    def figures(self) -> list[str]:
        """The two figures of the Forecast tab, as SVG."""
        return self.page.eval_on_selector_all(FIGURES, "figures => figures.map(f => f.outerHTML)")

    def press(self, name: str = "Forecast") -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def open(self, tab: str) -> None:
        open_tab(self.page, tab)

    def quiet(self, still: int = 1000, within: float = 60.0) -> None:
        """Wait until nothing is worked on and the page's text has not changed for `still` milliseconds."""
        end = time.monotonic() + within
        before = None
        while time.monotonic() < end:
            working = self.page.locator(".progress-text:visible, .eta-bar:visible, .generating:visible").count()
            now = self.page.evaluate("document.body.innerText")
            if not working and now == before:
                return
            before = now
            self.page.wait_for_timeout(still)
        raise AssertionError(f"the page was not still within {within} s: {before!r:.500}")

    def picture(self, name: str) -> Path:
        """Keep the whole page as it is now, under a name that tells width, theme and language too."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}-{self.name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path

    def check(self) -> None:
        """Nothing overflowed, nothing complained, no other host was asked."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert self.complaints == []
        assert self.hosts - {""} == {urlparse(self.page.url).netloc}

    def opinions(self) -> list[str]:
        """What both columns of the Sentiment tab say of each text."""
        return [text.strip() for text in self.page.locator(".opinion").all_inner_texts()]

    def written(self) -> list[str]:
        """The texts of the server's two columns of the Characters tab."""
        return self.page.eval_on_selector_all(".written", "columns => columns.map(c => c.textContent)")[:2]

    def settled(self, still: int = 1500, within: float = 20.0) -> list[str]:
        """The texts of both columns, once they have not changed for `still` milliseconds: a slow machine goes on
        showing what was on its way."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            before = self.written()
            self.page.wait_for_timeout(still)
            if self.written() == before:
                return before
        raise AssertionError(f"the texts still grew after {within} s; now they are {before}")

    def sampled(self, until: str, seconds: float = 180.0) -> list[list[int]]:
        """The lengths of both texts, again and again, until the result says `until`."""
        samples, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            samples.append([len(text) for text in self.written()])
            if until in self.page.locator("#characters-result").inner_text():
                return samples
            self.page.wait_for_timeout(30)
        raise AssertionError(f"{until!r} was not said within {seconds} s; the last lengths were {samples[-3:]}")
