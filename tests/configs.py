"""Whole trial configs for tests in which only a few keys matter."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from launcher.compose import hydra_app  # noqa: F401  # which lets Hydra find the project's plugins
from launcher.compose.config_files import config_root
from launcher.compose.resolvers import register_resolvers
from launcher.compose.trials import ComposedConfig, checked
from launcher.dotted_keys import at
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.validate import validate


def plain(words: tuple[str, ...], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What config.yaml holds for these words of a command line, with other values at dotted keys."""
    made = copy.deepcopy(_composed(words))
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        at(made, section)[name] = value
    return made


def typed(words: tuple[str, ...], changes: Mapping[str, Any]) -> TrialConfig:
    """The same, validated. Raises Refused."""
    return validate(plain(words, changes), frozenset({"model"}))


@functools.cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_root()), version_base="1.3"):
        return checked(ComposedConfig(compose("config", overrides=[*words])).with_values({})).plain
