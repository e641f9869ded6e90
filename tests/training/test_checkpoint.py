"""Checkpoints: exact, atomic, two kept, damage survived, nothing unpickled."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.runtime import torch_generator
from rsdmri.training import checkpoint
from rsdmri.training.checkpoint import (
    latest_checkpoint,
    load_tensors,
    remove_orphans,
    save_checkpoint,
    save_tensors,
)


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
    return sorted(file.name for file in folder.iterdir())


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
    with pytest.raises(InputError, match=r"teacher-00000003.*cannot be written.*No space left"):
        save_checkpoint(tmp_path, "teacher", 3, tensors(), {})
    assert names(tmp_path) == []


def test_orphans_of_a_killed_process_are_removed_and_never_read(tmp_path):
    save_checkpoint(tmp_path, "teacher", 1, tensors(), {})
    (tmp_path / ".tmp-4711-teacher-00000002.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path, "teacher").meta["step"] == 1
    remove_orphans(tmp_path)
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
    assert latest_checkpoint(tmp_path, "teacher").meta["step"] == 10
    older = tmp_path / "teacher-00000010.safetensors"
    older.write_bytes(DAMAGE[name](older.read_bytes()))
    assert latest_checkpoint(tmp_path, "teacher") is None


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
    with pytest.raises(InputError, match="MB free for a checkpoint; free some disk"):
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
