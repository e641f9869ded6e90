"""The child that parses files: nothing is lost on the way back, and what it does wrong is one line here."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from rsdmri.data import child, confine, sandbox
from rsdmri.data.fastmri import read_scan, write_scan
from rsdmri.data.sandbox import Limits, load_maps, load_scan, read_in_child
from rsdmri.data.scan import Geometry, Header, Scan
from rsdmri.data.scan_parts import scan_from_parts, scan_to_parts
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

RNG = numpy_generator("sandbox")
KSPACE = (RNG.standard_normal((2, 3, 6, 7)) + 1j * RNG.standard_normal((2, 3, 6, 7))).astype(np.complex64)
GENEROUS = Limits(1 << 30, 30, 60)

FULL = Scan(
    name="full",
    kspace=KSPACE,
    mask=RNG.random((6, 7)) < 0.7,
    absent=np.arange(7) == 0,
    crop=(5, 4),
    prospective=True,
    acquisition="AXT2",
    maps=KSPACE[:, ::-1].copy(),
    noise_cov=np.eye(3) * (1 + 2j),
    target=RNG.random((2, 5, 4)).astype(np.float32),
    target_source="reconstruction_rss",
    header=Header((12, 7, 1), (6, 7, 1), (220.5, 220.0, 5.0), (1, 7), 2.9, (3.5, 7.0), (500.0,), (15.0,), (200.0,)),
    geometry=Geometry((1.5, 2.5), 4.0, (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 0.5, 6.0))),
    warnings=("one", "two"),
)


def assert_same(left: object, right: object, where: str = "scan") -> None:
    assert type(left) is type(right), where
    if dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name), f"{where}.{field.name}")
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, where
        np.testing.assert_array_equal(left, right, err_msg=where)
    else:
        assert left == right, where


def scripted(monkeypatch, body: str) -> None:
    """Let the child run ``body`` as its reader: ``read(path, **options)``."""
    head = "import os, sys, time\nimport numpy as np\nfrom rsdmri.data import child"
    code = f"{head}\n{body}\nchild.reader = lambda name: read\nchild.main()\n"
    monkeypatch.setattr(sandbox, "_command", lambda: [sys.executable, "-P", "-c", code])


def test_the_example_fills_every_field():
    """A new field of a record needs a value here, and so a way to another process."""
    for record in (FULL, FULL.header, FULL.geometry):
        values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        assert [name for name, value in values.items() if value is None or str(value) in ("()", "unknown")] == []


def test_every_field_survives_the_parts():
    arrays, facts = scan_to_parts(FULL)
    assert_same(scan_from_parts(arrays, json.loads(json.dumps(facts))), FULL)


def test_every_field_survives_the_child(monkeypatch, tmp_path):
    path = tmp_path / "full.h5"
    path.touch()
    geometry, header = dataclasses.astuple(FULL.geometry), dataclasses.astuple(FULL.header)
    np.savez(tmp_path / "arrays.npz", **{name: getattr(FULL, name) for name in scan_to_parts(FULL)[0]})
    scripted(
        monkeypatch,
        f"""
from rsdmri.data.scan import Geometry, Header, Scan
def read(path):
    arrays = dict(np.load({str(tmp_path / "arrays.npz")!r}))
    arrays['kspace'] = np.asfortranarray(arrays['kspace'])
    return Scan(name='full', crop=(np.int64(5), 4), prospective=True, acquisition='AXT2',
                target_source='reconstruction_rss', header=Header(*{header!r}), geometry=Geometry(*{geometry!r}),
                warnings=('one', 'two'), **arrays)
