"""The demo: torch and ONNX Runtime side by side on the same question. `python demo.py`, then http://127.0.0.1:7860.

Here is the page; what each tab does is in tabs/. Importing this module loads no model and starts nothing. The models
come from exported/, which `python -m training.publish` writes.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402

from seqexport.errors import FileError  # noqa: E402
from tabs import characters, compare, forecast, languages, racing, sentiment  # noqa: E402

TABS = {
    "Forecast": forecast.tab,
    "Sentiment": sentiment.tab,
    "Characters": characters.tab,
    "Compare": compare.tab,
}

CSS = """
.gradio-container { font-variant-numeric: tabular-nums; }
.gradio-container .fillable { max-width: 1240px !important; }
#head h1 { font-size: 1.75rem; font-weight: 700; letter-spacing: -0.01em; margin: 0.5rem 0 0.25rem; }
#head p { margin: 0; max-width: 46rem; line-height: 1.5; }
#head .machine { margin-top: 0.6rem; max-width: none; font-family: var(--font-mono); font-size: 0.8rem; }
.result .lead { font-size: 1.5rem; font-weight: 700; line-height: 1.25; margin: 0.25rem 0; }
.result .detail { line-height: 1.5; margin: 0; max-width: 60rem; }
#head .machine, .result .detail, .latency .note { color: var(--body-text-color-subdued); }
.latency .ms { font-size: 1.5rem; font-weight: 700; line-height: 1.2; margin: 0; }
footer .divider { display: none; }
.latency .note { font-size: 0.85rem; line-height: 1.4; margin: 0; }
"""


def launch_options() -> dict[str, Any]:
    """Theme and style, which gradio takes at launch. The fonts are gradio's own files: no other host is asked."""
    font, mono = (gr.themes.LocalFont(name, weights=(400, 700)) for name in ("IBM Plex Sans", "IBM Plex Mono"))
    fonts: dict[str, Any] = {"font": [font, "sans-serif"], "font_mono": [mono, "monospace"]}
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="zinc", radius_size="sm", **fonts)
    faint = ("body_text_color_subdued", "block_info_text_color")  # by default too faint to be read on white
    theme.set(**dict.fromkeys(faint, "*neutral_500"), **{f"{name}_dark": "*neutral_400" for name in faint})
    return {
        "theme": theme,
        "css": CSS + sentiment.CSS + characters.CSS + compare.CSS,
        "i18n": languages.i18n(),
        "footer_links": ["api"],
        "max_file_size": "20mb",
    }


def build() -> gr.Blocks:
    """The page. It loads no model: its first result is made when it is opened."""
    with gr.Blocks(title="seqexport: torch and ONNX Runtime side by side", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>seqexport</h1><p>Recurrent nets, trained in PyTorch and exported to ONNX, answer the same question "
            "twice: torch runs the checkpoint on the left, ONNX Runtime the exported file on the right. See that both "
            f'agree, and which is faster.</p><p class="machine">{racing.hardware()}</p>',
            elem_id="head",
        )
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name) as here:
                    try:
                        tab(page, here)
                    except FileError as error:  # nothing was trained yet: the page says what to run
                        gr.Markdown(str(error))
    return page.queue(max_size=24, default_concurrency_limit=2)


def main() -> None:
    """Serve the page, by default at 127.0.0.1:7860; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT change that."""
    for module in ("torch", "matplotlib.figure"):  # what takes longest is imported while the page is built
        threading.Thread(target=importlib.import_module, args=(module,), daemon=True).start()
    build().launch(**launch_options())


if __name__ == "__main__":
    main()
