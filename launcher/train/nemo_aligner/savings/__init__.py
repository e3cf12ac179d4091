"""Computation that NeMo-Aligner repeats or wastes and that a step can do without."""
