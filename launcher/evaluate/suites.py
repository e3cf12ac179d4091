"""Standard suites by lm-eval (EleutherAI's lm-evaluation-harness), a program of its own that runs on exported policies.

It is not a dependency: its pins and NeMo's may disagree, so it may be in an environment of its own.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import whole_file
from launcher.evaluate import scores
from launcher.findings import Finding, LauncherError, Refused
from launcher.sweep import evaluation

Results = dict[str, dict[str, list[float | None]]]


@dataclass(frozen=True)
class Suites:
    """The tasks that lm-eval is asked for, and the program."""

    tasks: tuple[str, ...]
    program: str

    @classmethod
    def of(cls, tasks: str, program: str | None) -> Suites:
        """`tasks`: lm-eval's names or task files, with commas between. Raises Refused if there is no such program."""
        path = shutil.which(program or "lm_eval")
        if path is None:
            why = "cannot be run" if program else "needs lm-eval, which is not on the PATH"
            remedy = (
                "python -m venv lm && lm/bin/pip install 'lm-eval[hf,ifeval]' peft; then add --lm-eval lm/bin/lm_eval"
            )
            raise Refused([Finding("--lm-eval" if program else "--suite", program or tasks, why, remedy)])
        return cls(tuple(dict.fromkeys(task.strip() for task in tasks.split(",") if task.strip())), path)

    def results(
        self, folder: Path, base: Path, policy: Path | None, made_with: Mapping[str, str], say: Callable[[str], None]
    ) -> Results:
        """The results of one policy (None: the base model); tasks that are in the folder already are not run again.

        Raises LauncherError with the last line of lm-eval's log.
        """
        before = whole_file.read_json(folder / evaluation.SUITES)
        same = isinstance(before, dict) and before.get("made_with") == dict(made_with)
        known: Results = before["results"] if same else {}
        missing = [task for task in self.tasks if Path(task).stem not in known]
        if missing:
            say(f"lm-eval: {', '.join(missing)}; its log is {folder / 'lm_eval.log'}")
            known |= self._run(missing, folder, base, policy, made_with["device"])
            whole_file.write_json(folder / evaluation.SUITES, {"made_with": dict(made_with), "results": known})
        return {name: values for name, values in known.items() if name in {Path(task).stem for task in self.tasks}}

    def _run(self, tasks: Sequence[str], folder: Path, base: Path, policy: Path | None, device: str) -> Results:
        name, dtype = device.split()
        adapter = policy if policy and (policy / "adapter_config.json").is_file() else None
        model = base if adapter else policy or base
        arguments = f"pretrained={model},dtype={dtype.removeprefix('torch.')}"
        arguments += f",peft={adapter}" if adapter else ""
        out = folder / ".lm_eval"
        shutil.rmtree(out, ignore_errors=True)
        command = [self.program, "--model", "hf", "--model_args", arguments, "--tasks", ",".join(tasks)]
        command += ["--device", name, "--batch_size", "8" if name == "cpu" else "auto", "--output_path", str(out)]
        # Its Python may be another one than ours.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lm_eval.log").open("w") as log:
            print(*command, file=log, flush=True)
            code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        made = sorted(out.rglob("results_*.json"))
        if code or not made:
            lines = (folder / "lm_eval.log").read_text(errors="replace").splitlines()
            why = next((line.strip() for line in reversed(lines) if line.strip()), "no line")[:300]
            raise LauncherError(f"lm-eval ended with exit code {code}: {why} (log: {folder / 'lm_eval.log'})")
        found = read(whole_file.read_json(made[-1]))
        shutil.rmtree(out)
        return found


def read(data: Any) -> Results:
    """The values of lm-eval's results file, whose keys are `acc,none` and `acc_stderr,none`: metric and filter."""
    results: Results = {}
    for task, values in ((data or {}).get("results") or {}).items():
        results[task] = {}
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            # A key without a comma is no metric: alias, sample_len.
            if not comma or metric.endswith("_stderr") or not _number(value):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            shown = metric if filtered in ("none", "") else f"{metric} ({filtered})"
            results[task][shown] = [float(value), float(error) if _number(error) else None]
    return results


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def table(rows: Mapping[str, Results]) -> str:
    """A line a task and metric, a column a policy; each value with lm-eval's standard error."""
    keys = list(
        dict.fromkeys((task, metric) for results in rows.values() for task in results for metric in results[task])
    )
    lines = [["", *rows]]
    for task, metric in keys:
        values = [results.get(task, {}).get(metric) for results in rows.values()]
        lines.append([f"{task}: {metric}", *(shown(value) for value in values)])
    return scores.aligned(lines)


def shown(value: Sequence[float | None] | None) -> str:
    if value is None or value[0] is None:
        return "-"
    return f"{value[0]:.4f}" + (f" ± {value[1]:.4f}" if value[1] is not None else "")
