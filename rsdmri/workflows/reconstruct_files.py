"""Reconstruction of files into a folder of results and pictures."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsdmri.data.derived import digest
from rsdmri.data.hdf5 import shown
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError, Interrupted
from rsdmri.files import output_directory, safe_stem
from rsdmri.priors import Prior
from rsdmri.privacy import personal_kinds
from rsdmri.progress import Bar, progress
from rsdmri.reconstruction.posterior import chosen_settings, weights_digest
from rsdmri.reconstruction.settings import method_settings
from rsdmri.runtime import select_device
from rsdmri.training.distributed import Processes, joined
from rsdmri.workflows.budget import Budget, Choice, TimeLimit
from rsdmri.workflows.domain import OutOfDomain
from rsdmri.workflows.export import Destination, check_free, destinations, export, identity
from rsdmri.workflows.ledger import NAME, REQUEST, Ledger, done_row, request_of
from rsdmri.workflows.reconstruct import (
    DRAWN,
    LEARNT,
    check_arguments,
    chosen_prior,
    load_scan,
    reconstruct,
)
from rsdmri.workflows.result import Reconstruction
from rsdmri.workflows.signals import Stop, stop_on_signal

_PATIENCE = timedelta(days=7)  # one process may have far more to do than another


def reconstruct_files(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    method: str = "rsd",
    prior: Prior | str | os.PathLike[str] | None = None,
    acceleration: float | None = None,
    samples: int = 8,
    seed: int = 0,
    device: str = "auto",
    mask: str = "random",
    center_fraction: float | None = None,
    maps: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    map_sets: int = 1,
    held_out: float | None = None,
    out_of_domain: OutOfDomain = "fallback",
    reading: Mapping[str, Any] | None = None,
    formats: Sequence[str] | None = None,
    dicom_source: str | os.PathLike[str] | None = None,
    force: bool = False,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    budget: TimeLimit | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Reconstruct files into the folder ``out``: ``STEM.h5`` in fastMRI's submission form and ``STEM.png``.

    Each row of the result holds ``scan`` and, when it worked, ``path`` (the first format's), ``paths``, ``method``,
    ``acceleration``, ``seconds_per_slice``, ``scores`` (None where there are none) and ``scored``; when it did not,
    ``error``, one line. Nothing is left of a scan that failed. A scan whose results are there already, made with the
    same settings from the same samples, is ``skipped``: the same call goes on where another ended. Of several scans,
    ``reconstructions.jsonl`` holds a line each. Under torchrun each process takes its share and has rows of that alone;
    signals end the call with `Interrupted`. Further arguments are those of `reconstruct`.

    Args:
        paths: scans.
        out: folder, or for one scan a file whose suffix says the format: .nii.gz, .dcm, .h5, .png, .cfl.
        formats: some of `rsdmri.workflows.export.FORMATS`; None: h5 and png, or what ``out`` says.
        dicom_source: DICOM file of the same examination, for its Study and FrameOfReference UIDs.
        force, reading, settings: whether to replace results that exist; options of `load_scan` and of the method.
        budget: time for the whole call: fewer draws where not all fit, then a cheaper method, see `Budget`; each result
            has the choice in its attributes ``samples`` and ``method``.
        say: takes each line for the user.

    Raises:
        InputError: arguments that no file could be reconstructed with; the file's own error if it is the only one.
    """
    check_arguments(method, samples, settings, held_out)
    options: dict[str, Any] = {"method": method, "options": dict(settings or {}), "samples": samples, "seed": seed}
    options |= {"acceleration": acceleration, "mask": mask, "center_fraction": center_fraction, "map_sets": map_sets}
    options |= {"held_out": held_out, "out_of_domain": out_of_domain}
    files = {"maps": maps, "calibration": calibration, "dicom_source": dicom_source}
    ways = {"device": device, "trust": trust}
    asked = _Asked(options, files, ways, dict(reading or {}), budget, force, say)
    return _reconstruct_all([Path(path) for path in paths], Path(out), formats, prior, asked)


