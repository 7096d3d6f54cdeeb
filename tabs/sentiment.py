"""The Sentiment tab: what a net thinks of texts, and how its opinion moves word by word, in two runtimes side by side.
Pure functions first, then the tab and its events; a visitor's own list of texts is in text_lists.py."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from seqexport.errors import InputError, UnsupportedError
from seqexport.text import Vocabulary
from tabs import answers, browser, contest, opinions, racing, text_lists
from tabs.contest import Agreement
from tabs.languages import ENGLISH, Words, fixed
from tabs.opinions import show_texts
from tabs.racing import ALONE, CAREFUL, EVENT, QUICK, Column, Measurement, one_of, sentences
from tabs.sentiment_nets import CELLS, MODELS, Net, about, net
from tabs.text_lists import texts_said

MAX_TEXTS, MAX_LENGTH = 32, 5_000  # texts, characters of one
OUTPUTS = ("probabilities", "running")
# What the answers will need is kept free for them, so that nothing moves when they come.
PLACES = """
#sentiment-result { min-height: 108px; }
#sentiment-sides .block.latency { min-height: 112px; }
#sentiment-sides .block.opinions { min-height: 13rem; }
#sentiment-about { min-height: 4rem; }
@media (max-width: 860px) {
  #sentiment-result { min-height: 180px; }
  #sentiment-about { min-height: 5.5rem; }
  #sentiment-sides .block.opinions { min-height: 13.5rem; }
}
@media (max-width: 560px) {
  #sentiment-result { min-height: 250px; }
  #sentiment-about { min-height: 11rem; }
  #sentiment-sides .block.opinions { min-height: 18rem; }
}
"""
CSS = opinions.CSS + text_lists.CSS + PLACES
EXAMPLES = {
    "A turn": (
        "English",
        "LSTM",
        "The first hour is slow and clumsy, and I nearly gave up, but then the story finds its feet, the actors come "
        "alive, and the ending is simply wonderful.",
    ),
    "Not bad at all": (
        "English",
        "LSTM",
        "Not bad at all.\nNot good at all.\nI have seen worse, though not often.\nYou could do far worse than this!",
    ),
    "Mixed feelings": (
        "English",
        "LSTM",
        "Beautiful pictures, a dull script, and one brilliant actor who deserves a better film.\n"
        "My children loved every minute; I looked at my watch three times.",
    ),
    "转折": ("中文", "LSTM", "房间有点旧，早餐也很一般，不过服务员非常热情，位置又方便，下次还会再来。"),
    "还不错": ("中文", "LSTM", "还不错。\n一点也不好。\n没有想象中那么差，但也谈不上好。"),
    "有好有坏": ("中文", "LSTM", "书的内容很精彩，可惜印刷质量太差了。\n电脑速度快，屏幕漂亮，就是风扇有点吵。"),
}


def split_lines(texts: str | Sequence[Any] | None) -> list[str]:
    """One text a line, or a list of texts; empty ones are dropped. Raises InputError for none, too many or too long."""
    lines = texts if isinstance(texts, list) else str(texts or "").splitlines()
    if not all(isinstance(line, str) for line in lines):
        raise InputError("The texts are not all texts; give a list of strings.")
    lines = [line.strip() for line in lines if line.strip()]
    if not 1 <= len(lines) <= MAX_TEXTS:
        raise InputError(f"There are {len(lines)} texts; expected 1 to {MAX_TEXTS}, one a line.")
    for position, line in enumerate(lines, 1):
        if len(line) > MAX_LENGTH:
            raise InputError(f"Text {position} has {len(line):,} characters; expected at most {MAX_LENGTH:,}.")
    return lines


def feeds_of(vocabulary: Vocabulary, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What the net reads: tokens int64 [batch, time] and lengths int64 [batch]."""
    tokens, lengths = vocabulary.encode_batch(texts)
    return {"tokens": tokens, "lengths": lengths}


