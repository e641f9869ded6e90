"""Checkpoints: exact, atomic, listed, two and the best kept, damage survived, nothing unpickled."""

import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rsdmri import files
from rsdmri.errors import DiskFullError, InputError
from rsdmri.runtime import torch_generator
from rsdmri.training import checkpoint, manifest
from rsdmri.training.checkpoint import (
    best_checkpoint,
    give_up_after,
    latest_checkpoint,
    list_unlisted,
    load_tensors,
    note_validation,
    save_checkpoint,
    save_tensors,
)
from rsdmri.training.manifest import DrawnItem, RollBack, read_manifest


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch_generator("tensors", seed)
    draw = torch.randn(4, 3, 5, 6, generator=generator)
    return {
        "weights": draw.contiguous(memory_format=torch.channels_last),
        "turned": draw.transpose(1, 3)[::2],
        "half": draw.bfloat16(),
        "double": draw.double() * torch.pi,
        "step": torch.tensor(7.0),
        "count": torch.tensor([2**62 + 1, -3]),
        "mask": draw[0, 0] > 0,
        "odd values": torch.tensor([float("inf"), -0.0, 1e-42]),
        "learnt": draw.clone().requires_grad_(),
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and torch.equal(left[k].view(-1).view(torch.uint8), right[k].reshape(-1).view(torch.uint8))
        for k in left
    )


def names(folder: Path) -> list[str]:
    """Files in ``folder`` beside the manifest."""
    return sorted(file.name for file in folder.iterdir() if file.name != "manifest.json")


def test_round_trip_is_exact_to_the_bit(tmp_path):
    meta = {"elapsed": 0.1 + 0.2, "config": {"a": [1, 2.5, "ü"], "b": {"c": None}}, "finished": False}
    path = save_checkpoint(tmp_path / "new" / "folder", "teacher", 12, tensors(), meta)
    assert path.name == "teacher-00000012.safetensors"
    found = latest_checkpoint(path.parent, "teacher")
    assert same({k: v.detach().contiguous() for k, v in tensors().items()}, found.tensors)
    assert found.meta == {**meta, "stage": "teacher", "step": 12}


def test_only_the_newest_two_of_a_stage_are_kept(tmp_path):
    for step in (3, 20, 100):
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {})
    save_checkpoint(tmp_path, "prior", 1, tensors(), {})
    assert names(tmp_path) == [
        "prior-00000001.safetensors",
        "teacher-00000020.safetensors",
        "teacher-00000100.safetensors",
    ]
    assert latest_checkpoint(tmp_path, "teacher").meta["step"] == 100
    assert latest_checkpoint(tmp_path, "prior").meta["step"] == 1
    assert latest_checkpoint(tmp_path, "other") is None


def test_the_same_step_again_replaces_the_file(tmp_path):
    for finished in (False, True):
        save_checkpoint(tmp_path, "teacher", 5, tensors(), {"finished": finished})
    assert names(tmp_path) == ["teacher-00000005.safetensors"]
    assert latest_checkpoint(tmp_path, "teacher").meta["finished"] is True


@pytest.mark.parametrize("step", [1, 2])
def test_a_save_that_dies_half_way_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch, step):
    save_checkpoint(tmp_path, "teacher", 1, tensors(1), {})
    before = (tmp_path / "teacher-00000001.safetensors").read_bytes()

    def dying(values: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half of a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, "teacher", step, tensors(2), {})
    assert names(tmp_path) == ["teacher-00000001.safetensors"]
    assert (tmp_path / "teacher-00000001.safetensors").read_bytes() == before
    assert latest_checkpoint(tmp_path, "teacher").meta["step"] == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "safetensors"])
def test_a_save_that_the_disk_refuses_is_one_line(tmp_path, monkeypatch, error):
    def refuse(*_: object, **__: object) -> None:
        from safetensors import SafetensorError

        raise SafetensorError("I/O error: No space left on device (os error 28)") if error == "safetensors" else error

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(DiskFullError, match=r"teacher-00000003.*disk is full.*No space left.*same command again"):
        save_checkpoint(tmp_path, "teacher", 3, tensors(), {})
    assert names(tmp_path) == []


