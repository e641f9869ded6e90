"""Remote files: URIs, listings, HDF5 over range requests, an S3 store; credentials never show."""

import functools
import threading
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import h5py
import numpy as np
import pytest

from rsdmri.data.fastmri import read_scan, scan_shape
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.manifest import ManifestEntry, file_sha256, read_manifest, verify, write_manifest
from rsdmri.data.remote import BLOCK, is_uri, list_files, locate, name_of, open_remote, public, refuse_secrets
from rsdmri.data.slice_reader import SliceReader
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

fsspec = pytest.importorskip("fsspec", reason="remote files need fsspec")
SECRET = "hunter2"


def kspace(seed, shape=(2, 3, 16, 14)):
    rng = numpy_generator("remote", seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.fixture
def folder(tmp_path):
    """Two scans, one of them in a folder below, and their manifest."""
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("a.h5", "sub/b.h5")):
        write_scan(tmp_path / name, kspace(number))
    entries = [ManifestEntry(tmp_path / name, sha256=file_sha256(tmp_path / name)) for name in ("a.h5", "sub/b.h5")]
    write_manifest(tmp_path / "manifest.tsv", entries)
    return tmp_path


@pytest.fixture
def memory(folder):
    """The folder at ``memory://store``."""
    system = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/store/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield "memory://store"
    system.rm("/store", recursive=True)


class Ranges(SimpleHTTPRequestHandler):
    """Serves a folder with range requests, as object stores do, and counts the bytes."""

    sent = 0

    def do_GET(self):
        wanted = self.headers.get("Range")
        path = self.translate_path(self.path)
        if wanted is None or not path.endswith(".h5"):
            return super().do_GET()
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            return self.send_error(404)
        first, last = (int(part) if part else len(data) - 1 for part in wanted.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        type(self).sent += len(part)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def end_headers(self):
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_args):
        """Nothing on standard error."""


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def http(folder):
    pytest.importorskip("aiohttp", reason="http needs aiohttp (extra remote)")
    server = serve(functools.partial(Ranges, directory=str(folder)))
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def check_manifest(uri):
    """The manifest at ``uri`` and every way of reading what it lists."""
    entries = read_manifest(uri)
    assert [name_of(entry.path) for entry in entries] == ["a.h5", "b.h5"]
    reader, mask = SliceReader(), np.arange(14) % 2 == 0
    for number, entry in enumerate(entries):
        verify(entry)
        assert scan_shape(entry.path).name == "ab"[number]
        assert np.array_equal(read_scan(entry.path).kspace, kspace(number))
        for index in (1, 0, 1):
            found = reader.read(entry.path, index, mask)
            assert np.array_equal(found, np.where(mask, kspace(number)[index], 0))
    reader.close()
    with pytest.raises(InputError, match=r"a\.h5: differs from its manifest"):
        verify(ManifestEntry(entries[0].path, sha256="0" * 64))


def test_memory(memory):
    check_manifest(f"{memory}/manifest.tsv")
    check_manifest(memory)
    assert [f.relative for f in list_files(memory, (".h5",), recursive=True)] == ["a.h5", "sub/b.h5"]
    assert [name_of(entry.path) for entry in read_manifest(f"{memory}/sub")] == ["b.h5"]


def test_http(http):
    check_manifest(f"{http}/manifest.tsv")
    assert [f.relative for f in list_files(http, (".h5",), recursive=True)] == ["a.h5", "sub/b.h5"]
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:\d+/none\.h5: no such file"):
        scan_shape(f"{http}/none.h5?token={SECRET}")


def test_a_slice_of_a_large_remote_file_is_fetched_without_the_rest(folder, http):
    with h5py.File(folder / "large.h5", "w") as file:
        file["kspace"] = np.ones((8, 8, 256, 256), np.complex64)  # 32 MB, slices of 4 MB
    Ranges.sent = 0
    SliceReader().read(f"{http}/large.h5", 5, np.ones(256, bool))
    assert 4 << 20 <= Ranges.sent <= (4 << 20) + 3 * BLOCK


def test_an_interrupted_connection_is_one_line(folder):
    pytest.importorskip("aiohttp", reason="http needs aiohttp (extra remote)")
    server = serve(functools.partial(Ranges, directory=str(folder)))
    uri = f"http://127.0.0.1:{server.server_address[1]}/a.h5?signature={SECRET}"
    with open_remote(uri) as handle:
        server.shutdown()
        server.server_close()
        with pytest.raises(OSError, match="remote read failed") as caught:
            handle.read(100)
    assert SECRET not in str(caught.value)
    with pytest.raises(InputError, match="no server; check the address") as refused:
        scan_shape(uri)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