def prepare(language: Any, cell: Any, text: Any) -> tuple[str, dict[str, np.ndarray]]:
    """A question → the model and its feeds, for a race. Raises InputError for a bad question."""
    chosen = net(language, cell)
    return chosen.model, feeds_of(chosen.vocabulary, split_lines(text))


def measure(
    chosen: Net, names: Sequence[str], feeds: Mapping[str, np.ndarray], seconds: float, words: Words = ENGLISH
) -> Measurement:
    """Each runtime's answer and times. Raises UnsupportedError for one that does not run the classifier as a whole."""
    measured = racing.measure(chosen.model, "classify", names, feeds, seconds, words)
    for name, column in measured.columns.items():
        if "running" not in column.outputs:
            raise UnsupportedError(
                f"{racing.RUNTIMES[name].label} does not run the whole classifier here and gives no opinion after each "
                "word: choose another runtime."
            )
    return measured


def figures_of(column: Column, labels: Sequence[str], lengths: np.ndarray) -> dict[str, Any]:
    """An answer's numbers for JSON, which has no NaN: null stands for it."""
    probabilities, running = column.outputs["probabilities"], column.outputs["running"]
    rows = [row[:length, 1] for row, length in zip(running, lengths, strict=True)]
    return column.figures | {
        "labels": [labels[best] for best in probabilities.argmax(-1)],
        "probabilities": [_plain(row, 6) for row in probabilities],
        "running": [_plain(row, 4) for row in rows],
        "texts_per_second": round(1000 * len(lengths) / column.milliseconds, 1),
    }


def _plain(values: np.ndarray, digits: int) -> list[float | None]:
    return [round(value, digits) if math.isfinite(value) else None for value in values.astype(float).tolist()]


def labels_apart(one: Column, other: Column) -> int:
    """Of how many texts the columns' labels differ; what is not a number is no label."""
    pair = np.stack([column.outputs["probabilities"] for column in (one, other)])
    choices, numbers = pair.argmax(-1), np.isfinite(pair).all((0, 2))
    return int(((choices[0] != choices[1]) | ~numbers).sum())


def details(
    one: Column, other: Column, agreed: Agreement, feeds: Mapping[str, np.ndarray], unit: str, words: Words = ENGLISH
) -> str:
    """What was compared and how far it is apart, and what the net does not know, in sentences."""
    count, tokens = len(feeds["lengths"]), int(feeds["lengths"].sum())
    unknown = tokens - int(np.count_nonzero(feeds["tokens"]))  # 0: the unknown token, and what follows a text's end
    apart, texts = labels_apart(one, other), texts_said(count, words)
    said = [
        words("Labels differ for {count} of {texts}.", count=apart, texts=texts)
        if apart
        else words("All labels agree."),
        words("The probabilities, those on the way too, differ by at most {said}.", said=agreed.said(words)),
    ]
    if not agreed.exact and one.runtime != other.runtime:
        said.append(words("That is int8's rounding: its weights have 8 bits, which makes it another net."))
    if unit == "character":
        both = words(
            "Both read {texts} of {tokens:,} characters in one batch.", texts=texts_said(count, words), tokens=tokens
        )
    else:
        both = words(
            "Both read {texts} of {tokens:,} words in one batch.", texts=texts_said(count, words), tokens=tokens
        )
    said.append(both)
    if 2 * unknown > tokens:
        said.append(words("The net does not know {unknown:,} of them: is this its language?", unknown=unknown))
    elif unknown:
        said.append(words("The net does not know {unknown:,} of them.", unknown=unknown))
    return " ".join(said)


