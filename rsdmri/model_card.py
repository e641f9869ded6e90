"""The card that goes with the weights of a prior: what it was trained on, and what it must not be taken for."""

from typing import Any

from rsdmri import RESEARCH_ONLY
from rsdmri.config import config_from_dict
from rsdmri.diffusion.acquisitions import Acquisitions


def model_card(meta: dict[str, Any], bank: Acquisitions) -> str:
    """Model card in Markdown."""
    config, (height, width) = meta["config"], bank.shape
    settings = config_from_dict(config, "config.json")
    alone = meta["kind"] == "prior" and not settings.prior.distils
    kinds = {
        "prior": f"one-step generator {'without a' if alone else 'with its'} teacher",
        "teacher": "diffusion teacher",
        "posterior": "network of the reconstruction rsd, variant amortised",
    }
    rows = {
        "kind": kinds[meta["kind"]],
        "objective": settings.prior.objective if alone else settings.objective,
        "trained on": meta.get("trained_on", "unknown"),
        "matrix": f"{height} x {width}" + ("" if bank.maps is None else f", {bank.maps.shape[1]} coils"),
        "measurements": _measurements(config, bank),
        "scale": "whitened k-space divided by the 99th percentile of its centre-only root-sum-of-squares image",
        "parameters": f"{meta['parameters']:,}",
        "training": meta.get("training", "unknown"),
        "sha256": meta["sha256"],
    }
    lines = [f"- {name}: {value}" for name, value in rows.items()]
    return "\n".join(
        [
            "# rsdmri prior",
            "",
            f"**{RESEARCH_ONLY}**",
            "",
            *lines,
            "",
            "Samples and reconstructions far from the training data (anatomy, contrast, field strength, matrix, coils,",
            "acceleration) can look right and be wrong. Generative models can memorise training images: compare",
            "samples with them before sharing. Coil maps of the training scans are part of the weights file.",
            "",
        ]
    )


def _measurements(config: dict[str, Any], bank: Acquisitions) -> str:
    acquisition, corruption = config["acquisition"], config.get("corruption", {"kind": "fourier"})
    if corruption["kind"] == "fourier":
        dropped = f"; {bank.drop} dropped further" if bank.maps is not None else ""
        return f"k-space at acceleration {acquisition['acceleration']:g} ({acquisition['mask']} masks){dropped}"
    return f"magnitude images, {corruption['kind']}, noise {corruption['noise']:g}"
