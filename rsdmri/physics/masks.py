"""Sampling masks."""
