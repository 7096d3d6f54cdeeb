"""The Sentiment tab in a real browser: its answers, the race, the measurement, a visitor's own list of texts."""

import csv
import io
from pathlib import Path

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from visiting import MARKS, Visit  # noqa: E402

pytestmark = MARKS
SAYS = "#sentiment-result .lead"
LIST = "Your own data: a list of texts"
GOOD, BAD = "房间很干净，服务非常好，很满意。", "质量太差了，非常失望。"
PATIENCE = 60_000  # milliseconds: the first answer of a process imports torch
# The least contrast of the text in the elements with what lies behind it (WCAG 2.2, 1.4.3).
CONTRAST = """selector => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratios = [...document.querySelectorAll(selector)].filter(e => e.innerText.trim()).map(element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    const behind = layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    const pair = [light(behind), light(over(parse(getComputedStyle(element).color), behind))].sort((a, b) => a - b);
    return (pair[1] + 0.05) / (pair[0] + 0.05);
  });
  return [ratios.length, Math.min(...ratios)];
}"""
PLACES = """() => ['.block.opinions', '#sentiment-about', '#sentiment-result', '#sentiment-list']
  .flatMap(what => [...document.querySelectorAll(what)])
  .map(e => Math.round(e.getBoundingClientRect().top + window.scrollY))"""


def opened(browser: "sync_api.Browser", url: str, width: int = 1280, theme: str = "light") -> Visit:
    visit = Visit(browser, url, width, theme)
    visit.open("Sentiment")
    visit.page.wait_for_selector(SAYS, timeout=PATIENCE)
    return visit


def counts(visit: Visit) -> list[int]:
    """How often both columns answered so far; nothing before both have."""
    texts = visit.page.eval_on_selector_all(".latency .ms", "all => all.map(e => e.innerText)")
    return [int(text.split()[0].replace(",", "")) for text in texts if text.endswith("answers")]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_opens_on_an_answer(browser: "sync_api.Browser", url: str, width: int, theme: str) -> None:
    visit, held = Visit(browser, url, width, theme), []
    visit.page.route("**/queue/join*", lambda question: held.append(question))
    visit.open("Sentiment")
    visit.page.locator("#sentiment-result").wait_for()
    visit.page.wait_for_timeout(300)
    before = visit.page.evaluate(PLACES)
    assert visit.page.locator(SAYS).count() == 0
    assert held
    for question in held:
        question.continue_()
    visit.page.unroute("**/queue/join*")
    visit.page.wait_for_selector(SAYS, timeout=PATIENCE)
    assert visit.page.evaluate(PLACES) == before  # room was kept for the answer
    assert "times as" in visit.page.locator(SAYS).inner_text()
    left, right = visit.opinions()
    assert left == right
    assert "%" in left
    assert "the ending is simply wonderful" in left
    assert "calibrated" in visit.page.locator("#sentiment-about").inner_text()
    lines = visit.page.get_by_role("img", name="Probability of positive")
    assert lines.count() == 2
    shades = visit.page.eval_on_selector_all(".opinion .words span", "spans => spans.map(s => s.style.background)")
    assert len(shades) == 2 * 29
    assert len(set(shades[:29])) > 5
    visit.check()
    visit.page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_said_can_be_read_on_every_shade(browser: "sync_api.Browser", url: str, theme: str) -> None:
    visit = opened(browser, url, theme=theme)
    texts = "A wonderful, brilliant film, I loved every minute of it\nA terrible waste of time, awful and boring zzyzx"
    visit.page.locator("#sentiment-texts textarea").fill(texts)
    visit.press("Classify")
    visit.page.wait_for_function("() => document.querySelectorAll('.opinion').length === 4")
    count, least = visit.page.evaluate(CONTRAST, ".opinion .words span")
    assert count > 30
    assert least >= 4.5
    alpha = "spans => spans.map(s => Number(getComputedStyle(s).backgroundColor.split(',').at(-1).replace(')', '')))"
    assert max(visit.page.eval_on_selector_all(".opinion .words span", alpha)) > 0.55  # the strongest shades are here
    for selector in ("#sentiment-result p", "#sentiment-about", "#sentiment-legend p", ".opinion .label"):
        count, least = visit.page.evaluate(CONTRAST, selector)
        assert count, selector
        assert least >= 4.5, selector
    visit.page.close()