@dataclass(frozen=True)
class _Asked:
    """What a call asks for: ``options`` and ``files`` decide the result, ``ways`` only how it is come by."""

    options: dict[str, Any]
    files: dict[str, str | os.PathLike[str] | None]
    ways: dict[str, Any]
    reading: dict[str, Any]
    budget: TimeLimit | None
    force: bool
    say: Callable[[str], None]

    def resolved(self, prior: Prior | None) -> "_Asked":
        """The same with all settings of the method, as they are with this ``prior``."""
        settings = chosen_settings(self.options["method"], self.options["options"], prior)
        return replace(self, options=self.options | {"options": settings.model_dump(mode="json")})

    def request(self, prior: Prior | None) -> str:
        """Hash of all that decides a result besides the scan."""
        seconds = None if self.budget is None else self.budget.seconds
        options = {**self.options, "reading": self.reading, "budget": seconds}
        settings = method_settings(self.options["method"], self.options["options"])
        return request_of(options, self.files, None if prior is None else weights_digest(prior, settings))

    def trial(self, method: str, samples: int) -> dict[str, Any]:
        """`arguments` of a run of few evaluations; coil maps from the scan, for files have those of all slices."""
        arguments = self.arguments(method, samples) | {"maps": None, "calibration": None}
        settings = method_settings(method, arguments["options"]).trial()
        return arguments | {"options": settings.model_dump(mode="json")}

    @property
    def stretch(self) -> float:
        """Evaluations of a draw over those of a draw of `trial`."""
        settings = method_settings(self.options["method"], self.options["options"])
        return settings.evaluations / max(1, settings.trial().evaluations) if settings.evaluations else 1.0

    def arguments(self, method: str, samples: int) -> dict[str, Any]:
        """Of `reconstruct` with a method, which has the settings asked for where it is the one asked for."""
        files = {name: file for name, file in self.files.items() if name != "dicom_source"}
        settings = self.options["options"] if method == self.options["method"] else {}
        chosen = {"method": method, "samples": samples, "options": settings}
        return {**self.options, **files, **self.ways, **chosen}


def _reconstruct_all(
    sources: list[Path],
    out: Path,
    formats: Sequence[str] | None,
    prior: Prior | str | os.PathLike[str] | None,
    asked: _Asked,
) -> list[dict[str, Any]]:
    targets = _output_files(sources, out, formats, list(asked.files.values()))
    network = chosen_prior(prior, asked.ways["device"]) if asked.options["method"] in LEARNT else None
    device = select_device(asked.ways["device"]) if network is None else network.device
    asked = asked.resolved(network)
    existed, alone = targets[0].folder.is_dir(), len(sources) == 1
    folder = output_directory(targets[0].folder)
    with joined(device, _PATIENCE) as processes, stop_on_signal() as stop:
        ledger = _open_ledger(folder, targets, processes)
        share = list(zip(sources, targets, strict=True))[processes.share]
        budget = None if asked.budget is None else Budget(asked.budget, len(share))
        rows = _Work(asked, network, asked.request(network), ledger, budget, stop, alone).all(share)
        _summarise(rows, ledger, processes, device, (lambda line: None) if alone else asked.say)
    if processes.first:
        ledger.remove_if_nothing()
        _remove_if_empty(folder, existed)
    failed = [row for row in rows if "error" in row]
    if failed and alone:
        raise failed[0]["raised"]
    return [{name: value for name, value in row.items() if name != "raised"} for row in rows]


def _open_ledger(folder: Path, targets: Sequence[Destination], processes: Processes) -> Ledger:
    """The ledger of a folder of several results; one process after the other, if there are several."""
    kept = targets[0].file is None and (len(targets) > 1 or (folder / NAME).exists())
    if processes.first:
        Ledger(folder, kept=kept).absorb()
    processes.largest(0)
    return Ledger(folder, kept=kept, rank=processes.rank)


