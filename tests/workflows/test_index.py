"""rsdmri index: manifests that are right, resumable, without names; broken files are set aside with the reason."""

import json
import os
import re
import stat

import h5py
import numpy as np
import pytest

from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.manifest import file_sha256, read_manifest, verify
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator
from rsdmri.workflows import index as module
from rsdmri.workflows.index import IndexRules, index
from rsdmri.workflows.plan import open_slices

NAME = "DOE^JOHN"


def scan(path, seed=0, size=12, **attrs):
    rng = numpy_generator("index", seed)
    data = (rng.standard_normal((2, 3, size, size)) + 1j * rng.standard_normal((2, 3, size, size))).astype(np.complex64)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_scan(path, data, attrs=attrs)
    return path


@pytest.fixture
def folder(tmp_path):
    """20 scans of 10 patients in two folders, one file that is none, one hidden, one of another kind."""
    root = tmp_path / "scans"
    for number in range(20):
        patient = f"{NAME} {number // 2}"
        place = "multicoil_train" if number < 14 else "multicoil_val"
        scan(root / place / f"s{number:02d}.h5", number, acquisition="AXT2", patient_id=patient, max=1.0)
    (root / "multicoil_val" / "broken.h5").write_bytes(b"x" * 99)
    (root / ".hidden.h5").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    return root


def run(folder, out, *, strict=False, **rules):
    lines = []
    count = index(str(folder), out, IndexRules(**rules), strict=strict, say=lines.append)
    return count, lines


def test_the_manifest_says_what_the_files_are(folder):
    out = folder / "manifest.tsv"
    count, lines = run(folder, out, licence="CC0")
    entries = read_manifest(out)
    assert count == 1
    assert len(entries) == 20
    for entry in entries:
        verify(entry)
        assert (entry.anatomy, entry.contrast, entry.coils, entry.matrix) == ("brain", "AXT2", "3", "12x12")
        assert entry.licence == "CC0"
        assert re.fullmatch(r"s[0-9a-f]{12}", entry.subject)
    assert [entry.path.name for entry in entries] == [f"s{i:02d}.h5" for i in range(20)]
    assert lines[0].startswith("20 scans of 10 subjects: train ")
    broken = (folder / "manifest.broken.tsv").read_text().splitlines()
    assert broken == ["path\treason", "multicoil_val/broken.h5\tis not an HDF5 file; give a fastMRI-style .h5 file"]
    assert sorted(p.name for p in folder.glob("manifest*")) == [
        *("manifest.broken.tsv", "manifest.journal.jsonl", "manifest.tsv")
    ]


def test_splits_are_by_subject_and_follow_the_seed_alone(folder, tmp_path):
    found = {}
    for name, rules in {
        "a": {"seed": 1},
        "b": {"seed": 1},
        "c": {"seed": 1, "salt": "x"},
        "d": {"seed": 2, "salt": "x"},
        "e": {"seed": 1, "splits": "0.5,0.5,0"},
    }.items():
        run(folder, tmp_path / f"{name}.tsv", **rules)
        found[name] = read_manifest(tmp_path / f"{name}.tsv")
    splits = {name: [e.split for e in entries] for name, entries in found.items()}
    subjects = {name: [e.subject for e in entries] for name, entries in found.items()}
    for name, entries in found.items():
        assert len({(e.subject, e.split) for e in entries}) == len({e.subject for e in entries}) == 10, name
    assert splits["a"] == splits["b"] == splits["c"] != splits["d"]
    assert subjects["c"] == subjects["d"] != subjects["a"] != subjects["b"]
    assert set(splits["e"]) == {"train", "val"}


def test_a_new_file_moves_no_subject_to_another_split(folder, tmp_path):
    run(folder, tmp_path / "m.tsv", seed=3)
    before = {e.path: e.split for e in read_manifest(tmp_path / "m.tsv")}
    for number in range(30):
        scan(folder / "a_new" / f"n{number}.h5", 100 + number)
    run(folder, tmp_path / "m.tsv", seed=3)
    after = {e.path: e.split for e in read_manifest(tmp_path / "m.tsv")}
    assert len(after) == 50
    assert {path: after[path] for path in before} == before


