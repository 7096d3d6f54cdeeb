"""The exported files on the visitor's own machine, in a real browser: the Characters tab's third column, and the page
that needs no server."""

import functools
import gc
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from visiting import MARKS, Visit, bring_onnxruntime_web  # noqa: E402

import demo  # noqa: E402
import seqexport  # noqa: E402
from seqexport.runtimes import Runtime  # noqa: E402
from seqexport.text import Vocabulary  # noqa: E402
from tabs import webfiles  # noqa: E402
from training import static_page  # noqa: E402

pytestmark = MARKS
EXPORTED = Path(demo.__file__).parent / "exported"
WRITTEN = "#characters-browser-body .written"


@pytest.fixture(scope="module", autouse=True)
def brought() -> None:
    """onnxruntime-web's files, by the command that brings them."""
    bring_onnxruntime_web()


@pytest.fixture(scope="module")
def url(brought: None) -> Iterator[str]:
    page = demo.build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.launch_options())
    yield url
    page.close()
    gc.collect()


def offered(model: str, again: bool = False) -> str:
    """What the button says of a model before it is loaded: with onnxruntime-web unless that is there."""
    files = [EXPORTED / model / "checkpoint.generate.onnx", *([] if again else webfiles.onnxruntime_web().values())]
    return f"Run it in your browser too ({sum(path.stat().st_size for path in files) / 1e6:.1f} MB)"


def own(visit: Visit) -> str:
    """The text of the visitor's own machine."""
    return visit.page.eval_on_selector(WRITTEN, "place => place.textContent")


def verdict(visit: Visit, said: str) -> str:
    """What the server says of that text, once it says `said`."""
    arguments = {"arg": said, "timeout": 120_000}
    visit.page.wait_for_function(
        "said => document.querySelector('#characters-browser-verdict').innerText.includes(said)", **arguments
    )
    return visit.page.locator("#characters-browser-verdict").inner_text()


@pytest.mark.parametrize(("width", "theme", "columns"), [(1280, "light", 3), (390, "dark", 1)])
def test_the_third_column_writes_the_servers_text(
    browser: "sync_api.Browser", url: str, width: int, theme: str, columns: int
) -> None:
    visit = Visit(browser, url, width, theme)
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(urlparse(request.url).path))
    visit.open("Characters")
    button = visit.page.get_by_role("button", name=offered("characters-en"))
    button.wait_for()
    assert not any("/browser/models/" in path or "ort" in path for path in asked)  # nothing before it is asked for
    visit.page.get_by_label("as fast as it is").check()
    visit.page.get_by_label("number input for Characters to write").fill("300")
    button.click()
    verdict(visit, "The same 300 characters as ONNX Runtime writes on the server.")
    assert "characters/s" in visit.page.locator("#characters-browser-speed").inner_text()
    assert len(own(visit)) == 306
    loaded = [path for path in asked if "/browser/models/" in path]
    assert len(loaded) == 1
    # Now it is part of every race, and loads nothing more.
    visit.page.get_by_role("button", name="Write it in your browser").wait_for()
    visit.page.get_by_label("Seed of the text").fill("5")
    visit.press("Race")
    visit.sampled(until="Both wrote the same 300")
    visit.page.wait_for_function(
        f"text => document.querySelector('{WRITTEN}').textContent === text", arg=visit.written()[0], timeout=60_000
    )
    assert [path for path in asked if "/browser/models/" in path] == loaded
    boxes = [place.bounding_box() for place in visit.page.locator(".written").all()]
    assert len({round(box["x"]) for box in boxes}) == columns
    assert len({round(box["y"]) for box in boxes}) == 4 - columns  # in one line, or one below the other
    visit.check()
    visit.page.close()


