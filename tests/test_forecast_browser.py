"""The Forecast tab in a real browser: what a visitor sees, wide and narrow, and does without a mouse."""

import itertools
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from visiting import FIGURES, MARKS, TWO_FIGURES, Visit  # noqa: E402

pytestmark = [*MARKS, pytest.mark.usefixtures("demand")]
RESULT = "#result"
ANSWERS = "() => [...document.querySelectorAll('.latency .bar')].length === 2"


def said(visit: Visit) -> str:
    return visit.page.locator(RESULT).inner_text()


def until(visit: Visit, words: str, seconds: float = 90.0) -> None:
    visit.page.wait_for_function(
        "words => document.querySelector('#result').innerText.includes(words)", arg=words, timeout=1000 * seconds
    )


def ask_little(visit: Visit) -> None:
    """A question that is answered quickly, so that a busy machine counts many answers, too."""
    visit.page.get_by_label("number input for Horizon").fill("12")
    visit.page.get_by_label("number input for Sampled paths").fill("5")


def answered_anew(visit: Visit, name: str = "Forecast") -> None:
    """Press a button, and wait until both figures have changed."""
    before = visit.figures()
    visit.press(name)
    changed = f"old => [...document.querySelectorAll('{FIGURES}')].every((one, i) => one.outerHTML !== old[i])"
    visit.page.wait_for_function(changed, arg=before, timeout=90_000)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "columns"), [(1920, 2), (1280, 2), (390, 1)])