def test_a_save_that_may_not_be_written_is_no_full_disk(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(InputError, match=r"teacher-00000003.*cannot be written \(.*Permission denied") as caught:
        save_checkpoint(tmp_path, "teacher", 3, tensors(), {})
    assert not isinstance(caught.value, DiskFullError)


def test_orphans_of_a_killed_process_are_removed_and_never_read(tmp_path):
    save_checkpoint(tmp_path, "teacher", 1, tensors(), {})
    (tmp_path / ".tmp-4711-teacher-00000002.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-4711-manifest.json").write_text("{")
    assert latest_checkpoint(tmp_path, "teacher").meta["step"] == 1
    list_unlisted(tmp_path)
    assert names(tmp_path) == ["teacher-00000001.safetensors"]


DAMAGE = {
    "cut in the header": lambda data: data[:40],
    "cut in the data": lambda data: data[:-10],
    "longer than it says": lambda data: data + b"\0" * 8,
    "empty": lambda data: b"",
    "zeroed": lambda data: b"\0" * len(data),
    "a header length beyond the file": lambda data: b"\xff" * 8 + data[8:],
    "broken json": lambda data: data[:8] + b"[" + data[9:],
    "text": lambda data: b"this is no checkpoint, but long enough to be one" * 10,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_file_falls_back_to_the_one_before(tmp_path, name):
    for step in (10, 20):
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {})
    newest = tmp_path / "teacher-00000020.safetensors"
    newest.write_bytes(DAMAGE[name](newest.read_bytes()))
    with pytest.raises(InputError, match="teacher-00000020") as caught:
        load_tensors(newest)
    assert "\n" not in str(caught.value)
    lines = []
    assert latest_checkpoint(tmp_path, "teacher", lines.append).meta["step"] == 10
    assert len(lines) == 1
    assert "teacher-00000020.safetensors: damaged, " in lines[0]
    assert "passed over for the checkpoint before" in lines[0]
    older = tmp_path / "teacher-00000010.safetensors"
    older.write_bytes(DAMAGE[name](older.read_bytes()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    list_unlisted(tmp_path)
    with pytest.raises(
        InputError, match=r"no checkpoint of teacher is whole \(.*00000020.*00000010.*from a copy"
    ) as caught:
        latest_checkpoint(tmp_path, "teacher")
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# What pickles and torch's zip archives of pickles begin with; the rest would run os.system if anything opened it.
COMMAND = b"cposix\nsystem\n(S'echo unpickled > %s'\ntR."
PICKLES = {
    "protocol 2": b"\x80\x02",
    "protocol 3": b"\x80\x03",
    "protocol 4": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00",
    "protocol 5": b"\x80\x05",
    "protocol 0": b"",
    "zip": b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused_unopened(tmp_path, name):
    path, trace = tmp_path / "model.safetensors", tmp_path / "trace"
    path.write_bytes(PICKLES[name] + COMMAND.replace(b"%s", str(trace).encode()))
    with pytest.raises(InputError, match=r"model\.safetensors: ") as caught:
        load_tensors(path)
    if name != "protocol 0":
        assert "pickled weights are not opened" in str(caught.value)
    assert not trace.exists()


def test_safetensors_of_others_are_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "bare.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "list.safetensors", metadata={"rsdmri": json.dumps([1])})
    save_file({"a": torch.ones(2)}, tmp_path / "text.safetensors", metadata={"rsdmri": "not json"})
    for name in ("bare", "list", "text"):
        with pytest.raises(InputError, match=name):
            load_tensors(tmp_path / f"{name}.safetensors")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_tensors(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_tensors(tmp_path)


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, "teacher", 1, tensors(), {})
    usage = namedtuple("usage", "total used free")
    size = sum(t.numel() * t.element_size() for t in tensors().values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 2 * size - 1))
    with pytest.raises(DiskFullError, match="MB free for a checkpoint; free some disk"):
        save_checkpoint(tmp_path, "teacher", 2, tensors(), {})
    assert names(tmp_path) == ["teacher-00000001.safetensors"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 2 * size))
    save_checkpoint(tmp_path, "teacher", 2, tensors(), {})


def test_save_tensors_replaces_a_file_in_one_go(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(3)}, {"n": 1})
    save_tensors(tmp_path / "a.safetensors", {"y": torch.ones(3)}, {"n": 2})
    found, meta = load_tensors(tmp_path / "a.safetensors")
    assert found.keys() == {"y"}
    assert meta == {"n": 2}
    assert names(tmp_path) == ["a.safetensors"]


def steps(folder: Path, stage: str = "teacher") -> list[int]:
    return [entry.step for entry in read_manifest(folder).stage(stage).generations]


def test_the_manifest_lists_each_file_with_step_size_and_hash(tmp_path):
    for step in (3, 20, 100):
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {}, validation=1.0 + step)
    listed = json.loads((tmp_path / "manifest.json").read_text())["stages"]["teacher"]
    assert [entry["step"] for entry in listed["generations"]] == [20, 100]
    for entry in (*listed["generations"], listed["best"]):
        data = (tmp_path / entry["file"]).read_bytes()
        assert entry["size"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["validation"] == 1.0 + entry["step"]
    assert (listed["best"]["step"], listed["best"]["file"]) == (3, "teacher-best.safetensors")


def test_one_flipped_bit_is_damage(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {})
    newest = tmp_path / "teacher-00000020.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 16
    newest.write_bytes(data)
    load_tensors(newest)  # nothing else would notice
    lines = []
    assert latest_checkpoint(tmp_path, "teacher", lines.append).meta["step"] == 10
    assert "teacher-00000020.safetensors: damaged, its contents are not those that were written (sha256)" in lines[0]


def test_a_file_that_is_gone_is_passed_over_with_a_line(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {})
    (tmp_path / "teacher-00000020.safetensors").unlink()
    lines = []
    assert latest_checkpoint(tmp_path, "teacher", lines.append).meta["step"] == 10
    assert "teacher-00000020.safetensors: cannot be read (No such file" in lines[0]
    (tmp_path / "teacher-00000010.safetensors").unlink()
    with pytest.raises(InputError, match="no checkpoint of teacher is whole"):
        latest_checkpoint(tmp_path, "teacher")


def test_after_a_fall_back_later_files_no_longer_count(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {}, validation=-float(step))
    (tmp_path / "teacher-00000020.safetensors").write_bytes(b"damaged")
    save_checkpoint(tmp_path, "teacher", 15, tensors(15), {}, validation=3.0)
    assert steps(tmp_path) == [10, 15]
    assert names(tmp_path) == [f"teacher-{x}.safetensors" for x in ("00000010", "00000015", "best")]
    assert read_manifest(tmp_path).stage("teacher").best.step == 15  # the one of step 20 is of the same course


@pytest.mark.parametrize("linked", [True, False])
def test_the_lowest_validation_loss_is_kept(tmp_path, monkeypatch, linked):
    """As a second name of the file, or a copy where the file system knows no second names."""
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    losses = {5: None, 10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0, 50: None}
    for step, loss in losses.items():
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {}, validation=loss)
        found = best_checkpoint(tmp_path, "teacher")
        assert (found and found.meta["step"]) == {5: None, 10: 10}.get(step, 20)
    assert same(found.tensors, {k: v.detach().contiguous() for k, v in tensors(20).items()})
    assert names(tmp_path) == [f"teacher-{x}.safetensors" for x in ("00000040", "00000050", "best")]
    assert best_checkpoint(tmp_path, "prior") is None


