"""What sweep.json holds, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired

Kind = Literal["slurm", "local", "stage", "evaluation"]


class SubmissionRecord(TypedDict, total=False):
    """A submission; see launcher.sweep.array_elements.Job."""

    kind: Kind
    id: str
    trials: list[int]
    submitted: str
    script: str
    name: str
    share: int
    code: int
    cluster: str


class GitState(TypedDict):
    """A commit, and whether tracked files were changed since."""

    commit: str
    dirty: bool


class TrialRecord(TypedDict):
    """A trial in sweep.json."""

    number: int
    overrides: list[str]
    beta: float | None


class ExperimentRecord(TypedDict, total=False):
    """The `experiment` part of the config."""

    name: str
    hypotheses: list[dict[str, object]]


class SweepRecord(TypedDict):
    """sweep.json."""

    format: int
    id: str
    created: str
    command: list[str]
    cwd: str
    user: str
    host: str
    git: GitState | None
    versions: dict[str, str]
    code: NotRequired[list[str]]
    """SHA-256 of each copy of the launcher's code in the folder."""
    experiment: ExperimentRecord
    trials: list[TrialRecord]
    jobs: list[SubmissionRecord]


PlainConfig: TypeAlias = Mapping[str, object]
#: Overrides and complete resolved config of a trial that is to be written.
NewTrial: TypeAlias = tuple[Sequence[str], PlainConfig]
