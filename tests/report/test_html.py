"""The report is one file, loads nothing, escapes everything and carries the note."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rsdmri import RESEARCH_ONLY
from rsdmri.errors import InputError
from rsdmri.report.figures import image_grid
from rsdmri.report.html import Picture, Section, Table, write_report

NASTY = "<script>alert(1)</script> & \"quoted\" 'single' ünï"


class Reader(HTMLParser):
    void = frozenset({"meta", "img", "link", "br", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(" ".join(data.split()))


@pytest.fixture
def page(tmp_path):
    picture = Picture(image_grid(np.ones((1, 8, 8))), NASTY)
    sections = [
        Section("First " + NASTY, text=f"One.\n\nTwo {NASTY}.", warnings=[NASTY], command=f"rsdmri demo {NASTY}"),
        Section("Second", tables=[Table([{"method": NASTY, "SSIM": 0.123456}, {"method": "b", "n": 12345}], NASTY)]),
        Section("Third", pictures=[picture], key_figures={NASTY: float("nan"), "speed": 34.123456, "ok": True}),
    ]
    write_report(tmp_path / "report.html", sections, title=NASTY, summary=NASTY, warnings=[NASTY])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_everything_is_escaped_and_arrives_as_written(page):
    reader = read(page)
    assert "script" not in reader.tags
    assert sum(NASTY in word for word in reader.words) == 13
    assert ("img", "alt", NASTY) in reader.attributes


def test_nothing_is_loaded_from_elsewhere(page):
    reader = read(page)
    assert "://" not in page
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        if name in ("src", "href"):
            assert re.match(r"data:image/png;base64,[A-Za-z0-9+/=]+$" if tag == "img" else r"#s\d+$", value)
        assert not name.startswith("on")
    assert "default-src 'none'" in page


def test_the_note_is_at_the_top_and_in_the_footer(page):
    assert page.count(RESEARCH_ONLY) == 2
    assert page.rindex(RESEARCH_ONLY) > page.index("<footer>")


def test_numbers_are_short_right_aligned_and_missing_ones_are_dashes(page):
    assert '<td class="number">0.1235</td>' in page
    assert '<td class="number">12,345</td>' in page
    assert page.count('<td class="number">–</td>') == 2
    assert "<dd>34.12</dd>" in page
    assert "<dd>yes</dd>" in page
    assert "<dd>–</dd>" in page


def test_sections_are_linked(page):
    assert all(f'href="#s{i}"' in page and f'id="s{i}"' in page for i in (1, 2, 3))


def test_an_empty_report_and_a_folder_that_is_not_there(tmp_path):
    write_report(tmp_path / "empty.html", [])
    assert RESEARCH_ONLY in (tmp_path / "empty.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "none" / "report.html", [])