def test_shares_are_met(tmp_path):
    choose = module._splitter(IndexRules(splits="0.7,0.2,0.1"), tmp_path)
    found = [choose(f"subject {i}", "") for i in range(4000)]
    for split, share in {"train": 0.7, "val": 0.2, "test": 0.1}.items():
        assert abs(found.count(split) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_other_sources_of_splits_and_subjects(folder, tmp_path):
    out = tmp_path / "m.tsv"
    (folder / "multicoil_val" / "broken.h5").unlink()
    run(folder, out, splits="folders", subject=r"s(\d)")
    entries = read_manifest(out)
    assert [e.split for e in entries] == ["train"] * 14 + ["val"] * 6
    assert len({e.subject for e in entries}) == 2  # s0x and s1x
    run(folder, out, splits="test", anatomy="heart")
    assert {(e.split, e.anatomy) for e in read_manifest(out)} == {("test", "heart")}
    (folder / "multicoil_train").rename(folder / "other")
    with pytest.raises(InputError, match=r"--splits folders: no folder of scans/other/s00\.h5"):
        run(folder, out, splits="folders")


def count_reads(monkeypatch):
    read = []
    real = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda path, advance: read.append(path.name) or real(path, advance))
    return read


def test_unchanged_files_are_not_read_again(folder, tmp_path, monkeypatch):
    out, read = tmp_path / "m.tsv", count_reads(monkeypatch)
    run(folder, out)
    assert len(read) == 20
    first = out.read_bytes()
    read.clear()
    run(folder, out)
    assert (read, out.read_bytes()) == ([], first)
    scan(folder / "multicoil_train" / "s03.h5", 99, size=14)
    (folder / "multicoil_train" / "s04.h5").unlink()
    os.utime(folder / "multicoil_train" / "s05.h5", (1, 1))
    run(folder, out, seed=5)
    assert read == ["s03.h5", "s05.h5"]
    entries = {e.path.name: e for e in read_manifest(out)}
    assert len(entries) == 19
    assert entries["s03.h5"].matrix == "14x14"
    for entry in entries.values():
        verify(entry)


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    out, read = tmp_path / "m.tsv", count_reads(monkeypatch)
    counted = module.file_sha256

    def stop(path, advance):
        if path.name == "s07.h5":
            raise KeyboardInterrupt
        return counted(path, advance)

    monkeypatch.setattr(module, "file_sha256", stop)
    with pytest.raises(KeyboardInterrupt):
        run(folder, out)
    assert not out.exists()
    assert len(read) == 7
    journal = tmp_path / "m.journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # and the last line was cut short
    monkeypatch.setattr(module, "file_sha256", counted)
    read.clear()
    run(folder, out)
    assert read == [f"s{i:02d}.h5" for i in range(6, 20)]
    assert len(read_manifest(out)) == 20
    assert len({e.subject for e in read_manifest(out)}) == 10  # the salt went on, too


def test_strict_stops_at_the_first_broken_file(folder, tmp_path):
    with pytest.raises(InputError, match=r"broken\.h5: is not an HDF5 file"):
        run(folder, tmp_path / "m.tsv", strict=True)
    assert not (tmp_path / "m.tsv").exists()
    (folder / "multicoil_val" / "broken.h5").unlink()
    assert run(folder, tmp_path / "m.tsv", strict=True)[0] == 0


def test_a_repaired_file_leaves_the_quarantine(folder, tmp_path):
    out = tmp_path / "m.tsv"
    run(folder, out)
    scan(folder / "multicoil_val" / "broken.h5", 50)
    assert run(folder, out)[0] == 0
    assert not (tmp_path / "m.broken.tsv").exists()
    assert len(read_manifest(out)) == 21


def test_no_name_leaves_the_files(folder, tmp_path, capsys):
    with h5py.File(folder / "multicoil_val" / "s19.h5", "r+") as file:
        file.attrs["patient_name"] = NAME
        file.attrs["acquisition"] = NAME
    lines = run(folder, tmp_path / "out" / "m.tsv")[1]
    captured = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    for text in ("DOE", "JOHN"):
        assert text.encode() not in written
        assert text not in "".join(lines) + captured.out + captured.err


@pytest.mark.skipif(os.name == "nt", reason="no such permissions there")
def test_the_salt_is_its_owners_and_a_given_one_is_not_stored(folder, tmp_path):
    run(folder, tmp_path / "m.tsv")
    assert stat.S_IMODE((tmp_path / "m.journal.jsonl").stat().st_mode) == 0o600
    run(folder, tmp_path / "n.tsv", salt="my secret salt")
    assert "my secret salt" not in (tmp_path / "n.journal.jsonl").read_text()


