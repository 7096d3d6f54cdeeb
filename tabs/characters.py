"""The Characters tab: two runtimes write the same text at the same time. Pure functions first, then the tab and its
events."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

import seqexport
from seqexport.errors import SeqExportError
from seqexport.reports import TOLERANCE
from seqexport.runtimes import Runtime
from seqexport.text import Vocabulary, read_prompt
from tabs import racing
from tabs.racing import ALONE, MAX_SEED, RUNTIMES, Column, number, one_of, sentences, whole

MODELS = {"Shakespeare (English)": "characters-en", "三国演义 (中文)": "characters-zh"}
PROMPTS = {"Shakespeare (English)": "ROMEO\n", "三国演义 (中文)": "却说玄德"}
PLAYBACK = {"as fast as it is": 1, "slowed down 5 times": 5, "slowed down 20 times": 20}
MAX_CHARACTERS, MAX_PROMPT, MAX_TEMPERATURE, MAX_TOP_K = 2_000, 5_000, 2.0, 10_000
MEASURED = 500  # characters of the measurement after the race
PERIOD = 0.06  # seconds between two updates of a column; the page takes at most some 20 a second
CHUNK = 8  # characters at least in a call, so that what is timed is the writing and not the calling

Question = tuple[str, str, int, float, int, float, int]  # model, prompt, length, temperature, top_k, top_p, seed


def ask(
    model: Any, prompt: Any, length: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any
) -> tuple[str, Vocabulary, dict[str, Any], list[str]]:
    """Check a question → the model's folder, its vocabulary, the feeds of its pipeline, and notes on the prompt.

    All uniform numbers are drawn at once, so that the text depends on the seed only, and not on how it is cut.
    """
    folder = MODELS[one_of("model", model, tuple(MODELS))]
    steps = whole("number of characters", length, 1, MAX_CHARACTERS)
    preprocessing = racing.load_runtime(folder, "generate", "onnxruntime").metadata["preprocessing"]
    vocabulary = Vocabulary.from_dict(preprocessing["vocabulary"])
    text = str(prompt or "")
    whole("length of the prompt", len(text), 0, MAX_PROMPT)
    tokens, notes = read_prompt(vocabulary, text, preprocessing["window"])
    rng = np.random.default_rng(whole("seed", seed, 0, MAX_SEED))
    feeds = {
        "prompt": tokens,
        "uniforms": rng.random((1, steps), dtype=np.float32),
        "temperature": number("temperature", temperature, 0, MAX_TEMPERATURE),
        "top_k": whole("top-k", top_k, 0, MAX_TOP_K),
        "top_p": number("top-p", top_p, 0, 1),
    }
    return folder, vocabulary, feeds, notes


def write(runtime: Runtime, feeds: Mapping[str, Any], slower: float = 1.0) -> Iterator[tuple[list[int], float]]:
    """Write a text chunk by chunk, the state carried over → its tokens so far and the seconds that the model took.

    The next chunk comes when `slower` times those seconds are over, so that two texts are shown in the proportion of
    their speeds. Only the model's calls are timed, after one to warm up.
    """
    uniforms = feeds["uniforms"]
    state: dict[str, np.ndarray] = {}
    carried = runtime.metadata["state_map"]
    runtime.run({**feeds, "uniforms": uniforms[:, :1]})
    tokens: list[int] = []
    seconds, chunk, prompt = 0.0, CHUNK, feeds["prompt"]
    began = time.perf_counter()
    while len(tokens) < uniforms.shape[1]:
        start = time.perf_counter()
        part = uniforms[:, len(tokens) : len(tokens) + chunk]
        outputs = runtime.run({**feeds, "prompt": prompt, "uniforms": part, **state})
        seconds += time.perf_counter() - start
        tokens += outputs["tokens"][0].tolist()
        prompt, state = outputs["tokens"][:, -1:], {name: outputs[output] for name, output in carried.items()}
        time.sleep(max(0.0, slower * seconds - (time.perf_counter() - began)))
        yield tokens, seconds
        chunk = max(CHUNK, round(PERIOD / slower * len(tokens) / seconds))


def show_text(prompt: str, written: str) -> str:
    """A column's text as HTML, after the prompt."""
    text = f'<span class="prompt">{html.escape(prompt)}</span>{html.escape(written)}'
    return f'<pre class="written"><code>{text}</code></pre>'


def show_speed(count: int, seconds: float, how: str = "") -> str:
    """A column's speed while it writes, as HTML."""
    return (
        f'<p class="ms">{count / seconds:,.0f} characters/s</p>'
        f'<p class="note">{count:,} in {1000 * seconds:,.1f} ms of the model\'s own time{how}</p>'
    )


def begin(*question: Any) -> tuple[Any, ...]:
    """Check the question before the columns start → the notes, two empty records, and the buttons' new state."""
    with sentences():
        *_, notes = ask(*question)
    lead = racing.say("Writing …", html.escape(" ".join(notes)) or "Both columns read the same random numbers.")
    return lead, None, None, gr.update(interactive=False), gr.update(interactive=True)


