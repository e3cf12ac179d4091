"""python -m launcher export, on made-up trials: what is chosen and refused, the folders, rows cut and joined."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from launcher import __main__ as command
from launcher.findings import Refused
from launcher.sweep.folder import Sweep

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from data_prep import convert_checkpoint  # noqa: E402
from data_prep.models import adapters, small_models  # noqa: E402
from data_prep.models import export as exporting  # noqa: E402
from tests.unit.export_sweep import ALPHA, NAMES, RANK, config, finish, matrices, states, write_nemo  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """models/tiny.nemo, and its HF folder in models/hf."""
    folder = tmp_path_factory.mktemp("models")
    small_models.ensure("tiny", folder / "hf")
    return convert_checkpoint.convert("tiny", folder / "tiny.nemo", verify=False)


@pytest.fixture
def sweep(tmp_path, base) -> Sweep:
    """Three trials, of which 0 and 1 are done."""
    data = tmp_path / "data" / "train.jsonl"
    data.parent.mkdir()
    data.write_text("{}\n")
    described = {"source": {"name": "sample"}, "files": {"train.jsonl": {"rows": 1, "bytes": 3, "sha256": "c0ffee"}}}
    (data.parent / "dataset.json").write_text(json.dumps(described))
    betas = (0.05, 0.1, 0.5)
    trials = [([f"model.dpo.ref_policy_kl_penalty={beta}"], config(base, beta, data)) for beta in betas]
    made = Sweep.create(tmp_path / "sweep", command=["main.py", "-m"], experiment={"name": "t"}, trials=trials)
    finish(made, 0, accuracy=0.75)
    finish(made, 1, accuracy=0.5, drift=2.0)
    return made


def export(*words) -> int:
    return command.main(["export", *map(str, words)])


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_shares_of_all_ranks_are_joined(tmp_path, tensor, pipeline):
    whole = matrices()
    found = adapters.read(write_nemo(tmp_path / "a.nemo", states(whole, tensor, pipeline)))
    assert found.fused.keys() == whole.keys()
    for key, pair in whole.items():
        assert all(torch.equal(got, want) for got, want in zip(found.fused[key], pair, strict=True)), key
    assert (found.rank, found.alpha, found.layers) == (RANK, ALPHA, [0, 1])


def test_fused_rows_go_to_their_projections(tmp_path):
    """B's first column counts its rows: qkv goes by group (two query heads, key, value of 16 rows each), then fc1."""
    whole = {
        (0, module): (into, torch.arange(len(out)).float()[:, None].expand(-1, RANK).clone())
        for (_, module), (into, out) in matrices(layers=(0,)).items()
    }
    pairs = dict(adapters.read(write_nemo(tmp_path / "a.nemo", states(whole))).pairs())

    def rows(name: str) -> list[int]:
        return [int(value) for value in pairs[f"model.layers.0.{name}"][1][:, 0]]

    assert rows("self_attn.q_proj") == [*range(32), *range(64, 96)]
    assert rows("self_attn.k_proj") == [*range(32, 48), *range(96, 112)]
    assert rows("self_attn.v_proj") == [*range(48, 64), *range(112, 128)]
    assert rows("mlp.gate_proj") == list(range(160))
    assert rows("mlp.up_proj") == list(range(160, 320))
    assert rows("self_attn.o_proj") == rows("mlp.down_proj") == list(range(64))
    assert torch.equal(pairs["model.layers.0.self_attn.k_proj"][0], whole[0, "attention_qkv"][0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda saved: saved[""].pop(next(iter(saved[""]))), "lacks a matrix of attention_qkv of layer 0"),
        (
            lambda saved: saved[""].update(
                {f"model.decoder.layers.1.{NAMES['mlp_fc2']}.linear_in.weight": torch.ones(4, 9)}
            ),
            "has shapes",
        ),
        (lambda saved: saved[""].update({"model.decoder.layers.0.mlp.norm.weight": torch.ones(1)}), "not LoRA's"),
        (lambda saved: saved.clear(), "no adapter weights"),
        (lambda saved: saved.update({"mp_rank_02/": saved.pop("")}), "weights of 1 ranks, but 3 x 1 are needed"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, said):
    saved = states(matrices())
    change(saved)
    with pytest.raises(Refused, match=said):
        adapters.read(write_nemo(tmp_path / "a.nemo", saved))


def test_tied_adapters_are_refused(tmp_path):
    with pytest.raises(Refused, match="which peft cannot express"):
        adapters.read(write_nemo(tmp_path / "a.nemo", states(matrices()), {"weight_tying": True}))


def test_alpha_is_the_rank_where_none_is_set(tmp_path):
    assert adapters.read(write_nemo(tmp_path / "a.nemo", states(matrices()), {"alpha": None})).alpha == RANK


# --- folders ----------------------------------------------------------------------------------------------------------


def test_adapter_folder_is_what_peft_and_vllm_look_for(sweep, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(sweep.folder, 1, "--out", out) == 0
    assert "trial 1 (beta 0.1), a LoRA adapter" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= names
    assert "config.json" not in names  # a folder with one is taken for a whole model
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", RANK, ALPHA, "none")
    assert config["modules_to_save"] is None and not config["use_dora"]  # vLLM takes no adapter that has them
    assert config["base_model_name_or_path"] == "tiny"
    weights = safetensors.load_file(out / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2  # layers, projections, A and B
    for name, weight in weights.items():
        module, matrix = name.removesuffix(".weight").rsplit(".", 1)
        assert module.startswith("base_model.model.model.layers.")
        assert module.rpartition(".")[2] in config["target_modules"]
        assert weight.shape[{"lora_A": 0, "lora_B": 1}[matrix]] == RANK
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {(out / "README.md").stat().st_mode & 0o777}


def test_merged_weights_are_scaled_by_alpha_over_rank(sweep, base, tmp_path):
    assert export(sweep.folder, 0, "--out", tmp_path / "out", "--merge") == 0
    merged = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    before = safetensors.load_file(base.parent / "hf" / "tiny" / "model.safetensors")
    assert merged.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed == {name for name in before if "_proj" in name}
    into, out = matrices()[1, "mlp_fc2"]
    expected = before["model.layers.1.mlp.down_proj.weight"] + ALPHA / RANK * out @ into
    torch.testing.assert_close(merged["model.layers.1.mlp.down_proj.weight"], expected)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "README.md"} <= names and "adapter_config.json" not in names


def test_some_modules_of_some_layers(sweep, tmp_path):
    nemo = sweep.trials[0].folder / "results" / "checkpoints" / "megatron_gpt.nemo"
    write_nemo(nemo, states(matrices(("attention_qkv",), (1,))))
    assert export(sweep.folder, 0, "--out", tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "k_proj", "v_proj"]
    assert (config["layers_to_transform"], config["layers_pattern"]) == ([1], "layers")


@pytest.mark.parametrize("ranks", [1, 2])
def test_last_checkpoint_serves_where_there_is_no_nemo(sweep, tmp_path, ranks):
    assert export(sweep.folder, 0, "--out", tmp_path / "nemo") == 0
    checkpoints = sweep.trials[0].folder / "results" / "checkpoints"
    (checkpoints / "megatron_gpt.nemo").unlink()
    for folder, state in states(matrices(), ranks).items():
        (checkpoints / folder).mkdir(exist_ok=True)
        torch.save({"state_dict": state, "loops": {}}, checkpoints / folder / "megatron_gpt--step=10-last.ckpt")
    assert export(sweep.folder, 0, "--out", tmp_path / "last") == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "nemo" / name).read_bytes() == (tmp_path / "last" / name).read_bytes(), name


def test_model_card(sweep, tmp_path):
    assert export(sweep.folder, 0, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {"base_model": "tiny", "library_name": "peft", "license": "mit", "tags": ["dpo", "lora"]}
    for said in (
        "| beta | 0.05 (dpo loss) |",
        "rank 4, alpha 6",
        "| steps | 10 of 4 pairs, 40 pairs seen |",
        "main.py -m",
    ):
        assert said in text, said
    assert "sample: train.jsonl, 1 pairs, SHA-256 c0ffee" in text
    assert "gone.jsonl, SHA-256 unknown: the file is missing" in text
    assert "model.dpo.ref_policy_kl_penalty=0.05" in text


def test_model_card_of_changed_data_and_unknown_licence(sweep, base, tmp_path):
    import hashlib

    data = tmp_path / "data" / "train.jsonl"
    data.write_text("{}\n{}\n")
    other = tmp_path / "other.nemo"
    small = tmp_path / "other"
    small.mkdir()
    small_models.write_random_llama(small)
    convert_checkpoint.convert(str(small), other, verify=False)
    file = sweep.trials[0].folder / "config.yaml"
    file.write_text(file.read_text().replace(str(base), str(other)))
    assert export(sweep.folder, 0, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"sample: train.jsonl, SHA-256 {hashlib.sha256(data.read_bytes()).hexdigest()}" in text
    assert "| licence of the base model | unknown" in text
    assert "license" not in text.split("---")[1]


def test_no_secret_stands_in_the_card(sweep, tmp_path):
    secret = "hf_SECRET1234567890abcdef"
    data = json.loads((sweep.folder / "sweep.json").read_text())
    data["command"] += [f"+cluster.environment.HF_TOKEN={secret}"]
    data["trials"][0]["overrides"] += [f"+cluster.environment.HF_TOKEN={secret}", f"+x.api_key={secret}"]
    (sweep.folder / "sweep.json").write_text(json.dumps(data))
    assert export(sweep.folder, 0, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert secret not in text
    assert text.count("cluster.environment.HF_TOKEN=***") == 2 and "x.api_key=***" in text


# --- what is chosen, what is refused ----------------------------------------------------------------------------------


def test_best_by_accuracy_or_as_asked(sweep, tmp_path, capsys):
    assert export(sweep.folder, "--best", "--out", tmp_path / "a") == 0
    said = capsys.readouterr()
    assert "trial 0 (beta 0.05): best accuracy of 2 trials: 0.75" in said.err
    assert "1 more have no result" in said.err
    assert export(sweep.folder, "--best", "--by", "margin", "--out", tmp_path / "b") == 0
    assert "trial 1 (beta 0.1): best reward margin" in capsys.readouterr().err
    finish(sweep, 1, accuracy=0.75, drift=0.5)
    assert export(sweep.folder, "--best", "--out", tmp_path / "c") == 0
    assert "trial 1 (beta 0.1): best accuracy of 2 trials" in capsys.readouterr().err  # of equals, the least drift


REFUSED = {
    "not done": (["2"], "trial 2 (beta 0.5): has no result"),
    "two trials": (["0-1"], "2 trials match"),
    "no trial named": ([], "3 trials match"),
    "best and a trial": (["1", "--best"], "combined with --best"),
    "by without best": (["1", "--by", "loss"], "only with --best"),
    "best by what betas cannot be ranked by": (["--best", "--by", "loss"], "depends on beta itself"),
    "best by what nobody measured": (["--best", "--by", "kl"], "no trial that is done has its KL"),
}


@pytest.mark.parametrize(("words", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(sweep, tmp_path, capsys, words, said):
    assert export("--sweep", sweep.folder, *words, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trial_of_all_weights_is_pointed_elsewhere(sweep, tmp_path, capsys):
    file = sweep.trials[0].folder / "config.yaml"
    file.write_text(file.read_text().replace("peft_scheme: lora", "peft_scheme: none"))
    assert export(sweep.folder, 0, "--out", tmp_path / "out") == 2
    assert "convert_checkpoint.py --to hf" in capsys.readouterr().err


def test_gone_adapters_and_a_gone_base(sweep, tmp_path, capsys):
    file = sweep.trials[0].folder / "config.yaml"
    file.write_text(file.read_text().replace("tiny.nemo", "gone.nemo"))
    assert export(sweep.folder, 0, "--out", tmp_path / "out", "--merge") == 2
    assert "the base model of the trial does not exist" in capsys.readouterr().err
    (sweep.trials[0].folder / "results" / "checkpoints" / "megatron_gpt.nemo").unlink()
    assert export(sweep.folder, 0, "--out", tmp_path / "out") == 2
    assert "has no adapters" in capsys.readouterr().err


def test_another_folder_is_never_replaced(sweep, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(sweep.folder, 0, "--out", out) == 0
    assert export(sweep.folder, 1, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert export(sweep.folder, 1, "--out", out, "--force") == 0
    assert "beta 0.1" in (out / "README.md").read_text()
    assert export(sweep.folder, 1, "--out", tmp_path / "data", "--force") == 2
    assert "with other files in it" in capsys.readouterr().err
    assert (tmp_path / "data" / "train.jsonl").exists()


def test_all_adapters_side_by_side(sweep, tmp_path, capsys):
    """What vLLM is started with names each folder; the adapters are those of single exports."""
    out = tmp_path / "adapters"
    assert export(sweep.folder, "--all", "--out", out, "--base", "org/base") == 0
    said = capsys.readouterr().out
    assert "2 LoRA adapters" in said
    assert "1 more have no result" in said
    (command_line,) = [line for line in said.splitlines() if line.startswith("vllm serve")]
    words = command_line.split()
    assert words[2] == "org/base"
    assert words[words.index("--max-loras") + 1] == "2"
    assert int(words[words.index("--max-lora-rank") + 1]) == 8, "the least that vLLM takes for rank 4"
    assert words[words.index("--lora-modules") + 1 :] == [f"trial0={out / 'trial0'}", f"trial1={out / 'trial1'}"]
    for number in (0, 1):
        assert export(sweep.folder, number, "--out", tmp_path / str(number), "--base", "org/base") == 0
        ours = {file.name: file.read_bytes() for file in (out / f"trial{number}").iterdir()}
        alone = {file.name: file.read_bytes() for file in (tmp_path / str(number)).iterdir()}
        assert alone.pop(".dpo-launcher.json")
        assert ours == alone
    assert export(sweep.folder, "--all", "--out", out) == 2
    assert "--force to replace" in capsys.readouterr().err


def test_all_of_different_bases_or_of_none_are_refused(sweep, base, tmp_path, capsys):
    for words in (["--best"], ["--merge"], [0]):
        assert export(sweep.folder, *words, "--all", "--out", tmp_path / "out") == 2
        assert "does not go with --all" in capsys.readouterr().err
    shutil.copyfile(base, tmp_path / "other.nemo")
    file = sweep.trials[1].folder / "config.yaml"
    file.write_text(file.read_text().replace(str(base), str(tmp_path / "other.nemo")))
    assert export(sweep.folder, "--all", "--out", tmp_path / "out") == 2
    assert "2 base models" in capsys.readouterr().err
    for trial in sweep.trials:
        (trial.folder / "result.json").unlink(missing_ok=True)
    assert export(sweep.folder, "--all", "--out", tmp_path / "out") == 2
    assert "no trial has a result" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_fails_leaves_nothing(sweep, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(exporting, "card", fail)
    with pytest.raises(RuntimeError):
        export(sweep.folder, 0, "--out", tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_moved_sweep_is_exported_from_where_it_is(sweep, tmp_path):
    moved = sweep.folder.rename(tmp_path / "moved")
    assert export(moved, 0, "--out", tmp_path / "out") == 0