def answer(
    language: Any, cell: Any, text: Any, left: Any, right: Any, seconds: float = QUICK, words: Words = ENGLISH
) -> tuple[str, str, str, str, str, str, dict[str, Any]]:
    """One batch of texts to two runtimes, measured for so many seconds → the sentence, left's latency and texts,
    right's, what is known of the net, and all the numbers."""
    with sentences():
        names = racing.chosen(left, right, "classify")
        chosen, texts = net(language, cell), split_lines(text)
        feeds = feeds_of(chosen.vocabulary, texts)
        measured = measure(chosen, names, feeds, seconds, words)
    one, other = (measured.columns[name] for name in names)
    agreed = contest.agreement(names, one.outputs, other.outputs, OUTPUTS)
    lead = agreed.sentence(words)
    detail = details(one, other, agreed, feeds, chosen.vocabulary.unit, words)
    if agreed.comparable:
        lead = racing.race_sentence(names[0], names[1], measured.ratio, words)
        if seconds >= CAREFUL:
            detail = " ".join(filter(None, (racing.interval_sentence(measured.ratio, words), detail)))
    shown = []
    for column in (one, other):
        speed = words("{speed:,.0f} texts/s; ", speed=1000 * len(texts) / column.milliseconds)
        shown.append(racing.show_latency(column if agreed.comparable else None, speed, words))
        shown.append(show_texts(chosen.vocabulary, chosen.labels, texts, column, words))
    ratio = measured.ratio if agreed.comparable else None
    numbers = agreed.to_dict() | {
        "exact": agreed.exact,
        "labels_agree": not labels_apart(one, other),
        "speed_up": None if ratio is None else ratio.to_dict(),
        "language": language,
        "cell": cell,
        "left": figures_of(one, chosen.labels, feeds["lengths"]),
        "right": figures_of(other, chosen.labels, feeds["lengths"]),
    }
    known = html.escape(about(chosen, words))
    return racing.say(html.escape(lead), html.escape(detail)), shown[0], shown[1], shown[2], shown[3], known, numbers


def draw_own(column: Column, words: Words, language: Any, cell: Any, text: Any, *_: Any) -> str:
    """The visitor's own machine's answer, shown like the other columns', as HTML."""
    chosen = net(language, cell)
    return show_texts(chosen.vocabulary, chosen.labels, split_lines(text), column, words)


def model_of(language: Any, cell: Any) -> str:
    """The folder of a net. Raises InputError where there is none."""
    return net(language, cell).model


def sentiment(
    language: str, cell: str, text: str, left: str, right: str, request: gr.Request | None = None
) -> tuple[str, str, str, str, str, str, dict[str, Any]]:
    """Classify 1 to 32 texts, one a line, in two runtimes at the same batch → who is faster, left's latency and texts,
    right's, how good the net is (all HTML), and all the numbers: labels, probabilities [texts, 2], the probability of
    positive after each token, the greatest difference, and the times, taken in turns for half a second. `language` is
    "English" or "中文"; `cell` is "LSTM", and for 中文 also "GRU" or "RNN"."""
    return answer(language, cell, text, left, right, QUICK, Words.of(request))


def sentiment_measured(
    language: str, cell: str, text: str, left: str, right: str, request: gr.Request | None = None
) -> tuple[str, str, str, str, str, str, dict[str, Any]]:
    """`sentiment`, whose times are taken with care: for 6 seconds, or until the interval of the ratio is narrow."""
    return answer(language, cell, text, left, right, CAREFUL, Words.of(request))


def sentiment_values(
    texts: list[str], language: str = "English", runtime: str = "onnxruntime", cell: str = "LSTM"
) -> dict[str, Any]:
    """Classify 1 to 32 texts in one runtime → their labels, probabilities [texts, 2] (of negative and positive), the
    probability of positive after each token, and the milliseconds of the model's call for all of them. `language` is
    "English" or "中文"; `cell` is "LSTM", and for 中文 also "GRU" or "RNN"."""
    with sentences():
        one_of("runtime", runtime, racing.present("classify"))
        chosen, rows = net(language, cell), split_lines(texts)
        feeds = feeds_of(chosen.vocabulary, rows)
        column = measure(chosen, [runtime], feeds, QUICK).columns[runtime]
    return figures_of(column, chosen.labels, feeds["lengths"]) | {"language": language, "cell": cell}


def cells_of(language: str, request: gr.Request | None = None) -> dict[str, Any]:
    """Another language was chosen → the choice of its cell, with the reason where there is none."""
    words = Words.of(request)
    if language == "English":
        note = words("The English net is there as an LSTM only.")
        return gr.update(value="LSTM", interactive=False, info=note)
    return gr.update(interactive=True, info=words("The same texts taught all three."))


