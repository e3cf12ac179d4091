"""Hide secrets in what is shown or published: reports, tables, model cards.

The sweep's own folder (mode 0700) keeps overrides and configs as they are, since a job needs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

HIDDEN = "***"
#: All variables of the job's environment are hidden, whatever they are called.
_PRIVATE = re.compile(r"(^|\.)cluster\.environment(\.|$)")
_NAME = r"secret|passw|passphrase|credential|token(?!iz|s)|(?:api|access|private|auth|ssh)[_-]?key"
_SECRET_NAME = re.compile(rf"(?:{_NAME})|(?:^|[_.-])key$", re.IGNORECASE)
#: `NAME=value` and `name: value` inside a longer value, such as a line of cluster.setup.
_INSIDE = re.compile(
    rf"""((?<![A-Za-z0-9_])[A-Za-z0-9_-]*(?:{_NAME})[A-Za-z0-9_-]*["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s'",;}}\]]+)""",
    re.IGNORECASE,
)
#: Tokens that can be recognised by their prefix: Hugging Face, GitHub, GitLab, OpenAI and others like it, Slack.
_FORMS = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abp]-)[A-Za-z0-9_-]{16,}")


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether the value of a config key (such as `cluster.environment.HF_TOKEN`) must not be shown."""
    return bool(_PRIVATE.search(key) or _SECRET_NAME.search(key.rpartition(".")[2]))


def text(value: str) -> str:
    """`value` without the secrets that can be recognised in it."""
    return _FORMS.sub(HIDDEN, _INSIDE.sub(lambda match: match[1] + HIDDEN, value))


def override(word: str) -> str:
    """A Hydra override, or any other word of a command line, without secrets."""
    key, equals, value = word.partition("=")
    if not equals:
        return text(word)
    return f"{key}={HIDDEN}" if is_secret(key.lstrip("+~-")) else f"{key}={text(value)}"


def command(words: Iterable[str]) -> list[str]:
    """A command line without secrets."""
    return [override(word) for word in words]


def config(node: object, key: str = "") -> object:
    """A config, or the part of it below `key`, with every secret value hidden. Returns a copy."""
    if key and is_secret(key) and node is not None:
        return dict.fromkeys(node, HIDDEN) if isinstance(node, Mapping) else HIDDEN
    if isinstance(node, Mapping):
        return {name: config(value, f"{key}.{name}" if key else str(name)) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [config(value, key) for value in node]
    return text(node) if isinstance(node, str) else node
