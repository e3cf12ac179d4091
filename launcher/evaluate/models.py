"""The models that answer: the base model as a Hugging Face folder, a trial's exported adapter, whole folders beside."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.peft_model import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from data_prep.models import nemo_to_hf
from data_prep.models.export import adapter_file, export
from launcher.evaluate.generation import Stop
from launcher.evaluate.prompts import PromptForm
from launcher.findings import Finding, Refused
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial
from launcher.train.nemo_aligner.savings.reference_cache import private_folder

_ADAPTER = "policy"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that is on a model."""

    folder: Path
    rank: int
    """The highest of its matrices."""
    number: int
    """Of its own, while this process runs."""


@dataclass(frozen=True)
class ModelDevice:
    """Where and in which precision models run."""

    name: str
    dtype: torch.dtype
    rows: int
    """Answers that are generated at once."""


def choose_device() -> ModelDevice:
    """A GPU in bf16 where there is one, else the CPU in fp32: greedy answers then equal NeMo's in fp32."""
    if torch.cuda.is_available():
        return ModelDevice("cuda", torch.bfloat16, 256)
    return ModelDevice("cpu", torch.float32, 40)


class AnsweringModel:
    """A causal language model, with at most one adapter on it at a time."""

    def __init__(self, folder: Path, device: ModelDevice) -> None:
        """Load a Hugging Face folder. No code from the folder is run. Raises Refused where it cannot be loaded."""
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self.folder, self.device = folder, device
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=device.dtype, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            why = f"cannot be loaded ({' '.join(str(error).split())[:200]})"
            raise Refused([Finding(str(folder), "", why, "name a Hugging Face folder with safetensors")]) from error
        self._base: Any = model.to(device.name).eval()
        self._policy: Any = None
        self.adapter: Adapter | None = None
        """The adapter that is on."""

    @property
    def current(self) -> Any:
        """The model that answers now: with the adapter, if one is on."""
        return self._base if self._policy is None else self._policy

    @contextlib.contextmanager
    def adapted(self, adapter: Path) -> Iterator[None]:
        """Have the adapter on. It stays apart from the weights: these must be the base model's own again afterwards."""
        try:
            self._policy = PeftModel.from_pretrained(self._base, adapter, adapter_name=_ADAPTER).eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            why = f"does not fit the base model ({' '.join(str(error).split())[:200]})"
            raise Refused([Finding(str(adapter), "", why, "name an adapter of this base model")]) from error
        how = self._policy.peft_config[_ADAPTER]
        ranks = [how.r, *(how.rank_pattern or {}).values()] if how.peft_type == "LORA" else [0]
        self.adapter = Adapter(adapter, max(ranks), next(_numbers))
        try:
            yield
        finally:
            self._base = self._policy.unload()
            self._policy = self.adapter = None

    @contextlib.contextmanager
    def reference(self) -> Iterator[Any]:
        """The model without its adapter."""
        if self._policy is None:
            yield self._base
        else:
            with self._policy.disable_adapter():
                yield self._policy

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, none added: the data's texts hold what begins a conversation."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def spoken(self, text: str) -> str:
        """A response of the data as a policy's answer is kept: without the tokens that end it."""
        return str(self.tokenizer.decode(self.tokens(text), skip_special_tokens=True)).strip()

    def stop(self, form: PromptForm) -> Stop:
        """The model's own end tokens, and what ends an answer in the data's form."""
        own = self._base.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
        ends += [self.tokenizer.convert_tokens_to_ids(token) for token in form.stop_tokens]
        return Stop(tuple(dict.fromkeys(end for end in ends if end is not None)), form.stop_texts)

    @property
    def longest(self) -> int:
        """Tokens that fit into the model."""
        return int(self._base.config.max_position_embeddings)


def own_cache(config: Mapping[str, Any], sweep: Sweep) -> Path:
    """The folder for what all trials share: in paths.cache, or in the sweep's folder where that cannot be used.

    What lies in it is loaded as weights and shown as answers, so it is this user's, and no other user can write it.
    """
    named = (config.get("paths") or {}).get("cache")
    try:
        if named:
            return private_folder(Path(str(named)) / "evaluation")
    except OSError as error:
        print(f"paths.cache={named} cannot be used ({error.strerror}); the sweep's folder is", flush=True)
    return private_folder(sweep.folder / "cache" / "evaluation")


def is_own(path: Path) -> bool:
    """Whether the file or folder itself, not what a link points at, belongs to this user."""
    return path.lstat().st_uid == os.geteuid()


def base_folder(nemo: Path, digest: str, cache: Path) -> Path:
    """The base model's .nemo as a Hugging Face folder in `cache`, made once; `digest` is its content's."""
    folder = cache / "base_models" / digest
    if folder.is_dir():
        if not is_own(folder):
            raise Refused([Finding(str(folder), "", "belongs to somebody else", "set paths.cache to another folder")])
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{digest}.", dir=folder.parent) as scratch:
        made = nemo_to_hf.convert(nemo, Path(scratch) / "folder")
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # no other process made it meanwhile
                raise
    return folder


@contextlib.contextmanager
def exported(sweep: Sweep, trial: Trial, base: Path, checkpoint: Path | None = None) -> Iterator[Path]:
    """The trial's policy in a folder that is there for the block: an adapter, or a whole model where all was trained.

    `checkpoint` is the file of one that it kept (default: its last step). Raises Refused.
    """
    (trial.folder / "evaluation").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapter.", dir=trial.folder / "evaluation") as scratch:
        folder = Path(scratch) / "policy"
        if trial.config()["model"]["peft"]["peft_scheme"] == "lora":
            export(sweep, trial, folder, base=str(base), adapter=checkpoint)
        else:
            nemo_to_hf.convert(checkpoint or adapter_file(trial, trial.result() or {}), folder)
        yield folder


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
