"""Drawings of the report, made by hand as inline SVG: line charts and the lineage graph.

Text stays text (searchable, read aloud, set in the reader's font), colours come from the page's
stylesheet so that dark screens and paper each get their own, and every line also differs in dash
and marker, so nothing is said by colour alone. The lineage graph is layered after Sugiyama et al.
(1981): longest-path layers, one waypoint per source and layer for arrows that skip layers,
barycentre ordering. It leaves out optimal crossing counts: a run has a dozen stages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onsil.evaluation.report_html import Markup, Pair, put

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 64, 20, 14, 52
STYLES = 5  # of lines: s0 … s4 of the stylesheet
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, LANE = 256, 50, 18, 38, 4


@dataclass(frozen=True)
class Line:
    """A named series of (x, y); its place in the list decides dash, marker and colour."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Node:
    """A box of the lineage graph: two lines of text and the ids of the boxes it was made from."""

    id: str
    title: str
    detail: str
    parents: tuple[str, ...]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover low … high."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _marker(kind: int, x: float, y: float) -> str:
    r = 4
    if kind == 0:
        return f'<circle class="dot s0" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    shapes = {
        1: [(-r, -r), (r, -r), (r, r), (-r, r)],
        2: [(0, -r - 1), (r + 1, r), (-r - 1, r)],
        3: [(0, -r - 2), (r + 2, 0), (0, r + 2), (-r - 2, 0)],
        4: [(-r - 1, -r), (r + 1, -r), (0, r + 1)],
    }
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return f'<polygon class="dot s{kind}" points="{corners}"/>'


def _legend(lines: Sequence[Line], rules: Sequence[tuple[str, float]]) -> tuple[list[str], float]:
    """One row a line, so that long labels in two languages never collide; and the height used."""
    parts, y = [], 12.0
    for i, line in enumerate(lines):
        parts += [
            f'<path class="line s{i % STYLES}" d="M {LEFT} {y:.0f} h 40"/>',
            _marker(i % STYLES, LEFT + 20, y),
            f'<text x="{LEFT + 50}" y="{y + 4:.0f}">{put(line.label)}</text>',
        ]
        y += 22
    for label, _ in rules:
        parts += [
            f'<path class="rule" d="M {LEFT} {y:.0f} h 40"/>',
            f'<text x="{LEFT + 50}" y="{y + 4:.0f}">{put(label)}</text>',
        ]
        y += 22
    return parts, y


