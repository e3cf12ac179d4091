"""NeMo-Aligner's own DPOTrainer and collate function as they come, on the same weights, rows, order and seed."""

from __future__ import annotations

from typing import Any


def stock() -> None:
    """Called in a rank before it trains: none of the launcher's own ways with a step are left."""
    from nemo_aligner.algorithms.dpo import DPOTrainer

    from launcher.train.nemo_aligner import session as training
    from launcher.train.nemo_aligner.savings import install

    def run(session: Any) -> str:
        session.trainer.fit()
        return ""

    training.PreferenceTrainer = lambda *, state, **arguments: DPOTrainer(**arguments)
    training.AlignerSession.run = run
    install.install = lambda *args, **kwargs: None
