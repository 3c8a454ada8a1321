"""A self-contained web page from Python values: everything that is not `Html` is escaped."""

import base64
import math
from html import escape

STYLE = """
:root { --ink: #1c2530; --soft: #55606e; --line: #dde3ea; --ground: #f5f7f9; --blue: #0b5c94; --red: #a33400; --amber: #7a5200; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 8px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 32px 0 10px; padding-top: 10px; border-top: 2px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 20px 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 75ch; }
.soft { color: var(--soft); }
.small { font-size: .88rem; }
.mono, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .85em; }
.mono { overflow-wrap: anywhere; }
pre { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow: auto; max-height: 480px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 16px 0; }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.tile b { display: block; font-size: 1.2rem; line-height: 1.3; overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; margin: 8px 0 12px; background: #fff; border: 1px solid var(--line); border-radius: 8px;
  width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: 6px 12px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th { background: #eef2f6; font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td a { white-space: nowrap; }
td.wide { min-width: 12ch; overflow-wrap: anywhere; }
ul.findings { list-style: none; padding: 0; margin: 8px 0; }
ul.findings li { background: #fff; border: 1px solid var(--line); border-left: 5px solid var(--blue); border-radius: 8px;
  padding: 8px 12px; margin: 7px 0; overflow-wrap: anywhere; }
ul.findings li.problem { border-left-color: var(--red); }
ul.findings li.look { border-left-color: #d98e00; }
.badge { font-size: .78rem; font-weight: 700; margin-right: 6px; text-transform: uppercase; letter-spacing: .03em; color: var(--blue); }
.problem .badge { color: var(--red); }
.look .badge { color: var(--amber); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 12px;
  align-items: start; margin: 10px 0; }
.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px; }
figure img { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
figcaption { font-size: .85rem; color: var(--soft); padding: 4px 2px 0; overflow-wrap: anywhere; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--blue); padding: 4px 0; overflow-wrap: anywhere; }
a { color: var(--blue); overflow-wrap: anywhere; }
footer { margin-top: 36px; border-top: 2px solid var(--line); padding-top: 12px; }
@media (max-width: 600px) {
  main { padding: 12px 12px 40px; }
  h1 { font-size: 1.4rem; }
  th, td { padding: 5px 8px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print { body { background: #fff; } details { display: block; } .scroll { overflow: visible; } }
"""


class Html(str):
    """Text that is already markup."""

    __slots__ = ()


def text(value):
    """Markup of a value: escaped, unless it is Html."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def tag(name, *children, **attributes):
    """An element; children are escaped unless they are Html; `class_` stands for the attribute `class`."""
    written = "".join(f' {key.rstrip("_")}="{escape(str(value), quote=True)}"' for key, value in attributes.items() if value is not None)
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts, separator=""):
    """Parts one after the other, each escaped unless it is Html."""
    return Html(separator.join(text(part) for part in parts))


def table(header, rows, numbers=()):
    """A table in a frame that scrolls sideways where it is too wide.

    Args:
        header: column names.
        rows: sequences of cells.
        numbers: indices of right-aligned columns.
    """
    head = tag("tr", *(tag("th", cell, class_="n" if i in numbers else None, scope="col") for i, cell in enumerate(header)))
    lines = [tag("tr", *(tag("td", cell, class_="n" if i in numbers else "wide") for i, cell in enumerate(row))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *lines)), class_="scroll")


def folded(title, *children):
    """Content behind a line that unfolds it."""
    return tag("details", tag("summary", title), *children)


def picture(png, caption):
    """A figure with its picture inside the page.

    Args:
        png: bytes.
        caption: text, also the alternative text.
    """
    data = base64.b64encode(png).decode("ascii")
    image = Html(f'<img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}">')
    return tag("figure", image, tag("figcaption", caption))


def number(value):
    """A number for a table: three decimals, or three digits where those would hide it; “–” for NaN and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"


def count(n, noun):
    """`1 speaker`, `2 speakers`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def page(title, body, **meta):
    """A whole document that needs nothing from outside; the policy in its head forbids even trying."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    named = "".join(f'<meta name="{escape(k.replace("_", "-"))}" content="{escape(str(v), quote=True)}">\n' for k, v in meta.items())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=True)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{named}<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{text(body)}\n</main>\n</body>\n</html>\n"
    )
