"""A visitor's own list of texts through the Sentiment tab's net: read, classified in chunks, taken home as a table.

It is no race. ONNX Runtime alone reads the texts, in batches of about the same length (seqexport.batching), and no
more is kept of them than what is on the page and in the download.
"""

from __future__ import annotations

import html
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from seqexport.batching import by_length, encode, probabilities
from seqexport.errors import FileError, InputError
from tabs import own_texts, racing
from tabs.languages import ENGLISH, Words, fixed
from tabs.opinions import label_said
from tabs.own_texts import AUTOMATIC, ENCODINGS, MAX_LENGTH, TABLES, Row
from tabs.racing import sentences
from tabs.sentiment_nets import Net, net

CHUNK, CHUNK_CHARACTERS = 256, 2**16  # texts, and their characters, between two looks at Stop and at the clock
DEADLINE = 60.0  # seconds, after which a list ends with what it has: other visitors wait
SHOWN, LISTED = 100, 10  # rows of the table on the page, rows that could not be read in the list below it
HEADINGS = ("row", "text", "label", "probability", "note")  # of the download, whatever language the page has
# One list at a time, beside the measurements, which it takes no turn of.
LISTS: dict[str, Any] = {"concurrency_id": "list", "concurrency_limit": 1}
RUNNING: dict[str, threading.Event] = {}  # a visitor's session → what Stop sets


@dataclass(frozen=True)
class Answer:
    """What came of a row: the probabilities of the labels, or None where it could not be read; and what to know of
    it."""

    row: Row
    probabilities: np.ndarray | None
    note: str = ""


def chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows in their order, cut so that a chunk takes a moment."""
    start, size = 0, 0
    for place, row in enumerate(rows):
        if place > start and (place - start == CHUNK or size + len(row.text) > CHUNK_CHARACTERS):
            yield rows[start:place]
            start, size = place, 0
        size += 0 if row.reason else len(row.text)
    yield rows[start:]


def answered(chosen: Net, rows: Sequence[Row], words: Words = ENGLISH) -> Iterator[list[Answer]]:
    """Rows → their answers in the same order, chunk by chunk."""
    model = racing.load_runtime(chosen.model, "classify", "onnxruntime")
    for chunk in chunks(rows):
        tokens = encode(chosen.vocabulary, [row.text for row in chunk if not row.reason])
        found = iter(probabilities(model, tokens, by_length([len(row) for row in tokens])) if tokens else ())
        unknown = iter([not row.any() for row in tokens])
        yield [
            Answer(row, None, row.reason)
            if row.reason
            else Answer(row, next(found), words("The net knows nothing in it.") if next(unknown) else "")
            for row in chunk
        ]


def read_file(
    path: str, column: Any, heading: Any, encoding: str, words: Words = ENGLISH
) -> tuple[list[Row], str, list[str]]:
    """An uploaded file → its rows, the encoding, and the columns' names, none for a file of lines.

    column: the place of the texts' column, from 0; None takes the one with the longest texts.
    """
    text, encoding = own_texts.decoded(_content(path), encoding)
    if not is_table(path):
        return own_texts.from_lines(text, words), encoding, []
    names, longest = own_texts.columns_of(text, bool(heading))
    place = longest if column is None else racing.whole("place of the column", column, 0, len(names) - 1)
    return own_texts.from_table(text, place, bool(heading), words), encoding, [names[place]]


def is_table(path: str) -> bool:
    """Whether the file has columns."""
    return Path(path).suffix.lower() in TABLES


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"The uploaded file could not be read ({error.strerror}): upload it again.") from error


def look(
    path: str | None, heading: bool, encoding: str, request: gr.Request | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file was uploaded, or is read in another way → the choice of its column, and whether it has a heading."""
    if path is None or not is_table(path):
        return gr.update(visible=False, choices=[], value=None), gr.update(visible=False)
    with sentences():
        names, longest = own_texts.columns_of(own_texts.decoded(_content(path), encoding)[0], bool(heading))
    choices = [(name, place) for place, name in enumerate(names)]
    return gr.update(visible=True, choices=choices, value=longest), gr.update(visible=True)


