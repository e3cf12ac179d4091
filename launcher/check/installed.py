"""Whether the Python that submits can train and evaluate, where the ranks run it too. Imports none of what it needs."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence

from launcher.engines import ENGINES
from launcher.findings import Finding
from launcher.nemo import versions
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.evaluation import AnswerSettings

#: What `launcher.evaluate` imports.
FOR_EVALUATION = ("torch", "transformers", "peft", "safetensors", "numpy")
_INSTALL = "pip install -c requirements/lock.txt -e '.[train]' in the clone"
_NAME_ANOTHER = (
    "name the Python on the nodes that has NeMo-Aligner (cluster.python=/shared/nemo-env/bin/python), or a container"
    " (cluster=slurm_pyxis, cluster=slurm_apptainer)"
)


def missing(names: Sequence[str]) -> list[str]:
    """The modules that this Python does not have."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def has_vllm() -> bool:
    """Whether this Python has vLLM. A folder of that name where it was started, such as its environment, is none."""
    found = importlib.util.find_spec("vllm")
    return found is not None and found.origin is not None


def findings(config: TrialConfig) -> list[Finding]:
    """Ranks would run this Python, and would refuse its NeMo: after waiting for their turn, each trial for itself."""
    return [] if _may_have_more(config.cluster) else _without_nemo(config)


def warnings(config: TrialConfig) -> list[Finding]:
    """The same where the job may bring NeMo along; and packages without which no trial is evaluated."""
    cluster = config.cluster
    problems = _without_nemo(config) if _may_have_more(cluster) else []
    lacking = missing(FOR_EVALUATION) if config.evaluated_after_training and _runs_this_python(cluster) else []
    if lacking and not problems:
        why = f"trials run {sys.executable}, which lacks {' and '.join(lacking)}: they train, but are not evaluated"
        remedy = f"{_INSTALL}, or evaluation.after_training=false"
        problems.append(Finding("evaluation.after_training", "true", why, remedy))
    if config.evaluated_after_training and _runs_this_python(cluster) and not lacking:
        problems += _without_vllm(config.evaluation.answers)
    return problems


def _without_vllm(asked: AnswerSettings) -> list[Finding]:
    """The Python that is to have vLLM, where trials run this machine's: the evaluation would fail after training."""
    key, remedy = "evaluation.answers.vllm_python", "name the Python that has vLLM, or evaluation.answers.engine=auto"
    if asked.vllm_python and asked.engine != "transformers":
        if shutil.which(os.path.expanduser(asked.vllm_python)) is None:
            return [Finding(key, asked.vllm_python, "cannot be run here: trials train, but are not evaluated", remedy)]
    elif asked.engine == "vllm" and not has_vllm():
        why = f"{sys.executable} lacks vllm: trials train, but are not evaluated"
        return [Finding(key, "null", why, remedy)]
    return []


def _runs_this_python(cluster: Cluster) -> bool:
    return cluster.is_local or (cluster.python is None and cluster.container.runtime is None)


def _may_have_more(cluster: Cluster) -> bool:
    """Whether the job changes what its Python finds (`module load`, PYTHONPATH), so that this one cannot tell."""
    return not cluster.is_local and bool(cluster.setup or "PYTHONPATH" in cluster.environment)


def _without_nemo(config: TrialConfig) -> list[Finding]:
    cluster = config.cluster
    why = _unsupported() if config.engine in ENGINES and _runs_this_python(cluster) else ""
    if not why:
        return []
    said = f"trials run {sys.executable}, and there {why}"
    if cluster.is_local:
        return [Finding("cluster", cluster.name, said, f"{versions.REMEDY}; or start this with a Python that has it")]
    return [Finding("cluster.python", "null", said, _NAME_ANOTHER)]


@functools.cache
def _unsupported() -> str:
    return versions.unsupported_reason(versions.installed())
