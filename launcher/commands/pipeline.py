"""examples:
  python -m launcher pipeline experiment=beta_ablation --checkpoint /models/Meta-Llama-3-8B
  python -m launcher pipeline model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5 data=mine --pairs ~/pairs.jsonl.gz
  python -m launcher pipeline data=mine --pairs HuggingFaceH4/ultrafeedback_binarized  # from the hub
  python -m launcher pipeline experiment=beta_ablation model=tiny data=sample cluster.gpus_per_node=null

Submits Slurm jobs: the base model's conversion, the data's preparation, the sweep (one array), the report. Each starts
when the one before is done; if that failed, Slurm cancels it. A stage whose output exists already is left out.
Pairs with more tokens than model.encoder_seq_length, by the base model's tokenizer, are left out, as by
prepare_data.py --max-tokens; for its other options, run that program before. All trials are checked first, except for
the data and the model that a stage will make.

exit codes: 0 submitted, 1 sbatch did not answer (what may have been submitted is cancelled), 2 refused, with nothing
submitted
"""

from __future__ import annotations

import argparse

from launcher.submit import compose_only, pipeline


def add(parser: argparse.ArgumentParser) -> None:
    compose_only.add_words(parser)
    add_sources(parser)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Options for the sources of the data and the base model."""
    parser.add_argument("--pairs", metavar="SOURCE", help="the source of the data (default: the set named by data=)")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="the Hugging Face folder to convert into the .nemo")


def run(args: argparse.Namespace) -> int:
    pipeline.refuse_here()
    sources = pipeline.Sources(args.pairs, args.checkpoint)
    line = compose_only.words(args, multirun=True)
    return compose_only.trials(
        line, ["launcher", "pipeline", *line], lambda launcher, jobs: pipeline.submit(launcher, jobs, sources)
    )