child.read_only = lambda paths: None
""",
    )
    assert_same(read_in_child("scan", path, {}), FULL)


def test_a_forgotten_field_is_noticed(monkeypatch):
    monkeypatch.delitem(sandbox.scan_from_parts.__globals__["FACTS"], "geometry")
    with pytest.raises(ValueError, match="geometry"):
        scan_to_parts(FULL)


@pytest.mark.parametrize(
    ("field", "value"),
    [("crop", [1]), ("crop", [1.0, 2]), ("prospective", 1), ("name", "a\nb"), ("warnings", "one"), ("header", {}),
     ("acquisition", 3), ("crop", [99, 99]), ("geometry", {"spacing_mm": [1, 1]})],
)  # fmt: skip
def test_parts_of_another_kind_are_refused(field, value):
    arrays, facts = scan_to_parts(FULL)
    with pytest.raises(ValueError, match=r"expected|fit"):
        scan_from_parts(arrays, {**facts, field: value})


def test_parts_that_are_missing_or_unknown_are_refused():
    arrays, facts = scan_to_parts(FULL)
    with pytest.raises(ValueError, match="missing: mask"):
        scan_from_parts({k: v for k, v in arrays.items() if k != "mask"}, facts)
    with pytest.raises(ValueError, match="1 unknown"):
        scan_from_parts({**arrays, "other": arrays["mask"]}, facts)
    with pytest.raises(ValueError, match="expected the fields"):
        scan_from_parts(arrays, {**facts, "more": 1})


def test_a_scan_is_the_same_from_child_and_process(tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(
        path, KSPACE, mask=np.ones(7), target=np.ones((2, 4, 4)), header=FULL.header, attrs={"acquisition": "AXT2"}
    )
    assert_same(load_scan(path), read_scan(path))
    assert_same(load_scan(str(path)), load_scan(path, trust=True))


def test_maps_are_the_same_from_child_and_process(tmp_path):
    shape = (2, 3, 6, 7)
    np.save(tmp_path / "maps.npy", KSPACE)
    header = "# Dimensions\n6 7 1 3 1 1 1 1 1 1 1 1 1 2\n"
    (tmp_path / "maps.hdr").write_text(header)
    KSPACE.transpose(2, 3, 1, 0).astype("<c8").ravel(order="F").tofile(tmp_path / "maps.cfl")
    for name in ("maps.npy", "maps.cfl", "maps.hdr", "maps.npy"):
        np.testing.assert_array_equal(load_maps(tmp_path / name, shape), KSPACE)
    (tmp_path / "bart.hdr").write_text(header)
    (tmp_path / "maps.cfl").rename(tmp_path / "bart.cfl")
    np.testing.assert_array_equal(load_maps(tmp_path / "bart", shape), KSPACE)
    np.testing.assert_array_equal(load_maps(tmp_path / "bart", shape, trust=True), KSPACE)


def test_refusals_of_the_reader_come_through_word_for_word(tmp_path):
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.ones((1, 2, 3), np.int16)
    with pytest.raises(InputError) as inside:
        read_scan(path)
    with pytest.raises(InputError) as outside:
        load_scan(path)
    assert str(outside.value) == str(inside.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def read(path): os.kill(os.getpid(), 11)", r"crashed \(SIGSEGV\)"),
        ("def read(path): os.kill(os.getpid(), 9)", "killed"),
        ("def read(path): os._exit(3)", "exit code 3"),
        ("def read(path): np.ones(1 << 31)", "more than 1,024 MiB"),
        ("def read(path): return {}['x']", r"not known \(KeyError\)"),
        ("def read(path): return {'kspace': object()}", "without an answer"),
        ("def read(path):\n  while True: pass", "processor time"),
        ("child._packed = lambda r: ({'kind': 'scan', 'meta': {}}, {})\ndef read(path): pass", "no valid answer"),
        ("child._packed = lambda r: ({'kind': 'code', 'meta': {}}, {})\ndef read(path): pass", "no valid answer"),
        ("def read(path): return np.zeros(3, 'S5')", "broken answer"),
        ("def read(path): return np.broadcast_to(np.float32(0), (1, 2, 3, 4, 5, 6, 7))", "broken answer"),
        ("def main(): os.write(1, b'\\xff' * 100)\nchild.main, read = main, None", "broken answer"),
        ("def main(): os.write(1, b'\\x08' + bytes(7) + b'[1, 2,  ')\nchild.main, read = main, None", "broken answer"),
    ],
)  # fmt: skip
def test_what_a_child_does_wrong_is_one_line(monkeypatch, tmp_path, body, reason):
    path = tmp_path / "scan.h5"
    path.touch()
    scripted(monkeypatch, body)
    with pytest.raises(InputError, match=reason) as caught:
        read_in_child("scan", path, {}, Limits(1 << 30, 1, 60))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert "--trust" in message
    assert caught.value.__cause__ is None


def test_a_child_that_sleeps_is_stopped_with_all_that_it_started(monkeypatch, tmp_path):
    path, alive = tmp_path / "scan.h5", tmp_path / "alive"
    path.touch()
    scripted(
        monkeypatch,
        "child.limit_resources = lambda *a: None\nchild.read_only = lambda paths: None\nimport subprocess\n"
        "def read(path):\n"
        "    process = subprocess.Popen(['sleep', '60'])\n"
        f"    open({str(alive)!r}, 'w').write(str(process.pid))\n"
        "    time.sleep(60)",
    )
    started = time.monotonic()
    with pytest.raises(InputError, match="longer than 2 s"):
        read_in_child("scan", path, {}, Limits(1 << 30, 30, 2))
    assert time.monotonic() - started < 8
    sleeper = int(alive.read_text())
    for _ in range(50):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(sleeper)], capture_output=True, text=True).stdout.strip()
        if state in ("", "Z", "Z+", "ZN", "Zs"):
            break
        time.sleep(0.1)
    assert not state or state.startswith("Z")


def answered(monkeypatch, path, body: str) -> dict:
    """What ``body``, run as the reader, says."""
    scripted(monkeypatch, body)
    result = read_in_child("schema", path, {}, GENEROUS)
    assert isinstance(result, dict)
    return result


TRY = """
def attempt(action):
    try:
        return str(action())
    except BaseException as error:
        return type(error).__name__
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows have fewer limits")
def test_the_child_writes_no_file_and_leaves_no_core(monkeypatch, tmp_path):
    path = tmp_path / "scan.h5"
    path.write_bytes(b"own")
    result = answered(
        monkeypatch,
        path,
        f"""{TRY}
def read(path):
    import resource
    def write():
        with open({str(tmp_path / "new")!r}, 'wb') as file:
            file.write(b'x')
    return {{'write': attempt(write), 'core': resource.getrlimit(resource.RLIMIT_CORE)[0],
             'own': attempt(lambda: open(path, 'rb').read())}}
""",
    )
    assert result["write"] in ("OSError", "PermissionError")
    assert result["own"] == "b'own'"
    assert result["core"] == 0
    assert not (tmp_path / "new").exists() or (tmp_path / "new").stat().st_size == 0


