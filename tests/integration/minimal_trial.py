"""The smallest trial there is: a few made-up pairs and a config.yaml, without a launcher."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TOPICS = ("the sea", "an egg", "Paris", "a red bicycle", "prime numbers", "the old king and his three sons", "rain")


def write_pairs(path: Path, count: int, start: int = 0) -> Path:
    """`count` short pairs of uneven length, as data_prep writes them."""
    rows = []
    for number in range(start, start + count):
        topic = _TOPICS[number % len(_TOPICS)]
        rows.append(
            {
                "prompt": f"\n\nHuman: Tell me about {topic}, part {number}.\n\nAssistant:",
                "chosen_response": f" Gladly. {topic.capitalize()} is a fine subject." * (1 + number % 3),
                "rejected_response": " No." if number % 2 else f" I do not talk about {topic}, go away.",
                "chosen_reward": 1.0,
                "rejected_reward": 0.0,
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_long_pairs(path: Path, tokenizer: Any, lengths: Sequence[int], response: int) -> list[dict[str, Any]]:
    """A pair for each of `lengths`, whose two sequences have just as many tokens, some `response` of them answers."""
    chance = random.Random(7)
    words = ["honey", "seven", "the old king", "prime", "rain on the sea", "a red bicycle", "Paris", "123"]

    def count(made: str) -> int:
        return len(tokenizer(made, add_special_tokens=False).input_ids)

    def text(made: str, tokens: int) -> str:
        while (left := tokens - count(made)) > 12:
            made += "".join(f" {chance.choice(words)}" for _ in range(max(1, left // 12)))
        return made + "!" * (tokens - count(made))

    rows = []
    for length in lengths:
        prompt = text("\n\nHuman: Go on.", length - response - 16) + "\n\nAssistant:"
        rest = length - count(prompt)
        row = {"prompt": prompt, "chosen_response": text(" Gladly:", rest), "rejected_response": text(" No:", rest)}
        rows.append({**row, "chosen_reward": 1.0, "rejected_reward": 0.0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def write_trial(
    folder: Path, model: str, nemo: Path, pairs: Mapping[str, Path], changes: Mapping[str, Any] | None = None
) -> Path:
    """FOLDER/config.yaml as the launcher would write it for `model=MODEL`; `changes` maps dotted keys to values.

    fp32 and no dropout, so that runs can be compared, unless `changes` has other.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from launcher.compose import hydra_app  # noqa: F401  # which lets Hydra find the project's plugins
    from launcher.compose.config_files import config_root
    from launcher.compose.resolvers import register_resolvers
    from launcher.nemo.lora import nemo_modules

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_root()), version_base="1.3"):
        config = compose("config", overrides=["cluster=local", f"model={model}"])
    OmegaConf.set_struct(config, False)
    settings = {
        "pretrained_checkpoint.restore_from_path": str(nemo),
        "model.data.data_prefix": {split: [str(path)] for split, path in pairs.items()},
        "model.peft.lora_tuning.adapter_dropout": 0.0,
        "trainer.precision": "32",
        "paths.cache": str(folder.parent / "cache"),
        **(changes or {}),
    }
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    tuning = config.model.peft.lora_tuning
    tuning.target_modules = nemo_modules(list(tuning.target_modules))
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    return folder
