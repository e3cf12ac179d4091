"""The same configs on stock hydra-submitit-launcher: the app that launcher/main.py is measured against."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf

OmegaConf.register_new_resolver("multiply", lambda a, b: a * b)
OmegaConf.register_new_resolver("int_div", lambda a, b: a // b)


@hydra.main(version_base="1.3", config_path="../../configs", config_name="config")
def train(config: DictConfig) -> None:
    """What a job would run; here none does."""


if __name__ == "__main__":
    train()
