# SPDX-License-Identifier: Apache-2.0
"""A page that stands alone: elements that escape their text, pictures and plots inside the file, one style.

The page loads nothing and runs nothing, and its own policy forbids both. Plots are SVG for the lines and HTML
for the labels, so that text keeps its size at any width.
"""

from __future__ import annotations

import base64
import html
import math
import re
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._version import __version__
from ..data.names import printable
from ..errors import UserError

GENERATOR = f'<meta name="generator" content="softdiff_kernels {__version__}">'
OURS = re.compile(r'<meta name="generator" content="softdiff_kernels ')
"""What a page of this module has near its beginning."""
PNG = b"\x89PNG\r\n\x1a\n"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_VOID = frozenset(("img", "meta", "br"))
_THIN = "\u202f"  # a space that does not break a line
_KEPT = "\n" + _THIN


class Html(str):
    """Text that is HTML already. All other text is escaped where it enters an element."""


Part = str | None
"""What an element may contain. None is nothing."""


def text(value: Any) -> Html:
    """Any text as HTML: escaped, and without characters that a page cannot hold or show."""
    if isinstance(value, Html):
        return value
    return Html(html.escape("".join(c if c in _KEPT else printable(c) for c in str(value))))


def tag(name: str, *parts: Part | Iterable[Part], **attributes: Any) -> Html:
    """An element. A trailing _ of an attribute's name is dropped, any other is a dash; None leaves it out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    shown = "".join(f' {key}="{text(value)}"' for key, value in given.items() if value is not None)
    if name in _VOID:
        return Html(f"<{name}{shown}>")
    flat: list[Part] = []
    for part in parts:
        flat.extend([part] if part is None or isinstance(part, str) else part)
    inner = "".join(text(part) for part in flat if part is not None)
    return Html(f"<{name}{shown}>{inner}</{name}>")


def section(title: str, *parts: Part | Iterable[Part]) -> Html:
    """A part of the page under a heading that links lead to."""
    name = anchor(title)
    return tag("section", tag("h2", title, id=name), *parts, aria_labelledby=name)


def anchor(title: str) -> str:
    """The identifier of a section."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def facts(pairs: Iterable[tuple[str, Part]], **attributes: Any) -> Html:
    """Names with their values; a value of None is left out."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None]
    return tag("dl", rows, **attributes)


def table(head: Sequence[str], rows: Iterable[Sequence[Part]], **attributes: Any) -> Html:
    """A table whose first column names its rows."""
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    heads = tag("tr", [tag("th", name, scope="col") for name in head])
    return tag("table", tag("thead", heads), tag("tbody", body), **attributes)


def number(value: float) -> str:
    """A number with four digits at most, or a whole one in full, in groups of three with thin spaces."""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}".replace(",", _THIN)
    return f"{value:.4g}"


def picture(png: bytes, alt: str, **attributes: Any) -> Html:
    """A PNG file inside the page, at most as wide as its box. UserError for bytes that begin otherwise."""
    if not png.startswith(PNG) or len(png) < 24:
        raise UserError("expected a PNG file, got another one or an empty one")
    width, height = struct.unpack(">II", png[16:24])
    source = Html("data:image/png;base64," + base64.b64encode(png).decode())
    return tag("img", src=source, alt=alt, width=width, height=height, **attributes)


def figure(content: Part, caption: Part | Iterable[Part], **attributes: Any) -> Html:
    """A picture or plot over its caption."""
    return tag("figure", content, tag("figcaption", caption), **attributes)


def note(words: str) -> Html:
    """A remark in a box."""
    return tag("p", words, class_="note")


def code(lines: str) -> Html:
    """Lines to copy. They scroll in their box, also by the keyboard, rather than break."""
    return tag("pre", tag("code", lines), tabindex=0, role="region", aria_label="Code")


def document(name: str, kind: str, top: Sequence[Part], sections: Mapping[str, Sequence[Part]]) -> str:
    """The whole file: its name and kind, what stands above all, and the sections that are not empty."""
    filled = {title: parts for title, parts in sections.items() if parts}
    links = [tag("li", tag("a", title, href=f"#{anchor(title)}")) for title in filled]
    nav = tag("nav", tag("ul", links), aria_label="Sections")
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    parts = (
        tag("header", tag("p", kind, class_="over"), tag("h1", name), top, nav),
        tag("main", [section(title, *content) for title, content in filled.items()]),
        tag("footer", tag("p", f"Written on {written} by softdiff_kernels {__version__}")),
    )
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"{GENERATOR}{tag('title', f'{name}: {kind.lower()}')}<style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


# Lines: t is ordered, so the colours run from cold to warm; dashes tell them apart without colours.
COLOURS = {
    "light": {
        **{"bg": "#f4f5f8", "card": "#ffffff", "text": "#1a1d24", "soft": "#565e6c", "rule": "#dde1e8"},
        **{"accent": "#2a52be", "tint": "#eef2fc", "l0": "#2a52be", "l1": "#0b7d77", "l2": "#a85b00"},
        **{"l3": "#b3214f", "l4": "#565e6c"},
    },
    "dark": {
        **{"bg": "#101217", "card": "#191c23", "text": "#e8eaf0", "soft": "#a3abba", "rule": "#30353f"},
        **{"accent": "#8fb0ff", "tint": "#212839", "l0": "#8fb0ff", "l1": "#4fd0c4", "l2": "#f5b04f"},
        **{"l3": "#ff86a8", "l4": "#a3abba"},
    },
}
"""The colours of both schemes."""


def _scheme(name: str) -> str:
    return ":root{" + "".join(f"--{key}:{value};" for key, value in COLOURS[name].items()) + "}"


STYLE = (
    _scheme("light")
    + f"@media (prefers-color-scheme:dark){{{_scheme('dark')}}}"
    + """
