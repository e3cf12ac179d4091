"""What prepare_data.py makes of each file in a folder, as a Markdown table: python -m tests.forms_table FOLDER"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent / "data_prep" / "prepare_data.py"


def row(file: Path, out: Path) -> str:
    """One line: the form, rows read, pairs written and rows dropped; or the words of the refusal."""
    done = subprocess.run([sys.executable, PROGRAM, file, "--out", out], capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1].replace(str(file), file.name).removeprefix("error: ")
        return f"| `{file.name}` | refused | | | {words.replace('|', '&#124;')} |"
    record = json.loads((out / "dataset.json").read_text())
    dropped = ", ".join(f"{count} {reason}" for reason, count in record["dropped"].items())
    pairs = sum(record["rows"].values())
    return f"| `{file.name}` | {', '.join(record['forms'])} | {record['rows_read']} | {pairs} | {dropped} |"


def main() -> None:
    print("| file | form | rows | pairs | dropped, or the refusal's words |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(sorted(Path(sys.argv[1]).iterdir())):
            print(row(file, Path(folder) / str(number)), flush=True)


if __name__ == "__main__":
    main()