def test_of_checkpoints_that_cannot_be_told_apart_the_latest_is_kept(tmp_path):
    """Within its own error of the lowest of all, so that many small steps upwards do not add up."""
    found = {10: (3.0, 0.5, 10), 20: (1.0, 0.2, 20), 30: (1.15, 0.2, 30), 40: (1.15, 0.1, 30), 50: (1.3, 0.2, 30)}
    for step, (loss, error, kept) in (found | {60: (1.19, 0.2, 60), 70: (0.9, 0.0, 70)}).items():
        save_checkpoint(tmp_path, "prior", step, tensors(step), {})
        note_validation(tmp_path, "prior", loss, error)
        best = read_manifest(tmp_path).stage("prior").best
        assert best.step == best_checkpoint(tmp_path, "prior").meta["step"] == kept
        assert (best.lowest, best.lowest_step) == {10: (3.0, 10), 70: (0.9, 70)}.get(step, (1.0, 20))


def test_the_best_is_the_last_resort(tmp_path):
    for step, loss in {10: 1.0, 20: 2.0, 30: 3.0}.items():
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {}, validation=loss)
    for step in (20, 30):
        (tmp_path / f"teacher-{step:08d}.safetensors").write_bytes(b"damaged")
    lines = []
    assert latest_checkpoint(tmp_path, "teacher", lines.append).meta["step"] == 10
    assert len(lines) == 2


