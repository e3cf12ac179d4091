"""Keeps out of the logs what NeMo repeats on every run or for every pair, and what a user cannot act on."""

from __future__ import annotations

import logging
import os
import re
import warnings

#: NeMo's own log lines to drop: each is about a default that is right, or about something that DPO does not use.
_LINES = re.compile(
    "|".join(
        (
            r"does not have field\.name: ",  # a Megatron option the .nemo does not set, some 50 of them
            r"Pre-formatting chat conversation as string",  # for every pair, in every batch (Aligner's datasets.py)
            r"Importing NeMo-Aligner sets DISABLE_TORCH_DEVICE_SET",
            r"Unexpected model config for Llama3",
            r"Ignoring `trainer\.max_epochs` when computing",  # both are set, and they agree
            r"running multi-node training without SLURM",  # Lightning learns Slurm's ranks from torch's variables
            r"ExpManager schema|^\{'explicit_log_dir'",  # every default of exp_manager, 4,000 characters of them
            r"^(All|Ranks?) .* (group|rank)s?\b",  # a dozen lines about groups of one rank each
            r"DistributedCheckpointIO configured but should not be used",  # adapters are saved by plain torch
            r"apply_query_key_layer_scaling is only enabled when using FP16",
            r"told to monitor a validation value and trainer's max_steps",
            r"is experimental and not ready for production",  # the sampler that NeMo-Aligner's examples use
            r"keys will be ignored\. You need to call `lr_scheduler\.step",
            r"`MixedPrecisionPlugin` is deprecated",
            r"TFLOPs per sec per GPU will be calculated",
            r"Preemption is supported only on GPUs",
            r"There were no checkpoints found in checkpoint_dir",
        )
    )
)
_WARNINGS = (
    (r".*Apex is not installed.*", UserWarning),  # launcher.train.nemo_aligner.standins stands in for it
    (r".*megatron\.core\.transformer\.custom_layers.*", DeprecationWarning),
    (r".*torch\.utils\._pytree.*", UserWarning),
    (r".*pin_memory.*no accelerator.*", UserWarning),
    (r".*User provided device_type of 'cuda'.*", UserWarning),
    (r".*TypedStorage is deprecated.*", UserWarning),
    (r".*_all_gather_base.*", UserWarning),
    (r".*weights_only=False.*", FutureWarning),
)


def quiet() -> None:
    """Call before NeMo is imported. Errors and warnings about the run itself still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids a warning at every fork of the checkpoint writer
    os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars: launcher.train.metrics_file prints a line per step
    for pattern, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern, category=category)
    warnings.filterwarnings("ignore", category=SyntaxWarning)  # Python 3.12 warns of NeMo's string escapes
    logging.getLogger("nemo_logger").addFilter(_wanted)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_not_a_device_list)


def files_only() -> None:
    """Call after NeMo's import: its INFO lines then go only to its log file in results/; warnings also go to stderr."""
    for handler in logging.getLogger("nemo_logger").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(lambda record: record.levelno > logging.INFO)


def _text(record: logging.LogRecord) -> str:
    """The message, unformatted if that fails: init_peft's format string has no place for its argument."""
    try:
        return record.getMessage()
    except TypeError:
        return str(record.msg)


def _wanted(record: logging.LogRecord) -> bool:
    return _LINES.search(_text(record)) is None


def _not_a_device_list(record: logging.LogRecord) -> bool:
    return re.match(r"(GPU|TPU|HPU) available: ", _text(record)) is None