*{box-sizing:border-box}
:root{color-scheme:light dark}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--bg);color:var(--text);overflow-wrap:anywhere;
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:36px}
h1{font-size:clamp(1.5rem,4.5vw,2.2rem);line-height:1.2;margin:.1em 0 .2em;letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .5em;letter-spacing:-.01em;scroll-margin-top:16px}
h3{font-size:.95rem;margin:0 0 .3em}
p{margin:.4em 0 .9em;max-width:72ch}
a{color:var(--accent)}
.over{color:var(--accent);font-weight:600;font-size:.85rem;margin:0}
.lead,.soft,footer,figcaption,dt{color:var(--soft)}
section{background:var(--card);border:1px solid var(--rule);border-radius:14px;padding:24px;margin:20px 0}
nav ul{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;padding:0;margin:16px 0 0;font-size:.92rem}
nav a{text-decoration:none;display:inline-block;padding:3px 0}
nav a:hover{text-decoration:underline}
dl{margin:0}
dd{margin:0}
.tiles{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:10px;margin:18px 0 0}
.tiles>div{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:11px 14px}
.tiles dt{font-size:.8rem}
.tiles dd{font-size:1.06rem;font-weight:600;line-height:1.35}
.tiles small{display:block;font-weight:400;font-size:.8rem;color:var(--soft)}
.bar{display:block;height:5px;border-radius:3px;background:var(--rule);margin-top:7px;overflow:hidden}
.bar>span{display:block;height:100%;background:var(--accent)}
figure{margin:0;min-width:0}
figcaption{font-size:.88rem;margin-top:7px}
img{display:block;max-width:100%;height:auto;border-radius:4px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:24px;align-items:start}
.two img,.thumbs img{width:100%;max-height:560px;object-fit:contain;object-position:0 0}
.thumbs img{max-height:260px}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(44%,170px),1fr));gap:16px;margin-top:10px}
.strip img{width:100%}
.times{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr);text-align:center;margin:0 0 4px;
 padding:0;font-size:clamp(.62rem,2.2vw,.84rem);color:var(--soft);font-variant-numeric:tabular-nums}
.plot figcaption{color:var(--text);font-weight:600;font-size:.95rem;margin:0 0 6px}
.frame{position:relative;height:clamp(190px,32vw,290px);margin:10px 12px 30px 52px;
 border-left:1px solid var(--soft);border-bottom:1px solid var(--soft)}
.two .frame{height:200px}
.frame svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.frame span{position:absolute;font-size:.78rem;color:var(--soft);line-height:1;white-space:nowrap;
 font-variant-numeric:tabular-nums}
.frame .y{right:calc(100% + 7px);transform:translateY(-50%)}
.frame .x{top:calc(100% + 8px);transform:translateX(-50%)}
path{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--rule);stroke-width:1px}
.line{stroke-width:2px;stroke-linecap:round;stroke-linejoin:round}
.l0{stroke:var(--l0)}
.l1{stroke:var(--l1);stroke-dasharray:7 4}
.l2{stroke:var(--l2);stroke-dasharray:2 4}
.l3{stroke:var(--l3);stroke-dasharray:9 4 2 4}
.l4{stroke:var(--l4);stroke-width:1.5px}
.axes{display:flex;justify-content:space-between;gap:16px;font-size:.8rem;color:var(--soft);margin:0 12px 0 0;
 max-width:none}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:0 0 6px;padding:0;font-size:.85rem}
.legend li{display:flex;align-items:center;gap:7px}
.swatch{width:32px;height:12px;flex:none}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:5px 10px 5px 0;border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
tr:last-child>*{border-bottom:0}
thead th{font-weight:600;color:var(--soft);font-size:.8rem}
tbody th{font-weight:400}
.loss{max-width:620px;margin-top:18px}
.loss td,.loss thead th{white-space:nowrap}
.groups{columns:2 340px;column-gap:36px}
.groups>div{break-inside:avoid;margin-bottom:22px}
.groups table{table-layout:fixed}
.groups th:first-child{width:41%}
.groups th:last-child{width:30%}
code,pre{font:.86rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.groups code{font-size:.82rem}
pre{background:var(--tint);border-radius:10px;padding:12px 14px;margin:.4em 0 1.1em;overflow-x:auto}
.badge{display:inline-block;border:1px solid var(--rule);border-radius:99px;padding:0 7px;font-size:.76rem;
 color:var(--soft);white-space:nowrap}
.badge.given,.badge.measured{color:var(--accent);border-color:var(--accent)}
.badge.given{background:var(--tint)}
.key{display:grid;grid-template-columns:max-content 1fr;gap:6px 12px;font-size:.88rem;margin:0 0 22px}
.key>div{display:contents}
.results{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:16px}
.results>article{border:1px solid var(--rule);border-radius:12px;padding:14px 16px}
.big{font-size:1.7rem;font-weight:650;margin:0;line-height:1.25}
.list>div{display:grid;grid-template-columns:96px 1fr;gap:10px;font-size:.87rem;padding:2px 0}
.note{background:var(--tint);border-radius:10px;padding:9px 14px;max-width:none}
.subhead{margin-top:1.5em}
footer{padding-bottom:40px;font-size:.85rem}
@media (max-width:560px){header,main,footer{padding-left:12px;padding-right:12px}section{padding:16px 14px}
 .tiles{grid-template-columns:repeat(2,minmax(0,1fr))}.frame{margin-left:46px}}
@media print{section{break-inside:avoid}nav{display:none}}
"""
)