def allowed(call: str) -> bool:
    code = f"from rsdmri.data.confine import *; print({call})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_the_child_reads_no_other_file(monkeypatch, tmp_path):
    if not allowed("read_only([])"):
        pytest.skip("this system has no Landlock")
    path, other = tmp_path / "scan.h5", tmp_path / "victim.h5"
    path.write_bytes(b"own")
    other.write_bytes(b"CANARY")
    result = answered(
        monkeypatch,
        path,
        f"""{TRY}
def read(path):
    return {{'own': attempt(lambda: open(path, 'rb').read()),
             'other': attempt(lambda: open({str(other)!r}, 'rb').read()),
             'folder': attempt(lambda: os.listdir({str(tmp_path)!r})),
             'run': attempt(lambda: os.execv('/bin/true', ['true'])),
             'late': attempt(lambda: __import__('defusedxml.ElementTree').__name__)}}
""",
    )
    assert result == {
        "own": "b'own'",
        "other": "PermissionError",
        "folder": "PermissionError",
        "run": "PermissionError",
        "late": "defusedxml",
    }


def test_even_a_reader_that_follows_links_reads_no_other_file(monkeypatch, tmp_path):
    if not allowed("read_only([])"):
        pytest.skip("this system has no Landlock")
    with h5py.File(tmp_path / "victim.h5", "w") as file:
        file["kspace"] = KSPACE
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = h5py.ExternalLink("victim.h5", "kspace")
    body = "import h5py\ndef read(path): return np.asarray(h5py.File(path)['kspace'])"
    scripted(monkeypatch, body.replace("def read", "child.read_only = lambda paths: None\ndef read"))
    np.testing.assert_array_equal(read_in_child("maps", path, {}), KSPACE)  # the attack works without the guard
    scripted(monkeypatch, body)
    with pytest.raises(InputError, match=r"scan\.h5"):
        read_in_child("maps", path, {})


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_the_child_has_no_network(monkeypatch, tmp_path):
    if not allowed("leave_network()"):
        pytest.skip("this system allows no network namespaces")
    path = tmp_path / "scan.h5"
    path.touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        action = f"socket.create_connection(('127.0.0.1', {port}), 1)"
        body = f"{TRY}\nimport socket\ndef read(path): return {{'net': attempt(lambda: {action})}}"
        assert answered(monkeypatch, path, body)["net"] == "OSError"


