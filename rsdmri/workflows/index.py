"""From a folder of scans, or a remote one, to its manifest: hashes, shapes, pseudonyms, splits by subject.

Beside ``manifest.tsv`` stand ``manifest.journal.jsonl``, a line for each file read, so that an interrupted run goes on
and unchanged files are not read again, and ``manifest.broken.tsv`` with the files that cannot be used and why.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rsdmri.data.hdf5 import clean, shown
from rsdmri.data.manifest import SPLITS, ManifestEntry, file_sha256, write_manifest
from rsdmri.data.remote import Location, is_uri, list_files, locate, name_of, refuse_secrets
from rsdmri.data.sandbox import load_facts
from rsdmri.errors import InputError
from rsdmri.files import atomic_path, output_directory, write_text
from rsdmri.progress import Bar, progress
from rsdmri.runtime import numpy_generator

SUFFIXES = (".h5", ".hdf5")
DEFAULT_SPLITS = "0.8,0.1,0.1"
_ANATOMY = {"CORPD": "knee", "AX": "brain"}  # fastMRI's acquisitions begin so


@dataclass(frozen=True)
class IndexRules:
    """What the files alone do not tell.

    Attributes:
        splits: shares of train, val and test (``0.8,0.1,0.1``), one split for all, or ``folders``: by folder names.
        subject: regular expression for the path below the folder; its first group, or the whole match, is the subject.
            Empty: the attribute ``patient_id``, or else each file is a subject of its own.
        anatomy: of all files; empty: what fastMRI's acquisition names tell.
        licence: of all files.
        seed: of the splits; the same subjects get the same split with the same seed, whatever else is in the folder.
        salt: of the pseudonyms; empty: a random one that stays in the journal.
        trust: read the files in this process, about 0.2 s faster each, see `rsdmri.data.sandbox`.
    """

    splits: str = DEFAULT_SPLITS
    subject: str = ""
    anatomy: str = ""
    licence: str = ""
    seed: int = 0
    salt: str = ""
    trust: bool = False


@dataclass(frozen=True)
class _Source:
    """A file to index: where, its name below the folder, bytes, and what changes with it."""

    location: Location
    relative: str
    size: int
    stamp: str


@dataclass
class _Record:
    """What is known of a file: a line of the journal. Nothing in it names anybody but the path."""

    path: str
    size: int
    stamp: str
    sha256: str
    contrast: str
    coils: int
    matrix: str
    rule: str = ""
    subject: str = ""
    split: str = ""


def index(
    folder: str, out: Path, rules: IndexRules, *, strict: bool = False, say: Callable[[str], None] = print
) -> int:
    """Write the manifest of ``folder`` (a path or URI) to ``out``; return the number of broken files.

    Raises:
        InputError: no scans, a pattern or splits that do not fit, and with ``strict`` the first broken file.
    """
    if is_uri(folder):
        refuse_secrets(folder, "DIR")
    root = locate(folder)
    choose = _splitter(rules, root)
    out = output_directory(out.parent) / out.name
    sources, broken = _sources(root)
    if not sources and not broken:
        raise InputError(f"{shown(root)}: no {' or '.join(SUFFIXES)} files in this folder or below; give another")
    if broken and strict:
        raise InputError("; ".join(f"{path}: {reason}" for path, reason in list(broken.items())[:1]))
    for source in sources:  # a pattern that does not fit is said before hours of reading
        _from_path(rules, source.relative)
        choose("", source.relative)
    with _Journal(out.with_suffix(".journal.jsonl")) as journal:
        records = _read_all(sources, journal, rules, choose, broken, strict)
        journal.compact(records.values())
    entries = [_entry(s, records[s.relative], rules) for s in sources if s.relative in records]
    _write_broken(out.with_suffix(".broken.tsv"), broken)
    if not entries:
        raise InputError(f"{shown(root)}: none of its {len(broken)} files can be used; see {out.stem}.broken.tsv")
    write_manifest(out, entries)
    for line in _summary(entries, rules):
        say(line)
    say(f"written: {out}")
    return len(broken)


def _read_all(
    sources: list[_Source],
    journal: "_Journal",
    rules: IndexRules,
    choose: Callable[[str, str], str],
    broken: dict[str, str],
    strict: bool,
) -> dict[str, _Record]:
    """Records of all readable files by relative path; reasons of the others into ``broken``."""
    salt = (rules.salt or journal.salt).encode()
    rule = hashlib.sha256(repr((salt, rules.seed, rules.splits, rules.subject)).encode()).hexdigest()[:16]
    records: dict[str, _Record] = {}
    megabytes = {source.relative: source.size / 1e6 for source in sources}
    known = {source.relative: journal.find(source) for source in sources}
    done = sum(megabytes[relative] for relative, record in known.items() if record is not None)
    with progress("Indexing (MB)", total=sum(megabytes.values()), done=done) as bar:
        for number, source in enumerate(sources, start=1):
            before = record = known[source.relative]
            try:
                record = record or _read(source, bar, rules.trust)
                if record.rule != rule:
                    identity = _from_path(rules, source.relative) or _from_file(source, rules.trust)
                    pseudonym = "s" + hmac.new(salt, identity.encode(), "sha256").hexdigest()[:12]
                    split = choose(identity, source.relative)
                    record = replace(record, rule=rule, subject=pseudonym, split=split)
            except InputError as error:
                if strict:
                    raise
                broken[source.relative] = _reason(str(error), source)
                bar.advance(0, broken=str(len(broken)))
                continue
            if record != before:
                journal.add(record)
            records[source.relative] = record
            bar.advance(0, files=f"{number}/{len(sources)}")
    return records


@lru_cache(maxsize=1)
def _brief(source: _Source, trust: bool) -> dict[str, Any]:
    """See `rsdmri.data.brief`; files behind a URI are read here, since the child process has no network."""
    return load_facts(source.location, trust=trust or isinstance(source.location, str), reader="brief")


def _read(source: _Source, bar: Bar, trust: bool) -> _Record:
    known = _brief(source, trust)
    read = 0

    def advance(count: int) -> None:
        nonlocal read
        read += count
        bar.advance(count / 1e6)

    try:
        digest = file_sha256(source.location, advance)
    except OSError as error:
        raise InputError(f"{shown(source.location)}: cannot be read ({error.strerror or 'disk or network'})") from None
    now = source if isinstance(source.location, str) else _local(source.location, source.relative)
    if read != source.size or now != source:
        raise InputError(f"{shown(source.location)}: changed while it was read; index again when it is complete")
    contrast = "" if known["acquisition"] == "unknown" else str(known["acquisition"])
    matrix = f"{known['y']}x{known['x']}"
    return _Record(source.relative, source.size, source.stamp, digest, contrast, int(known["coils"]), matrix)


def _entry(source: _Source, record: _Record, rules: IndexRules) -> ManifestEntry:
    guess = next((name for start, name in _ANATOMY.items() if record.contrast.startswith(start)), "")
    return ManifestEntry(
        source.location,
        sha256=record.sha256,
        split=record.split,
        subject=record.subject,
        anatomy=rules.anatomy or guess,
        contrast=record.contrast,
        coils=str(record.coils),
        matrix=record.matrix,
        licence=rules.licence,
    )


def _sources(root: Location) -> tuple[list[_Source], dict[str, str]]:
    """Files below ``root`` by name, and those whose very names cannot stand in a manifest."""
    if isinstance(root, str):
        files = [f for f in list_files(root, SUFFIXES, recursive=True) if not f"/{f.relative}".count("/.")]
        found = [_Source(f.uri, f.relative, f.size, f.stamp) for f in files]
    elif not root.is_dir():
        raise InputError(f"{shown(root)}: no such folder; give the folder that holds the scans")
    else:
        found = []
        for place, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [Path(place) / name for name in names if name.lower().endswith(SUFFIXES)]
            found += [_local(path, path.relative_to(root).as_posix()) for path in paths if path.name[0] != "."]
    bad = {s.relative: "its name cannot be written to a manifest; rename it" for s in found if not _writable(s)}
    return sorted((s for s in found if s.relative not in bad), key=lambda s: s.relative), bad


def _local(path: Path, relative: str) -> _Source:
    try:
        status = path.stat()
    except OSError:  # a dangling link: reading it says so
        return _Source(path, relative, 0, "")
    return _Source(path, relative, status.st_size, str(status.st_mtime_ns))


def _writable(source: _Source) -> bool:
    return source.relative.isprintable() and source.relative.strip() == source.relative


def _from_path(rules: IndexRules, relative: str) -> str:
    """The subject that the pattern finds in a path, empty without a pattern."""
    if not rules.subject:
        return ""
    try:
        match = re.search(rules.subject, relative)
    except re.error as error:
        raise InputError(f"--subject {rules.subject}: not a regular expression ({error}); correct it") from None
    found = (match[1] if match.re.groups else match[0]) if match else None
    if not found:
        raise InputError(f"--subject {rules.subject}: finds no subject in {clean(relative, 200)}; widen the pattern")
    return found


def _from_file(source: _Source, trust: bool) -> str:
    """The file's ``patient_id``, else its name; neither is written anywhere."""
    patient = _brief(source, trust)["patient_id"]
    return f"id {patient}" if patient else f"file {name_of(source.relative)}"


