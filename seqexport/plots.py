"""A comparison in pictures: SVGs that can be read on a telephone, on a light page and on a dark one."""

from __future__ import annotations

import importlib.util
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seqexport.comparison import Cell, Comparison, Model, Row, Table
from seqexport.pages import GREY

# A colour for each runtime, in every picture the same, told apart by those who see no red or green too.
COLOURS = {
    "torch": "#e3872d",
    "torch-compile": "#b667c7",
    "onnxruntime": "#2f81f7",
    "onnxruntime-int8": "#1fa7a0",
    "openvino": "#b5a400",
    "reference": GREY,
}
INK = "#0b0b0b"  # letters on those colours
WIDTH = 4.4  # inches: at 390 pixels a letter of 8 points is 8 points high
SHOWN = ("step", "sequence", "generate", "forecast", "classify")


def plots(comparison: Comparison) -> dict[str, str]:
    """File name → SVG: the latencies, the map, and the roofline, where there is something to draw."""
    if importlib.util.find_spec("matplotlib") is None:  # it belongs to the demo's extra, not to the package itself
        return {}
    pictures = {}
    for place, model in enumerate(comparison.models):
        mark = f"-{place + 1}" if len(comparison.models) > 1 else ""
        shown = [table for table in model.tables if table.key in SHOWN and _timed(table)]
        if shown:
            pictures[f"latency{mark}.svg"] = figure(*_latency(model, shown))
        if model.cells:
            pictures[f"map{mark}.svg"] = figure(*_map(model))
    points = _points(comparison.models)
    if points and comparison.machine.bandwidth:
        pictures["roofline.svg"] = figure(*_roofline(comparison, points))
    return pictures


Drawing = tuple[Callable[[Any], None], float, str]


def figure(draw: Callable[[Any], None], height: float, about: str, format_: str = "svg") -> str:
    """An SVG of what `draw` puts into a figure of that height in inches; about: its title, which readers aloud say."""
    import matplotlib
    from matplotlib.figure import Figure

    look: Any = {"svg.hashsalt": "seqexport", "svg.fonttype": "none", "text.parse_math": False, "font.size": 8}
    look |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY)
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        content = io.StringIO()
        figure.savefig(content, format=format_, transparent=True, metadata={"Date": None, "Title": about})
    return "".join(content.getvalue().partition("<svg")[1:])


def _timed(table: Table) -> list[Row]:
    return [row for row in table.rows if row.times and row.times.quantile(0.5)]


def _said(seconds: float, _: Any = None) -> str:
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * scale >= 0.9995 or unit == "µs":
            return f"{seconds * scale:.3g} {unit}"
    return ""


def time_axis(axis: Any) -> None:
    """Seconds on a logarithmic axis, in units that are read at a glance."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(FuncFormatter(_said))
    axis.set_minor_formatter(NullFormatter())


def power_axis(axis: Any) -> None:
    """Powers of ten as they are read at a glance; matplotlib's own are formulas, which these pictures do not have."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain(axes: Any) -> None:
    """No frame and no background."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_facecolor("none")


def _latency(model: Model, tables: Sequence[Table]) -> Drawing:
    """A panel for each scenario: the median, and behind it a line from the interval's one end to the other."""
    heights = [1.6 + len(_timed(table)) for table in tables]

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(tables), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)
        for table, (axes,) in zip(tables, grid, strict=True):
            plain(axes)
            rows = _timed(table)
            for place, row in enumerate(rows):
                assert row.times is not None
                middle, ends = row.times.quantile(0.5), row.times.interval()
                colour = COLOURS[row.runtime]
                if ends:
                    axes.plot(ends, (place, place), color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
                axes.plot([middle], [place], "o", color=colour, markersize=5)
                axes.annotate(
                    _said(middle or 0), (middle, place), (7, 0), textcoords="offset points", va="center", fontsize=7
                )
            axes.set_yticks(range(len(rows)), [row.label for row in rows])
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set(xscale="log")
            axes.set_title(textwrap.fill(f"{table.key}: {table.title}", 44), fontsize=8, loc="left", x=0)
            low, high = axes.get_xlim()
            axes.set_xlim(low / 1.1, high * (high / low) ** 0.22)
            axes.grid(axis="x", color=GREY, alpha=0.25)
            time_axis(axes.xaxis)
        figure.supxlabel("time of a call (median; band: its 95 % interval)", fontsize=8, color=GREY)

    return draw, 0.6 + 0.2 * sum(heights), f"Latency by runtime, {model.path}"


def _map(model: Model) -> Drawing:
    """A panel for each hidden size, a field for each batch and length, in the winner's colour."""
    hidden = list(dict.fromkeys(cell.hidden for cell in model.cells))
    batches = list(dict.fromkeys(cell.batch for cell in model.cells))
    lengths = list(dict.fromkeys(cell.length for cell in model.cells))
    fields: Mapping[tuple[int, int, int], Cell] = {(cell.hidden, cell.batch, cell.length): cell for cell in model.cells}

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        grid = figure.subplots(1, len(hidden), squeeze=False, sharey=True)[0]
        for axes, size in zip(grid, hidden, strict=True):
            axes.set_facecolor("none")
            axes.spines[:].set_visible(False)
            for x, length in enumerate(lengths):
                for y, batch in enumerate(batches):
                    rows = _timed(fields[size, batch, length].table)
                    if not rows:
                        continue
                    axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, color=COLOURS[rows[0].runtime]))
                    axes.text(x + 0.5, y + 0.5, _won(rows), ha="center", va="center", fontsize=6.5, color=INK)
            axes.set(xlim=(0, len(lengths)), ylim=(0, len(batches)), xlabel="steps")
            axes.set_title(f"hidden {size}", fontsize=8)
            axes.set_xticks([place + 0.5 for place in range(len(lengths))], [str(length) for length in lengths])
            axes.set_yticks([place + 0.5 for place in range(len(batches))], [str(batch) for batch in batches])
            axes.tick_params(length=0)
        grid[0].set_ylabel("batch")
        winners = {rows[0].runtime for cell in model.cells if (rows := _timed(cell.table))}
        handles = [Rectangle((0, 0), 1, 1, color=COLOURS[name], label=name) for name in COLOURS if name in winners]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=GREY)
        figure.suptitle("Fastest, untrained nets; × the next one's time", fontsize=8, color=GREY)

    return draw, 1.2 + 0.55 * len(batches), f"Which runtime is fastest, untrained nets like {model.path}"


