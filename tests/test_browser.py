"""The demo's Characters tab in a real browser: what a visitor sees, on a wide and on a narrow screen."""

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from visiting import MARKS, Visit  # noqa: E402

from seqexport.errors import FileError  # noqa: E402
from tabs import racing  # noqa: E402

pytestmark = MARKS


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_characters_stream_in_both_columns_at_the_same_time(
    browser: "sync_api.Browser", url: str, width: int, theme: str
) -> None:
    visit = Visit(browser, url, width, theme)
    visit.open("Characters")
    visit.page.get_by_label("number input for Characters to write").fill("300")
    visit.press("Race")
    samples = visit.sampled(until="Both wrote the same")
    together = [lengths for lengths in samples if all(6 < length < 306 for length in lengths)]
    shown = [len(set(column)) for column in zip(*together, strict=True)]
    assert min(shown, default=0) >= 3, f"both columns grew at the same time, {shown} times: {samples}"
    left, right = visit.written()
    assert left == right
    assert left.startswith("ROMEO\n")
    assert len(left) == 306
    assert "the same 300 characters" in visit.page.locator("#characters-result").inner_text()
    assert "times as" not in visit.page.locator("#characters-result").inner_text()
    assert all("characters/s" in text for text in visit.page.locator(".latency:visible").all_inner_texts()[:2])
    visit.check()
    visit.page.close()


def write_quickly(visit: Visit, seed: int, characters: int = 150) -> str:
    visit.page.get_by_label("Seed of the text").fill(str(seed))
    visit.page.get_by_label("number input for Characters to write").fill(str(characters))
    visit.page.get_by_label("as fast as it is").check()
    speeds = "() => [...document.querySelectorAll('.latency')].map(e => e.textContent).join()"
    before = visit.page.evaluate(speeds)
    visit.press("Race")
    # "Writing …" may be over before the page shows it; but once a column has changed, what was said before it is gone.
    visit.page.wait_for_function(f"before => ({speeds})() !== before", arg=before)
    visit.sampled(until="Both wrote the same")
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
    race, stop = (visit.page.get_by_role("button", name=name, exact=True) for name in ("Race", "Stop"))
    assert stop.is_disabled()
    visit.page.wait_for_selector(".written code")  # the opening texts, after which both begin anew
    visit.press("Race")
    visit.page.wait_for_function("() => document.querySelector('#characters-result').innerText.includes('Writing')")
    visit.page.wait_for_function(
        "() => [...document.querySelectorAll('.written')].slice(0, 2)"
        ".every(c => c.textContent.length > 20 && c.textContent.length !== 306)"
    )
    assert race.is_disabled()
    visit.press("Stop")
    visit.sampled(until="Stopped")
    assert all(20 < len(text) < 2006 for text in visit.settled())
    assert race.is_enabled()
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
    visit.press("Race")
    toast = visit.page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "knows none of the prompt's characters" in toast.inner_text()
    prompt.fill("<b>JULIET ☃</b>\n")
    visit.press("Race")
    assert visit.page.wait_for_selector("#characters-result :text('does not know')")
    visit.sampled(until="Both wrote the same")
    assert visit.page.locator(".written b").count() == 0
    assert visit.written()[0].startswith("<b>JULIET ☃</b>\n")
    visit.check()
    visit.page.close()


def test_what_was_written_last_is_in_sight(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, 390, "light")
    visit.open("Characters")
    write_quickly(visit, 3, 40)
    above = "box => box.querySelector('code').getBoundingClientRect().top - box.getBoundingClientRect().top"
    assert all(0 < box.evaluate(above) < 40 for box in visit.page.locator(".written:has(code)").all())
    write_quickly(visit, 3, 2000)
    below = "box => box.querySelector('code').getBoundingClientRect().bottom - box.getBoundingClientRect().bottom"
    for box in visit.page.locator(".written:has(code)").all():
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
        visit.press("Race")
        visit.sampled(until="Not finished")
        assert "The checkpoint is gone." in visit.page.locator("#characters-result").inner_text()
        assert "The checkpoint is gone." in visit.page.locator(".latency:visible").first.inner_text()
    failed, written = visit.written()
    assert failed == ""
    assert len(written) == 1006
    write_quickly(visit, 1)
    visit.page.close()


def test_characters_open_on_a_text_and_are_measured_by_a_button_of_their_own(
    browser: "sync_api.Browser", url: str
) -> None:
    visit = Visit(browser, url, 1280, "light")
    visit.open("Characters")
    visit.page.wait_for_selector("#characters-result .lead")
    left, right = visit.written()
    assert left == right
    assert len(left) == 306
    visit.press("Measure")
    visit.sampled(until="times as")
    assert "Both wrote the same 100 characters." in visit.page.locator("#characters-result").inner_text()
    assert all("Median of" in text for text in visit.page.locator(".latency:visible").all_inner_texts()[:2])
    visit.check()
    visit.page.close()
