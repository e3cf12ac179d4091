"""Joins a resumed trial's TensorBoard event files, so that TensorBoard shows one curve without repeated steps."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from launcher import whole_file

_PATTERN = "events.out.tfevents.*"


def join(results: Path, step: int, validated: bool) -> None:
    """Move a trial's event files to one folder, and drop the events of steps that will be repeated.

    NeMo moves an earlier start's files to results/run_N/, which TensorBoard shows as a separate run. The trial resumes
    after `step` steps; `validated` says whether the validation at that step is done. NeMo-Aligner numbers training
    steps from 0; a validation has the number of steps done before it.
    """
    for path in sorted(results.glob(f"run_*/{_PATTERN}")):
        os.replace(path, results / path.name)
    for path in sorted(results.glob(_PATTERN)):
        kept = b"".join(record for record, event in _records(path) if _counts(event, step, validated))
        whole_file.write_bytes(path, kept)


def _counts(event: bytes, step: int, validated: bool) -> bool:
    from tensorboard.compat.proto.event_pb2 import Event

    parsed = Event.FromString(event)
    for value in parsed.summary.value:
        if value.tag.startswith("val/"):
            return bool(parsed.step < step or (validated and parsed.step == step))
        # All other tags are hyperparameters, which every start writes again.
        return value.tag.startswith("train/") and bool(parsed.step < step)
    return True  # the event with the format's version


def _records(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(record, event) of a TFRecord file: length, its checksum, the event, its checksum. Ignores a truncated last one.

    The format is given in TensorFlow's tensorflow/core/lib/io/record_writer.h.
    """
    data = path.read_bytes()
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        end = place + 12 + length + 4
        if end > len(data):
            return
        yield data[place:end], data[place + 12 : end - 4]
        place = end