def classify_list(
    language: str,
    cell: str,
    pasted: str,
    path: str | None,
    column: int | None,
    heading: bool,
    encoding: str,
    request: gr.Request | None = None,
) -> Iterator[tuple[Any, Any, Any, Any]]:
    """A visitor's list through the net, the file if there is one and otherwise what was pasted → what is said, the
    table, the download, the Stop button's state; again and again until the end."""
    words, stop = Words.of(request), threading.Event()
    session = str(getattr(request, "session_hash", None) or "")
    with sentences():
        chosen = net(language, cell)
        if path is None:
            rows, source = own_texts.from_lines(str(pasted or ""), words), ""
        else:
            rows, taken, name = read_file(path, column, heading, encoding, words)
            source = source_said(Path(path).name, taken, name, words)
    RUNNING[session] = stop
    try:
        yield from _run(chosen, rows, source, stop, words)
    finally:
        if RUNNING.get(session) is stop:
            del RUNNING[session]


def _run(
    chosen: Net, rows: Sequence[Row], source: str, stop: threading.Event, words: Words
) -> Iterator[tuple[Any, Any, Any, Any]]:
    begin = told = time.perf_counter()
    found: list[Answer] = []
    nothing = gr.update(value=None, interactive=False)
    yield show_progress(0, len(rows), words), "", nothing, gr.update(interactive=True)
    for chunk in answered(chosen, rows, words):
        shown = len(found)
        found += chunk
        now = time.perf_counter()
        if stop.is_set() or now - begin > DEADLINE:
            break
        if now - told >= racing.PERIOD or not shown:
            told = now
            table = show_table(found, chosen.labels, words) if shown < SHOWN else gr.skip()
            yield show_progress(len(found), len(rows), words), table, gr.skip(), gr.skip()
    seconds = time.perf_counter() - begin
    file = own_texts.download("sentiment.csv", as_csv(found, chosen.labels))
    why = "" if len(found) == len(rows) else ended_said(stop.is_set(), len(found), len(rows), words)
    told_last = show_end(chosen, found, seconds, " ".join(filter(None, (why, source))), words)
    ready = gr.update(value=file, interactive=True)
    yield told_last, show_table(found, chosen.labels, words, complete=True), ready, gr.update(interactive=False)


def stop_list(request: gr.Request | None = None) -> dict[str, Any]:
    """End the visitor's own list after the chunk that is under way → the Stop button's state."""
    session = str(getattr(request, "session_hash", None) or "")
    running = RUNNING.get(session)
    if session and running is not None:  # without a session nobody knows whose list it is
        running.set()
    return gr.update(interactive=False)


def sentiment_list(texts: list[str], language: str = "English", cell: str = "LSTM") -> dict[str, Any]:
    """Classify 1 to 10,000 texts, each of 1 to 5,000 characters, in ONNX Runtime → in the texts' order their labels and
    probabilities [texts, 2] (of negative and positive), both null for a text that can't be read; the notes on such
    texts and on those of which the net knows nothing, each with the text's number from 1; and the seconds. `language`
    is "English" or "中文"; `cell` is "LSTM", and for 中文 also "GRU" or "RNN"."""
    begin = time.perf_counter()
    with sentences():
        chosen, found = net(language, cell), []
        rows = own_texts.from_list(texts)
        for chunk in answered(chosen, rows):
            found += chunk
            if time.perf_counter() - begin > DEADLINE and len(found) < len(rows):
                raise InputError(
                    f"After {DEADLINE:.0f} s {len(found):,} of {len(rows):,} texts were classified: give a part of "
                    "them at a time."
                )
    read = [answer.probabilities for answer in found]
    return {
        "labels": [None if row is None else chosen.labels[int(row.argmax())] for row in read],
        "probabilities": [None if row is None else row.astype(float).round(6).tolist() for row in read],
        "notes": [{"text": answer.row.number, "note": answer.note} for answer in found if answer.note],
        "language": language,
        "cell": cell,
        "seconds": round(time.perf_counter() - begin, 3),
    }


def as_csv(found: Sequence[Answer], labels: Sequence[str]) -> bytes:
    """The answers as a file: every row that was given, those that could not be read with their reason."""
    return own_texts.as_csv(HEADINGS, (_cells(answer, labels) for answer in found))


