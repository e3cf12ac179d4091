"""Logits of a text by HF's model and by NeMo's, for the proof: with whole models, or layer by layer in bounded memory.

Layer by layer nothing of the computation changes: each of HF's decoder layers is filled from the safetensors and run,
one after the other; then one layer of NeMo's model, which Megatron's own loading fills from the packed file again and
again. Embeddings and output layers go by blocks of rows. In memory: a layer in fp32, a block, activations, logits.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from data_prep.models.hf_folder import HFFolder, open_folder
from data_prep.models.llama_shape import FAMILIES
from data_prep.models.proof import Failed, ProofJob
from data_prep.models.proof_rope import set_frequencies
from data_prep.models.torch_dist import LAYERS, CheckpointReader
from launcher.nemo.nemo_file import unpack_tokenizer

_ROWS = 8192  # of an embedding at a time
_EMBEDDING, _OUTPUT = "model.embedding.word_embeddings.weight", "model.output_layer.weight"

Say = Callable[..., None]


def whole(job: ProofJob, ids: list[int], say: Say) -> tuple[torch.Tensor, torch.Tensor]:
    """(NeMo's, HF's) logits [tokens, vocabulary] of `ids`, by NeMo's restore of the file and transformers' loading."""
    from transformers import AutoModelForCausalLM

    say(phase="computing HF's logits")
    stored = _stored(job)
    options = {"torch_dtype": stored, "attn_implementation": "eager", "trust_remote_code": False}
    hf = AutoModelForCausalLM.from_pretrained(job["hf"], **options).float().eval()
    set_frequencies(hf.model.rotary_emb, Path(job["hf"]))
    tokens = torch.tensor([ids])
    with torch.no_grad():
        expected = hf(tokens).logits[0]
    embedding = hf.get_input_embeddings().weight
    del hf
    say(phase="restoring the .nemo with NeMo")
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel

    from launcher.train.nemo_aligner.rotary import scale_frequencies

    with tempfile.TemporaryDirectory() as scratch:
        config, restore = _config(job, scratch)
        model = MegatronGPTModel.restore_from(**restore, override_config_path=config, strict=True).eval()
        scale_frequencies(model, config)
        _check_tokens(model, job, ids)
    if not torch.equal(model.model.embedding.word_embeddings.weight, embedding):  # the text uses few of its rows
        raise Failed("the embeddings of NeMo's model are not HF's")
    say(phase="computing NeMo's logits")
    with torch.no_grad():
        return model(tokens, torch.arange(len(ids))[None], _mask(len(ids)), None)[0].float(), expected


def by_layer(job: ProofJob, ids: list[int], say: Say) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `whole`, in bounded memory. It compares all embedding rows, and computes with those of the text."""
    folder, reader = open_folder(Path(job["hf"])), CheckpointReader(Path(job["nemo"]))
    shape = folder.shape
    if reader.shapes[_EMBEDDING][0] < shape.vocab:
        raise Failed("the embedding of the .nemo has fewer rows than HF's")
    hidden = torch.empty(len(ids), shape.hidden)
    wanted = torch.tensor(ids)
    for first, rows in _blocks(folder, "model.embed_tokens.weight", _stored(job)):
        say(phase=f"comparing embeddings, row {first}")
        if not torch.equal(reader.region(_EMBEDDING, (first, 0), rows.shape), rows):
            raise Failed("the embeddings of the .nemo are not HF's")
        here = (wanted >= first) & (wanted < first + len(rows))
        hidden[here] = rows[wanted[here] - first].float()
    states = {"HF": _hf_states(folder, hidden, _stored(job), say), "NeMo": _nemo_states(job, reader, hidden, ids, say)}
    expected, got = torch.empty(len(ids), shape.vocab), torch.empty(len(ids), shape.vocab)
    name, key = ("model.embed_tokens.weight", _EMBEDDING) if shape.tied else ("lm_head.weight", _OUTPUT)
    for first, rows in _blocks(folder, name, _stored(job)):
        say(phase=f"computing logits, row {first} of the output layer")
        place = slice(first, first + len(rows))
        expected[:, place] = states["HF"] @ rows.float().T
        got[:, place] = states["NeMo"] @ reader.region(key, (first, 0), rows.shape).float().T
    return got, expected


def _stored(job: ProofJob) -> torch.dtype:
    return torch.bfloat16 if job["precision"] == "bf16" else torch.float32


def _mask(length: int) -> torch.Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)  # True: masked out


def _read(folder: HFFolder, name: str, stored: torch.dtype, first: int = 0, end: int | None = None) -> torch.Tensor:
    with safe_open(folder.files[name], framework="pt") as file:  # reopened each time, so that its pages are freed
        rows: torch.Tensor = file.get_slice(name)[first:end]
        return rows.to(stored, copy=True)


def _fp32(folder: HFFolder, name: str, stored: torch.dtype) -> torch.Tensor:
    """A whole weight, widened by blocks of rows, so that it is in memory only once, in fp32."""
    size = folder.shape.tensors()[name]
    weight = torch.empty(size)
    for first in range(0, size[0], 1024):
        weight[first : first + 1024] = _read(folder, name, stored, first, min(first + 1024, size[0]))
    return weight