def test_several_lines_in_both_languages(browser: "sync_api.Browser", url: str) -> None:
    visit = opened(browser, url)
    texts = visit.page.locator("#sentiment-texts textarea")
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
    texts.fill(f"{GOOD}\n{BAD}")
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


def test_the_cell_can_be_chosen_where_there_is_a_choice(browser: "sync_api.Browser", url: str) -> None:
    visit = opened(browser, url)
    net = visit.page.locator("#sentiment-cell")
    assert net.get_by_label("GRU").is_disabled()
    assert "The English net is there as an LSTM only." in net.inner_text()
    visit.page.get_by_label("中文").check()
    visit.page.wait_for_function("() => !document.querySelector('#sentiment-cell input').disabled")
    net.get_by_label("GRU").check()
    visit.page.locator("#sentiment-texts textarea").fill(GOOD)
    visit.press("Classify")
    visit.page.wait_for_function("() => document.querySelector('#sentiment-about').innerText.startsWith('GRU')")
    assert "times as" in visit.page.locator(SAYS).inner_text()
    visit.page.get_by_role("button", name="A turn").click()  # an English example, while a GRU is chosen
    visit.page.wait_for_function("() => document.querySelector('#sentiment-about').innerText.startsWith('LSTM')")
    assert net.get_by_label("LSTM").is_checked()
    assert visit.page.get_by_test_id("toast-body").count() == 0
    visit.check()
    visit.page.close()


def test_an_example_is_answered_when_it_is_chosen(browser: "sync_api.Browser", url: str) -> None:
    visit = opened(browser, url)
    visit.page.get_by_role("button", name="还不错").click()
    visit.page.wait_for_function("() => document.querySelectorAll('.opinion').length === 6")
    opinions = visit.opinions()
    assert opinions[:3] == opinions[3:]
    assert "还不错。" in opinions[0]
    visit.check()
    visit.page.close()


def test_a_race_moves_both_columns_at_once_and_nothing_else(browser: "sync_api.Browser", url: str) -> None:
    visit = opened(browser, url)
    visit.press("Race")
    both = (
        "() => [...document.querySelectorAll('.latency .ms')].filter(e => e.innerText.endsWith('answers')).length === 2"
    )
    visit.page.wait_for_function(both, timeout=PATIENCE)
    samples, places = [], []
    while "answered" not in visit.page.locator(SAYS).inner_text():
        samples.append(tuple(counts(visit)))
        places.append(tuple(visit.page.evaluate(PLACES)))
        visit.page.wait_for_timeout(40)
        assert len(samples) < 600, "the race did not end"
    pairs = list(zip(samples, samples[1:], strict=False))
    assert any(before[0] < after[0] and before[1] < after[1] for before, after in pairs)
    assert all(before[side] <= after[side] for before, after in pairs for side in (0, 1))
    assert len(set(places)) == 1
    assert "For show" in visit.page.locator("#sentiment-result").inner_text()
    visit.check()
    visit.page.close()