def _cells(answer: Answer, labels: Sequence[str]) -> tuple[str, ...]:
    row, share = answer.row, answer.probabilities
    text = row.text if len(row.text) <= MAX_LENGTH else row.text[:100] + "…"
    if share is None:
        return str(row.number), text, "", "", answer.note
    best = int(share.argmax())
    return str(row.number), text, labels[best], f"{share[best]:.6f}", answer.note


# --- how it looks

CSS = """
.texts-table { max-height: 24rem; overflow: auto; border: 1px solid var(--border-color-primary); border-radius: 4px; }
.texts-table table { width: 100%; border-collapse: collapse; border: 0 !important; margin: 0; font-size: 0.9rem; }
.texts-table th, .texts-table td { text-align: left; vertical-align: top; padding: 0.35rem 0.6rem !important;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.texts-table :is(thead, tbody, tr) { border: 0 !important; }
.texts-table thead th { position: sticky; top: 0; background: var(--background-fill-secondary); }
.texts-table td.what { overflow-wrap: anywhere; min-width: 7rem; }
.texts-table td.number, .texts-table td.label { white-space: nowrap; }
.texts-table .number { text-align: right; }
.texts-table .reason { color: var(--body-text-color-subdued); }
#sentiment-list-table p.legend { margin-top: 0.75rem; }
#sentiment-list-says { min-height: 6.5rem; }
#sentiment-list-says progress { width: 100%; max-width: 40rem; height: 0.75rem; accent-color: #3f82e0; }
#sentiment-list-says .lead { font-size: 1.2rem; }
@media (max-width: 720px) {
  #sentiment-list-says { min-height: 13rem; }
  .texts-table th, .texts-table td { padding: 0.3rem 0.35rem !important; }
  .texts-table table { font-size: 0.8rem; }
}
"""
LONG, LONG_BAD = 300, 60  # characters of a text in the table, of one that could not be read


def texts_said(count: int, words: Words = ENGLISH) -> str:
    """How many texts."""
    return words("1 text") if count == 1 else words("{count:,} texts", count=count)


def source_said(name: str, encoding: str, columns: Sequence[str], words: Words) -> str:
    """Where the texts came from."""
    if columns:
        return words(
            "Read from {name} in {encoding}, column {column}.", name=name, encoding=encoding, column=columns[0]
        )
    return words("Read from {name} in {encoding}.", name=name, encoding=encoding)


def ended_said(stopped: bool, done: int, count: int, words: Words) -> str:
    """Why not all were classified."""
    if stopped:
        return words("Stopped after {done:,} of {count:,} rows.", done=done, count=count)
    return words(
        "Ended after {seconds:.0f} seconds and {done:,} of {count:,} rows: give the others in a list of their own.",
        seconds=DEADLINE,
        done=done,
        count=count,
    )


def show_progress(done: int, count: int, words: Words = ENGLISH) -> str:
    """How far it is, as HTML."""
    said = words("{done:,} of {count:,} texts", done=done, count=count)
    label = html.escape(words("Texts classified"))
    return f'<p class="lead">{said}</p><progress aria-label="{label}" max="{count}" value="{done}"></progress>'


def show_end(chosen: Net, found: Sequence[Answer], seconds: float, more: str, words: Words = ENGLISH) -> str:
    """What came out, as HTML: how many of each label, how long it took, and which rows could not be read."""
    read = [answer.probabilities for answer in found if answer.probabilities is not None]
    counts = Counter(chosen.labels[int(share.argmax())] for share in read)
    each = words(", ").join(f"{counts[label]:,} {label_said(label, words)}" for label in reversed(chosen.labels))
    lead = words("{texts}: {each}.", texts=texts_said(len(read), words), each=each)
    detail = words(
        "By the {language} {cell} in ONNX Runtime within {seconds:.2f} s, {rate:,.0f} texts a second.",
        language=chosen.language,
        cell=chosen.cell,
        seconds=seconds,
        rate=len(read) / seconds,
    )
    if 2 * sum(answer.note != "" for answer in found if answer.probabilities is not None) > len(read) > 0:
        detail += " " + words("In most texts the net knows nothing: is this its language?")
    bad = len(found) - len(read)
    if bad:
        detail += " " + words("Rows that could not be read: {count:,}; they are listed below.", count=bad)
    if len(found) > SHOWN:
        detail += " " + words("The first {shown} rows are shown; the file has all.", shown=SHOWN)
    return racing.say(html.escape(lead), html.escape(" ".join(filter(None, (detail, more)))))


