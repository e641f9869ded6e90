"""How the settings of a run differ from those that are asked for now."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from rsdmri.config import Config
from rsdmri.priors import build_denoiser


@dataclass(frozen=True)
class Change:
    """A setting, what it is in the run that is there, and what is asked; ``unset`` where it has no value."""

    key: str
    there: Any
    asked: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.there} there, {self.asked} asked"


def differences(before: Config, after: Config, free: Collection[str] = ()) -> list[Change]:
    """Settings that differ, in alphabetical order; those in ``free`` may."""
    old, new = _flat(before.to_dict()), _flat(after.to_dict())
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in free)
    return [Change(key, old.get(key, "unset"), new.get(key, "unset")) for key in keys]


def shape_change(before: Config, after: Config) -> str | None:
    """Why the weights of ``before`` do not fit the network of ``after``; None if they do."""
    old, new = _shapes(before), _shapes(after)
    if old == new:
        return None
    changed = [change.key for change in differences(before, after)]
    keys = [key for key in changed if key.startswith("network.") or key == "corruption.kind"] or changed
    name = next(name for name in [*old, *new] if old.get(name) != new.get(name))
    sizes = [" x ".join(map(str, shapes[name])) if name in shapes else "nothing" for shapes in (old, new)]
    return f"{', '.join(keys)}: changes the network's shape ({name} is {sizes[0]} there and {sizes[1]} asked)"


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    denoiser = build_denoiser(config, 1.0, torch.device("meta"))
    return {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
