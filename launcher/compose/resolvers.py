"""The resolvers that configs may use. A separate module, since --help and --cfg need these but no typed config."""

from __future__ import annotations

from omegaconf import OmegaConf


def register_resolvers() -> None:
    """Register the two arithmetic resolvers that NeMo-Aligner's own configs use."""
    OmegaConf.register_new_resolver("multiply", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("int_div", lambda a, b: a // b, replace=True)
