"""Several methods over the same volumes: which is better, and whether that is more than chance."""

import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsdmri.data.hdf5 import clean
from rsdmri.data.volumes import read_attributes
from rsdmri.errors import InputError
from rsdmri.evaluation.matching import EVERYTHING, Pairs, Selection, pairs
from rsdmri.evaluation.record import signed
from rsdmri.evaluation.scoring import METRICS, Volumes, interval, present, score_pairs, summary


def compare(
    reconstructions: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    selection: Selection = EVERYTHING,
) -> dict[str, Any]:
    """Score several methods against the same targets, over the volumes that all of them have.

    Args:
        reconstructions: a folder of ``.h5`` files for each method, or a file; see `method_names`.
        target: file or folder of targets, matched by file name.
        selection: volumes that count.

    Returns:
        ``methods``: name to ``volumes``, ``mean``, ``two_std``, ``interval`` and ``count`` as of `evaluate`, and the
        number of volumes ``left_out`` because another method lacks them; ``differences``: for each pair of methods and
        metric the mean over volumes of ``first - second``, its ``interval`` and which is ``better``: None where the
        interval holds 0, there is none, or the metric has no better. Intervals are not corrected for their number.

    Raises:
        InputError: as of `evaluate`; no volume is common to all.
    """
    found = common_pairs(reconstructions, target, selection)
    methods = {}
    for name, (shared, left_out) in found.items():
        volumes = score_pairs(shared)
        methods[name] = {"volumes": volumes, **summary(volumes), "left_out": left_out}
    return signed(
        {
            "methods": methods,
            "differences": _differences({name: each["volumes"] for name, each in methods.items()}),
            "selection": str(selection) or None,
        }
    )


def common_pairs(
    reconstructions: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str], selection: Selection = EVERYTHING
) -> dict[str, tuple[Pairs, int]]:
    """By method: its reconstructions and targets of the volumes that all have, and how many others it has."""
    each = [pairs(path, target, selection)[0] for path in reconstructions]
    if not each:
        raise InputError("no reconstruction given; name one or more folders")
    common = set.intersection(*({*found} for found in each))
    if not common:
        raise InputError("the methods have no volume in common; reconstruct the same scans with each")
    names = method_names(reconstructions, each)
    return {
        name: ({volume: found[volume] for volume in sorted(common)}, len(found) - len(common))
        for name, found in zip(names, each, strict=True)
    }


def method_names(reconstructions: Sequence[str | os.PathLike[str]], found: Sequence[Pairs]) -> list[str]:
    """Names to tell methods apart by.

    The attribute ``method`` of their files, where it is one for all files of a folder and another in each folder; else
    the names of the folders, with the folders above where they are alike.
    """
    told = []
    for each in found:
        words = {str(read_attributes(path, ("method",)).get("method", "")) for path, _ in each.values()}
        told.append(clean(words.pop(), 30) if len(words) == 1 else "")
    if all(told) and len(set(told)) == len(told):
        return told
    places = [Path(path).resolve().parts for path in reconstructions]
    for depth in range(1, max(map(len, places)) + 1):
        named = ["/".join(place[-depth:]) for place in places]
        if len(set(named)) == len(named):
            return named
    raise InputError("the same reconstructions twice; give each method once")


def _differences(methods: Mapping[str, Volumes]) -> list[dict[str, Any]]:
    rows = []
    for (first, a), (second, b) in itertools.combinations(methods.items(), 2):
        for metric in present(a, b):
            both = [name for name in a if metric in a[name] and metric in b[name]]
            values = [float(a[name][metric]) - float(b[name][metric]) for name in both]
            if not values:
                continue
            ends = interval(values)
            sign = 0 if ends is None else (ends[0] > 0) - (ends[1] < 0)
            rows.append(
                {
                    "metric": metric,
                    "first": first,
                    "second": second,
                    "mean": statistics.fmean(values),
                    "interval": ends,
                    "volumes": len(values),
                    "better": {1: first, -1: second}.get(sign * METRICS[metric].better),
                }
            )
    return rows
