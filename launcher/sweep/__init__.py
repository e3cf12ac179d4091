"""A sweep's folder: find it and read its starts, logs, checkpoints and metrics."""