def test_opens_on_a_result(browser: "sync_api.Browser", url: str, width: int, columns: int, theme: str) -> None:
    visit = Visit(browser, url, width, theme)
    assert "times as" in said(visit)
    assert "Both roll sunspots on from Jan 1998" in said(visit)
    assert all(" ms" in text for text in visit.page.locator(".latency .ms").all_inner_texts())
    boxes = [figure.bounding_box() for figure in visit.page.locator(FIGURES).all()]
    assert all(box["width"] > 230 and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert len({round(box["x"]) for box in boxes}) == columns
    sizes = visit.page.eval_on_selector_all(
        ".chart span", "all => all.map(s => parseFloat(getComputedStyle(s).fontSize))"
    )
    assert min(sizes) >= 12  # at every width: the words are not part of what is stretched
    visit.check()
    visit.page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_words_stand_out_from_the_background(browser: "sync_api.Browser", url: str, theme: str) -> None:
    visit = Visit(browser, url, 1280, theme)
    ratios = visit.page.evaluate(
        """() => {
        const numbers = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
        const light = colour => { const [r, g, b] = numbers(colour).map(v => { v /= 255
            return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 })
            return 0.2126 * r + 0.7152 * g + 0.0722 * b }
        const ground = light(getComputedStyle(document.querySelector('gradio-app')).backgroundColor)
        const against = colour => { const [low, high] = [light(colour), ground].sort((a, b) => a - b)
            return (high + 0.05) / (low + 0.05) }
        const style = name => getComputedStyle(document.querySelector('.chart ' + name))
        return { observed: against(style('.observed').stroke), central: against(style('.central').stroke),
                 again: against(style('.again').stroke), words: against(style('.below span').color) } }"""
    )
    assert min(ratios["observed"], ratios["central"], ratios["again"]) >= 3, ratios
    assert ratios["words"] >= 4.5, ratios
    visit.page.close()


def test_a_reader_of_screens_is_told_what_the_figures_show(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url)
    figures = visit.page.get_by_role("img", name="Line chart, ")
    assert figures.count() == 2
    assert "then 132 months of forecast" in (figures.first.get_attribute("aria-label") or "")
    for label in ("Left runtime", "Right runtime", "Seed of the noise", "Sunspots", "GRU"):
        assert visit.page.get_by_label(label).first.is_visible(), label
    visit.page.close()


def test_every_series_has_its_nets_and_dates(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url)
    for label, start, seen in (
        ("Electricity", "13 Oct 2014", "electricity use on from 13 Oct 2014, 00:00 for 24 hours"),
        ("UK demand", "21 Aug 2000", "UK demand on from 21 Aug 2000, 00:00 for 48 half-hours"),
    ):
        visit.page.get_by_label(label, exact=True).check()
        visit.page.wait_for_function(
            "words => document.querySelector('.starts').innerText.includes(words)", arg=start, timeout=30_000
        )
        visit.page.get_by_label("LSTM" if label == "Electricity" else "RNN").check()
        answered_anew(visit)
        until(visit, seen)
    visit.check()
    visit.page.close()


def test_own_numbers_and_a_sentence_for_bad_ones(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url)
    visit.page.get_by_label("Own numbers").check()
    values = visit.page.get_by_placeholder("12.5, 14 …")
    values.fill("1, 2, three")
    visit.press()
    toast = visit.page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "Value 3 of the series is “three”" in toast.inner_text()
    values.fill(" ".join(str(10 + i % 12) for i in range(200)))
    answered_anew(visit)
    until(visit, "Both roll your 200 values on")
    visit.page.close()


def test_an_own_file_is_previewed_mended_and_rolled_on(browser: "sync_api.Browser", url: str, tmp_path: Path) -> None:
    visit = Visit(browser, url)
    visit.page.get_by_label("Own file").check()
    path = tmp_path / "mine.csv"
    rows = "\n".join(
        f"2024-01-{1 + i // 24:02d}T{i % 24:02d}:00;{'' if i == 5 else i % 24};<b>x</b>" for i in range(480)
    )
    path.write_text(f"date;load;note\n{rows}\n")
    upload = visit.page.locator("input[type=file]").first
    upload.set_input_files(path)
    visit.page.wait_for_selector(".preview table")
    assert "<b>x</b>" in visit.page.locator(".preview").inner_text()
    answered_anew(visit)
    until(visit, "Gaps filled along straight lines: 1.")
    assert "load" in visit.page.locator(".chart .unit").first.inner_text()
    other = tmp_path / "other.csv"
    other.write_bytes(bytes(range(256)))
    upload.set_input_files(other)
    toast = visit.page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "The file is no text" in toast.inner_text()
    visit.page.close()


def test_a_race_grows_in_both_columns_at_once_and_nothing_jumps(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url)
    ask_little(visit)
    places, samples = set(), []
    visit.press("Race")
    visit.page.wait_for_function(ANSWERS, timeout=90_000)
    end = time.monotonic() + 60
    while "times as often" not in said(visit) and time.monotonic() < end:
        texts = visit.page.locator(".latency p.ms").all_inner_texts()
        samples.append([int(text.split()[0].replace(",", "")) for text in texts])
        places.add(round(visit.page.locator(FIGURES).first.bounding_box()["y"]))
        visit.page.wait_for_timeout(50)
    grown = [all(b > a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(samples)]
    assert sum(grown) >= 3, f"both columns grew together in {sum(grown)} samples: {samples}"
    assert len(places) == 1, places
    assert "For show: both ran at once" in said(visit)
    assert visit.page.get_by_role("button", name="Stop", exact=True).is_disabled()
    visit.check()
    visit.page.close()


def test_stop_ends_a_race_and_one_can_measure_after_it(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url)
    ask_little(visit)
    visit.press("Race")
    visit.page.wait_for_function(ANSWERS, timeout=90_000)
    visit.press("Stop")
    until(visit, "Stopped.")
    before = visit.page.locator(".latency p.ms").all_inner_texts()
    visit.page.wait_for_timeout(1500)
    assert visit.page.locator(".latency p.ms").all_inner_texts() == before
    assert all("answers" in text for text in before)
    visit.press("Measure")
    until(visit, "The factor lies between")
    assert all("p95" in text for text in visit.page.locator(".latency .note").all_inner_texts())
    visit.check()
    visit.page.close()


def test_the_keyboard_is_enough(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url)
    visit.page.get_by_label("Sunspots", exact=True).focus()
    visit.page.keyboard.press("Tab")  # Gradio gives every choice a group of its own: Tab goes from one to the next
    visit.page.keyboard.press("Space")
    visit.page.wait_for_function(
        "() => document.querySelector('.starts').innerText.includes('Oct 2014')", timeout=30_000
    )
    before = visit.figures()
    for _ in range(30):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.innerText") == "Forecast":
            break
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function(f"old => document.querySelector('{FIGURES}').outerHTML !== old", arg=before[0])
    until(visit, "electricity use")
    visit.page.close()


def test_in_chinese(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, locale="zh-CN", until=TWO_FIGURES)
    assert "太阳黑子" in said(visit)
    assert "观测值" in visit.page.locator(".keys").first.inner_text()
    assert visit.page.get_by_role("img", name="折线图").count() == 2
    visit.check()
    visit.page.close()
