"""The Convert tab in a real browser: a file goes in, an ONNX file comes out that gives what torch gives."""

import re

import numpy as np
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from conftest import randomised  # noqa: E402
from torch import nn  # noqa: E402
from visiting import MARKS, Visit  # noqa: E402

from tabs import jobs  # noqa: E402

pytestmark = MARKS
LONG = 240_000  # milliseconds; other processes may be at work beside
READY = "() => document.querySelector('[role=tab]') !== null"
SETTLED = """place => document.querySelector(place + ' .lead') && !document.querySelector(place + ' progress')"""


@pytest.fixture(scope="module", autouse=True)
def no_child_is_left():
    yield
    jobs.retire()


class Conversion(Visit):
    """A visit to the tab."""

    def __init__(self, browser, url, width=1280, theme="light", locale="en-US"):
        super().__init__(browser, url, width, theme, locale, READY)
        self.page.wait_for_timeout(1000)  # until the tabs that have no room went into their menu
        self.open("转换你的模型" if locale.startswith("zh") else "Convert yours")

    def found(self):
        self.page.wait_for_function(SETTLED, arg="#convert-found", timeout=LONG)
        return self.page.locator("#convert-found").inner_text()

    def upload(self, path):
        self.page.locator("#convert-file input[type=file]").set_input_files(str(path))
        return self.found()

    def example(self, label):
        self.page.locator("#convert-examples").get_by_role("button", name=label).click()
        self.page.wait_for_function("() => document.querySelector('#convert-found progress') !== null")
        return self.found()

    def convert(self):
        self.page.get_by_role("button", name=re.compile("^(Convert|转换)$")).click()
        self.page.wait_for_function("() => document.querySelector('#convert-result progress') !== null")
        self.page.wait_for_function(SETTLED, arg="#convert-result", timeout=LONG)
        self.page.wait_for_timeout(500)
        return self.page.locator("#convert-result").inner_text()

    def download(self, suffix, folder):
        link = self.page.locator("#convert-files a[download]").filter(has_text=re.compile(r"KB|MB|B"))
        names = [one.get_attribute("download") for one in link.all()]
        place = next(place for place, name in enumerate(names) if name.endswith(suffix))
        with self.page.expect_download() as arriving:
            link.nth(place).click()
        arriving.value.save_as(folder / names[place])
        return folder / names[place]


class Net(nn.Module):
    """A GRU, time first, whose head reads the mean of the steps."""

    def __init__(self):
        super().__init__()
        self.gru, self.out = nn.GRU(3, 6, 2), nn.Linear(6, 2)

    def forward(self, x, h0):
        y, hn = self.gru(x, h0)
        return self.out(y.mean(0)), hn


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_upload_convert_download_and_run(browser, url, tmp_path, width, theme):
    net = randomised(Net())
    torch.save({"epoch": 3, "model_state_dict": net.state_dict()}, tmp_path / "my <b>net<b>.pt")
    visit = Conversion(browser, url, width, theme)
    found = visit.upload(tmp_path / "my <b>net<b>.pt")
    assert "Recognised: GRU" in found
    assert "3 numbers a step, 6 hidden, 2 layers" in found
    assert visit.page.locator("#convert-found b").count() == 0
    assert not visit.page.get_by_text("Nonlinearity of the RNN cell").is_visible()
    visit.page.get_by_label("time, then batch").check()
    visit.page.get_by_label("the mean over the steps").check()
    visit.page.get_by_label("is required").check()
    verdict = visit.convert()
    assert "agree with torch" in verdict
    visit.picture("convert")
    path = visit.download(".onnx", tmp_path)
    draw = torch.Generator().manual_seed(2)
    x, h0 = torch.randn(17, 3, 3, generator=draw), torch.randn(2, 3, 6, generator=draw)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    y, hn = session.run(["y", "hn"], {"x": x.numpy(), "h0": h0.numpy()})
    with torch.no_grad():
        expected, state = net(x, h0)
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(hn, state.numpy(), atol=1e-5)
    assert visit.page.locator("#convert-graphs svg .recurrent").count() == 2  # a node a layer
    assert "onnxruntime.InferenceSession" in visit.page.locator("#convert-program").inner_text()
    visit.check()
    visit.page.close()


def test_an_example_with_a_loop_can_be_opened_and_its_pages_downloaded(browser, url, tmp_path):
    visit = Conversion(browser, url, 390)
    assert "forecast" in visit.example("Sunspots forecaster")
    verdict = visit.convert()
    assert "all 40 cases agree with torch" in verdict
    visit.page.get_by_text("sunspots.forecast.onnx", exact=True).last.click()
    inside = visit.page.locator("summary", has_text="inside Scan")
    inside.scroll_into_view_if_needed()
    inside.click()
    assert visit.page.locator("#convert-graphs svg:visible .recurrent").count() == 3
    graph = visit.page.locator("#convert-graphs .graph").nth(1)
    assert graph.evaluate("box => box.scrollWidth > box.clientWidth")  # in its own box, and not the page
    assert "Verified" in visit.download(".report.html", tmp_path).read_text()
    assert visit.download(".zip", tmp_path).stat().st_size > 50_000
    visit.picture("convert-loop")
    visit.check()
    visit.page.close()


def test_questions_that_apply_are_shown_and_a_new_file_begins_anew(browser, url):
    visit = Conversion(browser, url, 1280, "dark")
    assert "RNN (tanh)" in visit.example("TorchScript RNN")
    question = visit.page.get_by_text("Nonlinearity of the RNN cell")
    assert question.is_visible()
    assert not visit.page.get_by_text("The linear layer reads").is_visible()
    visit.page.get_by_label("relu").check()
    assert "3 outputs" in visit.example("Lightning checkpoint")
    assert not question.is_visible()
    assert visit.page.get_by_text("The linear layer reads").is_visible()
    visit.example("TorchScript RNN")
    assert visit.page.get_by_label("tanh").is_checked()
    visit.check()
    visit.page.close()


def test_a_refused_file_shows_its_sentence_and_can_not_be_converted(browser, url, tmp_path):
    visit = Conversion(browser, url, 390)
    assert "would run code to be read, and was not executed" in visit.example("Pickled module")
    assert visit.page.get_by_role("button", name="Convert", exact=True).is_disabled()
    (tmp_path / "page.html").write_text("<img src=x onerror=alert(1)>")
    visit.page.locator("#convert-file").get_by_role("button", name=re.compile("Clear|Remove")).first.click()
    visit.page.wait_for_function("() => document.querySelector('#convert-found .lead') === null")
    assert "neither a checkpoint nor an ONNX file" in visit.upload(tmp_path / "page.html")
    visit.picture("convert-refused")
    visit.check()
    visit.page.close()


def test_in_chinese(browser, url):
    visit = Conversion(browser, url, 390, "light", "zh-CN")
    visit.page.locator("#convert-examples button").nth(2).click()
    visit.page.wait_for_function("() => document.querySelector('#convert-found progress') !== null")
    assert "识别为：LSTM" in visit.found()
    assert "验证通过" in visit.convert()
    visit.picture("convert")
    visit.check()
    visit.page.close()
