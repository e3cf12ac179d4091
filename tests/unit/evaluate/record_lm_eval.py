"""Record in ifeval_cases.json what lm-eval's own IFEval checkers say about the answers that the file holds.

Run by an interpreter that has lm-eval with its extra `ifeval`, and NLTK's `punkt_tab` data:

    python tests/unit/evaluate/record_lm_eval.py

A verdict is a character, 1 where the answer at its place follows the instruction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CASES = Path(__file__).with_name("ifeval_cases.json")


def record(cases: dict[str, Any]) -> None:
    """Renew `strict` and `loose` of every instruction."""
    import langdetect
    from lm_eval.tasks.ifeval import utils

    langdetect.DetectorFactory.seed = 0
    for it in cases["instructions"]:
        example = utils.InputExample(key=0, instruction_id_list=[it["id"]], prompt="", kwargs=[dict(it["kwargs"])])
        for name in ("strict", "loose"):
            check = getattr(utils, f"test_instruction_following_{name}")
            it[name] = "".join(str(int(check(example, answer).follow_all_instructions)) for answer in cases["answers"])


if __name__ == "__main__":
    data = json.loads(CASES.read_text())
    record(data)
    CASES.write_text(json.dumps(data, ensure_ascii=False, indent=0) + "\n")
