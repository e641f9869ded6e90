"""Scans in and out: records, file formats, simulation, manifests, training data."""
