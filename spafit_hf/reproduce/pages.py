"""A report as blocks, written as Markdown and as one HTML file from the same words.

    ("h2", "Scores")   ("p", "Mean over seeds ...")   ("img", path, "Score over ...")
    ("table", header, rows, "lr")        one of l, r, c per column, the last one for all after it

Words are plain text: both pages escape them, so that no method's or machine's name becomes markup.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from spafit_hf.words import plain, table

Block = tuple[Any, ...]

HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 82rem; margin: 2rem auto;
  padding: 0 1rem }
p { max-width: 52rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d1d5db }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e5e7eb; vertical-align: top }
.l { text-align: left } .r { text-align: right } .c { text-align: center }
th { border-bottom: 2px solid #9ca3af; vertical-align: bottom }
.numbers td { white-space: nowrap }
img { max-width: min(100%, 64rem); height: auto }
</style>
</head>
<body>
"""


def markdown(blocks: Sequence[Block], folder: Path) -> str:
    """The page for a folder that the pictures lie in or below."""
    parts = []
    for kind, *content in blocks:
        if kind == "table":
            header, rows, align = content
            lines = [[plain(cell) for cell in row] for row in (header, *rows)]
            parts.append(table(lines[0], lines[1:], _columns(align, header)))
        elif kind == "img":
            path, text = content
            parts.append(f"![{plain(text)}]({path.relative_to(folder).as_posix()})")
        else:
            level = int(kind[1:] or 0)
            parts.append("#" * level + " " * bool(level) + plain(content[0]))
    return "\n\n".join(parts) + "\n"


def html(blocks: Sequence[Block], title: str) -> str:
    """One file that needs nothing beside it: pictures are inside."""
    parts = [HEAD.replace("{title}", escape(title))]
    for kind, *content in blocks:
        if kind == "table":
            header, rows, align = content
            lines = []
            for tag, cells in (("th", header), *(("td", row) for row in rows)):
                marks = zip(cells, _columns(align, header), strict=True)
                row = "".join(f'<{tag} class="{mark}">{escape(cell)}</{tag}>' for cell, mark in marks)
                lines.append(f"<tr>{row}</tr>\n")
            kind = ' class="numbers"' if len(header) > 3 else ""
            parts.append(f"<div><table{kind}>\n{''.join(lines)}</table></div>\n")
        elif kind == "img":
            path, text = content
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<div><img alt="{escape(text)}" src="data:image/png;base64,{data}"></div>\n')
        else:
            parts.append(f"<{kind}>{escape(content[0])}</{kind}>\n")
    return "".join(parts) + "</body>\n</html>\n"


def _columns(align: str, header: Sequence[str]) -> str:
    return align.ljust(len(header), align[-1])