def stream(name: str, slower: str, *question: Any) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """One runtime's column as it grows → text, speed, and at the end the record of what was written, or of the error:
    a column that can't go on ends like any other, so that the page can be used again when both have ended."""
    record: dict[str, Any] = {"runtime": name, "question": list(question)}
    try:
        factor = PLAYBACK[one_of("playback", slower, tuple(PLAYBACK))]
        folder, vocabulary, feeds, _ = ask(*question)
        # Without oneDNN, which is slow at single steps; the measurement after the race takes the faster of both.
        runtime = racing.load_runtime(
            folder, "generate", one_of("runtime", name, racing.present("generate")), False if name == "torch" else None
        )
        prompt, how = str(question[1]), ", oneDNN off" if name == "torch" else ""
        for tokens, seconds in write(runtime, feeds, factor):
            done = len(tokens) == feeds["uniforms"].shape[1]
            shown = show_text(prompt, vocabulary.decode(tokens)), show_speed(len(tokens), seconds, how)
            yield *shown, record | {"tokens": tokens} if done else None
    except SeqExportError as error:
        yield show_text("", ""), f'<p class="note">{html.escape(str(error))}</p>', record | {"error": str(error)}


def parted(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two texts of one length differ, counted from 0; None where they are the same."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


def finish(one: dict[str, Any] | None, other: dict[str, Any] | None) -> tuple[Any, ...]:
    """When both columns have ended: hold the texts against each other, and measure the runtimes in turns → the
    sentence, all the numbers, the buttons' new state, and empty records.

    Called when either column ends, one call at a time: the first column to end leaves it to the second, and where both
    end at once, the second call finds the records empty.
    """
    if one is None or other is None or one["question"] != other["question"]:
        return (gr.skip(),) * 6
    errors = [record["error"] for record in (one, other) if "error" in record]
    if errors:
        result = racing.say("Not finished.", html.escape(errors[0]))
        return result, None, gr.update(interactive=True), gr.update(interactive=False), None, None
    names = [one["runtime"], other["runtime"]]
    place = parted(one["tokens"], other["tokens"])
    with sentences():
        folder, _, feeds, notes = ask(*one["question"])
        margin = None if place is None else margin_at(folder, feeds, one["tokens"], place)
        columns: Mapping[str, Column] = {}
        if margin is None or (margin <= TOLERANCE and place):  # up to a tie both wrote the same
            feeds["uniforms"] = feeds["uniforms"][:, : min(MEASURED, place or MEASURED)]
            columns = racing.measure(folder, "generate", names, feeds).columns
    measured = {name: figures_of(column) for name, column in columns.items()}
    lead, detail = say(names, len(one["tokens"]), place, margin, columns)
    numbers = {"same": place is None, "first_difference": place, "margin": margin, "measured": measured}
    result = racing.say(lead, html.escape(" ".join([*notes, detail])))
    return result, numbers, gr.update(interactive=True), gr.update(interactive=False), None, None


def margin_at(folder: str, feeds: Mapping[str, Any], tokens: Sequence[int], place: int) -> float:
    """By how much the choice of tokens[place] was decided, as in seqexport.pipelines.Generate.margin."""
    import torch

    from seqexport.pipelines import Generate

    pipeline = seqexport.read_checkpoint(racing.EXPORTED / folder / "checkpoint.pt").pipeline("generate")
    assert isinstance(pipeline, Generate)
    read = [*feeds["prompt"][0], *tokens[:place]]
    settings = (torch.tensor(feeds[name]) for name in ("temperature", "top_k", "top_p"))
    return pipeline.margin(torch.tensor([read]), torch.tensor(feeds["uniforms"][0, place]), *settings)


def say(
    names: Sequence[str], count: int, place: int | None, margin: float | None, columns: Mapping[str, Column]
) -> tuple[str, str]:
    """What came out, in a sentence and a few more: `count` characters, which part at `place` (None: nowhere), where the
    choice was decided by `margin`; `columns` were measured in turns up to there."""
    detail = f"Both wrote the same {count:,} characters from the same random numbers."
    if place is not None:
        detail = f"They part at character {place + 1:,}, where a change of {margin:.0e} would have decided otherwise"
        if not columns:
            return "The texts part: no speed is shown.", f"{detail}."
        detail += ": a tie, which rounding decides. Up to there they are the same."
    first, second = (columns[name].milliseconds for name in names)
    lead = racing.race_sentence(names[0], names[1], first / second if names[0] != names[1] else None)
    speeds = "; ".join(
        f"{RUNTIMES[name].label} {figures_of(column)['characters_per_second']:,.0f} characters/s ({column.note})"
        for name, column in columns.items()
    )
    steps = next(iter(columns.values())).outputs["tokens"].shape[1]
    return lead, f"{detail} Measured after the race, in turns, over {steps} characters: {speeds}."


def figures_of(column: Column) -> dict[str, Any]:
    """A measurement's numbers for JSON."""
    count = column.outputs["tokens"].shape[1]
    return {
        "runtime": column.runtime,
        "characters": count,
        "milliseconds": round(column.milliseconds, 3),
        "characters_per_second": round(1000 * count / column.milliseconds, 1),
        "note": column.note,
    }


def stopped() -> tuple[Any, Any, Any]:
    """What the page says after Stop, and the buttons' new state."""
    return (
        racing.say("Stopped.", "Both columns ended where they were."),
        gr.update(interactive=True),
        gr.update(interactive=False),
    )


def characters_values(
    prompt: str,
    model: str = "Shakespeare (English)",
    length: int = 500,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    runtime: str = "onnxruntime",
) -> dict[str, Any]:
    """Write a text on in one runtime → the text, notes on the prompt, and the milliseconds of the model's call."""
    with sentences():
        one_of("runtime", runtime, racing.present("generate"))
        folder, vocabulary, feeds, notes = ask(model, prompt, length, temperature, top_k, top_p, seed)
        column = racing.measure(folder, "generate", [runtime], feeds).columns[runtime]
    return figures_of(column) | {"text": vocabulary.decode(column.outputs["tokens"][0]), "notes": notes}


CSS = """
.written { white-space: pre-wrap; overflow-wrap: anywhere; font-family: var(--font-mono), monospace; margin: 0;
  font-size: 0.9rem; line-height: 1.55; height: 24rem; overflow-y: auto; padding: 0.75rem 1rem; border-radius: 4px;
  border: 1px solid var(--border-color-primary); background: var(--block-background-fill);
  display: flex; flex-direction: column-reverse; }  /* keeps what was written last in sight */
.written code { margin: 0 0 auto !important; padding: 0; font: inherit; color: inherit; background: none;
  white-space: inherit; }
.written .prompt { color: var(--body-text-color-subdued); }
@media (max-width: 720px) { .written { height: 12rem; } }
"""


def tab(page: gr.Blocks, here: gr.Tab) -> None:
    """The tab in which two runtimes write at the same time, and its events."""
    for folder in MODELS.values():
        racing.require_model(folder)
    result = gr.HTML(
        racing.say("Two columns, one text.", "The same prompt, the same random numbers: press Write and watch."),
        elem_id="characters-result",
        elem_classes="result",
        min_height=84,
    )
    first = next(iter(MODELS))
    with gr.Row():
        with gr.Column(min_width=320):
            model = gr.Radio(list(MODELS), value=first, label="What the net has read")
            prompt = gr.Textbox(PROMPTS[first], label="Prompt", lines=2, max_lines=4, info="The text is written on.")
        with gr.Column(min_width=320):
            length = gr.Slider(1, MAX_CHARACTERS, value=1_000, step=1, label="Characters to write")
            temperature = gr.Slider(0, MAX_TEMPERATURE, value=0.8, step=0.05, label="Temperature (0: the likeliest)")
            playback = gr.Radio(
                list(PLAYBACK),
                value="slowed down 20 times",
                label="Shown",
                info="Both columns alike, never the timing.",
            )
        with gr.Column(min_width=320):
            top_k = gr.Slider(0, 100, value=0, step=1, label="Top-k (0: off)")
            top_p = gr.Slider(0, 1, value=1, step=0.01, label="Top-p (1: off)")
            seed = gr.Number(value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed of the text")
    with gr.Row():
        go = gr.Button("Write", variant="primary", size="lg")
        stop = gr.Button("Stop", variant="stop", size="lg", interactive=False)
    sides = []
    for runtime, speed in racing.columns("generate", height=72):
        written = gr.HTML('<pre class="written"></pre>', elem_classes="column")
        sides.append((runtime, written, speed, gr.State()))
    with gr.Accordion("All the numbers", open=False):
        numbers = gr.JSON(label="Result", show_label=False)

    model.change(PROMPTS.get, model, prompt, queue=False, show_progress="hidden", api_visibility="private")
    question = [model, prompt, length, temperature, top_k, top_p, seed]
    records = [record for *_, record in sides]
    quiet: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
    start = go.click(begin, question, [result, *records, go, stop], **quiet)
    streams = [
        start.success(
            stream,
            [runtime, playback, *question],
            [written, speed, record],
            concurrency_id=f"characters-{side}",
            concurrency_limit=1,
            **quiet,
        )
        for side, (runtime, written, speed, record) in enumerate(sides)
    ]
    ends = [event.success(finish, records, [result, numbers, go, stop, *records], **quiet | ALONE) for event in streams]
    stop.click(stopped, None, [result, go, stop], cancels=[*streams, *ends], queue=False, api_visibility="private")
    gr.api(characters_values, api_name="characters_values", **ALONE)
