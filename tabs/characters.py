"""The Characters tab: two runtimes write the same text at the same time. Pure functions first, then the tab and its
events."""

from __future__ import annotations

import functools
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
from tabs import browser, deadlines, racing
from tabs.languages import ENGLISH, Words, fixed, spoken
from tabs.racing import ALONE, EVENT, MAX_SEED, RUNTIMES, Column, number, one_of, sentences, whole

MODELS = {"Shakespeare (English)": "characters-en", "三国演义 (中文)": "characters-zh"}
PROMPTS = {"Shakespeare (English)": "ROMEO\n", "三国演义 (中文)": "却说玄德"}
PLAYBACK = (1, 5, 20)  # how many times slower than it is a text is shown
MAX_CHARACTERS, MAX_PROMPT, MAX_TEMPERATURE, MAX_TOP_K = 2_000, 5_000, 2.0, 10_000
OPENING = 300  # characters of the texts that the tab opens on
MEASURED = 100  # characters of a measurement: more take seconds in a slow runtime, and then there are too few calls
CHUNK = 8  # characters at least in a call, so that what is timed is the writing and not the calling

Question = tuple[str, str, int, float, int, float, int]  # model, prompt, length, temperature, top_k, top_p, seed


def folder_of(model: Any) -> str:
    """The folder of a model by the name that is shown. Raises InputError for another."""
    return MODELS[one_of("model", model, tuple(MODELS))]


def ask(
    model: Any, prompt: Any, length: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any
) -> tuple[str, Vocabulary, dict[str, Any], list[str]]:
    """Check a question → the model's folder, its vocabulary, the feeds of its pipeline, and notes on the prompt.

    All uniform numbers are drawn at once, so that the text depends on the seed only, and not on how it is cut.
    """
    folder = folder_of(model)
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
        deadlines.check()
        start = time.perf_counter()
        part = uniforms[:, len(tokens) : len(tokens) + chunk]
        outputs = runtime.run({**feeds, "prompt": prompt, "uniforms": part, **state})
        seconds += time.perf_counter() - start
        tokens += outputs["tokens"][0].tolist()
        prompt, state = outputs["tokens"][:, -1:], {name: outputs[output] for name, output in carried.items()}
        time.sleep(max(0.0, slower * seconds - (time.perf_counter() - began)))
        yield tokens, seconds
        chunk = max(CHUNK, round(racing.PERIOD / slower * len(tokens) / seconds))


def show_text(prompt: str, written: str) -> str:
    """A column's text as HTML, after the prompt."""
    text = f'<span class="prompt">{html.escape(prompt)}</span>{html.escape(written)}'
    return f"{racing.WRITTEN}<code>{text}</code></pre>"


def show_speed(count: int, seconds: float, how: str = "", words: Words = ENGLISH) -> str:
    """A column's speed while it writes, as HTML."""
    speed = words("{n:,.0f} characters/s", n=count / seconds)
    note = words("{n:,} in {ms:,.1f} ms of the model's own time", n=count, ms=1000 * seconds)
    return f'<p class="ms">{speed}</p><p class="note">{note}{how}</p>'


def show_note(note: str) -> str:
    """A sentence in the place of a column's speed, as HTML."""
    return f'<p class="note">{html.escape(note)}</p>'


def running(name: str, lane: str, folder: str) -> Runtime:
    """The runtime that writes in a column. torch without oneDNN, which is slow at single steps; a measurement takes the
    faster of both."""
    return racing.load_runtime(folder, "generate", name, RUNTIMES[name].onednn[-1], lane)


def opening(said: Any, left: str, right: str, *question: Any, words: Words = ENGLISH) -> tuple[Any, Any, Any]:
    """What the tab shows when it is first looked at → a sentence, and the beginning of each column's text. Nothing the
    second time, when something is `said`."""
    if said:
        return (gr.skip(),) * 3
    with sentences():
        names = racing.chosen(left, right, "generate")
        folder, vocabulary, feeds, _ = ask(*question)
        feeds["uniforms"] = feeds["uniforms"][:, :OPENING]
        texts = {name: running(name, "measurement", folder).run(feeds)["tokens"][0] for name in names}
    shown = [show_text(str(question[1]), vocabulary.decode(texts[name])) for name in names]
    lead = words("The same prompt, the same random numbers: the same text.")
    detail = words("Race lets the columns write at the same time; Measure takes them in turns and tells the speeds.")
    return racing.say(lead, detail), shown[0], shown[1]


