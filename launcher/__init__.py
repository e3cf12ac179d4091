"""A Slurm launcher for preference-tuning sweeps on NVIDIA NeMo-Aligner."""

__version__ = "0.1.0"
