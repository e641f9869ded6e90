"""Judging a scan's file before it is used: every field of the schema, and whether it can be reconstructed."""

import json
import os
from typing import Any

from rsdmri.data.hdf5 import clean
from rsdmri.data.sandbox import load_facts
from rsdmri.errors import InputError

COLUMNS = ("field", "state", "type", "shape", "advice")
STATES = ("found", "missing", "odd", "dangerous")


def validate(path: str | os.PathLike[str], *, trust: bool = False) -> dict[str, Any]:
    """What a scan's file holds of fastMRI's schema, see `rsdmri.data.schema.examine`.

    The file is parsed in a child process (`rsdmri.data.sandbox`), in this one with ``trust``. The result holds
    ``usable``, ``reason`` and ``fields``; each field has the texts ``COLUMNS``.

    Raises:
        InputError: the child crashed, ran out of memory or of time.
    """
    facts = load_facts(path, trust=trust)
    rows = facts.get("fields")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{os.fspath(path)}: its reader gave no valid answer")
    fields = [{name: clean(row.get(name, ""), 300) for name in COLUMNS} for row in rows]
    return {"usable": facts.get("usable") is True, "reason": clean(facts.get("reason", ""), 1500), "fields": fields}


def format_report(result: dict[str, Any], *, as_json: bool = False) -> str:
    """The result as a table with the advice below each field, or as JSON."""
    if as_json:
        return json.dumps(result, indent=2)
    rows = result["fields"]
    width, middle, kind = (max([0, *(len(row[name]) for row in rows)]) for name in COLUMNS[:3])
    lines = []
    for row in rows:
        cells = f"{row['field']:<{width}}  {row['state']:<{middle}}  {row['type']:<{kind}}  {row['shape']}"
        lines += [cells.rstrip(), *([f"{'':<{width}}  {row['advice']}"] if row["advice"] else [])]
    return "\n".join([*lines, "usable" if result["usable"] else "not usable"])
