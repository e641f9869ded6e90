"""Which words tell of a person, and pseudonyms for names that do.

Files are often called after who was scanned. A pseudonym is HMAC-SHA256 of the name under a secret of this user, so
that it is the same in every run and cannot be found by trying names without the secret.
"""

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

PATTERNS = {
    "a person's name": re.compile(r"[^\W\d_]{2,}\^[^\W\d_]"),  # DICOM's FAMILY^GIVEN
    "a date": re.compile(r"(?<!\d)(19|20)\d\d([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)"),
    "a patient number": re.compile(r"(?i)(?<![a-z])(mrn|pat(ient)?[ _-]?id)[ _:=#-]*\d"),
}
SECRET_VARIABLE = "RSDMRI_SECRET"


def personal_kinds(text: str) -> list[str]:
    """Kinds of personal data that ``text`` seems to hold, in the order of ``PATTERNS``."""
    return [kind for kind, pattern in PATTERNS.items() if pattern.search(text)]


def pseudonymous(name: str) -> str:
    """``name`` itself, or ``scan-`` and 12 hexadecimal digits where it seems to tell of a person."""
    if not personal_kinds(name):
        return name
    return f"scan-{hmac.new(_secret(), name.encode('utf-8', 'surrogateescape'), hashlib.sha256).hexdigest()[:12]}"


def pseudonymous_path(path: str) -> str:
    """``path`` with every part that seems to tell of a person replaced by its pseudonym."""
    return os.sep.join(pseudonymous(part) for part in path.split(os.sep))


def _secret() -> bytes:
    """The variable ``RSDMRI_SECRET``, or a file that only this user can read, written when it is first needed."""
    given = os.environ.get(SECRET_VARIABLE)
    return given.encode() if given else _stored_secret()


@lru_cache(maxsize=1)
def _stored_secret() -> bytes:
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rsdmri"
    file, draft = folder / "secret", folder / f".secret-{os.getpid()}"
    fresh = secrets.token_hex(32).encode()
    with suppress(OSError):
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as handle:
                handle.write(fresh)
            with suppress(FileExistsError):  # another process was faster: its secret counts
                os.link(draft, file)
            draft.unlink()
        return file.read_bytes()
    return fresh  # no home: pseudonyms of this process alone
