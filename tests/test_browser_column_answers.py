"""Answers of the visitor's own machine in a real browser: the third column of the Forecast and the Sentiment tab."""

import re
from pathlib import Path
from urllib.parse import urlparse

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from visiting import FIGURES, MARKS, Visit, bring_onnxruntime_web  # noqa: E402

pytestmark = MARKS
PATIENCE = 60_000  # milliseconds: the first answer of a process imports torch
AGREES = re.compile(r"Beside ONNX Runtime on the server: The answers differ by at most (\S+) of the largest value\.")
# All three figures' central paths, [x, y] by [x, y].
PATHS = f"""() => [...document.querySelectorAll("{FIGURES}")]
  .map(figure => figure.querySelector(".central").getAttribute("points"))"""
# What is there when all three columns show the same answer, in each tab, and it is not the one before.
SAME = {
    "forecast": """before => {
      const shown = [...document.querySelectorAll(".chart")].map(chart => chart.getAttribute("aria-label"));
      const plain = shown.map(said => said.slice(said.indexOf(":")));
      return plain.length === 3 && new Set(plain).size === 1 && plain[0] !== before;
    }""",
    "sentiment": """before => {
      const shown = [...document.querySelectorAll("#sentiment-sides .opinion")].map(one => one.innerText);
      const third = shown.length / 3;
      return third >= 1 && shown.every((text, place) => text === shown[place % third]) && shown[0] !== before;
    }""",
}
FIRST = {
    "forecast": "() => { const said = document.querySelector('.chart').getAttribute('aria-label');"
    " return said.slice(said.indexOf(':')) }",
    "sentiment": "() => document.querySelector('#sentiment-sides .opinion').innerText",
}


@pytest.fixture(scope="module", autouse=True)
def brought() -> None:
    """onnxruntime-web's files, by the command that brings them."""
    bring_onnxruntime_web()


class Column:
    """A tab that was opened, its third column, and which paths the page asked for."""

    def __init__(self, visit: Visit, tab: str) -> None:
        self.visit, self.page, self.tab = visit, visit.page, tab
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(urlparse(request.url).path))
        if tab == "sentiment":
            visit.open("Sentiment")
        self.page.wait_for_selector(f"#{'sentiment-' * (tab == 'sentiment')}result .lead", timeout=PATIENCE)

    @property
    def loaded(self) -> list[str]:
        """The nets, and what runs them, that the page asked for."""
        return [path.rsplit("/", 1)[1] for path in self.asked if re.search(r"/browser/(models/|ort)", path)]

    def button(self, name: str) -> "sync_api.Locator":
        """The column's button, once it is called that."""
        self.page.wait_for_function(
            "([tab, name]) => document.querySelector(`#${tab}-browser-button`).innerText.trim() === name",
            arg=[self.tab, name],
            timeout=PATIENCE,
        )
        return self.page.locator(f"#{self.tab}-browser-button")

    def says(self, words: str) -> str:
        """What stands in the place of the column's time, once it holds these words."""
        self.page.wait_for_function(
            "([tab, words]) => document.querySelector(`#${tab}-browser-speed`).innerText.includes(words)",
            arg=[self.tab, words],
            timeout=PATIENCE,
        )
        return self.page.locator(f"#{self.tab}-browser-speed").inner_text()

    def drawings(self) -> int:
        """How many charts or opinions the column shows."""
        return self.page.locator(f"#{self.tab}-browser-body").locator(".chart, .opinion").count()

    def first(self) -> str:
        """What the left column shows."""
        return self.page.evaluate(FIRST[self.tab])

    def agrees(self, before: str = "") -> None:
        """All columns show the same answer, another one than before, and the third says that it agrees."""
        self.page.wait_for_function(SAME[self.tab], arg=before, timeout=PATIENCE)
        found = AGREES.search(self.says("Beside ONNX Runtime"))
        assert found is not None
        assert float(found[1]) <= 1e-4


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize(
    ("tab", "size", "net"), [("forecast", "3.8", "sunspots-gru"), ("sentiment", "10.9", "sentiment-en")]
)
def test_the_third_column_gives_the_servers_answer(
    browser: "sync_api.Browser", url: str, width: int, theme: str, tab: str, size: str, net: str
) -> None:
    column = Column(Visit(browser, url, width, theme), tab)
    page = column.page
    button = column.button(f"Run it in your browser too ({size} MB)")
    assert column.loaded == []  # nothing before it is asked for
    assert column.drawings() == 0
    height = page.evaluate("document.body.scrollHeight")
    left = column.page.locator(".latency:visible").first.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    column.agrees()
    said = column.says(" calls on your machine, in WebAssembly")
    assert re.match(r"\d+\.\d ms\s+Median of \d+ calls", said)
    column.button("Run it in your browser again")
    assert set(column.loaded) == {f"{net}.onnx", "ort-wasm.js", "ort-wasm.wasm.gz", "ort.js"}
    assert column.page.locator(".latency:visible").first.inner_text() == left  # the others need not answer again
    if width == 1280:
        assert page.evaluate("document.body.scrollHeight") == height  # and nothing moved
    if tab == "forecast":
        paths = [[float(number) for number in re.split("[ ,]", path)] for path in page.evaluate(PATHS)]
        assert paths[2] == pytest.approx(paths[1], abs=0.2)  # tenths of a unit of a drawing of 1000 × 500
    before, loaded = column.first(), column.loaded
    if tab == "forecast":
        page.get_by_label("number input for Horizon").fill("60")
        column.visit.press("Forecast")
    else:
        page.locator("#sentiment-texts textarea").fill("Dull and slow.\nI loved it! <b>zzyzx</b>")
        column.visit.press("Classify")
    column.agrees(before)
    assert column.loaded == loaded  # it takes part, and loads nothing more
    heads = page.evaluate(
        """tab => {
          const head = document.querySelector(`#${tab}-browser-button`).getBoundingClientRect();
          const sides = [...document.querySelectorAll("[aria-label$=' runtime']")].filter(one => one.offsetParent);
          return [...sides.map(side => side.getBoundingClientRect()), head].map(box => [box.left, box.top]);
        }""",
        tab,
    )
    assert len(heads) == 3
    for axis, many in ((0, width == 1280), (1, width < 1280)):
        apart = max(head[axis] for head in heads) - min(head[axis] for head in heads)
        assert (apart > 300) is many, heads  # side by side, or one below the other
    column.visit.picture(f"{tab}-in-the-browser")
    column.visit.check()
    page.close()


