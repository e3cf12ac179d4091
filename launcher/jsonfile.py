"""JSON files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, data: dict[str, Any], writer: str = "") -> None:
    """Written beside and renamed, so that readers see the old file or the new one, killed writers or not.

    `writer`: a name for this one, where several may write at once.
    """
    beside = path.with_name(f".{path.name}.{writer}new")
    with beside.open("w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, path)
