"""Loading the base model, and recomputing its activations: what is unpacked, and that losses stay what they are."""

from __future__ import annotations

import hashlib
import os
import socket
import tarfile
import tempfile

import pytest
from omegaconf import OmegaConf

from launcher.nemo.gpt_config import DIVISION

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

SHORT = {"trainer__dpo__max_steps": 3, "evaluation__kl_pairs": 2, "evaluation__samples": 0}


def in_tmpdir() -> None:
    """Temporary files go where TMPDIR says: Python has remembered another folder before the fork."""
    tempfile.tempdir = None


def counted() -> None:
    """A line in the file COUNTED for each time that a whole .nemo is unpacked (its config alone is read by all).

    Fails where ranks read all weights themselves.
    """
    in_tmpdir()
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

    from launcher.train.nemo_aligner import base_model

    share, load, shared = FullyParallelLoadStrategyWrapper.load, base_model.load_from_nemo, []

    def sharing(self, *args, **kwargs):
        shared.append(True)
        return share(self, *args, **kwargs)

    def loaded(*args, **kwargs):
        model = load(*args, **kwargs)
        assert shared, "the ranks do not share the reading"
        return model

    FullyParallelLoadStrategyWrapper.load, base_model.load_from_nemo = sharing, loaded
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    unpack = SaveRestoreConnector._unpack_nemo_file

    def watched(path2file, out_folder, members=None):
        if members is None:
            assert str(out_folder).startswith(os.environ["TMPDIR"])
            with open(os.environ["COUNTED"], "a") as file:
                file.write(f"{os.environ['RANK']}\n")
        return unpack(path2file, out_folder, members)

    SaveRestoreConnector._unpack_nemo_file = staticmethod(watched)


def without_room() -> None:
    from launcher.train.nemo_aligner import base_model

    base_model._SPARE = 1 << 60


def test_a_file_is_unpacked_once_a_node_and_a_folder_never(train, new_trial, tiny_nemo, tmp_path):
    folder, temporary = tmp_path / "tiny_folder", tmp_path / "temporary"
    temporary.mkdir()
    with tarfile.open(tiny_nemo) as archive:
        archive.extractall(folder, filter="data")
    divided = OmegaConf.load(folder / "model_config.yaml")
    divided.update(dict.fromkeys(DIVISION, 2))  # as whoever made it had divided his work, which is no matter of a trial
    OmegaConf.save(divided, folder / "model_config.yaml")
    losses = []
    for name, base, unpacked in (("file", tiny_nemo, 1), ("folder", folder, 0)):
        count = tmp_path / f"counted_{name}"
        trial = new_trial(name, trainer__devices=2, pretrained_checkpoint__restore_from_path=str(base), **SHORT)
        variables = {"COUNTED": count, "TMPDIR": temporary}
        done = train(trial, ranks=2, change=counted, variables=variables)
        assert done.exit_codes == [0, 0], done.said()
        assert len(count.read_text().split() if count.exists() else []) == unpacked
        assert not list(temporary.glob("dpo-launcher-*"))
        losses.append(done.values("train/loss"))
    assert losses[0] == losses[1]


def test_a_node_without_room_is_unfit(train, new_trial):
    trial = train(new_trial(**SHORT), change=without_room)
    assert trial.exit_codes == [1]
    assert "NodeUnfit: " in trial.said() and "TMPDIR" in trial.said()


def test_what_a_killed_start_left_is_removed(train, new_trial, tmp_path):
    folder = new_trial(**SHORT)
    trial = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
    left = tmp_path / f"dpo-launcher-{os.getuid()}-{trial}-{socket.gethostname()}-1.0"
    other_node = tmp_path / f"dpo-launcher-{os.getuid()}-{trial}-another_node-1.0"
    left.mkdir()
    other_node.mkdir()
    assert train(folder, change=in_tmpdir, variables={"TMPDIR": tmp_path}).exit_codes == [0]
    assert not left.exists()
    assert other_node.exists(), "TMPDIR may be a shared disk: another node's copy is not this node's to remove"


FULL = {"granularity": "full", "method": "uniform", "num_layers": 1}


@pytest.mark.parametrize("recomputed", [FULL, {"granularity": "selective"}], ids=lambda keys: keys["granularity"])
def test_recomputed_activations_change_no_loss(train, new_trial, recomputed):
    """With LoRA, whose frozen embedding gives an output without a gradient, and with dropout."""
    keys = {**SHORT, "model__peft__lora_tuning__adapter_dropout": 0.1}
    kept = train(new_trial("kept", **keys))
    less = {f"model__activations_checkpoint_{key}": value for key, value in recomputed.items()}
    again = train(new_trial("recomputed", **keys, **less))
    assert again.exit_codes == [0], again.said()
    assert again.values("train/loss") == pytest.approx(kept.values("train/loss"), abs=1e-6)
    assert again.values("train/grad_norm") == pytest.approx(kept.values("train/grad_norm"), rel=1e-4)
    assert kept.values("train/grad_norm")[2] > 0
