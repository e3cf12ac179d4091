"""State that main.py and the Hydra plugins share within one command. Only Hydra can call the plugins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The command as the user gave it, for sweep.json.
command: list[str] = []
#: Keys that the user added with Hydra's `+` or `++`.
forced: frozenset[str] = frozenset()
#: The sweep's folder, once this command has written it.
folder: Path | None = None
#: The command's exit code. A launcher sets it, since Hydra does not keep the result of a multirun.
exit_code: int = 0
#: The Hydra launcher `preference_handover` calls take(itself, the trials' overrides) instead of running the trials.
take: Callable[[Any, Any], Any] | None = None