class Store(BaseHTTPRequestHandler):
    """The three S3 requests that reading needs: HEAD, GET with a range, and a listing, of one bucket in memory."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" not in query:
            return self.answer(body=True)
        prefix, slash = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        rows = [
            f"<Contents><Key>{name}</Key><Size>{len(data)}</Size><ETag>e{len(data)}</ETag>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, data in self.files.items()
            if name.startswith(prefix) and not (slash and slash in name[len(prefix) :])
        ]
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>".encode()
        return self.reply(200, text, {"Content-Type": "application/xml"}, body=True)

    def answer(self, body):
        data = self.files.get(urlsplit(self.path).path.removeprefix("/bucket/"))
        if data is None:
            return self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>", {}, body=body)
        headers = {"ETag": f"e{len(data)}", "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        wanted = self.headers.get("Range")
        if wanted is None:
            return self.reply(200, data, headers, body=body)
        first, last = (int(part) if part else len(data) - 1 for part in wanted.removeprefix("bytes=").split("-"))
        headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        return self.reply(206, data[first : last + 1], headers, body=body)

    def reply(self, code, data, headers, body):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_args):
        """Nothing on standard error."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3(folder, monkeypatch):
    pytest.importorskip("s3fs", reason="s3 needs s3fs (extra remote)")
    files = [path for path in folder.rglob("*") if path.is_file()]
    Store.files = {f"set/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}
    server = serve(Store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    try:
        check_manifest("s3://bucket/set/manifest.tsv")
        check_manifest("s3://bucket/set")
        found = list_files("s3://bucket/set", (".h5",), recursive=True)
        assert [f.uri for f in found] == ["s3://bucket/set/a.h5", "s3://bucket/set/sub/b.h5"]
        assert all(f.stamp for f in found)
        with pytest.raises(InputError, match=r"s3://bucket/set/none\.h5: no such file"):
            scan_shape("s3://bucket/set/none.h5")
    finally:
        fsspec.filesystem("s3").clear_instance_cache()
        server.shutdown()
        server.server_close()


def test_uris_and_paths_are_told_apart(tmp_path):
    assert is_uri("s3://b/x.h5")
    assert not any(is_uri(text) for text in ("C:\\scans", "C://scans", "/a/b.h5", "a:b", tmp_path))
    assert locate("file:///a/b%20c.h5") == locate("/a/b c.h5")
    assert locate("x.h5", tmp_path) == tmp_path / "x.h5"
    assert locate("sub/x.h5", "s3://b/set") == "s3://b/set/sub/x.h5"
    assert locate("HTTPS://h/x.h5") == "https://h/x.h5"
    assert name_of("https://h/a/b%20c.h5?key=x/y.h5") == "b c.h5"


@pytest.mark.parametrize(
    ("text", "base", "reason"),
    [
        ("ftp://h/x.h5", "", "ftp:// is not read here"),
        ("github://o:r@main/x", "", "github:// is not read here"),
        ("/etc/passwd", "s3://b/set", "names the local file"),
        ("../x.h5", "s3://b/set", "names the local file"),
        ("file:///etc/passwd", "s3://b/set", "file:// is not read here"),
    ],
)
def test_locations_that_are_refused(text, base, reason):
    with pytest.raises(InputError, match=reason):
        locate(text, base)


def test_a_manifest_row_that_is_refused_names_its_line(tmp_path):
    (tmp_path / "m.tsv").write_text(f"path\nftp://user:{SECRET}@h/x.h5\n")
    with pytest.raises(InputError, match=r"m\.tsv line 2: ftp://h/x\.h5: ftp:// is not read here") as caught:
        read_manifest(tmp_path / "m.tsv")
    assert SECRET not in str(caught.value)


def test_credentials_are_neither_shown_nor_stored():
    uri = f"https://user:{SECRET}@host/a/b.h5?X-Amz-Signature={SECRET}#{SECRET}"
    assert public(uri) == "https://host/a/b.h5"
    for bad in (uri, f"s3://key:{SECRET}@bucket/x", f"https://host/x?sig={SECRET}"):
        with pytest.raises(InputError, match="carries credentials or a query") as caught:
            refuse_secrets(bad, "--data")
        assert SECRET not in str(caught.value)
    refuse_secrets("s3://bucket/a@b/x.h5", "--data")


def test_damaged_remote_files_are_named(memory):
    system = fsspec.filesystem("memory")
    for name, data, reason in (
        ("empty.h5", b"", "is empty"),
        ("text.h5", b"x" * 100, "not an HDF5 file"),
        ("cut.h5", system.cat("/store/a.h5")[:3000], "cut short|damaged"),
    ):
        system.pipe_file(f"/store/{name}", data)
        with pytest.raises(InputError, match=rf"memory://store/{name}: .*({reason})"):
            scan_shape(f"{memory}/{name}")


def test_what_is_missing_is_said(memory, monkeypatch):
    with pytest.raises(InputError, match=r"memory://store/none\.tsv: no such file"):
        read_manifest(f"{memory}/none.tsv")
    with pytest.raises(InputError, match=r"no manifest\.tsv and no \.h5 files"):
        read_manifest("memory://nothing")

    def missing(*_args, **_options):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"python -m pip install 'rsdmri\[remote\]'"):
        scan_shape("s3://bucket/x.h5")
