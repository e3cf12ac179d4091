"""HF's LoRA module names become NeMo's fused ones, or are refused with the reason; parameter counts are the papers'."""

import pytest

from launcher.findings import Refused
from launcher.nemo import lora
from launcher.trial_config.model import LoraTuning

LLAMA3_8B = {
    "num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_query_groups": 8, "ffn_hidden_size": 14336,
    "share_embeddings_and_output_weights": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"],
        ),
        (["down_proj", "o_proj"], ["attention_dense", "mlp_fc2"]),
        (["attention"], ["attention_qkv", "attention_dense"]),
        (["all"], list(lora.FUSED)),
        (["all-linear"], list(lora.FUSED)),
        (["attention_qkv", "q_proj"], ["attention_qkv"]),  # the fused name already covers the part
    ],
)
def test_translation(names: list[str], expected: list[str]) -> None:
    assert lora.nemo_modules(names) == expected


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["q_proj"], "k_proj and v_proj missing"),
        (["q_proj", "v_proj"], "k_proj missing"),
        (["up_proj"], "gate_proj missing"),
        (["qkv"], "no such module"),
    ],
)
def test_no_translation(names: list[str], why: str) -> None:
    with pytest.raises(Refused, match=why):
        lora.nemo_modules(names)


def test_llama3_8b_counts() -> None:
    """8,030,261,248 parameters are Meta's own figure; 71,303,168 trained at rank 32 with NeMo's fused matrices."""
    tuning = LoraTuning(
        adapter_dim=32, target_modules=list(lora.FUSED), alpha=32, adapter_dropout=0, column_init_method="xavier",
        row_init_method="zero", layer_selection=None, weight_tying=False, position_embedding_strategy=None,
    )  # fmt: skip
    assert lora.parameters(LLAMA3_8B, 128256) == 8_030_261_248
    assert lora.trainable_parameters(LLAMA3_8B, tuning) == 71_303_168
    one_layer = tuning.model_copy(update={"layer_selection": [1]})
    assert lora.trainable_parameters(LLAMA3_8B, one_layer) == 71_303_168 // 32