def line_chart(
    title: Pair,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    rules: Sequence[tuple[str, float]] = (),
    from_zero: bool = False,
    width: int = WIDTH,
) -> Markup:
    """A chart of one or more lines and horizontal rules; empty when there is nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    parts, legend = _legend(lines, rules) if len(lines) + len(rules) > 1 else ([], 0.0)
    top, bottom = TOP + legend, TOP + legend + HEIGHT * min(1, (width + 200) / WIDTH) - BOTTOM - TOP
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for _, y in rules]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(0 if from_zero else min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (width - LEFT - RIGHT), bottom - up * (bottom - top)

    for y in y_ticks:
        py = at(x_ticks[0], y)[1]
        parts.append(f'<path class="grid" d="M {LEFT} {py:.1f} H {width - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 8}" y="{py + 4:.1f}">{y:g}</text>')
    for x in x_ticks:
        px = at(x, y_ticks[0])[0]
        parts.append(f'<path class="axis" d="M {px:.1f} {bottom:.1f} v 5"/>')
        parts.append(f'<text class="mid" x="{px:.1f}" y="{bottom + 20:.1f}">{x:,g}</text>')
    parts.append(f'<path class="axis" d="M {LEFT} {bottom:.1f} H {width - RIGHT}"/>')
    for _, y in rules:
        py = at(x_ticks[0], y)[1]
        parts.append(f'<path class="rule" d="M {LEFT} {py:.1f} H {width - RIGHT}"/>')
    for i, line in enumerate(lines):
        placed = [at(x, y) for x, y in line.points]
        path = " L ".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path class="line s{i % STYLES}" d="M {path}"/>')
        every = max(1, len(placed) // 8)
        parts += [_marker(i % STYLES, x, y) for x, y in placed[every // 2 :: every]]
    middle = (LEFT + width - RIGHT) / 2
    height = bottom + BOTTOM
    parts.append(f'<text class="mid" x="{middle}" y="{bottom + 42:.1f}">{put(x_label)}</text>')
    parts.append(
        f'<text class="mid" transform="translate(14 {(top + bottom) / 2:.1f}) rotate(-90)">'
        f"{put(y_label)}</text>"
    )
    return _svg(title, width, height, parts)


def _svg(title: Pair, width: float, height: float, parts: Sequence[str]) -> Markup:
    name = put(f"{title[0]} · {title[1]}")
    return Markup(
        f'<figure><figcaption><span lang="ko">{put(title[0])}</span> '
        f'<span lang="en">{put(title[1])}</span></figcaption>'
        f'<div class="wide"><svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" aria-label="{name}">{"".join(parts)}</svg></div></figure>'
    )


Place = tuple[str, int]  # a box: (its id, −1); a waypoint: (source id, layer)


def layers_of(nodes: Sequence[Node]) -> dict[str, int]:
    """Longest path from a root; parents that are not among the nodes do not count."""
    known, depth = {node.id: node for node in nodes}, {}

    def visit(id: str, above: frozenset[str]) -> int:
        if id not in depth:
            parents = [p for p in known[id].parents if p in known and p not in above]
            depth[id] = 1 + max((visit(p, above | {id}) for p in parents), default=-1)
        return depth[id]

    for node in nodes:
        visit(node.id, frozenset([node.id]))
    return depth


def _routes(nodes: Sequence[Node], depth: dict[str, int]) -> set[tuple[Place, Place]]:
    """Edges between neighbouring layers; arrows of one source share their waypoints."""
    edges: set[tuple[Place, Place]] = set()
    for node in nodes:
        for parent in node.parents:
            if parent not in depth or depth[parent] >= depth[node.id]:
                continue
            here: Place = (parent, -1)
            for layer in range(depth[parent] + 1, depth[node.id]):
                edges.add((here, (parent, layer)))
                here = (parent, layer)
            edges.add((here, (node.id, -1)))
    return edges


def _width(place: Place) -> int:
    return BOX_WIDTH if place[1] < 0 else LANE


def _arrange(rows: list[list[Place]], edges: set[tuple[Place, Place]]) -> dict[Place, float]:
    """x of the middle of every place: near its neighbours, in barycentre order, never touching."""
    x = {place: i * (BOX_WIDTH + GAP_X) * 1.0 for row in rows for i, place in enumerate(row)}
    for sweep in range(8):
        down = sweep % 2 == 0 or sweep == 7
        for row in rows if down else rows[::-1]:
            wish = {}
            for place in row:
                near = [x[a] for a, b in edges if b == place] if down else []
                near = near or [x[b] for a, b in edges if a == place]
                wish[place] = sum(near) / len(near) if near else x[place]
            row.sort(key=lambda place: (wish[place], place))
            for i, place in enumerate(row):
                x[place] = wish[place]
                if i:
                    apart = (_width(row[i - 1]) + _width(place)) / 2 + GAP_X
                    x[place] = max(x[place], x[row[i - 1]] + apart)
            drift = sum(x[p] - wish[p] for p in row) / len(row)
            for place in row:
                x[place] -= drift
    left = min(x[p] - _width(p) / 2 for p in x) - 4
    return {place: value - left for place, value in x.items()}


def lineage_graph(title: Pair, nodes: Sequence[Node]) -> Markup:
    """Boxes from the first stage down to the last, an arrow for every input."""
    if not nodes:
        return Markup("")
    depth = layers_of(nodes)
    edges = _routes(nodes, depth)
    rows: list[list[Place]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in nodes:
        rows[depth[node.id]].append((node.id, -1))
    for place in sorted({p for edge in edges for p in edge if p[1] >= 0}):
        rows[place[1]].append(place)
    x = _arrange(rows, edges)

    def top(place: Place) -> float:
        return 4 + (depth[place[0]] if place[1] < 0 else place[1]) * (BOX_HEIGHT + GAP_Y)

    parts = [
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path class="tip" d="M 0 0 L 8 4 L 0 8 z"/></marker></defs>'
    ]
    for a, b in sorted(edges):
        start, end = top(a) + BOX_HEIGHT, top(b)
        bend = (start + end) / 2
        tail = f" V {end + BOX_HEIGHT:.1f}" if b[1] >= 0 else ""
        tip = "" if tail else ' marker-end="url(#tip)"'
        parts.append(
            f'<path class="edge"{tip} d="M {x[a]:.1f} {start:.1f} C {x[a]:.1f} {bend:.1f} '
            f'{x[b]:.1f} {bend:.1f} {x[b]:.1f} {end:.1f}{tail}"/>'
        )
    for node in nodes:
        place = (node.id, -1)
        middle, y = x[place], top(place)
        parts.append(
            f'<rect class="box" x="{middle - BOX_WIDTH / 2:.1f}" y="{y:.1f}" rx="4" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}"/>'
            f'<text class="mid name" x="{middle:.1f}" y="{y + 21:.1f}">{put(node.title)}</text>'
            f'<text class="mid code" x="{middle:.1f}" y="{y + 39:.1f}">{put(node.detail)}</text>'
        )
    width = max(x[p] + _width(p) / 2 for p in x) + 4
    return _svg(title, width, len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 8, parts)
