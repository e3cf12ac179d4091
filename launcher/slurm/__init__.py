"""The only package that runs Slurm's commands and reads their answers; batch scripts and containers."""