def _blocks(folder: HFFolder, name: str, stored: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    """(first row, rows) of an embedding."""
    for first in range(0, folder.shape.vocab, _ROWS):
        yield first, _read(folder, name, stored, first, min(first + _ROWS, folder.shape.vocab))


@torch.no_grad()
def _hf_states(folder: HFFolder, hidden: torch.Tensor, stored: torch.dtype, say: Say) -> torch.Tensor:
    """The input of HF's output layer, [tokens, hidden], for embeddings of the same shape."""
    from transformers import AutoConfig

    family = folder.shape.family
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")

    def of_family(name: str) -> Any:
        return getattr(modeling, f"{FAMILIES[family].prefix}{name}")

    config = AutoConfig.from_pretrained(folder.path, attn_implementation="eager", trust_remote_code=False)
    length = len(hidden)
    rotary = of_family("RotaryEmbedding")(config)
    set_frequencies(rotary, folder.path)
    angles = rotary(hidden, torch.arange(length)[None])
    mask = torch.zeros(1, 1, length, length).masked_fill(_mask(length), torch.finfo(torch.float32).min)
    states = hidden[None]
    for index in range(folder.shape.layers):
        say(phase=f"computing HF's layer {index + 1} of {folder.shape.layers}")
        with torch.device("meta"):
            layer = of_family("DecoderLayer")(config, index).eval()
        begin = f"model.layers.{index}."
        names = [name for name in folder.files if name.startswith(begin)]
        weights = {name.removeprefix(begin): _fp32(folder, name, stored) for name in names}
        layer.load_state_dict(weights, assign=True)
        del weights
        states = layer(states, attention_mask=mask, position_embeddings=angles)[0]
        del layer
    norm = of_family("RMSNorm")(folder.shape.hidden, eps=config.rms_norm_eps)
    norm.weight.copy_(_read(folder, "model.norm.weight", stored))
    answer: torch.Tensor = norm(states)
    return answer[0]


@torch.no_grad()
def _nemo_states(
    job: ProofJob, reader: CheckpointReader, hidden: torch.Tensor, ids: list[int], say: Say
) -> torch.Tensor:
    """The same for NeMo's model, built with one layer and almost no vocabulary, called as in Megatron's training."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel

    from launcher.train.nemo_aligner.rotary import scale_frequencies

    say(phase="building one layer of NeMo's model")
    with tempfile.TemporaryDirectory(dir=Path(job["nemo"]).parent) as scratch:
        config, restore = _config(job, scratch)
        layers = config.num_layers
        config.update(num_layers=1, override_vocab_size=8)
        trainer = restore["trainer"]
        model = MegatronGPTModel(config, trainer).eval()
        scale_frequencies(model, config)
        _check_tokens(model, job, ids)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.launch(lambda: None, trainer=trainer)
        trainer.strategy.setup_environment()  # as NeMo's restore does: Megatron needs a process group to load
        gpt = model.model
        gpt.post_process = False  # return the decoder's states, not logits
        layer, norm = gpt.decoder.layers[0], gpt.decoder.final_layernorm
        states = hidden[:, None]
        for index in range(layers):
            say(phase=f"computing NeMo's layer {index + 1} of {layers}")
            layer.to(_stored(job))  # load in this type: Megatron joins fc1's halves in a copy; compute in fp32
            sharded = layer.sharded_state_dict("layer.", [(0, 0, 1)], None)
            replace_prefix_for_sharding(sharded, "layer.", LAYERS)
            with reader.layer_folder(index, Path(scratch)) as files:
                loaded = dist_checkpointing.load(sharded, str(files))
            layer.load_state_dict({name.removeprefix("layer."): value for name, value in loaded.items()}, strict=False)
            del sharded, loaded
            layer.float()
            gpt.decoder.final_layernorm = norm if index == layers - 1 else None
            if gpt.decoder.final_layernorm is not None:
                norm.weight.copy_(reader.region("model.decoder.final_layernorm.weight", (0,), norm.weight.shape))
            states = gpt(None, None, _mask(len(hidden)), decoder_input=states)
    return states[:, 0]


def _config(job: ProofJob, scratch: str) -> tuple[Any, dict[str, Any]]:
    """(the .nemo's config for fp32 on the CPU, arguments of NeMo's restore_from), with its tokenizer in `scratch`."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
    from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector
    from omegaconf import OmegaConf

    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision=32,
        strategy=NLPDDPStrategy(),
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    connector = NLPSaveRestoreConnector()
    restore = {"restore_path": job["nemo"], "trainer": trainer, "save_restore_connector": connector}
    config = MegatronGPTModel.restore_from(**restore, return_config=True)
    OmegaConf.set_struct(config, False)
    config.tokenizer.type = str(unpack_tokenizer(Path(job["nemo"]), Path(scratch) / "tokenizer"))
    # fp32, for a sharp comparison; without random initial weights, since every weight is about to be loaded.
    config.update(precision=32, perform_initialization=False, use_cpu_initialization=True)
    return config, restore


def _check_tokens(model: Any, job: ProofJob, ids: list[int]) -> None:
    if model.tokenizer.text_to_ids(job["text"])[: len(ids)] != ids:
        raise Failed("the tokenizer in the file gives tokens that differ from HF's")
