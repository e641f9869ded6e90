"""Reconstruction methods, classical and learnt, behind one call."""
