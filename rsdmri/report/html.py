"""The report: one HTML file that needs nothing else, neither network nor neighbouring files.

Styles are inline, figures are embedded PNGs with the research-only note, there are no scripts, and every text is
escaped. A content security policy in the file forbids loading anything.
"""

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from numbers import Real
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.errors import InputError
from rsdmri.files import write_text
from rsdmri.report.png import png_bytes


@dataclass(frozen=True)
class Table:
    """Rows of a table; columns appear in the order in which rows first name them."""

    rows: Sequence[Mapping[str, Any]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with its caption, which is also its alternative text."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """One section: prose (blank lines part paragraphs), warnings, tables, pictures, the command that makes it again."""

    heading: str
    text: str = ""
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    command: str = ""
    key_figures: Mapping[str, Any] = field(default_factory=dict)


def write_report(
    path: str | os.PathLike[str],
    sections: Sequence[Section],
    *,
    title: str = "rsdmri report",
    summary: str = "",
    warnings: Sequence[str] = (),
) -> None:
    """Write ``sections`` as one self-contained HTML file, atomically.

    ``summary``: prose below the title; ``warnings``: shown above everything else. In ``key_figures`` and tables,
    numbers are shown with four digits, ``None`` and values that are not finite as a dash. `InputError` when ``path``
    cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(paragraphs=_paragraphs, shown=_shown)
    template = environment.from_string(files("rsdmri.report").joinpath("report.html").read_text(encoding="utf-8"))
    text = template.render(
        title=title,
        summary=summary,
        warnings=warnings,
        sections=[_prepared(section) for section in sections],
        note=RESEARCH_ONLY,
        version=__version__,
    )
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written ({error.strerror}); choose another --out") from None


def _prepared(section: Section) -> dict[str, Any]:
    tables = [{"caption": t.caption, "columns": _columns(t.rows), "rows": t.rows} for t in section.tables]
    pictures = [
        {"caption": p.caption, "data": base64.b64encode(png_bytes(p.figure)).decode(), "width": _css_width(p.figure)}
        for p in section.pictures
    ]
    return {**vars(section), "tables": tables, "pictures": pictures}


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and kind of each column: numbers are set right."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [(name, "number" if any(_is_number(row.get(name)) for row in rows) else "text") for name in names]


def _css_width(figure: Figure) -> int:
    return round(96 * figure.get_figwidth())


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Real):
        number = float(value)
        return f"{number:.4g}" if math.isfinite(number) else "–"
    return str(value)
