"""The engine: the only package of the launcher that imports NeMo."""
