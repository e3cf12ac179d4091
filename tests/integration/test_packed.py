"""NeMo-Aligner's own reader of packed pairs gets the tokens and labels that its reader of unpacked pairs gets."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from data_prep.pairs.sources import SAMPLE
from data_prep.prepare_data import main
from tests.integration.conftest import REPOSITORY

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

SIZE = 512


def read_both(folder: Path, tokenizer_folder: Path) -> None:
    """Runs where NeMo is imported. Writes what the two readers made of each split to both.json."""
    import numpy as np
    from nemo.collections.common.tokenizers import AutoTokenizer
    from nemo_aligner.data.nlp.datasets import DPOModelDataset, DPOPackedDataset
    from omegaconf import OmegaConf

    tokenizer = AutoTokenizer(str(tokenizer_folder))
    config = OmegaConf.create({"data": {}})
    both = {}
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        packs = np.load(folder / f"{split}_packed.npy", allow_pickle=True)
        common = {"tokenizer": tokenizer, "name": split, "data_prefix": "", "seed": 1}
        plain = DPOModelDataset(
            config, documents=np.arange(len(rows)), data=rows, seq_length=SIZE // 2,
            pad_chosen_rejected_to_max=False, **common,
        )  # fmt: skip
        packed = DPOPackedDataset(config, documents=np.arange(len(packs)), data=packs, seq_length=SIZE, **common)
        expected = []
        for row in (plain[number] for number in range(len(rows))):
            assert not row["ignore_example"]
            sides = [
                (row[side].tolist(), row[f"{side}_labels"].tolist(), row[f"{side}_length"], row[f"{side}_reward"])
                for side in ("chosen", "rejected")
            ]
            expected.append(sides)
        found = []
        for pack in (packed[number] for number in range(len(packs))):
            batch = packed.global_collate_fn([pack], eos_id=tokenizer.eos_id)
            ends = batch["cu_seqlens"][0][: batch["cu_seqlens_argmin"][0]].tolist()
            unpadded = batch["cu_seqlens_unpadded"][0][: batch["cu_seqlens_unpadded_argmin"][0]].tolist()
            sides = []
            for number, length in enumerate(batch["lengths"][0].tolist()):
                one = slice(ends[number], ends[number + 1])
                assert batch["position_ids"][0][one].tolist() == list(range(length))
                assert unpadded[: number + 2] == ends[: number + 2]
                tokens, labels = batch["input_ids"][0][one].tolist(), batch["labels"][0][one].tolist()
                sides.append((tokens, labels, length, batch["rewards"][0][number].item()))
            assert ends[len(sides)] <= SIZE
            found += [sides[number : number + 2] for number in range(0, len(sides), 2)]
        both[split] = {"packs": len(packs), "expected": sorted(expected), "found": sorted(found)}
    (folder / "both.json").write_text(json.dumps(both))


def test_packed_pairs_are_the_unpacked_pairs(tiny_hf: Path, tmp_path: Path) -> None:
    words = [str(SAMPLE), "--tokenizer", str(tiny_hf), "--max-tokens", str(SIZE // 2), "--pack", str(SIZE)]
    assert main([*words, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "dataset.json").read_text())
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.preloaded"])
    process = context.Process(target=read_both, args=(tmp_path, tiny_hf))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    for split, both in json.loads((tmp_path / "both.json").read_text()).items():
        assert both["found"] == both["expected"]
        assert len(both["found"]) == record["rows"][split] == record["packed"][split]["pairs"]
        assert both["packs"] == record["packed"][split]["packs"] == record["files"][f"{split}_packed.npy"]["rows"]
    assert record["packed"]["train"]["filled"] > 0.8
