"""Charts as SVG made on the server. Pure: numbers in, safe markup out, without scripts or styles inside.

Colours come from the style sheet by class. A chart tells its values in words to who cannot see it.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, HEIGHT = 300, 64
_DOT = 4.0  # how wide a moment is that has no neighbours


def stacked(
    series: Sequence[tuple[str, str, Sequence[float]]],
    *,
    label: str,
    ticks: Sequence[str] = (),
    unit: str = "",
) -> SafeString:
    """Bars of several values each, one above the other: `series` are (name, class of its colour, values).

    `ticks` name the bars, for the pointer, and the ends of the axis. The highest bar has the full height.
    """
    count = max((len(values) for _, _, values in series), default=0)
    sums = [sum(values[i] for _, _, values in series if i < len(values)) for i in range(count)]
    top = max(sums, default=0.0)
    step = WIDTH / count if count else WIDTH
    bars = []
    for i in range(count):
        y = float(HEIGHT)
        told = ", ".join(f"{name} {number(values[i])}" for name, _, values in series if i < len(values) and values[i])
        title = f"{ticks[i]}: {told or 'nothing'}" if i < len(ticks) else told
        parts = []
        for _, tone, values in series:
            value = values[i] if i < len(values) else 0.0
            if value > 0 and top > 0:
                height = max(1.0, value / top * (HEIGHT - 2))
                y -= height
                parts.append((tone, f"{i * step + step * 0.1:.2f}", f"{y:.2f}", f"{step * 0.8:.2f}", f"{height:.2f}"))
        rects = format_html_join("", '<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>', parts)
        whole = format_html(
            '<rect class="none" x="{}" y="0" width="{}" height="{}"/>', f"{i * step:.2f}", f"{step:.2f}", HEIGHT
        )
        bars.append((title, whole, rects))
    body = format_html_join("", "<g><title>{}</title>{}{}</g>", bars)
    return _svg(label, body, f"{number(top)}{f' {unit}' if unit else ''}", ticks)


def lines(
    series: Sequence[tuple[str, str, Sequence[float | None]]], *, label: str, unit: str = "", ticks: Sequence[str] = ()
) -> SafeString:
    """Lines over the same moments; None leaves a gap. `series` as for `stacked`; `ticks` name the ends of the axis."""
    known = [value for _, _, values in series for value in values if value is not None]
    top = max(known, default=0.0)
    parts = []
    for name, tone, values in series:
        step = WIDTH / max(1, len(values) - 1)
        for piece in _pieces(values):
            points = " ".join(f"{i * step:.2f},{_y(value, top):.2f}" for i, value in piece)
            if len(piece) == 1:
                i, value = piece[0]
                left = min(max(i * step, _DOT / 2), WIDTH - _DOT / 2) - _DOT / 2  # all of it inside
                points = f"{left:.2f},{_y(value, top):.2f} {left + _DOT:.2f},{_y(value, top):.2f}"
            parts.append((tone, points, name))
    body = format_html_join("", '<polyline class="{}" points="{}"><title>{}</title></polyline>', parts)
    return _svg(label, body, f"{number(top)}{f' {unit}' if unit else ''}", ticks)


def _pieces(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    found: list[list[tuple[int, float]]] = [[]]
    for i, value in enumerate(values):
        if value is None:
            found.append([])
        else:
            found[-1].append((i, value))
    return [piece for piece in found if piece]


def _y(value: float, top: float) -> float:
    return HEIGHT - 1 - (value / top * (HEIGHT - 3) if top > 0 else 0.0)


def _svg(label: str, body: SafeString, top: str, ticks: Sequence[str]) -> SafeString:
    ends = (ticks[0], ticks[-1]) if ticks else ()
    axis = format_html('<div class="axis quiet"><span>{}</span><span>{}</span></div>', *ends) if ends else ""
    return format_html(
        '<figure class="hoosh-figure-chart"><figcaption>{} <span class="quiet">up to {}</span></figcaption>'
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}, up to {}">{}</svg>{}</figure>',
        *(label, top, WIDTH, HEIGHT, label, top, body, axis),
    )


def number(value: float) -> str:
    """A number in few characters: 0.25, 12, 3.4k, 1.2M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