def test_the_child_imports_no_heavy_library(monkeypatch, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, KSPACE, header=FULL.header)
    body = """
real = child.reader
def read(path):
    real('scan')(path)
    real('schema')(path)
    return {'heavy': [m for m in ('torch', 'scipy', 'matplotlib', 'nibabel', 'typer', 'pydantic') if m in sys.modules]}
"""
    assert answered(monkeypatch, path, body) == {"heavy": []}


def test_modules_in_the_current_folder_are_not_run(monkeypatch, tmp_path):
    path = tmp_path / "scan.h5"
    write_scan(path, KSPACE)
    for name in ("json", "numpy", "h5py", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert load_scan("scan.h5").kspace.shape == KSPACE.shape


def test_keys_in_the_environment_do_not_reach_the_child(monkeypatch, tmp_path):
    path = tmp_path / "scan.h5"
    path.touch()
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    given = answered(monkeypatch, path, "def read(path): return dict(os.environ)")
    assert "secret" not in given.values()
    assert os.environ["RSDMRI_SECRET"] not in given.values()
    assert given["HDF5_USE_FILE_LOCKING"] == "FALSE"


def test_pipes_and_devices_are_refused_before_anything_waits_for_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", "/dev/zero"):
        for trust in (False, True):
            with pytest.raises(InputError, match="pipe or a device"):
                load_scan(path, trust=trust)


def test_a_name_that_no_reader_has(tmp_path):
    with pytest.raises(ValueError, match="no reader"):
        child.reader("os:system")
    with pytest.raises(InputError, match="ValueError"):
        read_in_child("os:system", tmp_path / "scan.h5", {})


def test_no_process_can_be_started(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "_command", lambda: [str(tmp_path / "no-python")])
    with pytest.raises(InputError, match="no process could be started"):
        load_scan(tmp_path / "scan.h5")


def test_limits_grow_with_the_file():
    small, large = Limits.for_size(0), Limits.for_size(10**9)
    assert small.memory == 1 << 30
    assert large.memory == (1 << 30) + 16 * 10**9
    assert large.cpu_seconds > small.cpu_seconds
    assert large.wall_seconds > small.wall_seconds


def test_systems_without_the_means_go_without(monkeypatch):
    monkeypatch.setattr(confine.sys, "platform", "win32")
    assert confine.read_only([]) is False
    assert confine.leave_network() is False
    monkeypatch.setitem(sys.modules, "resource", None)
    confine.limit_resources(1, 1)