def _summarise(
    rows: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    processes: Processes,
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Wait for all processes; the first takes over what the others noted and says how many scans came to what."""
    skipped, failed = (sum(name in row for row in rows) for name in ("skipped", "error"))
    counts = torch.tensor([len(rows), skipped, failed], dtype=torch.float32, device=device)
    processes.add([counts])
    if processes.first:
        ledger.absorb()
        total, skipped, failed = map(int, counts.tolist())
        before = f", {skipped} finished before" if skipped else ""
        bad = f", {failed} failed" if failed else ""
        say(f"{total} scans: {total - skipped - failed} reconstructed{before}{bad}")
    processes.largest(0)  # torchrun ends all when one ends with an error


@dataclass
class _Work:
    """What the scans of one command have in common."""

    asked: _Asked
    prior: Prior | None
    request: str
    ledger: Ledger
    budget: Budget | None
    stop: Stop
    alone: bool
    """Whether there is but one scan."""

    def all(self, share: Sequence[tuple[Path, Destination]]) -> list[dict[str, Any]]:
        """A row for each scan; a scan that fails does not stop the others."""
        rows: list[dict[str, Any]] = []
        title = f"Reconstructing {safe_stem(share[0][0]) if self.alone else f'{len(share)} scans'}" if share else ""
        try:
            with progress(title, total=len(share)) as bar:
                for path, target in share:
                    row = self._one(path, target, bar)
                    rows.append(row)
                    if not self.alone and ("skipped" in row or "error" in row):
                        bar.set_total(len(share) - sum("skipped" in each or "error" in each for each in rows))
        except Interrupted:
            done = f" after {len(rows)} of {len(share)} scans" if len(share) > 1 else ""
            raise Interrupted(f"stopped{done}; run the same command to go on") from None
        return rows

    def _one(self, path: Path, target: Destination, bar: Bar) -> dict[str, Any]:
        if self.budget is not None:
            self.budget.begin()
        try:
            return self._done(path, target, bar)
        except InputError as error:
            text = str(error) if os.fspath(path) in str(error) else f"{shown(path)}: {error}"
            told = text.replace(os.fspath(path), target.stem).replace(shown(path), target.stem)
            self.ledger.add({"scan": target.stem, "status": "failed", "error": told})
            return {"scan": target.stem, "error": text, "raised": type(error)(text)}

    def _done(self, path: Path, target: Destination, bar: Bar) -> dict[str, Any]:
        scan = load_scan(path, self.asked.ways["trust"], **self.asked.reading)
        method, samples, force = self.asked.options["method"], self.asked.options["samples"], self.asked.force
        wanted = self._expected(target, scan.acquisition)
        if not force:
            before = self.ledger.finished(target.stem, wanted, self.request, digest(scan.kspace))
            if before is not None:
                self.asked.say(f"{scan.name}: finished before with these settings")
                return _row(before, scan.name, {name: target.folder / p for name, p in wanted.items()}) | {"skipped": 1}
        check_free(target.folder, list(wanted.values()), force)
        choice = self._choice(scan)
        options = self.asked.arguments(choice.method, choice.samples)
        prior = self.prior if choice.method in LEARNT else None
        result = reconstruct(scan, prior=prior, advance=self._advance(scan, bar), **options)
        if self.budget is not None:
            asked = {"budget_seconds": self.budget.seconds, "method_asked": method, "samples_asked": samples}
            result.attrs.update(asked)
        result.attrs[REQUEST] = self.request
        if choice.warning is not None:
            result = replace(result, warnings=(*result.warnings, choice.warning))
        paths = self._written(result, target)
        if personal_kinds(path.stem):
            kinds = " and ".join(personal_kinds(path.stem))
            self.asked.say(f"{scan.name}: a pseudonym, as the name of the file seems to hold {kinds}")
        for line in _summary(result):
            self.asked.say(line)
        return _row(result.attrs, scan.name, paths) | {"scores": result.scores, "scored": result.scored}

    def _expected(self, target: Destination, acquisition: str) -> dict[str, Path]:
        """Files of a scan, of the method that the ledger says it came to, else of the one asked for."""
        before = self.ledger.rows.get(target.stem, {})
        made = before if before.get(REQUEST) == self.request else self.asked.options
        spread, checked = made["method"] in DRAWN and made["samples"] > 1, self.asked.options["held_out"] is not None
        return target.paths(made["method"], spread, acquisition, checked=checked)

    def _advance(self, scan: Scan, bar: Bar) -> Callable[[int], None]:
        """Reports slices of the only scan, of several scans the part of this one."""
        if self.alone:
            bar.set_total(len(scan.kspace))
            return bar.advance
        return lambda slices: bar.advance(slices / len(scan.kspace), scan=scan.name)

    def _choice(self, scan: Scan) -> Choice:
        """Method and draws: those asked for, or what the budget has time for."""
        method, samples = self.asked.options["method"], self.asked.options["samples"]
        if self.budget is None:
            return Choice(method, samples)

        def trial(one: Scan, method: str, samples: int) -> None:
            prior = self.prior if method in LEARNT else None
            reconstruct(one, prior=prior, **self.asked.trial(method, samples))

        choice = self.budget.choose(
            scan, method, samples, drawn=method in DRAWN, trial=trial, stretch=self.asked.stretch
        )
        draws = f", {choice.samples} of {samples} draws" if choice.method in DRAWN else ""
        self.asked.say(f"{scan.name}: {choice.method}{draws} within --budget {self.budget.seconds:g}s")
        return choice

    def _written(self, result: Reconstruction, target: Destination) -> dict[str, Path]:
        """Files of ``result`` by what they hold; a signal waits until they and their line in the ledger are there."""
        with self.stop.held():
            since = 0.0 if self.budget is None else self.budget.now()
            source = self.asked.files["dicom_source"]
            paths = export(result, target, source=source, force=self.asked.force, picture=_picture)
            if self.budget is not None:
                self.budget.wrote(since)
            files = [path.relative_to(target.folder) for path in paths.values()]
            more = {"scores": result.scores, "scored": result.scored, "warnings": list(result.warnings)}
            self.ledger.add(done_row(result.attrs, target.stem, files, **more))
        return paths


def _row(told: Mapping[str, Any], scan: str, paths: dict[str, Path]) -> dict[str, Any]:
    row: dict[str, Any] = {name: told.get(name) for name in ("method", "acceleration", "seconds_per_slice")}
    row |= {"scan": scan, "path": next(iter(paths.values())), "paths": paths}
    return row | {"scores": told.get("scores"), "scored": told.get("scored", "finished before")}


def _output_files(
    paths: Sequence[Path], out: Path, formats: Sequence[str] | None, others: Sequence[str | os.PathLike[str] | None]
) -> list[Destination]:
    """Where each scan's results go; `InputError` where two would share a name, or an input would be overwritten."""
    if not paths:
        raise InputError("no scan given; name one or more .h5 files")
    targets = destinations([safe_stem(path) for path in paths], out, formats)
    inputs = [source for source in (*paths, *(Path(other) for other in others if other is not None)) if source.exists()]
    taken: dict[Path, Path] = {}
    for path, target in zip(paths, targets, strict=True):
        for name in sorted(identity(target)):
            if name in taken:
                raise InputError(
                    f"{shown(taken[name])} and {shown(path)} would both be written to {name.name}; rename one, or "
                    "reconstruct them into different --out folders"
                )
            taken[name] = path
        for result in target.paths("method", True, "unknown", checked=True).values():
            place = target.folder / result
            if any(place.exists() and place.samefile(source) for source in inputs):
                raise InputError(f"--out {out}: {result.name} there is the scan itself; choose another folder")
    return targets


def _summary(result: Reconstruction) -> list[str]:
    """Lines for the user."""
    attrs, (slices, height, width) = result.attrs, result.volume.shape
    rate = f"R {attrs['acceleration']:.2f}"
    rate += f" (nominal {attrs['acceleration_nominal']:g})" if "acceleration_nominal" in attrs else ""
    scores = result.scores or {}
    figures = "  ".join(f"{name.upper()} {scores[name]:.4g}" for name in ("nmse", "psnr", "ssim") if name in scores)
    return [
        f"{result.name}: {attrs['method']}, {slices} slices of {height} x {width}, {rate}, "
        f"{attrs['acs_lines']} ACS lines, {attrs['seconds_per_slice']:.2g} s per slice",
        f"{result.name}: {figures}{', ' if figures else ''}{result.scored}",
        *(f"{result.name}: warning: {warning}" for warning in result.warnings),
    ]


def _picture(result: Reconstruction) -> bytes:
    """PNG of the middle slice (the brightest one where that is empty), with target, error and spread where known."""
    from rsdmri.report.figures import image_grid
    from rsdmri.report.png import png_bytes
    from rsdmri.report.reconstruction import reconstruction_figure

    index = len(result.volume) // 2
    if not result.volume[index].any():
        index = int(np.argmax(np.square(result.volume, dtype=np.float64).sum((1, 2))))
    attrs = result.attrs
    heading = f"slice {index + 1} of {len(result.volume)}, R {attrs['acceleration']:.2f}"
    method, image = str(attrs["method"]), result.volume[index]
    if result.target is None and result.std is None and result.undetermined is None:
        return png_bytes(image_grid(image, [method], heading=heading, width=5))
    target = None if result.target is None else result.target[index]
    std = None if result.std is None else result.std[index]
    band = None if result.quantiles is None else result.quantiles[:, index]
    unseen = None if result.undetermined is None else result.undetermined[index]
    heading += "" if band is None else f", band: {attrs['interval_source']}"
    return png_bytes(
        reconstruction_figure(
            target, {method: image}, std, band=band, undetermined=unseen, heading=heading, alarm=result.alarm
        )
    )


def _remove_if_empty(folder: Path, existed: bool) -> None:
    if not existed:
        with suppress(OSError):
            folder.rmdir()
