"""The subcommands of `python -m launcher`: a module each, imported only when asked for."""
