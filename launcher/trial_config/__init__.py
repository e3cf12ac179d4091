"""What a trial's config may hold: every key with its type, its bounds, its unit and what it does.

The keys are NeMo-Aligner 0.7's own (its examples' gpt_dpo.yaml and documentation), so that NVIDIA's documentation holds
for them; `experiment`, `cluster`, `compute`, `evaluation` and `paths` are the launcher's. Defaults stand in configs/.

    types.py           the kinds of values, and how a message describes what a key allows
    trainer.py         `trainer`, `exp_manager`
    model.py           `model`, `pretrained_checkpoint`
    preference_loss.py `model.dpo`
    evaluation.py      `evaluation`
    cluster.py         `cluster`
    config.py          the whole config, and what the rest of the launcher asks it
    validate.py        from plain data to a TrialConfig, or to findings
"""
