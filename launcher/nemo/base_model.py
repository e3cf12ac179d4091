"""The base model as its .nemo describes it, and checks that a trial fits it. Imports no torch, reads no weights."""

from __future__ import annotations

import functools
import json
import math
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from launcher.findings import Finding
from launcher.nemo.gpt_config import DIVISION, GptConfig, Tokenizer
from launcher.trial_config.config import TrialConfig

_SHAPE = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
_MOST_BYTES = 16 << 20  # of a config: real ones have some kB; a small archive can claim to hold gigabytes
_RECORD, _CONFIG, _HF_CONFIG = "conversion.json", "model_config.yaml", "tokenizer/config.json"
_INSIDE = "nemo:"  # NeMo's prefix for the name of a file inside the .nemo


@dataclass(frozen=True)
class BaseModel:
    """What a .nemo contains, apart from weights."""

    path: Path
    config: GptConfig
    """model_config.yaml; empty if it could not be read."""
    vocabulary: int | None
    """Rows of its embedding, before Megatron pads them; None if unknown."""
    sizes: dict[str, int]
    """File name -> bytes, for the files inside."""

    @property
    def shaped(self) -> bool:
        """Whether the config has the numbers needed to compute parameters, memory and checkpoint sizes."""
        return all(isinstance(self.config.get(name), int) for name in _SHAPE)

    def under(self, trial: TrialConfig) -> GptConfig:
        """The base model's config overridden by the trial's `model` keys, as where a rank loads it."""
        return cast("GptConfig", {**self.config, **DIVISION, **trial.model_keys})

    def tokenizer(self, trial: TrialConfig) -> Tokenizer:
        """The base model's tokenizer, overridden by the trial's `model.tokenizer`."""
        nodes: tuple[object, object] = (self.config.get("tokenizer"), trial.model_keys.get("tokenizer"))
        return cast("Tokenizer", {key: node[key] for node in nodes if isinstance(node, dict) for key in node})

    @property
    def tokenizer_bytes(self) -> int:
        return sum(size for name, size in self.sizes.items() if name.startswith("tokenizer/"))


def load(path: Path) -> BaseModel | None:
    """The base model; None if the file is missing or unreadable (`files.check_nemo` then reports why).

    A file is read again only if it has changed, however many trials name it.
    """
    try:
        stat = path.stat()
        return _load(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, tarfile.TarError, EOFError):
        return None


@functools.lru_cache(maxsize=8)
def _load(path: Path, mtime: int, size: int) -> BaseModel:
    wanted = (_RECORD, _CONFIG, _HF_CONFIG)
    if path.is_dir():
        sizes = {str(p.relative_to(path)): p.stat().st_size for p in path.rglob("*") if p.is_file()}
        texts = {name: (path / name).read_bytes() for name in wanted if sizes.get(name, math.inf) <= _MOST_BYTES}
    else:
        sizes, texts = {}, {}
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                sizes[name] = member.size
                part = archive.extractfile(member) if name in wanted and member.size <= _MOST_BYTES else None
                if part is not None:
                    texts[name] = part.read()
    config = _config(texts.get(_CONFIG, b""))
    tells = (
        _json(texts.get(_RECORD, b"")).get("vocabulary"),
        _json(texts.get(_HF_CONFIG, b"")).get("vocab_size"),
        config.get("override_vocab_size"),
    )
    return BaseModel(path, config, next((n for n in tells if isinstance(n, int)), None), sizes)


def _config(text: bytes) -> GptConfig:
    try:
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return {}  # another converter's file with its own YAML tags: NeMo may be able to read it, so no finding
    return cast("GptConfig", config) if isinstance(config, dict) else {}