def tab(page: gr.Blocks, here: gr.Tab) -> None:
    """The tab that tells what texts think, and its events."""
    for cells in MODELS.values():
        for model in cells.values():
            racing.require_model(model)
    result = gr.HTML(elem_id="sentiment-result", elem_classes="result")
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            note = fixed(
                "The English net read reviews of films, the Chinese ones opinions on hotels, books, computers."
            )
            language = gr.Radio(list(MODELS), value="English", label=fixed("Language of the net"), info=note)
            note = fixed("The English net is there as an LSTM only.")
            cell = gr.Radio(
                CELLS,
                value="LSTM",
                label=fixed("Cell of the net"),
                info=note,
                interactive=False,
                elem_id="sentiment-cell",
            )
        with gr.Column(scale=2, min_width=320):
            note = fixed("One text a line, at most 32 of 5,000 characters.")
            text = gr.Textbox(
                EXAMPLES["A turn"][-1],
                label=fixed("Texts"),
                info=note,
                lines=6,
                max_lines=12,
                elem_id="sentiment-texts",
            )
    examples = gr.Examples(
        [list(row) for row in EXAMPLES.values()], [language, cell, text], example_labels=list(EXAMPLES),
        label=fixed("Examples"),
    )  # fmt: skip
    asked = contest.buttons(fixed("Classify"))
    legend = fixed(
        "The line is the probability of positive after each word (after each character in Chinese), its middle 50 %. "
        "Words are shaded by it: blue leans positive, amber negative; point at one for its number. Dotted words are "
        "unknown to the net. Of long texts the first 2,000 words are shaded."
    )
    gr.Markdown(legend, elem_id="sentiment-legend", elem_classes="legend")
    sides = []
    own: list[browser.Place] = []

    def third() -> None:
        own.append(browser.column("sentiment", 112))

    with gr.Column(elem_id="sentiment-sides"):
        for runtime, latency in racing.columns("classify", height=112, third=third):  # three lines of note
            sides.append((runtime, latency, gr.HTML(elem_classes="opinions")))
    known = gr.HTML(elem_id="sentiment-about", elem_classes="legend")
    with gr.Accordion(fixed("All the numbers"), open=False):
        numbers = gr.JSON(label=fixed("Result"), show_label=False)
    text_lists.section(language, cell)

    (left, *left_outputs), (right, *right_outputs) = sides
    question = [language, cell, text]
    inputs = [*question, left, right]
    outputs = [result, *left_outputs, *right_outputs, known, numbers]
    answered = [
        asked.go.click(sentiment, inputs, outputs, api_name="sentiment", **EVENT),
        asked.measure.click(sentiment_measured, inputs, outputs, api_visibility="private", **EVENT),
        examples.load_input_event.success(sentiment, inputs, outputs, api_visibility="private", **EVENT),
    ]
    task = answers.Task("classify", OUTPUTS, prepare, draw_own)
    ended = answers.offer(own[0], task, inputs, sentiment, outputs, answered)
    own[0].offer([here.select], [language, cell], model_of, answers.again, ended)
    places = [(runtime, latency) for runtime, latency, _ in sides]
    contest.offer(asked, "classify", prepare, question, places, result, OUTPUTS)
    language.change(cells_of, language, cell, queue=False, show_progress="hidden", api_visibility="private")
    # The first answer is made when the tab is first looked at, and not while the page opens.
    here.select(first, [result, *inputs], outputs, api_visibility="private", **EVENT)
    gr.api(sentiment_values, api_name="sentiment_values", **ALONE)


def first(
    shown: str, language: str, cell: str, text: str, left: str, right: str, request: gr.Request | None = None
) -> tuple[Any, ...]:
    """`sentiment`, unless there is an answer already."""
    return (gr.skip(),) * 7 if shown else sentiment(language, cell, text, left, right, request)
