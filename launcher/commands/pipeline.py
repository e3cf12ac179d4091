"""examples:
  python -m launcher pipeline experiment=beta_ablation --checkpoint /models/Meta-Llama-3-8B
  python -m launcher pipeline model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5 data=mine --pairs ~/pairs.jsonl.gz
  python -m launcher pipeline data=mine --pairs HuggingFaceH4/ultrafeedback_binarized  # from the hub
  python -m launcher pipeline experiment=beta_ablation model=tiny data=sample cluster.gpus_per_node=null

Submits, as Slurm jobs: the base model's conversion, the data's preparation, the sweep (one array), the report; each
starts once the one before is done, and is cancelled by Slurm if that failed. What is there already is not made again.
Pairs with more tokens of the base model than model.encoder_seq_length are left out, as prepare_data.py --max-tokens
does; for its other options, call that program before. All trials are checked first; the data and the model that a stage
will make are not looked at.

exit codes: 0 submitted, 2 refused, with nothing submitted
"""

from __future__ import annotations

import argparse

from launcher.submit import for_commands, pipeline


def add(parser: argparse.ArgumentParser) -> None:
    for_commands.add_words(parser)
    add_sources(parser)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """What data and base model are made from."""
    parser.add_argument("--pairs", metavar="SOURCE", help="what the data are made from; default the set of that name")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="the Hugging Face folder that the .nemo is made from")


def run(args: argparse.Namespace) -> int:
    pipeline.refuse_here()
    sources = pipeline.Sources(args.pairs, args.checkpoint)
    line = for_commands.words(args, multirun=True)
    return for_commands.trials(
        line, ["launcher", "pipeline", *line], lambda launcher, each: pipeline.submit(launcher, each, sources)
    )
