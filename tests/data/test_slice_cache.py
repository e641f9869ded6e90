"""Values kept on disk: what goes in comes out, damage counts as absence, four processes keep the limit."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rsdmri.data.slice_cache import SliceCache, entry_key
from rsdmri.errors import InputError
from rsdmri.runtime import torch_generator

LIMIT = 2_000_000


def tensors(seed, size=1000):
    generator = torch_generator("slice cache", seed)
    return {
        "maps": torch.randn(2, size, generator=generator, dtype=torch.complex64),
        "scale": torch.tensor(1 / 3, dtype=torch.float64),
    }


def same(left, right):
    return left is not None and left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in right)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_goes_in_comes_out(tmp_path):
    cache = SliceCache(tmp_path / "new" / "folder", LIMIT)
    key, other = entry_key("a", 1), entry_key("a", 2)
    assert cache.load(key) is None
    cache.store(key, tensors(0))
    assert same(cache.load(key), tensors(0))
    assert same(SliceCache(tmp_path / "new" / "folder", LIMIT).load(key), tensors(0))
    assert cache.load(other) is None
    assert [path.suffix for path in (tmp_path / "new" / "folder").iterdir()] == [".safetensors"]


def test_keys_tell_apart_what_differs():
    parts = [("a", "b"), ("ab",), ("a", "", "b"), ("a", b"b\0"), (b"a", "bc"), ("b", "a"), (1, 23), (12, 3)]
    assert len({entry_key(*p) for p in parts}) == len(parts)
    assert entry_key("x", b"yz") == entry_key("x", memoryview(b"yz"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "another"])
def test_a_damaged_entry_counts_as_absent_and_is_written_again(tmp_path, damage):
    cache, key = SliceCache(tmp_path, LIMIT), entry_key("a")
    cache.store(key, tensors(0))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "cut":
        del data[-100:]
    elif damage == "empty":
        data.clear()
    else:  # whole, but of another key
        cache.store(entry_key("b"), tensors(1))
        data = bytearray((tmp_path / f"{entry_key('b')}.safetensors").read_bytes())
    path.write_bytes(data)
    assert cache.load(key) is None
    cache.store(key, tensors(0))
    assert same(cache.load(key), tensors(0))


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path):
    cache = SliceCache(tmp_path, LIMIT)
    keys = [entry_key(i) for i in range(300)]
    for i, key in enumerate(keys):
        cache.store(key, tensors(i))  # 16 kB each: 4.8 MB altogether
        assert size_of(tmp_path) <= LIMIT
        assert cache.load(keys[0]) is not None  # used all the time
        os.utime(tmp_path / f"{key}.safetensors", (i + 1, i + 1))
        os.utime(tmp_path / f"{keys[0]}.safetensors", (1000 + i, 1000 + i))
    assert cache.load(keys[-1]) is not None
    assert cache.load(keys[1]) is None
    assert size_of(tmp_path) > LIMIT / 2


def test_unfinished_files_of_dead_processes_are_removed_and_too_large_entries_not_kept(tmp_path):
    old, new = tmp_path / ".tmp-1-1-x.safetensors", tmp_path / ".tmp-2-2-x.safetensors"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    cache = SliceCache(tmp_path, LIMIT)
    cache.store(entry_key("large"), tensors(0, 100_000))
    assert cache.load(entry_key("large")) is None
    cache.store(entry_key("small"), tensors(0))
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        SliceCache(tmp_path / "file" / "below", LIMIT)


def _work(folder, number):
    """Store and load the same keys as the other processes; count wrong values and the largest size seen."""
    cache, wrong, most = SliceCache(folder, LIMIT), 0, 0
    for step in range(200):
        seed = (step * 7 + number * 13) % 170
        found = cache.load(entry_key(seed))
        if found is None:
            cache.store(entry_key(seed), tensors(seed))
        else:
            wrong += not same(found, tensors(seed))
        if step % 10 == 0:
            most = max(most, sum(_sizes(folder)))
    return wrong, most


def _sizes(folder):
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            yield path.stat().st_size


def test_four_processes_share_a_folder(tmp_path):
    script = "import json, sys; from pathlib import Path; from test_slice_cache import _work;"
    script += "print(json.dumps(_work(Path(sys.argv[1]), int(sys.argv[2]))))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    commands = [[sys.executable, "-c", script, str(tmp_path), str(number)] for number in range(4)]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    results = [json.loads(worker.communicate(timeout=300)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert [wrong for wrong, _ in results] == [0] * 4
    assert max(most for _, most in results) <= LIMIT
    assert size_of(tmp_path) <= LIMIT
    assert not list(tmp_path.glob(".tmp-*"))
