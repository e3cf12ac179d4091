"""`evaluation`: what is measured of a trained policy, by whom it is judged, and what that asks of Slurm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.trial_config.types import Number, Section, Text, TimeLimit


class AnswerSettings(Section):
    """`evaluation.answers`: the prompts that a trained policy answers, and how; 0 leaves a part out."""

    held_out: int = Field(ge=0, description="prompts of the test pairs")
    instructions: int = Field(ge=0, le=60, description="of the project's own instructions, which a program checks")
    ifeval: Text | None = Field(description="IFEval's input_data.jsonl")
    prompts: Text | None = Field(description="a JSONL file of your own prompts")
    samples: int = Field(ge=0, description="samples a prompt, beside the greedy answer")
    temperature: float = Field(gt=0, description="of the samples")
    max_tokens: int = Field(ge=1, description="tokens of an answer at most")
    seed: int = Field(description="of the samples")
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="who generates; auto: vLLM where there is a GPU and vLLM is found, else transformers"
    )
    vllm_python: Text | None = Field(None, description="the Python that has vLLM; null: the one that evaluates")
    vllm_memory: float = Field(0.5, gt=0, lt=1, description="vLLM's share of the GPU's memory")


class JudgeSettings(Section):
    """`evaluation.judge`: who compares answers with the reference policy's and the chosen ones."""

    kind: Literal["probe", "reward_model", "endpoint"] | None = Field(description="null: no judge, no win rate")
    folder: Text | None = Field(description="of the reward model, a sequence classifier")
    url: Text | None = Field(description="of the endpoint, such as http://node1:8000/v1; its key is in JUDGE_API_KEY")
    model: Text | None = Field(description="the endpoint's name of the model")
    longest_reply: int = Field(
        16, ge=1, description="tokens of the endpoint's reply; a model that thinks aloud needs more"
    )
    samples: int | None = Field(ge=1, description="answers of a prompt that are compared; null: all")
    pairs: int = Field(ge=20, description="held-out pairs for a probe")


class EvaluationJob(Section):
    """`evaluation.slurm`: what the evaluation of a trial asks Slurm for; what is null is as under `cluster`.

    Except for constraint and reservation of the trials, where it has a partition of its own.
    """

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    time: TimeLimit = Field(description="limit of one trial's evaluation")
    gpus: int = Field(ge=0, description="GPUs; 0 on nodes without")
    cpus: int | None = Field(None, ge=1, description="cores")
    mem_gb: Number | None = Field(None, gt=0, description="memory")


class Evaluation(Section):
    """`evaluation`: what is measured of a trained policy; 0 leaves a part out."""

    kl_pairs: int = Field(ge=0, description="held-out pairs for the exact KL")
    samples: int = Field(ge=0, description="prompts answered greedily by policy and reference")
    sample_tokens: int = Field(ge=0, description="tokens of each such answer")
    after_training: bool = Field(description="have each trained policy answer prompts by itself, as `evaluate` does")
    answers: AnswerSettings
    judge: JudgeSettings
    slurm: EvaluationJob
