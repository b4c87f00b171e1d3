"""The picture of the batches as an SVG file: no library, no font of its own."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from .history import Batch, pack
from .timeline import tick_step
from .wording import count

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1_200, 150, 180, 118, 40
GAP = 14
BATCH_MIN, LINE_MAX, BATCH_BODY = 30, 14, 44
INK, FAINT, GRID, PAPER = "#1f2933", "#7b8794", "#e4e7eb", "#ffffff"
COLORS = ("#2f6fde", "#c2410c", "#0f8a6a", "#8b3fc7", "#b7791f", "#be185d")
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def draw(batches: Sequence[Batch], title: str, subtitle: str) -> str:
    """The text of the SVG: time runs to the right, every batch has a band of its own."""
    heights = [_height(batch) for batch in batches]
    height = TOP + sum(heights) + GAP * len(heights) + BOTTOM
    began = min((batch.began for batch in batches), default=0.0)
    ended = max((batch.ended for batch in batches), default=1.0)
    scale = _Scale(began, max(ended - began, 0.1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family={quoteattr(FONT)} font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
        _text(24, 38, title, size=20, weight=600),
        _text(24, 62, subtitle, fill=FAINT),
        *_legend(24, 86),
        *_grid(scale, height - BOTTOM),
    ]
    y = float(TOP)
    for number, (batch, band) in enumerate(zip(batches, heights, strict=True), 1):
        parts += _band(number, batch, scale, y, band)
        y += band + GAP
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """Unix times to horizontal positions."""

    def __init__(self, began: float, seconds: float) -> None:
        self.began = began
        self.seconds = seconds

    def x(self, at: float) -> float:
        return LEFT + (at - self.began) / self.seconds * (WIDTH - LEFT - RIGHT)


def _height(batch: Batch) -> int:
    rows = len(pack(batch.joins))
    return max(BATCH_MIN, min(rows * LINE_MAX, BATCH_BODY))


def _legend(x: float, y: float) -> list[str]:
    color = COLORS[0]
    return [
        f'<circle cx="{x + 5}" cy="{y - 4}" r="4" fill="{color}" fill-opacity="0.55"/>',
        _text(x + 16, y, "items written", fill=FAINT, size=12),
        _rule(x + 132, y - 11, y + 2, INK, 2),
        _text(x + 140, y, "R: the root task runs", fill=FAINT, size=12),
        _bar(x + 284, y - 10, 26, 10, color, ""),
        _text(x + 318, y, "requests to the join function", fill=FAINT, size=12),
    ]


def _grid(scale: _Scale, bottom: float) -> list[str]:
    step = tick_step(scale.seconds, 12)
    parts = []
    for n in range(int(scale.seconds / step) + 1):
        x = scale.x(scale.began + n * step)
        parts.append(_rule(x, TOP - 8, bottom, GRID, 1))
        parts.append(_text(x, bottom + 20, f"{n * step:g} s", fill=FAINT, size=12, anchor="middle"))
    return parts


def _band(number: int, batch: Batch, scale: _Scale, y: float, height: float) -> list[str]:
    color = COLORS[(number - 1) % len(COLORS)]
    middle = y + height / 2
    parts = [
        f"<g><title>{escape(batch.key)}</title>",
        _text(LEFT - 18, middle + 4, f"batch {number}", fill=color, weight=600, anchor="end"),
    ]
    root = batch.root
    if batch.writes:
        last = root.began if root else batch.writes[-1][0]
        begin, end = scale.x(batch.writes[0][0]), scale.x(last)
        parts.append(
            f'<line x1="{begin:.1f}" y1="{middle}" x2="{end:.1f}" y2="{middle}" '
            f'stroke="{color}" stroke-opacity="0.35" stroke-width="1.5"/>'
        )
    parts += [_dot(scale.x(at), middle, items, color) for at, items in batch.writes]
    rows = pack(batch.joins)
    thick = height / max(len(rows), 1)
    for place, row in enumerate(rows):
        for join in row:
            x, width = scale.x(join.began), scale.x(join.ended) - scale.x(join.began)
            what = f"{'root' if join.root else 'chunk'} from position {join.first}"
            told = f"{what}: {join.ended - join.began:.3f} s"
            parts.append(_bar(x, y + place * thick + 0.5, max(width, 1.5), thick - 1, color, told))
    if root is not None:
        x = scale.x(root.began)
        parts.append(_rule(x, y - 4, y + height + 4, INK, 2))
        parts.append(_text(x - 5, y + 7, "R", weight=700, size=12, anchor="end"))
    note = f"{count(batch.items, 'item')}, {count(len(batch.joins), 'request')}"
    parts.append(_text(scale.x(batch.ended) + 10, middle + 4, note, fill=FAINT, size=12))
    return [*parts, "</g>"]


def _dot(x: float, y: float, items: int, color: str) -> str:
    """Its area goes with the number of items."""
    radius = min(11.0, max(1.8, 1.3 * items**0.5))
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}" fill-opacity="0.45">'
        f"<title>{count(items, 'item')}</title></circle>"
    )


def _bar(x: float, y: float, width: float, height: float, color: str, title: str) -> str:
    round_off = min(2.0, height / 3)
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="{round_off:.1f}" fill="{color}" fill-opacity="0.85">'
        f"<title>{escape(title)}</title></rect>"
    )


def _rule(x: float, top: float, bottom: float, color: str, width: float) -> str:
    return (
        f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}" '
        f'stroke="{color}" stroke-width="{width}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    fill: str = INK,
    size: int = 13,
    weight: int = 400,
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
    )
