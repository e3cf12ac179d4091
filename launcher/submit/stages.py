"""The stages before and after a sweep: conversion, data, report. What each makes, whether that is there, its script."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import launcher as package
from launcher.check import files
from launcher.findings import Finding, Refused
from launcher.nemo import base_model, nemo_file
from launcher.slurm import container, rows, script, template
from launcher.slurm.script import ArrayRequest
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.config import Split, TrialConfig

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: Beginnings of the options in cluster.sbatch that are about GPUs and the shape of a trial.
OF_TRIALS = ("gres", "gpus", "ntasks", "tres", "nodes", "mem", "cpus", "exclusive", "array")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job of one process, without a GPU."""

    name: str
    """Its template's, its job's."""
    command: Sequence[str]
    """What Python runs."""
    makes: Path
    """A folder of data, a .nemo."""
    files: frozenset[Path]
    """What trials will find there."""
    made_in: Path
    """The folder that has to be there before."""
    reads: Sequence[Path] = ()
    proof: Path
    """Is there only if all is."""
    there: str = ""
    """What is there already, for people; "" where the stage has to be run."""
    mem_gb: float = 4
    lacks: Finding | None = None
    """What has to be known before it can be run."""


def root() -> Path:
    """The folder that `launcher` and `data_prep` lie in."""
    return Path(package.__file__).resolve().parents[1]


# -- data --------------------------------------------------------------------------------------------------------------


def data(config: TrialConfig, pairs: str | None, expected: Collection[Path] = ()) -> Stage | None:
    """The stage that makes a trial's pairs; None where they are not in the files that prepare_data.py writes.

    Pairs longer than model.encoder_seq_length, which NeMo-Aligner would skip, are left out where there is a tokenizer
    to count with. `pairs` is what they are made from, if the set is not one that is known by its name; `expected` are
    files that will be made before.
    """
    from data_prep.pairs.sources import NAMES, is_of_hub

    paths = config.data_files
    folder = paths["train"].parent
    if any(paths[split] != folder / f"{split}.jsonl" for split in SPLITS):
        return None
    source = pairs or folder.name
    lacks = None
    known = source in NAMES or is_of_hub(source)
    if not known:
        source = str(Path(source).expanduser().absolute())
        if not pairs or not Path(source).exists():
            why = "no such file or folder" if pairs else f"nothing says what {folder} is to be made from"
            lacks = Finding("--pairs", source if pairs else "", why, "name what prepare_data.py takes")
    tokenizer = _tokenizer(config, expected)
    longest = ["--max-tokens", str(config.longest_pair)]
    counted = ["--tokenizer", str(tokenizer), *longest] if tokenizer else []
    return Stage(
        name="prepare_data",
        command=["-u", str(root() / "data_prep" / "prepare_data.py"), source, "--out", str(folder), *counted],
        makes=folder,
        files=frozenset(folder / f"{split}.jsonl" for split in SPLITS),
        made_in=folder,
        reads=[*([] if known else [Path(source)]), *([tokenizer] if tokenizer else [])],
        proof=folder / "dataset.json",
        there=_pairs_there(folder),
        mem_gb=8,
        lacks=lacks,
    )


def _tokenizer(config: TrialConfig, expected: Collection[Path]) -> Path | None:
    """What has a trial's tokenizer: a folder that it names, or else its base model; None where neither does."""
    from data_prep.pairs import tokenizer_files

    model = config.base_model
    if model in expected:
        return model
    base = base_model.load(model)
    if base is None:
        return None
    named = Path(str(base.tokenizer(config).get("type")))
    if named.is_dir() and tokenizer_files.among(path.name for path in named.iterdir()):
        return named.absolute()
    return model if tokenizer_files.among(base.sizes) else None


