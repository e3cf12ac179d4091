"""launcher.train.nemo_aligner.event_files: what TensorBoard shows of a trial that was started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.train.nemo_aligner import event_files

pytest.importorskip("tensorboard")


def write(folder: Path, name: str, scalars: list[tuple[str, int, float]]) -> Path:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{name}"
    with path.open("wb") as stream:
        writer = RecordWriter(stream)
        writer.write(Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for tag, step, value in scalars:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.write(Event(wall_time=2.0, step=step, summary=summary).SerializeToString())
    return path


def shown(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)] if tag in found.Tags()["scalars"] else []


def first_start(results: Path) -> Path:
    """Five steps, validated after 0, 2 and 4."""
    losses = [("train/loss", step, 10.0 + step) for step in range(5)]
    validations = [("val/loss", step, 20.0 + step) for step in (0, 2, 4)]
    return write(results / "run_0", "100.host.1.0", [("hp_metric", 0, -1.0), *losses, *validations])


def test_what_will_be_done_again_is_left_out(tmp_path):
    first_start(tmp_path)
    event_files.join(tmp_path, step=4, validated=True)
    write(tmp_path, "200.host.1.0", [("hp_metric", 0, -1.0), ("train/loss", 4, 34.0), ("train/loss", 5, 35.0)])
    assert shown(tmp_path, "train/loss") == [(0, 10), (1, 11), (2, 12), (3, 13), (4, 34), (5, 35)]
    assert shown(tmp_path, "val/loss") == [(0, 20), (2, 22), (4, 24)]
    assert shown(tmp_path, "hp_metric") == [(0, -1)]
    assert not list(tmp_path.glob("run_*/*"))


def test_a_validation_that_is_owed_is_left_out(tmp_path):
    first_start(tmp_path)
    event_files.join(tmp_path, step=4, validated=False)
    assert shown(tmp_path, "val/loss") == [(0, 20), (2, 22)]
    event_files.join(tmp_path, step=0, validated=False)
    assert shown(tmp_path, "val/loss") == shown(tmp_path, "train/loss") == []


def test_a_file_cut_off_in_its_last_event(tmp_path):
    path = first_start(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    event_files.join(tmp_path, step=4, validated=True)
    assert shown(tmp_path, "val/loss") == [(0, 20), (2, 22)]
    assert len(shown(tmp_path, "train/loss")) == 4