def _won(rows: Sequence[Row]) -> str:
    """The winner's time, and by what factor the next other runtime is slower."""
    first = rows[0].times
    other = next((row.times for row in rows if row.runtime != rows[0].runtime), None)
    middle = first.quantile(0.5) if first else None
    following = other.quantile(0.5) if other else None
    if not middle:
        return ""
    return f"{_said(middle)}\n×{following / middle:.2g}" if following else _said(middle)


Points = dict[str, list[tuple[float, float]]]


def _points(models: Sequence[Model]) -> Points:
    """Runtime → (bytes of weights, seconds of a step) of its fastest way, for the files and the map's nets."""
    points: Points = {}
    for model in models:
        steps = [(model.weights, table) for table in model.tables if table.key == "step"]
        steps += [(cell.weights, cell.table) for cell in model.cells if cell.batch == cell.length == 1]
        for weights, table in steps:
            seen = set()
            for row in _timed(table):
                if row.runtime in seen or row.runtime == "reference" or row.times is None:
                    continue
                seen.add(row.runtime)
                size = weights / 4 if row.runtime == "onnxruntime-int8" else weights
                points.setdefault(row.runtime, []).append((size, row.times.quantile(0.5) or 0.0))
    return points


def _roofline(comparison: Comparison, points: Points) -> Drawing:
    """A step's time over the bytes of weights that it has to read, above the time that reading them takes."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axes = figure.add_subplot()
        plain(axes)
        sizes = [size for found in points.values() for size, _ in found]
        low, high = min(sizes) / 2, max(sizes) * 2
        line = [low * (high / low) ** (place / 40) for place in range(41)]
        roof = [comparison.machine.seconds_to_read(int(size)) or 0.0 for size in line]
        axes.plot(line, roof, color=GREY, linewidth=1.2, linestyle="--", label="reading the weights once")
        for name, found in points.items():
            ordered = sorted(found)
            axes.plot(*zip(*ordered, strict=True), "o-", color=COLOURS[name], markersize=4, linewidth=1, label=name)
        axes.set(xscale="log", yscale="log", xlabel="weights read in a step", ylabel="time of a step, batch 1")
        axes.grid(color=GREY, alpha=0.25)
        time_axis(axes.yaxis)
        axes.set_xticks([size for size in (1e3, 1e4, 1e5, 1e6, 1e7, 1e8) if low < size < high])
        axes.xaxis.set_major_formatter(FuncFormatter(_bytes))
        axes.xaxis.set_minor_formatter(NullFormatter())
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=GREY)

    return draw, 3.6, "A step's time beside the time to read its weights once"


def _bytes(size: float, _: Any = None) -> str:
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"
