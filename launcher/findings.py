"""Errors in a user's request, in a form that can be collected and printed together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that would fail.

    `where` is the key, file or file:line; `value` its value ("" if that explains nothing);
    `why` the problem; `remedy` what to write or run instead.
    """

    where: str
    value: str
    why: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.where}={self.value}: {self.why}" if self.value else f"{self.where}: {self.why}"
        line = f"{line}; {self.remedy}" if self.remedy else line
        return " ".join(line.split())  # one finding is one line, whatever a value contains


class LauncherError(Exception):
    """An error that commands report without a traceback: str() is the message.

    `exit_code` is the exit code of the process: 1 something failed, 2 refused before anything was started.
    """

    exit_code = 1


class Refused(LauncherError):
    """The request was refused before anything was started or written. Carries every finding."""

    exit_code = 2

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = list(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))
