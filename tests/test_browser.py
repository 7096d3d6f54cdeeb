"""The demo in a real browser: what a visitor sees, on a wide and on a narrow screen."""

import gc
import itertools
import time
from collections.abc import Iterator
from urllib.parse import urlparse

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
import demo  # noqa: E402
from seqexport.errors import FileError  # noqa: E402
from tabs import racing  # noqa: E402

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
    # Gradio sums up its queue with what pandas has deprecated; as an error it would end the event.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    page = demo.build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.launch_options())
    yield url
    page.close()
    gc.collect()


def open_tab(page: "sync_api.Page", name: str) -> None:
    """Choose a tab of the page; on a narrow screen it may be in the menu at the end of their row."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
        return
    page.locator(".overflow-menu > button").first.click()
    page.locator(".overflow-dropdown button", has_text=name).click()


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

    def press(self, name: str = "Forecast") -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def open(self, tab: str) -> None:
        open_tab(self.page, tab)

    def check(self) -> None:
        """Nothing overflowed, nothing complained, no other host was asked."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert self.complaints == []
        assert self.hosts - {""} == {urlparse(self.page.url).netloc}

    def opinions(self) -> list[str]:
        """What both columns of the Sentiment tab say of each text."""
        return [text.strip() for text in self.page.locator(".opinion").all_inner_texts()]

    def written(self) -> list[str]:
        """The texts of both columns of the Characters tab."""
        return self.page.eval_on_selector_all(".written", "columns => columns.map(c => c.textContent)")

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


SENTIMENT_SAYS = "#sentiment-result .lead"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_sentiment_opens_on_an_answer(browser: "sync_api.Browser", url: str, width: int, theme: str) -> None:
    visit = Visit(browser, url, width, theme)
    visit.open("Sentiment")
    visit.page.wait_for_selector(SENTIMENT_SAYS)
    assert "times as" in visit.page.locator(SENTIMENT_SAYS).inner_text()
    left, right = visit.opinions()
    assert left == right
    assert "%" in left
    assert "the ending is simply wonderful" in left
    assert visit.page.locator(".opinion .spark polyline").count() == 2
    shades = visit.page.eval_on_selector_all(".opinion .words span", "spans => spans.map(s => s.style.background)")
    assert len(shades) == 2 * 29
    assert len(set(shades[:29])) > 5
    visit.check()
    visit.page.close()


