"""A line chart with logarithmic axes as SVG text: how costs grow. Pure, and no package is needed for it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]

# Told apart also by people who see few colours; readable on the light ground that the chart brings along.
COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7c3aed", "#525252")
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 4")
_GROUND, _INK, _GRID = "#ffffff", "#1f2937", "#e5e7eb"
_WIDTH, _HEIGHT = 400, 360
_FONT = f'font-family="system-ui, sans-serif" font-size="13" fill="{_INK}"'
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 26, 46, 52
_LEGEND_ROW = 18


@dataclass(frozen=True, slots=True)
class Line:
    """`is_limit`: a thin grey line that is no measurement."""

    name: str
    points: Points
    is_limit: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    y_name: str
    lines: Sequence[Line]


def decades(values: Sequence[float]) -> tuple[float, float]:
    """The powers of ten around all values above 0."""
    seen = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(seen))), math.ceil(math.log10(max(seen)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def at(value: float, low: float, high: float, begin: float, end: float) -> float:
    """Where a value stands between `begin` (low) and `end` (high) on a logarithmic axis."""
    share = math.log10(value / low) / math.log10(high / low)
    return begin + share * (end - begin)


def words(value: float) -> str:
    """A power of ten as people write it."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def chart(title: str, x_name: str, panels: Sequence[Panel]) -> str:
    """Return the SVG of some panels side by side, each with its own y axis."""
    rows = max(len(panel.lines) for panel in panels)
    width, height = _WIDTH * len(panels), _HEIGHT + _LEGEND_ROW * rows + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" {_FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{_GROUND}"/>',
        f'<text x="{width / 2:g}" y="26" text-anchor="middle" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * _WIDTH} 30)">')
        parts += _panel(panel, x_name)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, x_name: str) -> Iterator[str]:
    points = [point for line in panel.lines for point in line.points]
    (x_low, x_high), (y_low, y_high) = decades([x for x, _ in points]), decades([y for _, y in points])
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    middle = (left + right) / 2
    yield f'<text x="{middle:g}" y="{top - 14}" text-anchor="middle" font-weight="600">{escape(panel.title)}</text>'
    for x in _ticks(x_low, x_high):
        place = at(x, x_low, x_high, left, right)
        yield f'<path d="M{place:.1f} {top}V{bottom}" stroke="{_GRID}"/>'
        yield f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{words(x)}</text>'
    for y in _ticks(y_low, y_high):
        place = at(y, y_low, y_high, bottom, top)
        yield f'<path d="M{left} {place:.1f}H{right}" stroke="{_GRID}"/>'
        yield f'<text x="{left - 8}" y="{place + 4:.1f}" text-anchor="end">{words(y)}</text>'
    yield f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{_INK}"/>'
    yield f'<text x="{middle:g}" y="{bottom + 38}" text-anchor="middle">{escape(x_name)}</text>'
    yield (
        f'<text transform="translate(16 {(top + bottom) / 2:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y_name)}</text>"
    )
    for number, line in enumerate(panel.lines):
        placed = [
            (at(x, x_low, x_high, left, right), at(y, y_low, y_high, bottom, top)) for x, y in line.points if y > 0
        ]
        yield from _line(line, number, placed)
        yield from _legend(line, number)


def _ticks(low: float, high: float) -> Iterator[float]:
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        yield 10.0**power


def _style(line: Line, number: int) -> str:
    if line.is_limit:
        return 'stroke="#9ca3af" stroke-width="1.5" stroke-dasharray="3 3"'
    dash = f' stroke-dasharray="{_DASHES[number % 5]}"' if _DASHES[number % 5] else ""
    return f'stroke="{COLOURS[number % 5]}" stroke-width="2.5"{dash}'


def _line(line: Line, number: int, placed: Points) -> Iterator[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    yield f'<polyline points="{path}" fill="none" {_style(line, number)}/>'
    if not line.is_limit:
        for x, y in placed:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[number % 5]}"/>'


def _legend(line: Line, number: int) -> Iterator[str]:
    y = _HEIGHT + _LEGEND_ROW * number + 8
    yield f'<path d="M{_LEFT} {y}h28" {_style(line, number)}/>'
    yield f'<text x="{_LEFT + 36}" y="{y + 4}">{escape(line.name)}</text>'
