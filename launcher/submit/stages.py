"""The stages before and after a sweep: conversion, data, report. What each makes, whether it exists, its script."""

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
from launcher.slurm import container, script, template
from launcher.slurm.script import ArrayRequest
from launcher.submit.stage_shape import own_shape
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.config import Split, TrialConfig

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
REPORT_GB = 2


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job of one process, without a GPU."""

    name: str
    """The name of its template and of its job."""
    command: Sequence[str]
    """The arguments of Python."""
    makes: Path
    """The output: a folder of data, or a .nemo."""
    files: frozenset[Path]
    """The files that it makes for the trials."""
    made_in: Path
    """The folder that must exist beforehand."""
    reads: Sequence[Path] = ()
    proof: Path
    """The file that exists only if the output is complete."""
    there: str = ""
    """A description of an output that exists already; "" if the stage must be run."""
    mem_gb: float = 4
    lacks: Finding | None = None
    """What is missing to run it."""


def root() -> Path:
    """The folder that contains `launcher` and `data_prep`."""
    return Path(package.__file__).resolve().parents[1]


# -- data --------------------------------------------------------------------------------------------------------------


def data(config: TrialConfig, pairs: str | None, expected: Collection[Path] = ()) -> Stage | None:
    """The stage that makes a trial's pairs; None if their files are not those that prepare_data.py writes.

    If there is a tokenizer to count with, pairs longer than model.encoder_seq_length are left out: NeMo-Aligner would
    skip them. `pairs` is the source, unless the set is known by name; `expected` are files that will be made before.
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
            why = "no such file or folder" if pairs else f"the source of {folder} is not known"
            lacks = Finding("--pairs", source if pairs else "", why, "name a SOURCE of prepare_data.py")
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
    """The path of a trial's tokenizer: a folder that it names, else its base model; None if neither has one."""
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
    """A description of a complete set of pairs; "" if it is not complete."""
    present = [split for split in SPLITS if (folder / f"{split}.jsonl").is_file()]
    if not (folder / "dataset.json").exists():  # the user's own files, which preflight checks
        return "not made by prepare_data.py, used unchanged" if len(present) == len(SPLITS) else ""
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
    """The stage that makes a trial's base model; `checkpoint` is the Hugging Face folder, unless it is a small model.

    Raises Refused if a damaged file that was not made by the conversion is in the way.
    """
    from data_prep.models.small_models import NAMES

    made = config.base_model
    problems = files.check_nemo(made)
    if problems and made.exists() and (made.is_dir() or nemo_file.read_record(made) is None):
        raise Refused(problems)
    source = checkpoint or made.stem
    lacks = None
    if checkpoint and source not in NAMES:
        source = str(Path(source).expanduser().absolute())
        if not Path(source, "config.json").is_file():
            lacks = Finding("--checkpoint", source, "has no config.json", "name a Hugging Face folder")
    elif source not in NAMES:
        key, remedy = "pretrained_checkpoint.restore_from_path", "name its Hugging Face folder: --checkpoint FOLDER"
        lacks = Finding(key, str(made), "does not exist, and its source is not known", remedy)
    form = [] if made.suffix == ".nemo" else ["--folder"]
    return Stage(
        name="convert_checkpoint",
        command=["-u", str(root() / "data_prep" / "convert_checkpoint.py"), source, str(made), *form],
        makes=made,
        files=frozenset([made]),
        made_in=made.parent,
        reads=[] if source in NAMES else [Path(source)],
        proof=made,
        there="" if problems else "whole",
        mem_gb=_conversion_gb(Path(source)),
        lacks=lacks,
    )


def _conversion_gb(folder: Path) -> int:
    """Memory in GiB. A small model is proved whole, one above 2 GiB in fp32 (convert_checkpoint.WHOLE) layer by layer.

    2.5 GiB were measured for Llama-3-8B. An eighth of the weights is several layers.
    """
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return 8 + math.ceil(weights / 8 / 2**30)


# -- scripts -----------------------------------------------------------------------------------------------------------


def light_python(cluster: Cluster) -> str:
    """Shell words for a Python with the launcher's own packages; containers need not have them."""
    return shlex.quote(sys.executable) if cluster.container.runtime else cluster.python_words


def inside(stage: Stage, cluster: Cluster) -> container.Inside:
    """How a stage runs in the cluster's container, with the folders that it reads and writes."""
    folder = str(stage.made_in)
    read = [str(root()), *(str(path) for path in stage.reads), *container.packages(cluster)]
    in_container = str(template.folder() / "in_container.sh")
    return container.inside(cluster.container, in_container, read=read, written=[folder], folder=folder)


def command(stage: Stage, cluster: Cluster) -> list[str]:
    """The command after srun and its options."""
    return [*inside(stage, cluster).prefix, template.Words(cluster.python_words), *stage.command]


def text(
    stage: Stage, cluster: Cluster, *, name: str, output: str, after: Sequence[int] = (), memory: bool = True
) -> str:
    """The script of a stage before the sweep. `memory`: whether to request memory (on clusters that allocate it)."""
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
    """The script of the stage after the sweep. It runs outside any container, with the launcher's packages."""
    command = [template.Words(light_python(cluster)), "-u", "-m", "launcher", "report", str(sweep)]
    return _text(
        "report",
        directives(cluster, name, output, after, REPORT_GB if memory else None),
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
    """The #SBATCH lines of one process on one node: as for a trial, without requests for GPUs or several nodes."""
    one_process = own_shape(cluster, mem_gb)
    request = ArrayRequest(
        sweep=Path(), name=name, trials=[0], nodes=1, ranks_per_node=1, cluster=one_process, after=after
    )
    kept = [line for line in script.directives(request) if not line.startswith(_NOT_AN_ARRAY)]
    return [*kept, f"#SBATCH --output={shlex.quote(output)}"]


_NOT_AN_ARRAY = ("#SBATCH --array=", "#SBATCH --output=", "#SBATCH --signal=")
