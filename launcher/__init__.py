"""A Slurm launcher for preference-tuning sweeps on NVIDIA NeMo-Aligner."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`from launcher import Sweep`, for notebooks; imported only then, so that `import launcher` stays light."""
    if name == "Sweep":
        from launcher.sweep.folder import Sweep

        return Sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
