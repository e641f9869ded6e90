"""Image quality and distances between image distributions."""
