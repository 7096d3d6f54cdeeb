"""The demo: torch and ONNX Runtime side by side on the same question. `python demo.py`, then http://127.0.0.1:7860.

Here is the page; what each tab does is in tabs/. Importing this module loads no model and starts nothing. The models
come from exported/, which `python -m training.publish` writes.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from importlib.metadata import version
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
# After each event gradio would sum up all of them, ten thousand at most, with pandas, for a page that is off here.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**12))
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from seqexport.errors import FileError  # noqa: E402
from tabs import (  # noqa: E402
    browser,
    characters,
    compare,
    contest,
    convert,
    deadlines,
    forecast,
    jobs,
    languages,
    racing,
    sentiment,
)
from tabs.guard import BodyLimit  # noqa: E402
from tabs.languages import fixed  # noqa: E402

TABS: tuple[tuple[Any, Any], ...] = (
    (fixed("Forecast"), forecast),
    (fixed("Sentiment"), sentiment),
    (fixed("Characters"), characters),
    (fixed("Convert yours"), convert),
    (fixed("Compare"), compare),
)
# A screen reader reads the page in the language that gradio, which asks the same, shows it in.
HEAD = """<script>
document.documentElement.lang = navigator.language.toLowerCase().startsWith("zh") ? "zh-CN" : "en";
</script>"""

WAITING = 24  # visitors in the queue; who comes then is told that it is full

CSS = """
.gradio-container { font-variant-numeric: tabular-nums; }
.gradio-container .fillable { max-width: 1240px !important; }
#head { gap: 0.4rem; margin-bottom: 0.25rem; }
#head h1 { font-size: 1.75rem; font-weight: 700; letter-spacing: -0.01em; margin: 0.5rem 0 0.25rem; }
#head p { margin: 0; max-width: 46rem; line-height: 1.5; }
#head .machine { max-width: none; font-family: var(--font-mono); font-size: 0.8rem; }
.result .lead { font-size: 1.5rem; font-weight: 700; line-height: 1.25; margin: 0.25rem 0; }
.result .detail { line-height: 1.5; margin: 0; max-width: 60rem; }
#head .machine, .result .detail, .latency .note { color: var(--body-text-color-subdued); }
.latency .ms { font-size: 1.5rem; font-weight: 700; line-height: 1.2; margin: 0; }
footer .divider { display: none; }
.gradio-container { --strong: var(--primary-600); }
.dark .gradio-container, .gradio-container.dark { --strong: var(--primary-400); }
.gradio-container button[role=tab].selected { color: var(--strong); }
.gradio-container :is(a, button, input, textarea, [tabindex]):focus-visible,
.gradio-container label:has(:is([type=radio], [type=checkbox]):focus-visible) {
  outline: 2px solid var(--strong) !important; outline-offset: 2px; }
.latency .note { font-size: 0.85rem; line-height: 1.4; margin: 0; }
"""


def speaks_mcp() -> bool:
    """Whether the demo's endpoints are tools for agents too: where gradio[mcp] is installed."""
    return importlib.util.find_spec("mcp") is not None and version("mcp").startswith("1.")


def launch_options() -> dict[str, Any]:
    """Theme, style and limits, which gradio takes at launch. The fonts are gradio's files: no other host is asked."""
    font, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("IBM Plex Sans", "IBM Plex Mono"))
    fonts: dict[str, Any] = {"font": [font, "sans-serif"], "font_mono": [mono, "monospace"]}
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="zinc", radius_size="sm", **fonts)
    faint = ("body_text_color_subdued", "block_info_text_color")  # by default too faint to be read on white
    # White on them, and they on white, have to be read: a contrast of 4.5 and more.
    theme.set(button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700")
    theme.set(**dict.fromkeys(faint, "*neutral_500"), **{f"{name}_dark": "*neutral_400" for name in faint})
    return {
        "theme": theme,
        "css": "".join([CSS, contest.CSS, browser.CSS, *(tab.CSS for _, tab in TABS)]),
        "head": HEAD,
        "i18n": languages.i18n(),
        "footer_links": ["api"],
        "max_file_size": "20mb",
        "app_kwargs": {"middleware": [Middleware(BodyLimit)], "routes": browser.routes()},
        "enable_monitoring": False,
        "run_history": False,  # a visitor's texts are kept nowhere
        "mcp_server": speaks_mcp(),
    }


def build() -> gr.Blocks:
    """The page. It loads no model: its first result is made when it is opened."""
    # Gradio deletes what was uploaded, and what it copied; what else a conversion leaves, its own sweeper.
    deleting = (round(jobs.SWEEP), round(jobs.KEPT))
    title = "seqexport: torch and ONNX Runtime side by side"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=deleting) as page:
        with gr.Column(elem_id="head"):
            gr.HTML("<h1>seqexport</h1>", padding=False)
            # A component for each: gradio translates one text in it.
            seen = fixed(
                "Recurrent nets trained in PyTorch run beside their ONNX exports: see that both answer the same, and "
                "which is faster."
            )
            gr.HTML(f"<p>{seen}</p>", padding=False)
            gr.HTML(f'<p class="machine">{racing.hardware(fixed)}</p>', padding=False)
        with gr.Tabs():
            for name, tab in TABS:
                with gr.Tab(name) as here:
                    try:
                        tab.tab(page, here)
                    except FileError as error:  # nothing was trained yet: the page says what to run
                        gr.Markdown(str(error))
    deadlines.clock_all(page)
    # api_open: else a program could go past the queue, as many at once as it likes.
    return page.queue(max_size=WAITING, default_concurrency_limit=2, api_open=False)


def main() -> None:
    """Serve the page, by default at 127.0.0.1:7860; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT change that."""
    for module in ("torch", "onnxruntime"):  # what takes longest is imported while the page is built
        threading.Thread(target=importlib.import_module, args=(module,), daemon=True).start()
    build().launch(**launch_options())


if __name__ == "__main__":
    main()