def test_a_validation_that_comes_later(tmp_path):
    save_checkpoint(tmp_path, "teacher", 10, tensors(10), {}, validation=2.0)
    save_checkpoint(tmp_path, "teacher", 20, tensors(20), {})
    note_validation(tmp_path, "teacher", 1.5)
    record = read_manifest(tmp_path).stage("teacher")
    assert [(entry.step, entry.validation) for entry in record.generations] == [(10, 2.0), (20, 1.5)]
    assert best_checkpoint(tmp_path, "teacher").meta["step"] == 20


CUTS = ("file", "best", "manifest", "old files")


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("step", [20, 30])
def test_a_process_that_ends_anywhere_in_a_save_loses_nothing(tmp_path, monkeypatch, cut, step):
    """The process dies just after the file, the best, the manifest, or one old file was done with; 20: once again."""
    for earlier in (10, 20):
        save_checkpoint(tmp_path, "teacher", earlier, tensors(earlier), {}, validation=100.0 - earlier)
    replace, unlink = os.replace, Path.unlink
    ends = {"file": f"teacher-{step:08d}.safetensors", "best": "teacher-best.safetensors", "manifest": "manifest.json"}
    writes = []

    def dying_replace(source: Path, target: Path) -> None:
        replace(source, target)
        writes.append(target.name)
        if target.name == ends.get(cut) and f"teacher-{step:08d}.safetensors" in writes:
            raise KeyboardInterrupt

    def dying_unlink(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if cut == "old files" and path.name == "teacher-00000010.safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", dying_replace)
    monkeypatch.setattr(Path, "unlink", dying_unlink)
    if cut != "old files" or step == 30:
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, "teacher", step, tensors(step + 1), {}, validation=100.0 - step - 1)
    monkeypatch.undo()
    lines = []
    list_unlisted(tmp_path, lines.append)
    found = latest_checkpoint(tmp_path, "teacher", lines.append)
    assert found.meta["step"] == step
    assert lines == []
    assert best_checkpoint(tmp_path, "teacher").meta["step"] == step
    if cut != "old files" or step == 30:
        assert same(found.tensors, {k: v.detach().contiguous() for k, v in tensors(step + 1).items()})
    assert steps(tmp_path) == ([10, 20] if step == 20 else [20, 30])


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"stages": {"teacher": 3}}', "\0\0"])
def test_without_a_sound_manifest_the_files_speak_for_themselves(tmp_path, text):
    for step, loss in {5: 4.0 if text is None else 1.0, 10: 2.0, 20: 3.0}.items():
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {}, validation=loss)
    if text is None:
        (tmp_path / "teacher-best.safetensors").unlink()
    (tmp_path / "manifest.json").unlink() if text is None else (tmp_path / "manifest.json").write_text(text)
    lines = []
    assert latest_checkpoint(tmp_path, "teacher").meta["step"] == 20
    list_unlisted(tmp_path, lines.append)
    assert [line.partition(": ")[2][:7] for line in lines] == ([] if text is None else ["damaged"])
    assert steps(tmp_path) == [10, 20]
    assert best_checkpoint(tmp_path, "teacher").meta["step"] == (10 if text is None else 5)
    assert names(tmp_path) == [f"teacher-{x}.safetensors" for x in ("00000010", "00000020", "best")]


def test_an_unlisted_file_that_is_damaged_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, "teacher", 10, tensors(10), {})
    (tmp_path / "teacher-00000020.safetensors").write_bytes(b"not whole")
    lines = []
    list_unlisted(tmp_path)
    assert steps(tmp_path) == [10]
    assert latest_checkpoint(tmp_path, "teacher", lines.append).meta["step"] == 10
    assert "teacher-00000020.safetensors: damaged" in lines[0]


def test_roll_backs_are_recorded_and_what_they_gave_up_is_gone(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, "teacher", step, tensors(step), {}, validation=1 / step)
    kept = RollBack(
        step=24, back_to=20, problem="loss not a number", left_out=(DrawnItem(item=3, file="a.h5", slice=1),)
    )
    given_up = RollBack(step=24, back_to=10, problem="loss not a number")
    give_up_after(tmp_path, "teacher", kept)
    assert steps(tmp_path) == [10, 20]
    give_up_after(tmp_path, "teacher", given_up)
    assert steps(tmp_path) == [10]
    list_unlisted(tmp_path)
    save_checkpoint(tmp_path, "teacher", 20, tensors(21), {})
    assert steps(tmp_path) == [10, 20]
    assert read_manifest(tmp_path).stage("teacher").roll_backs == (kept, given_up)
    assert (
        manifest.Manifest.model_validate_json((tmp_path / "manifest.json").read_text()).stage("prior").roll_backs == ()
    )