def test_another_net_is_offered_with_its_size_before_it_is_loaded(browser: "sync_api.Browser", url: str) -> None:
    column = Column(Visit(browser, url), "forecast")
    column.button("Run it in your browser too (3.8 MB)").click()
    column.agrees()
    column.page.get_by_label("LSTM").check()
    column.button("Run it in your browser too (0.05 MB)")  # what runs it is there
    before, loaded = column.first(), column.loaded
    column.visit.press("Forecast")
    column.says("This net is not in your browser yet: the button loads it.")
    column.page.wait_for_function("() => document.querySelectorAll('.chart').length === 2")
    assert column.loaded == loaded
    column.button("Run it in your browser too (0.05 MB)").click()
    column.agrees(before)
    assert column.loaded == [*loaded, "sunspots-lstm.onnx"]
    # Its button asks the others too, where they show another answer.
    before = column.first()
    column.page.get_by_label("GRU").check()
    column.button("Run it in your browser again").click()
    column.agrees(before)
    assert column.loaded == [*loaded, "sunspots-lstm.onnx"]
    # What runs the nets is there for the other tabs as well.
    column.visit.open("Sentiment")
    other = Column(column.visit, "sentiment")
    other.button("Run it in your browser too (7.2 MB)").click()
    other.agrees()
    column.visit.check()
    column.page.close()


def test_own_numbers_and_a_file_are_answered_too(browser: "sync_api.Browser", url: str, tmp_path: Path) -> None:
    column = Column(Visit(browser, url), "forecast")
    before = column.first()
    column.page.get_by_label("Own numbers").check()
    column.page.get_by_placeholder("12.5, 14 …").fill(" ".join(str(10 + i % 12) for i in range(200)))
    column.button("Run it in your browser too (3.8 MB)").click()
    column.agrees(before)
    before = column.first()
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["date,load", *(f"2024-{1 + i // 28:02d}-{1 + i % 28:02d},{i % 7}" for i in range(300))]))
    column.page.get_by_label("Own file").check()
    column.page.locator("input[type=file]").first.set_input_files(path)
    column.page.wait_for_selector(".preview table")
    column.visit.press("Forecast")
    column.agrees(before)
    column.visit.check()
    column.page.close()


def test_an_example_in_chinese_is_answered_by_its_own_net(browser: "sync_api.Browser", url: str) -> None:
    column = Column(Visit(browser, url), "sentiment")
    before = column.first()
    column.page.get_by_role("button", name="还不错").click()
    column.button("Run it in your browser too (5.1 MB)").click()
    column.agrees(before)
    assert column.page.locator("#sentiment-sides .opinion").count() == 9
    before = column.first()
    column.page.get_by_role("button", name="转折").click()  # an example that the column answers by itself
    column.agrees(before)
    assert column.loaded.count("sentiment-zh.onnx") == 1
    column.visit.check()
    column.page.close()


def test_a_file_that_does_not_come_is_told_and_the_tab_goes_on(browser: "sync_api.Browser", url: str) -> None:
    column = Column(Visit(browser, url), "forecast")
    column.page.route("**/browser/models/**", lambda route: route.fulfill(status=503, body="busy"))
    column.button("Run it in your browser too (3.8 MB)").click()
    assert "It did not run in your browser" in column.says("503")
    assert column.drawings() == 0
    column.page.unroute("**/browser/models/**")
    column.button("Run it in your browser too (3.8 MB)").click()
    column.agrees()
    column.page.close()


def test_a_page_that_sends_something_else_is_not_believed(browser: "sync_api.Browser", url: str) -> None:
    column = Column(Visit(browser, url), "sentiment")
    worker = (
        "self.onmessage = ({ data: { id, kind } }) => self.postMessage({ id, result: kind === 'load' ? { bytes: 1 }"
    )
    worker += " : { outputs: { running: { dims: [1], data: new Float32Array([NaN]) } }, milliseconds: 1, calls: 1 } });"
    column.page.route("**/browser/worker.js", lambda route: route.fulfill(content_type="text/javascript", body=worker))
    column.button("Run it in your browser too (10.9 MB)").click()
    column.says("The browser's answer is not probabilities and running: load the page again.")
    assert column.drawings() == 0
    column.visit.check()
    column.page.close()
