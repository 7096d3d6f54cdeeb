"""The Compare tab in a real browser: figures and tables that fit, can be read and saved; and a measurement."""

import csv
import gc
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")
sync_api = pytest.importorskip("playwright.sync_api")
import made_up  # noqa: E402
from test_comparison import MACHINE  # noqa: E402
from visiting import MARKS, open_tab  # noqa: E402

import demo  # noqa: E402
from seqexport import comparison  # noqa: E402
from tabs import cells, racing  # noqa: E402

pytestmark = MARKS
ROOT = Path(demo.__file__).parent
# The least contrast of any text of an element with what is behind it, and that text.
CONTRAST = """root => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const numbers = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let worst = [99, ''];
  for (const element of root.querySelectorAll('*')) {
    const own = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join('');
    if (!own || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    let behind = [255, 255, 255, 255];
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour[3] > 250) { behind = colour; break; }
    }
    const [a, b] = [light(numbers(element.closest('svg') ? style.fill : style.color)), light(behind)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, own];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The demo on the shipped models, with made-up results of the cells and a short comparison of one model."""
    folder = tmp_path_factory.mktemp("compare") / "exported"
    folder.mkdir()
    for path in (ROOT / "exported").iterdir():
        if path.suffix != ".json":
            (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "describe_machine", lambda: MACHINE)
        found = comparison.compare(
            ROOT / "exported" / "sunspots-gru" / "checkpoint.pt",
            runtimes=("torch", "onnxruntime", "reference"), scenarios=("step", "pipeline"), seconds=1,
        )  # fmt: skip
        (folder / "runtimes.json").write_text(json.dumps(found.to_dict(), allow_nan=False))
        (folder / "cells.json").write_text(json.dumps(made_up.results(), allow_nan=False))
        patch.setattr(racing, "EXPORTED", folder)
        page = demo.build()
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.launch_options())
        yield url
        page.close()
    gc.collect()


class Visit:
    """The tab, opened, and what the page complained of."""

    def __init__(self, browser, url, width=1280, theme="light", language="en-US"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, locale=language)
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.complaints = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{url}?__theme={theme}")
        self.page.locator("#result .lead").wait_for()
        open_tab(self.page, "比较" if language.startswith("zh") else "Compare")
        self.page.locator("#cells-shown table").wait_for()

    def choose(self, value):
        self.page.locator(f"label:visible:has(input[value={value}])").click()

    def open(self, name):
        self.page.get_by_role("tab", name=name, exact=True).click()

    def check(self, place):
        """What is shown there fits and can be read, and nothing complained."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        contrast, text = self.page.locator(place).evaluate(CONTRAST)
        assert contrast >= 4.5, text
        assert self.complaints == []

    def close(self):
        self.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_cells_and_runtimes_fit_and_can_be_read(browser, url, width, theme):
    visit = Visit(browser, url, width, theme)
    assert "Of 11 claims" in visit.page.locator("#cells-claims").inner_text()
    visit.check("#cells-claims")
    titles = {"quality": "sunspots", "memory": "adding problem", "times": "Training step", "sizes": "State that"}
    for view in cells.VIEWS:
        visit.choose(view)
        said = titles.get(view, "Gradient over")
        visit.page.locator("#cells-shown", has_text=said).wait_for()
        visit.check("#cells-shown")
    for picture in visit.page.locator("#cells-shown svg").all():
        box = picture.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 280
    visit.open("Runtimes")
    visit.page.locator("#runtimes-shown", has_text="is fastest").wait_for()
    visit.check("#runtimes-shown")
    visit.close()


def test_a_table_is_saved_as_csv(browser, url, tmp_path):
    visit = Visit(browser, url)
    with visit.page.expect_download() as found:
        visit.page.locator("#cells-shown .save a").click()
    assert found.value.suggested_filename == "cells-quality.csv"
    found.value.save_as(tmp_path / "saved.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "saved.csv").read_text(encoding="utf-8-sig"))))
    assert len(rows) == 75 and {row["task"] for row in rows} == set(made_up.TASKS)
    visit.close()


def test_it_speaks_chinese(browser, url):
    visit = Visit(browser, url, language="zh-CN")
    assert "教程中常见的 11 个说法里" in visit.page.locator("#cells-claims").inner_text()
    assert visit.page.get_by_text("长期记忆", exact=True).is_visible()
    visit.open("运行时")
    visit.page.locator("#runtimes-shown", has_text="最快").wait_for()
    assert not re.search(r"is fastest|Answers|Download", visit.page.locator("#runtimes-shown").inner_text())
    visit.close()


def test_programs_get_the_same(url):
    client = gradio_client.Client(url, verbose=False)
    assert client.predict(api_name="/cells")["claims"] == made_up.results()["claims"]
    assert client.predict(api_name="/runtimes")["models"][0]["model"] == "sunspots-gru"
    found = client.predict("sunspots-rnn", "step", 5, api_name="/measure_here")
    assert found["models"][0]["scenarios"][0]["rows"][0]["agrees"]
    for model, seconds, sentence in (("../demo", 5, "The model is"), ("sunspots-rnn", 1e9, "expected a number from 5")):
        with pytest.raises(Exception, match=sentence):
            client.predict(model, "step", seconds, api_name="/measure_here")


def test_a_model_is_measured_here(browser, url):
    visit = Visit(browser, url, 390)
    visit.open("This machine")
    visit.page.get_by_label("Seconds to measure").first.fill("5")
    visit.page.get_by_role("button", name="Measure here", exact=True).click()
    visit.page.locator("#measured-here progress").wait_for()
    visit.page.locator("#measured-here table").wait_for(timeout=150_000)
    assert "is fastest" in visit.page.locator("#measured-here").inner_text()
    assert "Left out here" in visit.page.locator("#measured-here").inner_text()
    visit.check("#measured-here")
    visit.close()