def _pairs_there(folder: Path) -> str:
    """What a whole set of pairs consists of; "" where it is none."""
    present = [split for split in SPLITS if (folder / f"{split}.jsonl").is_file()]
    if not (folder / "dataset.json").exists():  # files of the user's own, which preflight looks into
        return "not made by prepare_data.py, taken as they are" if len(present) == len(SPLITS) else ""
    try:
        record = json.loads((folder / "dataset.json").read_bytes())
        sizes = {name: facts["bytes"] for name, facts in record["files"].items()}
        rows = [record["rows"][split] for split in SPLITS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    if any(not (folder / name).is_file() or (folder / name).stat().st_size != size for name, size in sizes.items()):
        return ""
    return f"{' + '.join(str(count) for count in rows)} pairs" if len(present) == len(SPLITS) else ""


# -- conversion --------------------------------------------------------------------------------------------------------


def conversion(config: TrialConfig, checkpoint: str | None) -> Stage:
    """The stage that makes a trial's base model; `checkpoint` is the Hugging Face folder, if it is no small model.

    Raises Refused where a damaged file of somebody else's is in the way.
    """
    from data_prep.models.small_models import NAMES

    made = config.base_model
    found = files.check_nemo(made)
    if found and made.exists() and (made.is_dir() or nemo_file.read_record(made) is None):
        raise Refused(found)
    source = checkpoint or made.stem
    lacks = None
    if checkpoint and source not in NAMES:
        source = str(Path(source).expanduser().absolute())
        if not Path(source, "config.json").is_file():
            lacks = Finding("--checkpoint", source, "has no config.json", "name a Hugging Face folder")
    elif source not in NAMES:
        key, remedy = "pretrained_checkpoint.restore_from_path", "name its Hugging Face folder: --checkpoint FOLDER"
        lacks = Finding(key, str(made), "nothing says what it is to be made from", remedy)
    form = [] if made.suffix == ".nemo" else ["--folder"]
    return Stage(
        name="convert_checkpoint",
        command=["-u", str(root() / "data_prep" / "convert_checkpoint.py"), source, str(made), *form],
        makes=made,
        files=frozenset([made]),
        made_in=made.parent,
        reads=[] if source in NAMES else [Path(source)],
        proof=made,
        there="" if found else "whole",
        mem_gb=_conversion_gb(Path(source)),
        lacks=lacks,
    )


def _conversion_gb(folder: Path) -> int:
    """The proof holds the model in fp32, twice what most files have; a half more for what else there is, and NeMo."""
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return 8 + math.ceil(3 * weights / 2**30)


# -- scripts -----------------------------------------------------------------------------------------------------------


def light_python(cluster: Cluster) -> str:
    """Shell words for the Python that has the launcher's own packages, which no container needs to have."""
    return shlex.quote(sys.executable) if cluster.container.runtime else cluster.python_words


def inside(stage: Stage, cluster: Cluster) -> container.Inside:
    """What puts a stage into the cluster's container, with what it reads and where it writes."""
    folder = str(stage.made_in)
    read = [str(root()), *(str(path) for path in stage.reads)]
    in_container = str(template.folder() / "in_container.sh")
    return container.inside(cluster.container, in_container, read=read, written=[folder], folder=folder)


def command(stage: Stage, cluster: Cluster) -> list[str]:
    """The words behind srun and its options."""
    return [*inside(stage, cluster).prefix, template.Words(cluster.python_words), *stage.command]


def text(
    stage: Stage, cluster: Cluster, *, name: str, output: str, after: Sequence[int] = (), memory: bool = True
) -> str:
    """The script of a stage before the sweep. `memory`: whether to ask for some, as clusters that share it out want."""
    within = inside(stage, cluster)
    return _text(
        stage.name,
        directives(cluster, name, output, after, stage.mem_gb if memory else None),
        cluster,
        within,
        {
            "srun_args": [*within.srun_args, *cluster.srun_args],
            "makes": stage.made_in,
            "command": command(stage, cluster),
        },
    )


def report_text(sweep: Path, cluster: Cluster, *, name: str, output: str, after: Sequence[int], memory: bool) -> str:
    """The script of the stage behind the sweep. It runs outside of any container: the launcher's packages are there."""
    command = [template.Words(light_python(cluster)), "-u", "-m", "launcher", "report", str(sweep)]
    return _text(
        "report",
        directives(cluster, name, output, after, 2 if memory else None),
        cluster,
        container.Inside(),
        {"srun_args": [], "command": command},
    )


def _text(
    name: str,
    lines: Sequence[str],
    cluster: Cluster,
    within: container.Inside,
    assignments: Mapping[str, template.Value],
) -> str:
    return template.fill(
        name,
        lines,
        {**surroundings(cluster, within), **assignments},
        setup=cluster.setup,
        teardown=cluster.teardown,
    )


def surroundings(cluster: Cluster, within: container.Inside) -> dict[str, template.Value]:
    return script.surroundings(cluster.variables, within, str(root()))


def directives(
    cluster: Cluster, name: str, output: str, after: Sequence[int] = (), mem_gb: float | None = None
) -> list[str]:
    """The #SBATCH lines of one process on one node: as for a trial, less what asks for GPUs or for several nodes."""
    free = {key: value for key, value in cluster.sbatch.items() if not str(key).startswith(OF_TRIALS)}
    changes: dict[str, object] = {
        "gpus_per_node": None,
        "exclusive": None,
        "nodelist": None,
        "mem_gb": mem_gb,
        "sbatch": free,
    }
    per_cpu = next((value for key, value in cluster.sbatch.items() if key.replace("-", "_") == "mem_per_cpu"), None)
    if per_cpu is not None and mem_gb is not None:
        # The site wants memory requested by the CPU: request as many CPUs as the stage's memory takes.
        cpus = math.ceil(mem_gb * 1024 / (rows.megabytes(str(per_cpu)) or 1))
        changes |= {"mem_gb": None, "sbatch": {**free, "mem_per_cpu": per_cpu}, "cpus_per_task": cpus}
    if cluster.stages_partition:
        changes["partition"] = cluster.stages_partition
    one_process = cluster.model_copy(update=changes)
    request = ArrayRequest(
        sweep=Path(), name=name, trials=[0], nodes=1, ranks_per_node=1, cluster=one_process, after=after
    )
    kept = [line for line in script.directives(request) if not line.startswith(_NOT_AN_ARRAY)]
    return [*kept, f"#SBATCH --output={shlex.quote(output)}"]


_NOT_AN_ARRAY = ("#SBATCH --array=", "#SBATCH --output=", "#SBATCH --signal=")