def test_copies_across_splits_are_told(folder, tmp_path):
    data = (folder / "multicoil_train" / "s00.h5").read_bytes()
    for number in range(10):
        (folder / f"copy{number}.h5").write_bytes(data)
    lines = run(folder, tmp_path / "m.tsv", subject=r"\w+\.h5", splits="0.4,0.3,0.3")[1]
    assert any("1 files have copies in another split" in line for line in lines)


def test_a_file_that_changes_while_it_is_read_is_set_aside(folder, tmp_path, monkeypatch):
    real = file_sha256

    def growing(path, advance):
        if path.name == "s02.h5":
            with open(path, "ab") as file:
                file.write(b"more")
        return real(path, advance)

    monkeypatch.setattr(module, "file_sha256", growing)
    assert run(folder, tmp_path / "m.tsv")[0] == 2
    assert "s02.h5\tchanged while it was read" in (tmp_path / "m.broken.tsv").read_text()


def test_names_that_no_manifest_can_hold_and_dangling_links_are_set_aside(folder, tmp_path):
    scan(folder / "tab\there.h5")
    (folder / "dangling.h5").symlink_to(folder / "nowhere.h5")
    assert run(folder, tmp_path / "m.tsv")[0] == 3
    text = (tmp_path / "m.broken.tsv").read_text()
    assert "tab?here.h5\tits name cannot be written" in text
    assert "dangling.h5\tno such file" in text
    assert len(read_manifest(tmp_path / "m.tsv")) == 20


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"splits": "0.5,0.5"}, "expected three shares"),
        ({"splits": "0.5,0.6,0.1"}, "expected three shares"),
        ({"splits": "training"}, "expected three shares"),
        ({"subject": "("}, "not a regular expression"),
        ({"subject": r"subject(\d+)"}, r"finds no subject in multicoil_train/s00\.h5"),
        ({"licence": "a\tb"}, "--licence: holds tabs"),
    ],
)
def test_rules_that_do_not_fit_are_refused_before_reading(folder, tmp_path, monkeypatch, rules, reason):
    read = count_reads(monkeypatch)
    with pytest.raises(InputError, match=reason):
        run(folder, tmp_path / "m.tsv", **rules)
    assert not read


def test_folders_without_scans_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "none", tmp_path / "m.tsv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.h5 or \.hdf5 files"):
        run(tmp_path / "empty", tmp_path / "m.tsv")
    (tmp_path / "empty" / "bad.h5").write_bytes(b"bad")
    with pytest.raises(InputError, match=r"none of its 1 files can be used; see m\.broken\.tsv"):
        run(tmp_path / "empty", tmp_path / "m.tsv")
    assert not (tmp_path / "m.tsv").exists()


def test_a_remote_folder_is_indexed_and_trained_on(folder, tmp_path, tiny_settings):
    fsspec = pytest.importorskip("fsspec", reason="remote files need fsspec")
    from rsdmri.config import load_config

    system = fsspec.filesystem("memory")
    for path in folder.rglob("*.h5"):
        system.pipe_file(f"/indexed/{path.relative_to(folder).as_posix()}", path.read_bytes())
    try:
        assert run("memory://indexed", tmp_path / "m.tsv", splits="train")[0] == 1
        entries = read_manifest(tmp_path / "m.tsv")
        assert entries[0].path == "memory://indexed/multicoil_train/s00.h5"
        verify(entries[0])
        config = load_config(None, [*tiny_settings, "acquisition.acceleration=1.5"])
        remote = open_slices(config, tmp_path / "m.tsv")
        run(folder, tmp_path / "local.tsv", splits="train")
        local = open_slices(config, tmp_path / "local.tsv")
        assert len(remote) == len(local) == 40
        assert np.array_equal(remote[3].kspace, local[3].kspace)
        assert np.array_equal(remote[3].maps, local[3].maps)
    finally:
        system.rm("/indexed", recursive=True)


def test_journals_of_other_versions_are_read_again(folder, tmp_path):
    out = tmp_path / "m.tsv"
    run(folder, out)
    journal = tmp_path / "m.journal.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("\n".join([json.dumps(row | {"unknown": 1}) for row in rows[1:]] + ["[1]", "\0"]))
    run(folder, out)
    assert len(read_manifest(out)) == 20
