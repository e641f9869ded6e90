"""The jobs of the command line, as functions: simulate, train, sample, reconstruct, inspect, demo."""
