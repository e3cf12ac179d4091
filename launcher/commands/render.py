"""stages: prepare_data, convert_checkpoint, dpo, sweep

examples:
  python -m launcher render sweep model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5      as launcher/main.py -m submits it
  python -m launcher render dpo model=tiny data=sample > dpo.sbatch                 one trial, to submit by hand
  python -m launcher render convert_checkpoint --checkpoint /models/Meta-Llama-3-8B
  python -m launcher render sweep cluster=slurm_pyxis cluster.partition=gpu | less

It submits and writes nothing. The trials are checked as before a submission; if the model or data do not exist yet,
stderr says so. The files in sbatch/ are the same scripts with a head for use by hand.

exit codes: 0 printed, 2 refused, with the findings on stderr
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.commands.pipeline import add_sources
from launcher.compose.hydra_state import HydraLauncher
from launcher.submit import compose_only
from launcher.submit.pipeline import Sources
from launcher.submit.rendering import STAGES, stage_text

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", metavar="STAGE", choices=STAGES, help=", ".join(STAGES))
    compose_only.add_words(parser)
    add_sources(parser)


def run(args: argparse.Namespace) -> int:
    line = compose_only.words(args, multirun=args.stage == "sweep" or args.multirun)
    if not any(word.lstrip("+").startswith("cluster=") for word in args.overrides):
        line.append("cluster=slurm")  # also on a machine without Slurm: the script is for a cluster
    sources = Sources(args.pairs, args.checkpoint)
    texts: list[str] = []

    def take(launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
        texts.extend(stage_text(args.stage, launcher, job_overrides, line, sources))
        return []

    code = compose_only.trials(line, ["launcher", "render", args.stage, *line], take)
    print("\n".join(texts), end="")
    return code
