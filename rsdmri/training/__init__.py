"""Training loop, moving averages and crash-safe checkpoints."""
