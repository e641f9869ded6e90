"""Manifests: rows, folders, and every way of getting them wrong."""

import pytest

from rsdmri.data.manifest import COLUMNS, ManifestEntry, file_sha256, read_manifest, verify, write_manifest
from rsdmri.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.h5", "a.h5", "sub/c.h5"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_round_trip_with_relative_and_absolute_paths(folder):
    outside = folder / "a.h5"
    (folder / "lists").mkdir()
    entries = [
        ManifestEntry(outside, sha256=file_sha256(outside), split="val", subject="s1", contrast="T1w", coils="8"),
        ManifestEntry(folder / "sub" / "c.h5", split="test", matrix="64x64", licence="CC0", anatomy="head"),
    ]
    for place in (folder / "manifest.tsv", folder / "lists" / "m.tsv"):
        write_manifest(place, entries)
        assert read_manifest(place) == entries
    first = (folder / "manifest.tsv").read_text().splitlines()
    assert first[0].split("\t") == list(COLUMNS)
    assert first[2].startswith("sub/c.h5\t")
    assert read_manifest(folder) == entries


def test_a_folder_without_manifest_lists_its_scans_for_training(folder):
    (folder / ".tmp-1-x.h5").write_bytes(b"")
    entries = read_manifest(folder)
    assert [entry.path.name for entry in entries] == ["a.h5", "b.h5"]
    assert {entry.split for entry in entries} == {"train"}
    assert all(entry.path.is_absolute() for entry in entries)


def test_split_is_optional_other_columns_are_ignored_and_blank_lines_skipped(folder):
    (folder / "m.tsv").write_text("weight\tpath\n1\ta.h5\n\n2\tb.h5\n", encoding="utf-8-sig")
    assert [(entry.path.name, entry.split) for entry in read_manifest(folder / "m.tsv")] == [
        ("a.h5", "train"),
        ("b.h5", "train"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("file\tsplit\na.h5\ttrain\n", "no column 'path'"),
        ("path\tpath\na.h5\tb.h5\n", "named twice"),
        ("path\tsplit\n", "lists no files"),
        ("path\tsplit\na.h5\n", "line 2: 1 cells where the first line has 2"),
        ("path\tsplit\na.h5\ttraining\n", "line 2: unknown split 'training'"),
        ("path\tsplit\na.h5\ttrain\nmissing.h5\ttrain\n", "line 3: .*missing.h5 does not exist"),
        ("path\tsplit\n\ttrain\n", "line 2: the path is empty"),
        ("path\na.h5\nsub/../a.h5\n", "line 3: a.h5 is listed twice"),
        ("path\na\0.h5\n", "NUL"),
    ],
)
def test_bad_manifests_are_refused_with_the_line(folder, text, reason):
    (folder / "m.tsv").write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        read_manifest(folder / "m.tsv")
    assert str(caught.value).startswith(str(folder / "m.tsv"))
    assert len(str(caught.value).splitlines()) == 1


def test_bad_places_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no such manifest"):
        read_manifest(folder / "none.tsv")
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(folder / "a.h5" / "below")
    (folder / "binary.tsv").write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(InputError, match="not a text file"):
        read_manifest(folder / "binary.tsv")
    (folder / "nothing").mkdir()
    with pytest.raises(InputError, match=r"no manifest\.tsv and no \.h5"):
        read_manifest(folder / "nothing")


def test_verify_compares_hashes(folder):
    entry = ManifestEntry(folder / "a.h5", sha256=file_sha256(folder / "a.h5").upper())
    verify(entry)
    verify(ManifestEntry(folder / "a.h5"))
    (folder / "a.h5").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"a\.h5: differs"):
        verify(entry)


def test_cells_that_would_break_the_table_are_not_written(folder):
    with pytest.raises(InputError, match="tabs and line breaks"):
        write_manifest(folder / "m.tsv", [ManifestEntry(folder / "a.h5", subject="a\tb")])
    assert not (folder / "m.tsv").exists()
