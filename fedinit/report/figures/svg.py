"""A matplotlib figure as SVG that lives inside a page: no style attributes (the page's content-security policy forbids
them), no fonts, names or dates of its own, and colours that follow the page's, light or dark."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fedinit.report.markup import Markup, printable, text

# Okabe and Ito 2008, told apart by all kinds of colour blindness; without black, and with grey instead of yellow, which
# a white page swallows. The page gives each a shade for light and one for dark.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8f98")
# Of 7 colours, 4 dashes and 5 markers, taken in turn, 140 lines all differ, and each from its neighbours in all three.
DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
MARKERS = ("o", "s", "^", "D", "v")
INK, GRID, PAPER = "#010203", "#020304", "#030405"  # stand for the page's colours
COLOURS = {INK: "currentColor", GRID: "var(--rule)", PAPER: "var(--card)"}
COLOURS |= {colour: f"var(--s{i})" for i, colour in enumerate(PALETTE)}

Margins = tuple[float, float, float, float]
MARGINS: Margins = (66, 42, 8, 8)
SMALL_TEXT = 10.0

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedinit",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 10.5,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.dpi": 72,
    "image.cmap": "cividis",
}
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")
_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def colour_of(number: int) -> str:
    """Of the series of this number, from 0."""
    return PALETTE[number % len(PALETTE)]


def dash_of(number: int) -> tuple[float, ...]:
    """Where one line lies on another, the lower one is seen between the dashes of the upper; in grey print too."""
    return DASHES[number % len(DASHES)]


def marker_of(number: int) -> str:
    """Of the series of this number, as matplotlib calls it."""
    return MARKERS[number % len(MARKERS)]


def short(value: object, length: int = 26) -> str:
    """A name for an axis."""
    name = printable(value)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def draw(
    title: str, alt: str, size: tuple[float, float], plot: Callable[[Axes], object], margins: Margins = MARGINS
) -> Markup:
    """The figure that `plot` draws on its axes.

    title: unique on its page, for names inside. alt: what it shows, for those who cannot see it.
    size: (width, height) in the page's pixels. margins: (left, bottom, right, top) around the axes, in the same.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that the font for measuring lacks
        figure = Figure(figsize=(size[0] / 72, size[1] / 72))
        left, bottom, right, top = margins  # set, not measured: measuring takes as long as drawing
        box = (left, bottom, size[0] - left - right, size[1] - bottom - top)
        plot(figure.add_axes((box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1])))
        file = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={key: None for key in ("Date", "Creator", "Format", "Type")})
    root = ElementTree.fromstring(file.getvalue())
    prefix = "f" + hashlib.sha256(title.encode("utf-8", "replace")).hexdigest()[:8]
    return _figure(root, prefix, title, alt)


def _figure(root: ElementTree.Element, prefix: str, title: str, alt: str) -> Markup:
    parts: list[str] = []
    used = {reference for element in root.iter() for reference in _references(element)}
    for child in root:
        _write(child, prefix, used, parts)
    return Markup(
        f'<svg class="plot" viewBox="{root.get("viewBox")}" role="img" aria-labelledby="{prefix}t {prefix}d">'
        f'<title id="{prefix}t">{text(title)}</title><desc id="{prefix}d">{text(alt)}</desc>{"".join(parts)}</svg>'
    )


def _references(element: ElementTree.Element) -> list[str]:
    return re.findall(r"#([\w-]+)", element.get("clip-path", "") + (element.get(_HREF) or "")[:100])


def _write(element: ElementTree.Element, prefix: str, used: set[str], parts: list[str]) -> None:
    name = str(element.tag).removeprefix(_SVG)
    if name in ("metadata", "style"):
        return
    attributes = []
    for key, value in _presentation(element).items():
        if key == "id":
            if value not in used:
                continue
            value = f"{prefix}{value}"
        elif key in ("href", "clip-path"):
            value = value.replace("#", f"#{prefix}", 1) if not value.startswith("data:") else value
        attributes.append(f' {key}="{text(value)}"')
    inside: list[str] = [str(text(element.text.strip()))] if element.text and element.text.strip() else []
    for child in element:
        _write(child, prefix, used, inside)
    if inside or name not in ("g", "defs"):
        parts.append(f"<{name}{''.join(attributes)}>{''.join(inside)}</{name}>")


def _presentation(element: ElementTree.Element) -> dict[str, str]:
    """The element's attributes, those of its style among them, as the page needs them."""
    given = {("href" if key == _HREF else key): value for key, value in element.attrib.items()}
    for declaration in given.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            size = re.search(r"([\d.]+)px", value)
            given["font-size"] = size.group(1) if size else "10"
        elif key:
            given[key] = value
    for key in ("d", "x", "y", "transform"):
        if key in given and "matrix" not in given[key]:
            given[key] = " ".join(_DECIMALS.sub(r"\1", given[key]).split())
    for key in ("fill", "stroke"):
        if key in given:
            given[key] = COLOURS.get(given[key].lower(), given[key])
    return given
