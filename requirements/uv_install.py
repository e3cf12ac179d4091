"""Install with uv what pip would install, with pip's settings: uv_install.py ARGUMENT... (as for `uv pip install`)

uv is some eight times as fast as pip, but reads neither pip's configuration files nor its PIP_* variables. This reads
them as pip does (`pip config list`) and hands them to uv. Exit code 3: a setting is in force that uv has nothing for,
so that pip has to install. Settings that name servers travel in the environment, since they may hold passwords.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

NOT_TRANSLATED = 3
_IN_FORCE = ("global", "install", ":env:")  # later sections override earlier ones, as in pip
# pip's setting -> the variables in which uv takes the same value, and what separates the values of a list there.
_VARIABLES = {
    "index-url": (("UV_INDEX_URL",), " "),
    "extra-index-url": (("UV_EXTRA_INDEX_URL",), " "),
    "find-links": (("UV_FIND_LINKS",), ","),
    "trusted-host": (("UV_INSECURE_HOST",), " "),
    "cert": (("SSL_CERT_FILE",), ""),
    "client-cert": (("SSL_CLIENT_CERT",), ""),
    "proxy": (("HTTP_PROXY", "HTTPS_PROXY"), ""),
    "timeout": (("UV_HTTP_TIMEOUT",), ""),
    "default-timeout": (("UV_HTTP_TIMEOUT",), ""),
    "keyring-provider": (("UV_KEYRING_PROVIDER",), ""),
}
_LIST_OPTIONS = ("constraint", "no-binary", "only-binary")
_SWITCHES = {"no-index": "--no-index", "pre": "--prerelease=allow"}
# These change how pip talks, not what it installs.
_WITHOUT_EFFECT = {
    "break-system-packages", "cache-dir", "compile", "config-file", "disable-pip-version-check", "exists-action", "log",
    "no-cache-dir", "no-color", "no-compile", "no-input", "no-python-version-warning", "no-warn-script-location",
    "prefer-binary", "progress-bar", "quiet", "require-virtualenv", "resume-retries", "retries", "root-user-action",
    "use-feature", "verbose",
}  # fmt: skip


@dataclass
class Translation:
    """pip's settings as uv takes them; `unknown` are the settings that change an install and have no translation."""

    environment: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def settings(lines: Iterable[str]) -> dict[str, str]:
    """{setting: value} in force for `pip install`, from the lines of `pip config list` (section.name='value')."""
    sections: dict[str, dict[str, str]] = {section: {} for section in _IN_FORCE}
    for line in lines:
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in sections:
            sections[section][key.lower().replace("_", "-")] = str(ast.literal_eval(value))
    return {key: value for section in _IN_FORCE for key, value in sections[section].items()}


def translate(pip: Mapping[str, str]) -> Translation:
    result = Translation()
    for key, value in pip.items():
        if key in _VARIABLES:
            variables, separator = _VARIABLES[key]
            joined = separator.join(value.split()) if separator else value
            result.environment.update(dict.fromkeys(variables, joined))
        elif key in _LIST_OPTIONS:
            result.options += [f"--{key}={item}" for item in value.split()]
        elif key in _SWITCHES:
            if value.lower() in ("1", "true", "yes", "on", "y", "t"):
                result.options.append(_SWITCHES[key])
        elif key not in _WITHOUT_EFFECT:
            result.unknown.append(key)
    return result


def main(arguments: list[str]) -> int:
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    translation = translate(settings(listed.splitlines()))
    if translation.unknown:
        print(f"pip's settings {', '.join(translation.unknown)} have no counterpart in uv")
        return NOT_TRANSLATED
    # Several indexes are one to pip: the best version of any. The system's certificates are pip's default, not uv's.
    defaults = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "1", **translation.environment}
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "pip", "install", "--python", sys.executable, *translation.options, *arguments]
    return subprocess.run(command, env={**defaults, **os.environ}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