def begin(playback: Any, *question: Any, words: Words = ENGLISH) -> tuple[Any, ...]:
    """Check the question before the columns start → the notes, two empty records, the browser's job (None where it
    can have none), and the buttons' new state."""
    with sentences():
        factor = number("playback", playback, PLAYBACK[0], PLAYBACK[-1])
        folder, _, feeds, notes = ask(*question)
    lead = racing.say(
        words("Writing …"), html.escape(" ".join(notes)) or words("All columns read the same random numbers.")
    )
    job = browser.job(folder, str(question[1]), feeds, words, factor)
    return lead, None, None, job, *buttons(busy=True)


def own_job(*question: Any, words: Words = ENGLISH) -> dict[str, Any] | None:
    """The browser's job alone, with nothing beside it to be slowed down for."""
    with sentences():
        folder, _, feeds, _ = ask(*question)
    return browser.job(folder, str(question[1]), feeds, words)


def buttons(busy: bool) -> tuple[Any, Any, Any]:
    """The state of Race, Stop and Measure while columns write, or when none does."""
    return gr.update(interactive=not busy), gr.update(interactive=busy), gr.update(interactive=not busy)


def stream(
    side: str, name: str, playback: Any, *question: Any, words: Words = ENGLISH
) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """One runtime's column as it grows → text, speed, and at the end the record of what was written, or of the error:
    a column that can't go on ends like any other, so that the page can be used again when both have ended."""
    record: dict[str, Any] = {"runtime": name, "question": list(question)}
    try:
        factor = number("playback", playback, PLAYBACK[0], PLAYBACK[-1])
        folder, vocabulary, feeds, _ = ask(*question)
        prompt = str(question[1])
        yield show_text(prompt, ""), show_note(words("Getting ready …")), None
        runtime = running(one_of("runtime", name, racing.present("generate")), side, folder)
        how = words(", oneDNN off") if RUNTIMES[name].onednn[-1] is False else ""
        for tokens, seconds in write(runtime, feeds, factor):
            done = len(tokens) == feeds["uniforms"].shape[1]
            shown = show_text(prompt, vocabulary.decode(tokens)), show_speed(len(tokens), seconds, how, words)
            yield *shown, record | {"tokens": tokens} if done else None
    except SeqExportError as error:
        yield show_text("", ""), show_note(str(error)), record | {"error": str(error)}


