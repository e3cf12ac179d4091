"""Answers by vLLM: what it is asked for, with which arguments it is started, and when."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from launcher.dotted_keys import at
from launcher.evaluate import generation
from launcher.evaluate.common_setup import Setting
from launcher.evaluate.engine import AnswerEngine, Beat, Begun, Say, Transformers
from launcher.evaluate.generation import Generated, Sampling, Stop
from launcher.evaluate.models import Adapter, AnsweringModel, ModelDevice
from launcher.evaluate.policy import longest
from launcher.evaluate.vllm_process import FoundVllm, VllmProcess
from launcher.nemo import lora
from launcher.sweep.folder import Sweep


class VllmEngine:
    """One process of vLLM at a time: one base model, loaded once, that any number of adapters is put on.

    Another base model, longer prompts or an adapter of a higher rank than was expected start another one.
    """

    def __init__(self, vllm: FoundVllm, memory: float, logs: Path, say: Say) -> None:
        """`memory`: vLLM's share of the GPU's; `logs`: a folder. Starts nothing before the first answers."""
        self._vllm, self._memory, self._logs, self._say = vllm, memory, logs, say
        self._process: VllmProcess | None = None
        self._arguments: dict[str, Any] = {}
        self._expected: dict[Path, tuple[int, int]] = {}
        self.started = 0
        """How often a model was loaded."""

    def expect(self, model: AnsweringModel, longest: int, rank: int) -> None:
        """What the model is asked later has at most so many tokens with its answer, and adapters of such a rank."""
        known = self._expected.get(model.folder, (0, 0))
        self._expected[model.folder] = (max(known[0], longest), max(known[1], rank))

    def rows(self, device: ModelDevice) -> int:
        """More than for transformers on a GPU: vLLM fills the places of answers that have ended."""
        return device.rows * (4 if device.name == "cuda" else 1)

    def answers(
        self, model: AnsweringModel, prompts: Begun, sampling: Sampling, stop: Stop, beat: Beat
    ) -> list[list[Generated]]:
        """See AnswerEngine. Raises VllmFailed; what is asked next starts another process."""
        longest = max(len(tokens) for _, tokens in prompts) + sampling.max_tokens
        self.expect(model, longest, model.adapter.rank if model.adapter else 0)
        seeds = range(1, 1 + sampling.samples)
        request: Mapping[str, Any] = {
            "adapter": _named(model.adapter),
            "temperature": sampling.temperature,
            "sampling": {
                "max_tokens": sampling.max_tokens,
                "ignore_eos": True,  # the model's own ends are among the tokens that stop
                "stop_token_ids": list(stop.tokens),
                "stop": list(stop.texts),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
            },
            "prompts": [
                {"tokens": list(tokens), "seeds": [generation.sample_seed(sampling, name, seed) for seed in seeds]}
                for name, tokens in prompts
            ],
        }
        process = self._running(model)
        try:
            made = process.answers(request)
        except BaseException:
            self.close(keep_log=True)
            raise
        return [[generation.generated(model.tokenizer, it["tokens"], it["ended"], stop) for it in row] for row in made]

    def close(self, *, keep_log: bool = False) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.close(keep_log=keep_log)

    def _running(self, model: AnsweringModel) -> VllmProcess:
        """A process with this model that is large enough for what is expected."""
        longest, rank = self._expected[model.folder]
        has = self._arguments
        large = has.get("max_model_len", 0) >= longest and has.get("max_lora_rank", 0) >= rank
        if self._process is not None and has["model"] == str(model.folder.absolute()) and large:
            return self._process
        self.close()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what this process holds and does not use
        self._arguments = self._of(model, longest, rank)
        log = self._logs / f"vllm.{socket.gethostname()}.{os.getpid()}.{self.started}.log"
        self.started += 1
        self._say(f"loading the model into {self._vllm.version}; the log is {log}")
        self._process = VllmProcess(self._vllm, self._arguments, log)
        return self._process

    def _of(self, model: AnsweringModel, longest: int, rank: int) -> dict[str, Any]:
        """The arguments of vllm.LLM. Nothing is compiled: that takes longer than the answers of one sweep."""
        arguments: dict[str, Any] = {
            "model": str(model.folder.absolute()),
            "dtype": str(model.device.dtype).removeprefix("torch."),
            "max_model_len": longest,
            "gpu_memory_utilization": self._memory,
            "load_format": "safetensors",
            "generation_config": "vllm",  # vLLM's own defaults in place of the folder's
            "enforce_eager": True,
        }
        if rank:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora.vllm_rank(rank)}
        return arguments


def _named(adapter: Adapter | None) -> dict[str, Any] | None:
    return {"number": adapter.number, "folder": str(adapter.folder.absolute())} if adapter else None


class Engines:
    """The engines of one evaluation of a sweep."""

    def __init__(self, sweep: Sweep, say: Say) -> None:
        self._sweep, self._say = sweep, say
        self._vllm: tuple[tuple[FoundVllm, float], VllmEngine] | None = None

    def of(self, setting: Setting, model: AnsweringModel, *, adapters: bool) -> AnswerEngine:
        """The engine that answers the setting's prompts with a model. `adapters`: it is the sweep's base model, which
        the adapters of all trials are put on."""
        if setting.vllm is None:
            return Transformers()
        wanted = (setting.vllm, setting.asked.vllm_memory)
        if self._vllm is None or self._vllm[0] != wanted:
            self.close()
            self._vllm = (wanted, VllmEngine(*wanted, self._sweep.folder / "evaluation", self._say))
        engine = self._vllm[1]
        ranks = [_rank(trial.config()) for trial in self._sweep.trials] if adapters else []
        engine.expect(model, longest(model, setting.prompts, setting.asked.max_tokens), max(ranks, default=0))
        return engine

    def close(self) -> None:
        """End what runs beside this process."""
        if self._vllm is not None:
            self._vllm[1].close()


def _rank(config: Mapping[str, Any]) -> int:
    """Of the adapter that a trial trains; 0 if it trains none."""
    return (
        int(at(config, "model.peft.lora_tuning.adapter_dim")) if at(config, "model.peft.peft_scheme") == "lora" else 0
    )
