"""A graph as a drawing, from the top down: plain data in (tabs/worker.py), SVG in HTML out, with every word escaped.

Nodes stand in rows, each below all that it reads; within a row they are ordered so that lines cross little, and moved
to stand below what they read. The body of a loop is a drawing of its own, in a box to open.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tabs.languages import ENGLISH, Words

RECURRENT = ("RNN", "LSTM", "GRU", "DynamicQuantizeLSTM")
BOLD, CHARACTER, LINE, PAD = 7.4, 6.7, 15.0, 9.0  # pixels of a letter, of a line of text, around it
ACROSS, DOWN = 22.0, 34.0  # pixels between boxes of a row, and between rows
MOST_DEEP = 4  # bodies within bodies that are drawn
MOST_TEXT = 44  # letters of a line
MOST_NODES, MOST_BENDS = 400, 6_000  # of one drawing

CSS = """
.graph { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 4px;
  background: var(--block-background-fill); padding: 0.5rem; }
.graph svg { display: block; margin: 0 auto; }
.graph text { font-family: var(--font-mono), monospace; font-size: 11px; fill: var(--body-text-color); }
.graph text.op { font-weight: 700; font-size: 12px; }
.graph text.faint { fill: var(--body-text-color-subdued); }
.graph rect { fill: var(--background-fill-primary); stroke: var(--body-text-color-subdued); stroke-width: 1; }
.graph .end rect { fill: none; stroke-dasharray: 4 3; }
.graph .recurrent rect { fill: #3f82e022; stroke: #3f82e0; stroke-width: 1.5; }
.graph .loop rect { fill: #c9782a22; stroke: #c9782a; stroke-width: 1.5; }
.graph path { fill: none; stroke: var(--body-text-color-subdued); stroke-width: 1; opacity: 0.75; }
.graph-part { border-top: 1px solid var(--border-color-primary); padding: 0.5rem 0; }
.graph-part .graph-part { border: 0; padding: 0.5rem 0 0 0.75rem; }
.graph-part summary { cursor: pointer; line-height: 1.6; overflow-wrap: anywhere; }
.graph-part summary span { color: var(--body-text-color-subdued); }
"""


@dataclass
class Box:
    """A node to be: its lines of text, what it reads (indices of boxes), its row, and where its middle is."""

    lines: Sequence[str]
    kind: str = "plain"
    reads: list[int] = field(default_factory=list)
    row: int = 0
    x: float = 0.0

    @property
    def width(self) -> float:
        """Pixels across; a bend of a line that passes through has next to none."""
        if not self.lines:
            return 4.0
        return max(len(self.lines[0]) * BOLD, *(len(line) * CHARACTER for line in self.lines)) + 2 * PAD

    @property
    def height(self) -> float:
        """Pixels down."""
        return len(self.lines) * LINE + PAD if self.lines else 0.0


def draw(name: str, graph: Mapping[str, Any], words: Words = ENGLISH, opened: bool = False, depth: int = 0) -> str:
    """A graph as HTML: a box to open, called `name`, with the drawing in it and boxes for the bodies of its loops."""
    count = int(graph["count"])
    said = words("{count} nodes", count=count) + (f": {_counted(graph['nodes'], words)}" if graph["nodes"] else "")
    head = f"<summary><b>{html.escape(name)}</b> <span>{html.escape(said)}</span></summary>"
    boxes = _boxes(graph, words) if 0 < len(graph["nodes"]) <= MOST_NODES else []
    rows = _rows(boxes)
    if not rows:
        inside = f"<p>{html.escape(words('Too large to be drawn.'))}</p>"
    else:
        label = html.escape(words("The graph of {name}", name=name), quote=True)
        inside = f'<div class="graph" tabindex="0" role="group" aria-label="{label}">{_svg(boxes, rows, label)}</div>'
    bodies = [(node["op"], body) for node in graph["nodes"] for body in node["bodies"]]
    if depth < MOST_DEEP:
        inside += "".join(draw(words("inside {loop}", loop=op), body, words, False, depth + 1) for op, body in bodies)
    return f'<details class="graph-part"{" open" if opened else ""}>{head}{inside}</details>'


def _counted(nodes: Sequence[Mapping[str, Any]], words: Words) -> str:
    """The operators, those that matter first: LSTM, Scan, 6 Reshape, 4 Concat."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[str(node["op"])] = counts.get(str(node["op"]), 0) + 1
    loops = {str(node["op"]) for node in nodes if node["bodies"]}
    ranked = sorted(counts, key=lambda op: (op not in RECURRENT, op not in loops, -counts[op], op))
    more = [words("and {count:,} more", count=len(ranked) - 8)] if len(ranked) > 8 else []
    return ", ".join([*(f"{counts[op]} {op[:40]}" if counts[op] > 1 else op[:40] for op in ranked[:8]), *more])


def _boxes(graph: Mapping[str, Any], words: Words) -> list[Box]:
    """A box for every input, node and output, which know what they read."""
    made: dict[str, int] = {}
    boxes: list[Box] = []
    for value in graph["inputs"]:
        made[value["name"]] = len(boxes)
        boxes.append(Box(_cut(value["label"], value["shape"]), "end"))
    for node in graph["nodes"]:
        outside = [name for name in node["inputs"] if name not in made]
        for name in outside:  # of a body: what it takes from the graph around it
            made[name] = len(boxes)
            boxes.append(Box(_cut(name), "end"))
        about = [str(node["about"])] if node["about"] not in ("", "forward") else []
        if node["weights"] > 1:
            about.append(words("{count:,} weights", count=int(node["weights"])))
        about += [words("{count} nodes inside", count=int(body["count"])) for body in node["bodies"]]
        kind = "recurrent" if node["op"] in RECURRENT else "loop" if node["bodies"] else "plain"
        reads = list(dict.fromkeys(made[name] for name in node["inputs"]))
        made |= dict.fromkeys(node["outputs"], len(boxes))
        boxes.append(Box(_cut(str(node["op"]), node["shape"], " · ".join(about)), kind, reads))
    for value in graph["outputs"]:
        reads = [made[value["name"]]] if value["name"] in made else []
        boxes.append(Box(_cut(value["label"], value["shape"]), "end", reads))
    return boxes


def _cut(*lines: Any) -> list[str]:
    return [text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…" for line in lines if (text := str(line))]


def _rows(boxes: list[Box]) -> list[list[int]]:
    """Give each box its row, and lines that pass a row a bend in it; the boxes of each row, none where that takes too
    many bends."""
    for box in boxes:  # they stand in an order in which each comes after what it reads
        box.row = 1 + max((boxes[source].row for source in box.reads), default=-1)
    readers: dict[int, list[int]] = {}
    for place, box in enumerate(boxes):
        for source in box.reads:
            readers.setdefault(source, []).append(place)
    for place in reversed(range(len(boxes))):  # what reads nothing itself comes down to where it is read
        if not boxes[place].reads and place in readers:
            boxes[place].row = min(boxes[reader].row for reader in readers[place]) - 1
    bends: dict[tuple[int, int], int] = {}
    for place in range(len(boxes)):
        for position, source in enumerate(boxes[place].reads):
            last = source
            for row in range(boxes[source].row + 1, boxes[place].row):
                if len(bends) > MOST_BENDS:
                    return []
                if (source, row) not in bends:  # lines from one box go together as far as they can
                    bends[source, row] = len(boxes)
                    boxes.append(Box((), "bend", [last], row))
                last = bends[source, row]
            boxes[place].reads[position] = last
    rows: list[list[int]] = [[] for _ in range(1 + max((box.row for box in boxes), default=-1))]
    for place, box in enumerate(boxes):
        rows[box.row].append(place)
    return rows


def _arrange(boxes: list[Box], rows: list[list[int]]) -> None:
    """Order each row by the middle of its neighbours, down and up a few times, then move boxes towards them."""
    readers: dict[int, list[int]] = {place: [] for place in range(len(boxes))}
    for place, box in enumerate(boxes):
        for source in box.reads:
            readers[source].append(place)
    position = {place: float(index) for row in rows for index, place in enumerate(row)}

    def middle(places: Iterable[int], otherwise: float, where: Callable[[int], float]) -> float:
        found = [where(place) for place in places]
        return sum(found) / len(found) if found else otherwise

    for turn in range(8):
        for row in rows if turn % 2 == 0 else reversed(rows):
            near = [boxes[place].reads if turn % 2 == 0 else readers[place] for place in row]
            wanted = {p: middle(n, position[p], position.__getitem__) for p, n in zip(row, near, strict=True)}
            row.sort(key=wanted.__getitem__)
            position |= {place: float(index) for index, place in enumerate(row)}
    for row in rows:
        _spread(boxes, row, [0.0] * len(row))
    for turn in range(12):
        for row in rows if turn % 2 == 0 else reversed(rows):
            near = [boxes[place].reads if turn % 2 == 0 else readers[place] for place in row]
            aims = [middle(n, boxes[p].x, lambda q: boxes[q].x) for p, n in zip(row, near, strict=True)]
            _spread(boxes, row, aims)


def _spread(boxes: list[Box], row: Sequence[int], aims: Sequence[float]) -> None:
    """Put a row's boxes as near to where they aim as their order and widths let them: those that would touch form a
    block, which stands in the middle of what its boxes aim at."""
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (boxes[left].width + boxes[right].width) / 2 + ACROSS)
    blocks: list[tuple[float, int]] = []  # the sum of what each box would have its block's start be, and how many
    for aim, offset in zip(aims, offsets, strict=True):
        blocks.append((aim - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = (blocks[-1][0] + total, blocks[-1][1] + count)
    starts = [total / count for total, count in blocks for _ in range(count)]
    for place, start, offset in zip(row, starts, offsets, strict=True):
        boxes[place].x = start + offset


def _svg(boxes: list[Box], rows: list[list[int]], label: str) -> str:
    _arrange(boxes, rows)
    left = min(box.x - box.width / 2 for box in boxes) - 2
    width = max(box.x + box.width / 2 for box in boxes) - left + 2
    tops, ends, top = [], [], 2.0
    for row in rows:
        tops.append(top)
        ends.append(top + max(boxes[place].height for place in row))
        top = ends[-1] + DOWN
    height = ends[-1] + 2
    lines = []
    for box in boxes:
        x, end = box.x - left, tops[box.row]
        if not box.lines:  # a bend: straight through its row
            lines.append(f"M{x:.1f} {end:.1f}V{ends[box.row]:.1f}")
        for upper in (boxes[source] for source in box.reads):
            from_x, start = upper.x - left, tops[upper.row] + upper.height if upper.lines else ends[upper.row]
            half = (start + end) / 2
            lines.append(f"M{from_x:.1f} {start:.1f}C{from_x:.1f} {half:.1f} {x:.1f} {half:.1f} {x:.1f} {end:.1f}")
    shown = [_shape(box, box.x - left, tops[box.row]) for box in boxes if box.lines]
    return (
        f'<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{label}"><path d="{"".join(lines)}"/>{"".join(shown)}</svg>'
    )


def _shape(box: Box, x: float, y: float) -> str:
    texts = []
    for place, line in enumerate(box.lines):
        kind = "op" if place == 0 else "faint"
        texts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y + PAD / 2 + LINE * (place + 0.78):.1f}" text-anchor="middle">'
            f"{html.escape(line)}</text>"
        )
    rounded = box.height / 2 if box.kind == "end" else 4
    return (
        f'<g class="{box.kind}"><rect x="{x - box.width / 2:.1f}" y="{y:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="{min(rounded, 14):.0f}"/>{"".join(texts)}</g>'
    )