def _json(text: bytes) -> dict[str, object]:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def findings(base: BaseModel, trial: TrialConfig) -> list[Finding]:
    """What Megatron or NeMo would refuse when it builds the model, minutes into the job."""
    problems = _parallel(base, trial) if base.shaped else []
    model, tuning = base.under(trial), trial.model.peft.lora_tuning
    longest, length = model.get("max_position_embeddings"), trial.longest_pair
    if model.get("position_embedding_type") == "learned_absolute" and isinstance(longest, int) and length > longest:
        why = f"the base model has learned only {longest} positions"
        problems.append(Finding("model.encoder_seq_length", str(length), why, f"write at most {longest}"))
    layers = [n for n in tuning.layer_selection or [] if base.shaped and not 1 <= n <= model["num_layers"]]
    if layers:
        why = f"the base model's layers are 1 to {model['num_layers']}"
        where = "model.peft.lora_tuning.layer_selection"
        problems.append(Finding(where, ",".join(map(str, layers)), why, "name layers that it has"))
    return problems + _tokenizer(base, trial)


def _parallel(base: BaseModel, trial: TrialConfig) -> list[Finding]:
    """What tensor and pipeline parallelism must divide (Megatron-core 0.10: TransformerConfig.__post_init__)."""
    model = base.under(trial)
    tensor, pipeline = trial.model.tensor_model_parallel_size, trial.model.pipeline_model_parallel_size
    groups = model.get("num_query_groups") or model["num_attention_heads"]
    split = {
        "attention heads": model["num_attention_heads"],
        "key and value heads": groups,
        "columns of the MLP": model["ffn_hidden_size"],
    }
    problems = []
    odd = [f"{count} {name}" for name, count in split.items() if count % tensor]
    if odd:
        fit = [n for n in range(1, tensor) if not any(count % n for count in split.values())]
        why = f"the base model has {' and '.join(odd)}, which it does not divide"
        problems.append(Finding("model.tensor_model_parallel_size", str(tensor), why, f"write {max(fit, default=1)}"))
    if model["num_layers"] % pipeline:
        fit = [n for n in range(1, pipeline) if model["num_layers"] % n == 0]
        why = f"the base model has {model['num_layers']} layers, which it does not divide"
        remedy = f"write {max(fit, default=1)}"
        problems.append(Finding("model.pipeline_model_parallel_size", str(pipeline), why, remedy))
    return problems


def _tokenizer(base: BaseModel, trial: TrialConfig) -> list[Finding]:
    """A tokenizer that the .nemo names must exist, inside the .nemo or at the given path."""
    names = base.tokenizer(trial)
    again = "convert the model with data_prep/convert_checkpoint.py, or name one: ++model.tokenizer.type=FOLDER"
    problems = []
    for key in ("type", "model", "vocab_file", "merge_file"):
        name = names.get(key)
        if not isinstance(name, str) or not name:
            continue
        if name.startswith(_INSIDE):
            inside = name.removeprefix(_INSIDE)
            if not any(path == inside or path.startswith(f"{inside}/") for path in base.sizes):
                problems.append(Finding(str(base.path), "", f"names a tokenizer {name} and does not hold it", again))
        elif name.startswith("/") and not Path(name).exists() and not _in_container(trial):
            problems.append(Finding(f"model.tokenizer.{key}", name, "no such file or folder", again))
    return problems


def warnings(base: BaseModel, trial: TrialConfig) -> list[Finding]:
    """What would run but probably not do what the user wants."""
    model, problems = base.under(trial), []
    longest, length = base.config.get("max_position_embeddings"), trial.longest_pair
    learned = model.get("position_embedding_type") == "learned_absolute"
    if isinstance(longest, int) and length > longest and not learned:
        why = f"the base model was trained on {longest} positions; longer pairs are beyond what it knows"
        problems.append(Finding("model.encoder_seq_length", str(length), why, f"write at most {longest}"))
    name, library = (base.tokenizer(trial).get(key) for key in ("type", "library"))
    if library == "huggingface" and isinstance(name, str) and not name.startswith((_INSIDE, "/")):
        why = "is a name on Hugging Face's hub: compute nodes without Internet find it only in a cache they share"
        remedy = "name a folder: ++model.tokenizer.type=FOLDER"
        problems.append(Finding("model.tokenizer.type", name, why, remedy))
    return problems


def _in_container(trial: TrialConfig) -> bool:
    """Whether the trial runs in a container, whose paths need not be paths here."""
    return trial.cluster.container.runtime is not None
