"""`model.dpo`: the preference loss and its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.trial_config.types import Section


class Loss(Section):
    """`model.dpo`."""

    ref_policy_kl_penalty: float = Field(gt=0, description="beta, weight of the KL term (Rafailov et al. 2023, eq. 7)")
    log_prob_forward_micro_batch_size: int = Field(ge=1, description="pairs the reference policy computes at once")
    preference_average_log_probs: bool
    sft_average_log_probs: bool
    gt_reward_scale: float
    preference_loss: Literal["dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"]
    preference_loss_weight: float = Field(ge=0)
    sft_loss_weight: float = Field(ge=0)
