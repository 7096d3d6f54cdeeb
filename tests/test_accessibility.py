"""The page for everybody: every tab held against axe-core, in light and dark, wide and narrow, English and Chinese;
with the keyboard only; and a picture of each tab to look at (tests/screenshots, or SEQEXPORT_SCREENSHOTS)."""

from pathlib import Path

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from visiting import MARKS, Visit  # noqa: E402

import demo  # noqa: E402
from tabs.languages import catalogue  # noqa: E402

AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"
TABS = [name.key for name, _ in demo.TABS]
READY = "() => document.querySelector('#result .lead')"
# What axe-core finds in gradio's own markup and we can't mend: rule → why.
GRADIOS = {"label-content-name-mismatch": "the upload's button shows “Drop File Here”, and is called otherwise"}
# Every text that a visitor could read, drawn or not: texts, placeholders, titles and labels.
TEXTS = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest("script, style")) found.push(walker.currentNode.data);
  for (const name of ["placeholder", "aria-label", "title", "alt"])
    for (const element of document.querySelectorAll(`[${name}]`)) found.push(element.getAttribute(name));
  return found.map(text => text.trim()).filter(text => text);
}"""
FOCUSED = """() => {
  const at = document.activeElement, label = at.closest("label") ?? at;
  const outlined = [at, label].some(one => {
    const style = getComputedStyle(one);
    return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  });
  const box = label.getBoundingClientRect();
  return { tag: at.tagName, text: (at.innerText || at.getAttribute("aria-label") || at.name || "").trim(), outlined,
    seen: box.width > 0 && box.height > 0, type: at.type ?? "", html: at.outerHTML.slice(0, 200) };
}"""
pytestmark = MARKS


def translated(text: str, locale: str) -> str:
    return catalogue("zh").get(text, text) if locale.startswith("zh") else text


def serious(page: "sync_api.Page") -> list[str]:
    """What axe-core finds serious or critical on the page as it is now: rule, element, what is wrong."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    return [
        f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical") and rule["id"] not in GRADIOS
        for node in rule["nodes"]
    ]


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not there: npm ci --prefix tests/node")
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_tab_is_for_everybody(browser: "sync_api.Browser", url: str, width: int, theme: str, locale: str) -> None:
    visit = Visit(browser, url, width, theme, locale, READY)
    findings = []
    for tab in TABS:
        visit.open(translated(tab, locale))
        visit.quiet()
        visit.picture(tab.lower())
        findings += [f"{tab}: {finding}" for finding in serious(visit.page)]
        visit.check()
    assert findings == []
    assert visit.page.evaluate("document.documentElement.lang") == ("zh-CN" if locale == "zh-CN" else "en")
    visit.page.close()


def test_axe_core_does_find_what_is_wrong(browser: "sync_api.Browser") -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not there: npm ci --prefix tests/node")
    page = browser.new_page()
    page.set_content("<main><h1>x</h1><p style='color:#aaa;background:#fff'>faint</p><img src='x.png'></main>")
    assert {finding.split(":")[0] for finding in serious(page)} >= {"color-contrast", "image-alt", "html-has-lang"}
    page.close()


def test_a_chinese_browser_gets_no_english_text_that_has_a_translation(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, locale="zh-CN", until=READY)
    for tab in TABS:
        visit.open(translated(tab, "zh-CN"))
        visit.quiet()
    english = {text for text, chinese in catalogue("zh").items() if chinese != text}
    texts = set(visit.page.evaluate(TEXTS))
    assert texts & english == set()
    assert [text for text in texts if "__i18n__" in text] == []
    assert texts & set(catalogue("zh").values()) != set()
    visit.page.close()


def test_headings_and_landmarks(browser: "sync_api.Browser", url: str) -> None:
    visit = Visit(browser, url, until=READY)
    levels = visit.page.eval_on_selector_all(
        "h1, h2, h3, h4, h5, h6", "all => all.filter(h => h.offsetParent).map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert visit.page.locator("main").count() == 1
    assert visit.page.get_by_role("tablist").first.is_visible()
    visit.page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_with_the_keyboard_only(browser: "sync_api.Browser", url: str, theme: str) -> None:
    """Tab reaches the main button, everything on the way is seen to be in focus, and Enter asks."""
    visit = Visit(browser, url, theme=theme, until=READY)
    visit.quiet()
    passed = []
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        passed.append(visit.page.evaluate(FOCUSED))
        if passed[-1]["tag"] == "BUTTON" and passed[-1]["text"] == TABS[0] and "primary" in passed[-1]["html"]:
            break
    else:
        raise AssertionError(f"the button was not reached: {passed}")
    assert [step for step in passed if step["seen"] and not step["outlined"]] == []
    before = visit.page.locator(".latency:visible").first.inner_text()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_function(
        "before => [...document.querySelectorAll('.latency')].find(e => e.offsetParent).innerText.trim() !== before",
        arg=before.strip(),
        timeout=60_000,
    )
    visit.check()
    visit.page.close()