def test_another_net_is_offered_with_its_size_before_it_is_loaded(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Characters")
    visit.page.get_by_role("button", name=offered("characters-en")).wait_for()
    visit.page.get_by_label("三国演义 (中文)").check()
    button = visit.page.get_by_role("button", name=offered("characters-zh"))
    button.wait_for()
    visit.page.get_by_label("number input for Characters to write").fill("60")
    button.click()
    verdict(visit, "The same 60 characters")
    assert own(visit).startswith("却说玄德")
    visit.page.get_by_label("Shakespeare (English)").check()
    # What runs the nets is there by now: the other net alone is left to be loaded.
    visit.page.get_by_role("button", name=offered("characters-en", again=True)).wait_for()
    visit.check()
    visit.page.close()


def test_a_file_that_does_not_come_is_told_and_the_tab_goes_on(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.page.route("**/browser/models/**", lambda route: route.fulfill(status=503, body="busy"))
    visit.open("Characters")
    button = visit.page.get_by_role("button", name=offered("characters-en"))
    button.click()
    visit.page.wait_for_function("() => document.querySelector('#characters-browser-speed').innerText.includes('503')")
    assert "It did not run in your browser" in visit.page.locator("#characters-browser-speed").inner_text()
    visit.page.unroute("**/browser/models/**")
    visit.page.get_by_label("number input for Characters to write").fill("40")
    button.click()
    verdict(visit, "The same 40 characters")
    visit.page.close()


def test_stop_stops_the_third_column_too(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Characters")
    visit.page.get_by_label("number input for Characters to write").fill("20")
    visit.page.get_by_role("button", name=offered("characters-en")).click()
    verdict(visit, "The same 20 characters")
    visit.page.get_by_label("number input for Characters to write").fill("2000")
    visit.press("Race")
    visit.page.wait_for_function(f"() => document.querySelector('{WRITTEN}').textContent.length > 40")
    visit.press("Stop")
    visit.page.wait_for_timeout(1500)
    before = own(visit)
    visit.page.wait_for_timeout(1500)
    assert own(visit) == before
    assert len(before) < 2006
    visit.check()
    visit.page.close()


# --- The page that needs no server.


@pytest.fixture(scope="module")
def sites(brought: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The static pages, with float32 and with int8 nets, in folders below a plain file server's → where each is."""
    root = tmp_path_factory.mktemp("site")
    for precision in static_page.PRECISIONS:
        assert static_page.main([str(root / "some" / precision), "--precision", precision]) == 0

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield {name: f"http://127.0.0.1:{server.server_port}/some/{name}/" for name in static_page.PRECISIONS}
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def site(sites: dict[str, str]) -> str:
    """Where the page with float32 nets is."""
    return sites["fp32"]


def beside(precision: str, model: str, pipeline: str) -> Runtime:
    """The same file in onnxruntime here."""
    runtime = "onnxruntime" if precision == "fp32" else "onnxruntime-int8"
    return seqexport.load(EXPORTED / model / "checkpoint.onnx", runtime=runtime, pipeline=pipeline)


class Page:
    """The static page, opened, and what it complained of and asked meanwhile."""

    def __init__(self, browser: "sync_api.Browser", site: str, width: int = 1280, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.site = site
        self.page.goto(site)
        self.page.wait_for_selector("#tasks button")

    def run(self, task: int, **fields: str) -> dict[str, Any]:
        """Choose the task, fill the form's fields in, press the button → all the numbers."""
        self.page.locator("#tasks button").nth(task).click()
        for name, value in fields.items():
            field = self.page.locator(f"[name={name}]:not(#tasks *)")
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(value)
            else:
                field.fill(value)
        self.page.locator("#run").click()
        self.page.wait_for_selector("#numbers:not([hidden])", timeout=120_000)
        return json.loads(self.page.locator("#numbers pre").text_content() or "")

    def drawn(self, kind: str, seed: int, count: int) -> np.ndarray:
        """The random numbers that the page draws from a seed."""
        how = "normal(uniform(seed))" if kind == "normal" else "uniform(seed)"
        script = f"""([seed, count]) => import("{self.site}client.js").then(({{uniform, normal}}) => {{
            const draw = {how}; return Array.from({{length: count}}, () => draw()) }})"""
        return np.array(self.page.evaluate(script, [seed, count]), np.float32)

    def check(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert self.complaints == []
        assert all(url.startswith(self.site) for url in self.asked)
        self.page.close()


@pytest.mark.parametrize("precision", static_page.PRECISIONS)
def test_the_static_forecast_is_the_runtimes(
    browser: "sync_api.Browser", sites: dict[str, str], precision: str
) -> None:
    page = Page(browser, sites[precision])
    found = page.run(0, year="1990", horizon="36", paths="20", noise="4")
    noise = np.zeros((1, 21, 36), np.float32)
    noise[0, 1:] = page.drawn("normal", 4, 20 * 36).reshape(20, 36)
    runtime = beside(precision, "sunspots-gru", "forecast")
    rows = [row.split(",") for row in (EXPORTED / "sunspots.csv").read_text().split()[1:]]
    start = [month for month, _ in rows].index("1990-01")
    context = runtime.metadata["preprocessing"]["context"]
    history = np.array([[float(value) for _, value in rows[start - context : start]]], np.float32)
    (paths,) = runtime.run({"history": history, "noise": noise})["path"]
    np.testing.assert_allclose(found["central"], paths[0], rtol=1e-4, atol=1e-3)
    for name, share in (("q05", 0.05), ("q95", 0.95)):
        np.testing.assert_allclose(found["bands"][name], np.quantile(paths[1:], share, axis=0), rtol=1e-4, atol=1e-3)
    assert page.page.locator("svg.plot polyline").count() == 2
    assert "off by" in page.page.locator("#lead").inner_text()
    page.check()


@pytest.mark.parametrize("precision", static_page.PRECISIONS)
@pytest.mark.parametrize(
    ("language", "texts"),
    [
        ("en", ["Not bad, I’d say: the CAFÉ scene isn't dull!", "zzyzx <b>bold</b> 中 'twas naïve…"]),
        ("zh", ["房间有点旧，不过服务员非常热情。", "😀 e\u0301 质量太差了"]),
    ],
)
def test_the_static_opinions_are_the_runtimes(
    browser: "sync_api.Browser", sites: dict[str, str], precision: str, language: str, texts: list[str]
) -> None:
    page = Page(browser, sites[precision])
    found = page.run(1, classify=language, texts="\n".join(texts))["answers"]
    runtime = beside(precision, f"sentiment-{language}", "classify")
    preprocessing = runtime.metadata["preprocessing"]
    vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
    for text, answer in zip(texts, found, strict=True):
        tokens, lengths = vocabulary.encode_batch([text])
        outputs = runtime.run({"tokens": tokens, "lengths": lengths})
        np.testing.assert_allclose(answer["probabilities"], outputs["probabilities"][0], atol=1e-5)
        np.testing.assert_allclose(answer["running"], outputs["running"][0, :, 1], atol=1e-5)
        assert answer["label"] == preprocessing["labels"][outputs["probabilities"][0].argmax()]
    assert page.page.locator(".opinion .words").all_inner_texts() == texts
    spans = page.page.eval_on_selector_all(".opinion", "all => all.map(one => one.querySelectorAll('span').length)")
    assert spans == [len(vocabulary.split(text)) for text in texts]
    page.check()


@pytest.mark.parametrize("precision", static_page.PRECISIONS)
@pytest.mark.parametrize(("language", "prompt"), [("en", "JULIET\nO <i>"), ("zh", "却说曹操")])
def test_the_static_text_is_the_runtimes(
    browser: "sync_api.Browser", sites: dict[str, str], precision: str, language: str, prompt: str
) -> None:
    page = Page(browser, sites[precision])
    fields = {"steps": "200", "temperature": "0.7", "topK": "30", "topP": "0.95", "seed": "9"}
    found = page.run(2, generate=language, prompt=prompt, **fields)
    runtime = beside(precision, f"characters-{language}", "generate")
    vocabulary = Vocabulary.from_dict(runtime.metadata["preprocessing"]["vocabulary"])
    settings = {"temperature": 0.7, "top_k": 30, "top_p": 0.95}
    feeds = {"prompt": vocabulary.encode_batch([prompt])[0], "uniforms": page.drawn("uniform", 9, 200)[None]}
    tokens = runtime.run(feeds | settings)["tokens"][0].tolist()
    assert found["tokens"] == tokens
    assert page.page.locator(".written").text_content() == prompt + vocabulary.decode(tokens)
    page.check()


def test_the_static_page_splits_words_as_python_does(browser: "sync_api.Browser", site: str) -> None:
    page = Page(browser, site)
    rng = np.random.default_rng(0)
    signs = "aB9'’!? -…é\u0301ñßİKαЖ中文あ가๑\u200b\xa0\u3000😀\x0b\x1c_"
    texts = ["".join(rng.choice(list(signs), 40)) for _ in range(200)]
    for name in ("sentiment-en", "sentiment-zh", "characters-en"):
        runtime = seqexport.load(EXPORTED / name / "checkpoint.onnx")
        vocabulary = Vocabulary.from_dict(runtime.metadata["preprocessing"]["vocabulary"])
        several = [*texts, *(" ".join(rng.choice(vocabulary.tokens[1:], 20)) for _ in range(50))]
        script = f"""(texts) => import("{page.site}runner.js").then(async ({{Runner}}) => {{
            const runner = new Runner(); await runner.load("{name}.onnx");
            return Promise.all(texts.map(async (text) =>
                (await runner.read({{model: "{name}.onnx", text}})).tokens)) }})"""
        assert page.page.evaluate(script, several) == [vocabulary.encode(text) for text in several], name
    page.check()


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize(("locale", "scheme"), [("zh-CN", "dark"), ("en-GB", "light"), ("de-DE", "light")])
def test_the_static_page_fits_and_speaks(
    browser: "sync_api.Browser", site: str, width: int, locale: str, scheme: str
) -> None:
    page = Page(browser, site, width, locale=locale, color_scheme=scheme)
    names = page.page.locator("#tasks button").all_inner_texts()
    assert names == (["预测", "情感", "续写"] if locale == "zh-CN" else ["Forecast", "Sentiment", "Characters"])
    assert "3.8 MB" in page.page.locator("#run").inner_text()
    for task in range(3):
        page.run(task, **({"steps": "30"} if task == 2 else {}))
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    paper = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.strip("rgb()").split(","))) < 200) is (scheme == "dark")
    page.check()


def test_a_question_that_can_not_be_answered_gets_a_sentence(browser: "sync_api.Browser", site: str) -> None:
    page = Page(browser, site)
    page.page.locator("#tasks button").nth(2).click()
    page.page.locator("[name=prompt]").fill("☃☂")
    page.page.locator("#run").click()
    page.page.wait_for_function("() => document.querySelector('#detail').textContent.includes('knows none')")
    page.page.locator("#tasks button").nth(1).click()
    page.page.locator("[name=texts]").fill("a\n" * 40)
    page.page.locator("#run").click()
    page.page.wait_for_function("() => document.querySelector('#detail').textContent.includes('there are 40 texts')")
    page.check()
