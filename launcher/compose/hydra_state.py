"""What main.py and the Hydra plugins, which only Hydra can call, have to tell each other within one command."""

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
#: What the command ends with; a launcher sets it, since Hydra keeps no multirun's result.
exit_code: int = 0
#: What the Hydra launcher `preference_handover` gives itself and the trials' overrides to, instead of running them.
take: Callable[[Any, Any], Any] | None = None