def show_table(found: Sequence[Answer], labels: Sequence[str], words: Words = ENGLISH, complete: bool = False) -> str:
    """The first rows as an HTML table, in a box that is scrolled by keys too; and, once the list is complete, the first
    rows that could not be read, with their reasons."""
    heads = {words("Row"): "number", words("Text"): "", words("Label"): "", words("Probability"): "number"}
    parts = "".join(f'<th scope="col" class="{kind}">{html.escape(head)}</th>' for head, kind in heads.items())
    body = "".join(_show_row(answer, labels, words) for answer in found[:SHOWN])
    name = html.escape(words("Texts and their labels"))
    table = (
        f'<div class="texts-table" role="region" tabindex="0" aria-label="{name}"><table><thead><tr>{parts}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )
    bad = [answer for answer in found if answer.probabilities is None]
    if not complete or not bad:
        return table
    listed = "".join(
        f"<li>{html.escape(words('Row {number:,}: {reason}', number=answer.row.number, reason=answer.note))}</li>"
        for answer in bad[:LISTED]
    )
    more = len(bad) - LISTED
    if more > 0:
        listed += f"<li>{html.escape(words('{count:,} more are in the file, with their reasons.', count=more))}</li>"
    return f'{table}<p class="legend">{html.escape(words("Could not be read:"))}</p><ul>{listed}</ul>'


def _show_row(answer: Answer, labels: Sequence[str], words: Words) -> str:
    row, share = answer.row, answer.probabilities
    most = LONG if share is not None else LONG_BAD
    text = html.escape(row.text if len(row.text) <= most else row.text[:most] + "…")
    note = f' <span class="reason">({html.escape(answer.note)})</span>' if answer.note else ""
    label, sure = "–", "–"
    if share is not None:
        best = int(share.argmax())
        label, sure = html.escape(label_said(labels[best], words)), f"{100 * share[best]:.1f} %"
    return (
        f'<tr><td class="number">{row.number:,}</td><td class="what">{text}{note}</td>'
        f'<td class="label">{label}</td><td class="number">{sure}</td></tr>'
    )


def section(language: gr.Radio, cell: gr.Radio) -> None:
    """The part of the tab below the side by side. language, cell: which net is chosen above."""
    with gr.Accordion(fixed("Your own data: a list of texts"), open=False, elem_id="sentiment-list"):
        said = fixed(
            "The net chosen above classifies them in ONNX Runtime: up to 10,000 texts of at most 5,000 characters. "
            "Nobody else sees the texts or the table."
        )
        with gr.Row():
            with gr.Column(min_width=320):
                pasted = gr.Textbox(label=fixed("Texts, one a line"), info=said, lines=6, max_lines=12)
            with gr.Column(min_width=320):
                file = gr.File(
                    label=fixed("Or a file, which goes first: TXT (a text a line), CSV or TSV"),
                    file_types=[".txt", *TABLES], type="filepath", height=150,
                )  # fmt: skip
                with gr.Row():
                    encoding = gr.Dropdown(
                        [(fixed("found by itself"), AUTOMATIC), *[name for name in ENCODINGS if name != AUTOMATIC]],
                        value=AUTOMATIC, label=fixed("Encoding of the file"), min_width=150,
                    )  # fmt: skip
                    column = gr.Dropdown([], label=fixed("Column of the texts"), visible=False, min_width=150)
                heading = gr.Checkbox(True, label=fixed("The first row names the columns"), visible=False)
        with gr.Row():
            go = gr.Button(fixed("Classify the list"), variant="primary")
            stop = gr.Button(fixed("Stop the list"), variant="stop", interactive=False)
            download = gr.DownloadButton(fixed("Download the table (CSV)"), interactive=False)
        says = gr.HTML(elem_id="sentiment-list-says", elem_classes="result")
        table = gr.HTML(elem_id="sentiment-list-table")

    aside: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on([file.change, heading.change, encoding.change], look, [file, heading, encoding], [column, heading], **aside)
    inputs = [language, cell, pasted, file, column, heading, encoding]
    go.click(classify_list, inputs, [says, table, download, stop], **aside | LISTS)
    stop.click(stop_list, None, stop, queue=False, **aside)
    gr.api(sentiment_list, api_name="sentiment_list", **LISTS)