def _splitter(rules: IndexRules, root: Location) -> Callable[[str, str], str]:
    """Function of (subject, path) that names the split."""
    for name, text in (("--anatomy", rules.anatomy), ("--licence", rules.licence)):
        if not text.isprintable():
            raise InputError(f"{name}: holds tabs, line breaks or control characters; give one line of text")
    if rules.splits in SPLITS:
        return lambda identity, relative: rules.splits
    if rules.splits == "folders":
        return lambda identity, relative: _split_of_folder(f"{name_of(root)}/{relative}")
    try:
        shares = [float(part) for part in rules.splits.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or not 0.999 <= sum(shares) <= 1.001:
        raise InputError(
            f"--splits {rules.splits}: expected three shares of train, val and test that sum to 1 (such as "
            f"{DEFAULT_SPLITS}), one of {', '.join(SPLITS)}, or folders"
        )

    def by_subject(identity: str, relative: str) -> str:
        drawn = numpy_generator("split", rules.seed, identity).uniform()
        return SPLITS[0] if drawn < shares[0] else SPLITS[1] if drawn < shares[0] + shares[1] else SPLITS[2]

    return by_subject


def _split_of_folder(path: str) -> str:
    for part in reversed(path.split("/")[:-1]):
        found = re.search(r"(?<![a-z])(train|val|test)", part.lower())
        if found:
            return found[1]
    raise InputError(f"--splits folders: no folder of {clean(path, 200)} is named after a split; give shares instead")


def _summary(entries: list[ManifestEntry], rules: IndexRules) -> list[str]:
    counts, subjects = Counter(e.split for e in entries), len({e.subject for e in entries})
    parts = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    lines = [f"{len(entries)} scans of {subjects} subjects: {parts}"]
    copies: dict[str, set[str]] = {}
    for entry in entries:
        copies.setdefault(entry.sha256, set()).add(entry.split)
    torn = sum(len(splits) > 1 for splits in copies.values())
    if torn:
        lines.append(f"warning: {torn} files have copies in another split; remove them, or give --subject a pattern")
    if rules.splits == DEFAULT_SPLITS and len(entries) > 1 and min(counts[split] for split in SPLITS) == 0:
        lines.append("warning: a split is empty, for there are few subjects; another --seed or --splits changes that")
    return lines


def _reason(message: str, source: _Source) -> str:
    return clean(message.removeprefix(f"{shown(source.location)}: "), 300)


def _write_broken(path: Path, broken: dict[str, str]) -> None:
    """The quarantine list, or none where nothing is broken."""
    if not broken:
        path.unlink(missing_ok=True)
        return
    rows = [f"{clean(name, 1000)}\t{reason}\n" for name, reason in sorted(broken.items())]
    write_text(path, "path\treason\n" + "".join(rows))


class _Journal:
    """What earlier runs read, and what this one reads, line by line; it holds the salt, so only its owner may read."""

    def __init__(self, path: Path):
        self._path, self.salt = path, secrets.token_hex(16)
        self._known: dict[str, _Record] = {}
        for row in _rows(path):
            if isinstance(row.get("salt"), str):
                self.salt = row["salt"]
                continue
            try:
                record = _Record(**row)
            except TypeError:  # of another version, or damaged: the file is read again
                continue
            self._known[record.path] = record

    def __enter__(self) -> "_Journal":
        new = not self._path.exists()
        self._handle = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w")
        self._handle.write(self._salt_line() if new else "\n")  # a line that was cut short ends here
        self._handle.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def find(self, source: _Source) -> _Record | None:
        """What is known of an unchanged file; stores that tell no time are read again."""
        record = self._known.get(source.relative)
        same = record is not None and (record.size, record.stamp) == (source.size, source.stamp) and source.stamp != ""
        return record if same else None

    def add(self, record: _Record) -> None:
        """Append one line."""
        self._handle.write(json.dumps(asdict(record)) + "\n")
        self._handle.flush()

    def compact(self, records: Iterable[_Record]) -> None:
        """Write the journal anew with ``records`` alone."""
        self._handle.close()
        with atomic_path(self._path) as temporary:
            temporary.touch(0o600)
            lines = (json.dumps(asdict(record)) + "\n" for record in records)
            with open(temporary, "w", encoding="utf-8") as handle:
                handle.write(self._salt_line())
                handle.writelines(lines)

    def _salt_line(self) -> str:
        return json.dumps({"salt": self.salt}) + "\n"


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    """Objects in the lines of a file, without those that a crash cut short."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            for line in handle:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); delete it or choose another --out") from None