def parted(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which two texts of one length differ, counted from 0; None where they are the same."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


def finish(one: dict[str, Any] | None, other: dict[str, Any] | None, words: Words = ENGLISH) -> tuple[Any, ...]:
    """When both columns have ended: hold the texts against each other → the sentence, the numbers, empty records, and
    the buttons' new state.

    Called when either column ends, one call at a time: the first column to end leaves it to the second, and where both
    end at once, the second call finds the records empty.
    """
    if one is None or other is None or one["question"] != other["question"]:
        return (gr.skip(),) * 7
    errors = [record["error"] for record in (one, other) if "error" in record]
    if errors:
        result = racing.say(words("Not finished."), html.escape(errors[0]))
        return result, None, None, None, *buttons(busy=False)
    names = [one["runtime"], other["runtime"]]
    place = parted(one["tokens"], other["tokens"])
    with sentences():
        folder, _, feeds, notes = ask(*one["question"])
        margin = margin_of(names, folder, feeds, one["tokens"], place)
    lead, detail = agreement(names, len(one["tokens"]), place, margin, words)
    numbers = {"same": place is None, "first_difference": place, "margin": margin}
    result = racing.say(lead, html.escape(" ".join([*notes, detail, words("Measure tells the speeds.")])))
    return result, numbers, None, None, *buttons(busy=False)


def margin_of(
    names: Sequence[str], folder: str, feeds: Mapping[str, Any], tokens: Sequence[int], place: int | None
) -> float | None:
    """margin_at, where two texts part that have to be the same; None where they need not be, or do not part."""
    return margin_at(folder, feeds, tokens, place) if place is not None and racing.exact(names) else None


def agreement(
    names: Sequence[str], count: int, place: int | None, margin: float | None, words: Words = ENGLISH
) -> tuple[str, str]:
    """Whether two texts of `count` characters are the same, in a sentence and one more: they part at `place` (None:
    nowhere), where the choice was decided by `margin` (None: one of them is int8's)."""
    if place is None:
        return (
            words("Both wrote the same {n:,} characters.", n=count),
            words("The prompt and the random numbers were the same."),
        )
    lead = words("The texts part at character {n:,}.", n=place + 1)
    if margin is None:
        one = RUNTIMES[next(name for name in names if not RUNTIMES[name].exact)].label
        return lead, words("{one} is another net, of rounded weights: it writes a text of its own.", one=one)
    detail = words("There a change of {margin:.0e} would have decided otherwise", margin=margin)
    if margin <= TOLERANCE:
        return lead, detail + words(": a tie, which rounding decides. Up to there they are the same.")
    return lead, detail + words(": more than rounding can explain.")


def measured(left: str, right: str, *question: Any, words: Words = ENGLISH) -> tuple[Any, ...]:
    """The runtimes in turns, over the first characters of the text → the sentence, the columns' speeds, the numbers.

    Where the texts differ by more than rounding explains, there is no speed: it would compare different answers.
    """
    with sentences():
        names = racing.chosen(left, right, "generate")
        folder, _, feeds, notes = ask(*question)
        feeds["uniforms"] = feeds["uniforms"][:, :MEASURED]
        found = racing.measure(folder, "generate", names, feeds, racing.CAREFUL, words)
        sides = [found.columns[name] for name in names]
        texts = [side.outputs["tokens"][0].tolist() for side in sides]
        place = parted(*texts)
        margin = margin_of(names, folder, feeds, texts[0], place)
    same = margin is None or margin <= TOLERANCE
    lead, detail = agreement(names, len(texts[0]), place, margin, words)
    if same:
        factor = racing.race_sentence(names[0], names[1], found.ratio, words)
        lead, detail = factor, " ".join([racing.interval_sentence(found.ratio, words), lead, detail])
    else:
        detail += " " + words("No speed is shown.")
    speeds = [
        racing.show_latency(
            side if same else None,
            words("{n:,.0f} characters/s; ", n=figures_of(side)["characters_per_second"]),
            words,
        )
        for side in sides
    ]
    ratio = None if found.ratio is None or not same else dict(vars(found.ratio))
    numbers = {
        "same": place is None,
        "first_difference": place,
        "margin": margin,
        "speed_up": ratio,
        "measured": {name: figures_of(column) for name, column in found.columns.items()} if same else None,
    }
    return racing.say(lead, html.escape(" ".join([*notes, detail]).strip())), *speeds, numbers


def judged(own: Any, *question: Any, words: Words = ENGLISH) -> str:
    """Whether the visitor's machine wrote what ONNX Runtime writes on the server, as HTML; own: its tokens."""
    if not own:
        return ""
    with sentences():
        folder, _, feeds, _ = ask(*question)
        tokens = browser.own_tokens(own, feeds["uniforms"].shape[1])
        here = running("onnxruntime", "measurement", folder).run(feeds)["tokens"][0].tolist()
        place = parted(here, tokens)
        margin = None if place is None else margin_at(folder, feeds, here, place)
    if place is None:
        return show_note(words("The same {n:,} characters as ONNX Runtime writes on the server.", n=len(here)))
    assert margin is not None
    lead, detail = agreement(["onnxruntime"] * 2, len(here), place, margin, words)
    return show_note(words("Beside ONNX Runtime on the server:") + f" {lead} {detail}")


def margin_at(folder: str, feeds: Mapping[str, Any], tokens: Sequence[int], place: int) -> float:
    """By how much the choice of tokens[place] was decided, as in seqexport.pipelines.Generate.margin."""
    import torch

    from seqexport.pipelines import Generate

    pipeline = seqexport.read_checkpoint(racing.EXPORTED / folder / "checkpoint.pt").pipeline("generate")
    assert isinstance(pipeline, Generate)
    read = [*feeds["prompt"][0], *tokens[:place]]
    settings = (torch.tensor(feeds[name]) for name in ("temperature", "top_k", "top_p"))
    return pipeline.margin(torch.tensor([read]), torch.tensor(feeds["uniforms"][0, place]), *settings)


def figures_of(column: Column) -> dict[str, Any]:
    """A measurement's numbers for JSON."""
    count = column.outputs["tokens"].shape[1]
    speed = round(1000 * count / column.milliseconds, 1)
    return column.figures | {"characters": count, "characters_per_second": speed}


def stopped(words: Words = ENGLISH) -> tuple[Any, ...]:
    """What the page says after Stop, and the buttons' new state."""
    return racing.say(words("Stopped."), words("Both columns ended where they were.")), *buttons(busy=False)


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
    """The tab in which the runtimes write at the same time, and its events."""
    for folder in MODELS.values():
        racing.require_model(folder)
    result = gr.HTML(elem_id="characters-result", elem_classes="result", min_height=84)
    first = next(iter(MODELS))
    with gr.Row():
        with gr.Column(min_width=320):
            model = gr.Radio(list(MODELS), value=first, label=fixed("What the net has read"))
            prompt = gr.Textbox(
                PROMPTS[first], label=fixed("Prompt"), lines=2, max_lines=4, info=fixed("The text is written on.")
            )
        with gr.Column(min_width=320):
            length = gr.Slider(1, MAX_CHARACTERS, value=1_000, step=1, label=fixed("Characters to write"))
            temperature = gr.Slider(
                0, MAX_TEMPERATURE, value=0.8, step=0.05, label=fixed("Temperature (0: the likeliest)")
            )
            playback = gr.Radio(
                [
                    (fixed("as fast as it is"), 1),
                    (fixed("slowed down 5 times"), 5),
                    (fixed("slowed down 20 times"), 20),
                ],
                value=20,
                label=fixed("Shown"),
                info=fixed("All columns alike, never the timing."),
            )
        with gr.Column(min_width=320):
            top_k = gr.Slider(0, 100, value=0, step=1, label=fixed("Top-k (0: off)"))
            top_p = gr.Slider(0, 1, value=1, step=0.01, label=fixed("Top-p (1: off)"))
            seed = gr.Number(value=0, precision=0, minimum=0, maximum=MAX_SEED, label=fixed("Seed of the text"))
    with gr.Row():
        go = gr.Button(fixed("Race"), variant="primary", size="lg", scale=2)
        stop = gr.Button(fixed("Stop"), variant="stop", size="lg", interactive=False)
        measure = gr.Button(fixed("Measure"), size="lg")
    places: list[tuple[browser.Place, gr.HTML]] = []
    sides = []

    def third() -> None:
        place = browser.column("characters", 112, f"{racing.WRITTEN}</pre>")
        said = gr.HTML(elem_id="characters-browser-verdict", elem_classes="latency", min_height=24)
        places.append((place, said))

    for runtime, speed in racing.columns("generate", height=112, third=third):
        written = gr.HTML(f"{racing.WRITTEN}</pre>", elem_classes="column")
        sides.append((runtime, written, speed, gr.State()))
    own, verdict = places[0]
    with gr.Accordion(fixed("All the numbers"), open=False):
        numbers = gr.JSON(label=fixed("Result"), show_label=False)

    question = [model, prompt, length, temperature, top_k, top_p, seed]
    runtimes, texts, speeds, records = (list(parts) for parts in zip(*sides, strict=True))
    controls = [go, stop, measure]
    quiet: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}

    # The first texts are written when the tab is first looked at, and not while the page opens.
    opened = here.select(
        spoken(opening), [result, *runtimes, *question], [result, *texts],
        api_visibility="private", **EVENT,
    )  # fmt: skip
    # A race does not wait for them, and they must not come over what it has written.
    start = go.click(
        spoken(begin),
        [playback, *question],
        [result, *records, own.job, *controls],
        cancels=opened,
        **quiet,
    )
    streams = [
        start.success(
            spoken(functools.partial(stream, side)),
            [runtime, playback, *question],
            [written, speed, record],
            concurrency_id=f"characters-{side}",
            concurrency_limit=1,
            **quiet,
        )
        for side, (runtime, written, speed, record) in zip(("left", "right"), sides, strict=True)
    ]
    ends = [
        event.success(spoken(finish), records, [result, numbers, *records, *controls], **quiet | ALONE)
        for event in streams
    ]
    measure.click(
        spoken(measured), [*runtimes, *question], [result, *speeds, numbers],
        api_visibility="private", **EVENT,
    )  # fmt: skip

    # The visitor's own machine: in every race, once its button was pressed, and by its button alone.
    alone = own.button.click(spoken(own_job), question, own.job, **quiet)
    wrote = [
        event.success(None, own.job, own.own, js=browser.script(function, own.tab), **quiet)
        for event, function in ((start, "race"), (alone, "press"))
    ]
    for event in wrote:  # each is judged: by default an event that comes while the one before waits is dropped
        event.success(spoken(judged), [own.own, *question], verdict, trigger_mode="multiple", **quiet | ALONE)
    own.offer([here.select], [model], folder_of, lambda words: words("Write it in your browser"), wrote)

    stop.click(
        spoken(stopped), None, [result, *controls], js=browser.script("stop", own.tab), cancels=[*streams, *ends],
        queue=False, api_visibility="private",
    )  # fmt: skip
    model.change(PROMPTS.get, model, prompt, queue=False, show_progress="hidden", api_visibility="private")
    gr.api(characters_values, api_name="characters_values", **ALONE)