def test_a_measurement_tells_p95_and_the_interval(browser: "sync_api.Browser", url: str) -> None:
    visit = opened(browser, url)
    visit.press("Measure")
    visit.page.wait_for_function(
        "() => document.querySelector('#sentiment-result').innerText.includes('95 % interval')", timeout=PATIENCE
    )
    assert all("p95" in text for text in visit.page.locator("div.prose.latency:visible").all_inner_texts()[:2])
    visit.check()
    visit.page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_list_goes_in_and_a_table_comes_out(
    browser: "sync_api.Browser", url: str, width: int, tmp_path: Path
) -> None:
    path = tmp_path / "opinions.csv"
    path.write_bytes(f"id;text\n1;{GOOD}\n2;{BAD}\n3;=1+1\n4;\n5;<b>{GOOD}</b>\n".encode("gb18030"))
    visit = opened(browser, url, width)
    visit.page.get_by_label("中文").check()
    visit.page.get_by_role("button", name=LIST).click()
    visit.page.locator("#sentiment-list input[type=file]").set_input_files(path)
    column = visit.page.get_by_label("Column of the texts")
    column.wait_for()
    assert column.input_value() == "text"
    visit.press("Classify the list")
    table = visit.page.get_by_role("region", name="Texts and their labels")
    table.wait_for(timeout=PATIENCE)
    visit.page.wait_for_selector("#sentiment-list-says .detail")
    said = visit.page.locator("#sentiment-list-says").inner_text()
    assert "4 texts: " in said
    assert "in GB18030, column text" in said
    assert table.locator("tbody tr").count() == 5
    assert table.locator("b").count() == 0
    assert "Row 5: There is no text in it." in visit.page.locator("#sentiment-list-table").inner_text()
    with visit.page.expect_download() as waiting:
        visit.page.locator("#sentiment-list").get_by_text("Download the table (CSV)").click()
    content = Path(waiting.value.path()).read_bytes()
    assert waiting.value.suggested_filename == "sentiment.csv"
    assert content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert [row["text"] for row in rows] == [GOOD, BAD, "'=1+1", "", f"<b>{GOOD}</b>"]
    assert [row["label"] for row in rows[:2]] == ["positive", "negative"]
    visit.check()
    visit.page.close()


def test_a_long_list_can_be_stopped(browser: "sync_api.Browser", url: str, tmp_path: Path) -> None:
    line = "The first hour is slow, but then the story finds its feet and the ending is wonderful. " * 4
    path = tmp_path / "long.txt"
    path.write_text(f"{line}\n" * 9_000, encoding="utf-8")
    visit = opened(browser, url)
    visit.page.get_by_role("button", name=LIST).click()
    visit.page.locator("#sentiment-list input[type=file]").set_input_files(path)
    visit.page.locator("#sentiment-list").get_by_text("long.txt").first.wait_for()
    stop = visit.page.get_by_role("button", name="Stop the list")
    assert stop.is_disabled()
    visit.press("Classify the list")
    bar = visit.page.locator("#sentiment-list-says progress")
    bar.wait_for(timeout=PATIENCE)
    assert bar.get_attribute("aria-label") == "Texts classified"
    stop.click()
    visit.page.wait_for_function(
        "() => document.querySelector('#sentiment-list-says').innerText.includes('Stopped after')", timeout=PATIENCE
    )
    assert "of 9,000 rows" in visit.page.locator("#sentiment-list-says").inner_text()
    assert stop.is_disabled()
    visit.check()
    visit.page.close()


def test_keys_are_enough_and_all_has_a_name(browser: "sync_api.Browser", url: str) -> None:
    visit = opened(browser, url)
    texts = visit.page.locator("#sentiment-texts textarea")
    texts.fill("Dull.")
    reached = []
    for _ in range(30):
        visit.page.keyboard.press("Tab")
        reached.append(
            visit.page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''")
        )
        if reached[-1].strip() == "Classify":
            break
    assert "Classify" in reached[-1], reached
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function("() => document.querySelector('.opinion').innerText.includes('Dull.')")
    visit.page.get_by_role("button", name=LIST).focus()
    visit.page.keyboard.press("Enter")
    visit.page.get_by_label("Texts, one a line").fill("fine\ndull")
    visit.page.get_by_role("button", name="Classify the list").focus()
    visit.page.keyboard.press("Enter")
    table = visit.page.get_by_role("region", name="Texts and their labels")
    table.wait_for(timeout=PATIENCE)
    table.focus()
    assert table.evaluate("e => e === document.activeElement")
    named = ("English", "LSTM", "Left runtime", "Right runtime", "Texts", "Texts, one a line", "Encoding of the file")
    for label in named:
        assert visit.page.get_by_label(label).locator("visible=true").count(), label
    visit.page.close()