def test_sentiment_of_several_lines_in_both_languages(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Sentiment")
    visit.page.wait_for_selector(SENTIMENT_SAYS)
    texts = visit.page.get_by_label("Texts")
    texts.fill("I loved it, a wonderful film.\n\n<img src=x onerror=alert(1)> awful, a waste of time\nfine zzyzx")
    visit.press("Classify")
    visit.page.wait_for_function("() => document.querySelectorAll('.opinion').length === 6")
    opinions = visit.opinions()
    assert opinions[:3] == opinions[3:]
    assert opinions[0].startswith("positive")
    assert opinions[1].startswith("negative")
    assert "<img src=x onerror=alert(1)>" in opinions[1]
    assert visit.page.locator(".opinion img").count() == 0
    assert "zzyzx" in visit.page.locator(".opinion .unknown").all_inner_texts()
    visit.page.get_by_label("中文").check()
    texts.fill("房间很干净，服务非常好，很满意。\n质量太差了，非常失望。")
    visit.press("Classify")
    visit.page.wait_for_function("() => document.querySelectorAll('.opinion').length === 4")
    opinions = visit.opinions()
    assert opinions[:2] == opinions[2:]
    assert [opinion.split()[0] for opinion in opinions[:2]] == ["positive", "negative"]
    texts.fill("  ")
    visit.press("Classify")
    toast = visit.page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "There are 0 texts; expected 1 to 32" in toast.inner_text()
    visit.check()
    visit.page.close()


def test_an_example_is_answered_when_it_is_chosen(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Sentiment")
    visit.page.wait_for_selector(SENTIMENT_SAYS)
    for example, words, count in (("Not bad at all", "Not bad at all.", 4), ("转折", "房间有点旧", 1)):
        visit.press(example)
        visit.page.wait_for_function(
            "([words, count]) => { const shown = [...document.querySelectorAll('.opinion .words')];"
            " return shown.length === 2 * count && shown[0].innerText.includes(words) }",
            arg=[words, count],
        )
    assert visit.page.get_by_label("中文").is_checked()
    visit.check()
    visit.page.close()


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_characters_stream_in_both_columns_at_the_same_time(
    browser: "sync_api.Browser", url: str, width: int, theme: str
) -> None:
    visit = Visit(browser, url, width, theme)
    visit.open("Characters")
    visit.press("Write")
    samples = visit.sampled(until="times as")
    grown = [all(b > a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(samples)]
    assert sum(grown) >= 3, f"both columns grew together in {sum(grown)} samples: {samples}"
    left, right = visit.written()
    assert left == right
    assert left.startswith("ROMEO\n")
    assert len(left) == 1006
    assert "the same 1,000 characters" in visit.page.locator("#characters-result").inner_text()
    assert all("characters/s" in text for text in visit.page.locator(".latency:visible").all_inner_texts())
    visit.check()
    visit.page.close()


def write_quickly(visit: Visit, seed: int, characters: int = 150) -> str:
    visit.page.get_by_label("Seed of the text").fill(str(seed))
    visit.page.get_by_label("number input for Characters to write").fill(str(characters))
    visit.page.get_by_label("as fast as it is").check()
    visit.press("Write")
    visit.page.wait_for_function("() => document.querySelector('#characters-result').innerText.includes('Writing')")
    visit.sampled(until="times as")
    left, right = visit.written()
    assert left == right
    return left


def test_the_same_seed_writes_the_same_text(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Characters")
    first, other, again = (write_quickly(visit, seed) for seed in (7, 8, 7))
    assert first == again != other
    visit.page.get_by_label("三国演义 (中文)").check()
    visit.page.get_by_label("number input for Temperature").fill("0")  # thousands of characters: more often a tie
    assert write_quickly(visit, 7).startswith("却说玄德")
    visit.check()
    visit.page.close()


def test_stop_stops_both_columns_and_one_can_start_again(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Characters")
    visit.page.get_by_label("number input for Characters to write").fill("2000")
    write, stop = (visit.page.get_by_role("button", name=name, exact=True) for name in ("Write", "Stop"))
    assert stop.is_disabled()
    visit.press("Write")
    visit.page.wait_for_function(
        "() => [...document.querySelectorAll('.written')].every(c => c.textContent.length > 20)"
    )
    assert write.is_disabled()
    visit.press("Stop")
    visit.sampled(until="Stopped")
    assert all(20 < len(text) < 2006 for text in visit.settled())
    assert write.is_enabled()
    assert stop.is_disabled()
    assert "times as" not in visit.page.locator("#characters-result").inner_text()
    write_quickly(visit, 1)
    visit.check()
    visit.page.close()


def test_a_bad_prompt_gets_a_sentence_and_the_page_stays_usable(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Characters")
    prompt = visit.page.get_by_label("Prompt")
    prompt.fill("☃☂")
    visit.press("Write")
    toast = visit.page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "knows none of the prompt's characters" in toast.inner_text()
    prompt.fill("<b>JULIET ☃</b>\n")
    visit.press("Write")
    assert visit.page.wait_for_selector("#characters-result :text('does not know')")
    visit.sampled(until="times as")
    assert visit.page.locator(".written b").count() == 0
    assert visit.written()[0].startswith("<b>JULIET ☃</b>\n")
    visit.check()
    visit.page.close()


def test_what_was_written_last_is_in_sight(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 390, "light")
    visit.open("Characters")
    write_quickly(visit, 3, 40)
    above = "box => box.querySelector('code').getBoundingClientRect().top - box.getBoundingClientRect().top"
    assert all(0 < box.evaluate(above) < 40 for box in visit.page.locator(".written").all())
    write_quickly(visit, 3, 2000)
    below = "box => box.querySelector('code').getBoundingClientRect().bottom - box.getBoundingClientRect().bottom"
    for box in visit.page.locator(".written").all():
        assert box.evaluate("box => box.scrollHeight > 2 * box.clientHeight")
        assert box.evaluate(below) <= 0
    visit.check()
    visit.page.close()


def test_a_column_that_fails_leaves_a_page_that_can_be_used(
    browser: "sync_api.Browser", url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Characters")
    load = racing.load_runtime

    def refuse(model: str, pipeline: str, name: str, *how: object) -> object:
        if name == "torch":
            raise FileError("The checkpoint is gone.")
        return load(model, pipeline, name, *how)

    with monkeypatch.context() as patch:
        patch.setattr(racing, "load_runtime", refuse)
        visit.press("Write")
        visit.sampled(until="Not finished")
        assert "The checkpoint is gone." in visit.page.locator("#characters-result").inner_text()
        assert "The checkpoint is gone." in visit.page.locator(".latency:visible").first.inner_text()
    failed, written = visit.written()
    assert failed == ""
    assert len(written) == 1006
    write_quickly(visit, 1)
    visit.page.close()
