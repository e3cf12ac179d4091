"""Computes the reference policy's log-probabilities once for all trials that share them, instead of for every batch.

NeMo-Aligner runs the reference policy for every batch, though its answer depends only on the pair and the base model.
Before the first step the trials look for the pairs they will need in a cache (reference_cache.py); what is missing
they compute, in groups that each takes from a common list (lease.py), so that trials that start together share the
work, and one that dies leaves its group to the others. A pair that is not found at its batch after all (its file was
damaged meanwhile) is computed with that batch, as NeMo-Aligner does.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from nemo_aligner.utils import parallel_state

from launcher.train.metrics_file import MetricsFile
from launcher.train.nemo_aligner.savings.lease import Claims, Lease
from launcher.train.nemo_aligner.savings.reference_cache import Cache, group_name, row_digest

if TYPE_CHECKING:
    from nemo_aligner.data.nlp.datasets import DPOModelDataset
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

#: Pairs of a group for each data-parallel rank: some seconds to a minute of work.
PAIRS_A_RANK = 16
#: Seconds between two looks at groups that others compute, and the longest wait for any of them to be done.
LOOK, PATIENCE = 1.0, 1800.0

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Group:
    """Pairs that are computed and written together."""

    name: str
    pairs: Any
    """The data set they are in."""
    places: Sequence[int]


def groups(pairs: DPOModelDataset, places: Sequence[int], describe: dict[str, object], size: int) -> list[Group]:
    """`places` in parts of `size`, each named by its places and `describe`, which tells what lies there."""
    parts = [list(places[start : start + size]) for start in range(0, len(places), size)]
    return [Group(group_name({**describe, "places": part}), pairs, part) for part in parts]


def places(sampler: Any, count: int, pairs: int) -> list[int]:
    """Which of a data set's `pairs` the first `count` global batches are made of, in that order, each once.

    `sampler` gives this rank's share of each batch of an epoch; after the first epoch all pairs are taken.
    """
    mine = [share for _, share in zip(range(count), sampler, strict=False)]
    shares: list[Any] = [None] * data_parallel_ranks()
    torch.distributed.all_gather_object(shares, mine, group=parallel_state.get_data_parallel_group())
    taken = dict.fromkeys(place for step in zip(*shares, strict=True) for share in step for place in share)
    return [*taken, *(place for place in range(pairs) if count > len(mine) and place not in taken)]


def data_parallel_ranks() -> int:
    return int(parallel_state.get_data_parallel_world_size())


class Reference:
    """The reference policy of `model`, from `cache` where it can be. All ranks have to make the same calls.

    `collate` makes a batch of rows of a data set, as the trainer does; `owner` names the trial, the same again after it
    was stopped.
    """

    def __init__(
        self, model: MegatronGPTDPOModel, collate: Any, cache: Cache, owner: str, progress: MetricsFile
    ) -> None:
        self._model = model
        self._compute = model.get_ref_policy_logprobs
        self._collate = collate
        self._cache = cache
        self._claims = Claims(cache.folder / "claims", owner)
        self._progress = progress
        self._first = torch.distributed.get_rank() == 0
        self.computed = self.missed = 0
        """Pairs that this trial has computed beforehand, and this rank with their batch."""
        # On the instance: a class of our own would be named in the .nemo that NeMo saves, which others have to load.
        model.get_ref_policy_logprobs = self.log_probabilities

    def log_probabilities(self, batch: Batch) -> torch.Tensor:
        """[2 x pairs, length] of a collated batch, chosen first; 0 where a label is -100, which the losses mask."""
        found = [self._cache.find(digest) for digest in digests(batch)]
        if any(_anybody([values is None for values in found])):
            self.missed += len(found)
            if self.missed == len(found):
                why = "; ".join(f"{name} {why}" for name, why in self._cache.damaged.items()) or "not found"
                print(
                    f"reference: a batch is computed anew, not all of it is in {self._cache.folder}: {why}", flush=True
                )
            answer: torch.Tensor = self._compute(batch)
            return answer
        labels = _labels(batch)
        answer = torch.zeros(labels.shape)
        for place, values in enumerate(found):
            if values:  # empty where NeMo-Aligner leaves out a pair that is too long: it has no labels
                rows = [place, place + len(found)]
                known = torch.frombuffer(bytearray(values), dtype=torch.float32)
                answer[rows] = answer[rows].masked_scatter(labels[rows] > -1, known)
        return answer

    def fill(self, wanted: Sequence[Group], say: Callable[[str], None]) -> None:
        """Compute what no trial has yet, and wait for what others are computing; `say` gets the progress."""
        left, since, total = list(wanted), time.monotonic(), sum(len(group.places) for group in wanted)
        while True:
            before = len(left)
            left, chosen, lease = self._look(left, time.monotonic() - since > PATIENCE)
            since = time.monotonic() if len(left) < before else since
            so_far = f"{total - sum(len(group.places) for group in left)} of {total} pairs"
            if not left:
                break
            if chosen is None:
                self._progress.beat(f"{so_far}, other trials are at the rest")
                time.sleep(LOOK)
                continue
            say(so_far)
            self._progress.phase("reference", so_far)
            try:
                rows = self._rows(chosen)
                if self._first:
                    self._cache.write(chosen.name, rows)
            finally:
                if lease is not None:
                    lease.release()
        if self._first:
            self._claims.discard({group.name for group in wanted})
            print(f"reference: {total} pairs, {self.computed} of them computed here, {self._cache.folder}", flush=True)

    def _look(self, left: list[Group], impatient: bool) -> tuple[list[Group], Group | None, Lease | None]:
        """(groups not done yet, the one to do, the claim on it), as rank 0 sees it; only rank 0 has the claim."""
        lease = None
        word: list[Any] = [None]
        if self._first:
            self._cache.refresh()
            open_ = [place for place, group in enumerate(left) if not self._cache.has(group.name)]
            chosen = None
            for place in open_:
                lease = self._claims.take(left[place].name)
                if lease is not None or impatient:
                    chosen = place
                    break
            if lease is not None and self._made_meanwhile(left[chosen or 0]):
                lease.release()  # between our look and our claim
                lease, chosen = None, None
            word = [(open_, chosen, self._cache.names())]
        torch.distributed.broadcast_object_list(word, 0)
        open_, chosen, names = word[0]
        self._cache.refresh(names)
        return [left[place] for place in open_], None if chosen is None else left[chosen], lease

    def _made_meanwhile(self, group: Group) -> bool:
        self._cache.refresh()
        return self._cache.has(group.name)

    def _rows(self, group: Group) -> dict[bytes, bytes]:
        """Digest -> values of all pairs of a group: found, or computed by the data-parallel ranks together."""
        rank, ranks = parallel_state.get_data_parallel_rank(), data_parallel_ranks()
        batch = self._collate([group.pairs[place] for place in group.places[rank::ranks] or group.places[:1]])
        keys = digests(batch)
        found = [self._cache.find(key) for key in keys]
        missing = [place for place, lacks in enumerate(_anybody([values is None for values in found])) if lacks]
        share = {key: bytes(values) for key, values in zip(keys, found, strict=True) if values is not None}
        if missing:
            size = self._model.cfg.dpo.log_prob_forward_micro_batch_size
            some = {name: values[missing + missing[-1:] * (-len(missing) % size)] for name, values in batch.items()}
            values, labelled = self._compute(some).float().cpu(), _labels(some) > -1
            half = len(values) // 2
            for place, key in enumerate(digests(some)):
                rows = [place, place + half]
                share[key] = values[rows][labelled[rows]].numpy().tobytes()
        shares: list[Any] = [None] * ranks
        made = (share, [keys[place] for place in missing])
        torch.distributed.all_gather_object(shares, made, group=parallel_state.get_data_parallel_group())
        self.computed += len({key for _, computed in shares for key in computed})
        return {key: values for one, _ in shares for key, values in one.items()}


def digests(batch: Batch) -> list[bytes]:
    """Of each pair of a collated batch; padding is left out, so that a pair has the same one in every batch."""
    columns = [batch[name] for name in ("chosen", "chosen_labels", "rejected", "rejected_labels")]
    lengths = zip(batch["chosen_length"].tolist(), batch["rejected_length"].tolist(), strict=True)
    return [
        row_digest(
            column[place, :length].numpy().tobytes()
            for column, length in zip(columns, (chosen, chosen, rejected, rejected), strict=True)
        )
        for place, (chosen, rejected) in enumerate(lengths)
    ]


def _labels(batch: Batch) -> torch.Tensor:
    return torch.cat((batch["chosen_labels"], batch["rejected_labels"]))


def _anybody(flags: list[bool]) -> list[bool]:
    """Each flag, or-ed over the ranks that compute the same pairs together: they have to take the same way."""
    if parallel_state.get_model_parallel_group().size() == 1:
        return flags
    joined = torch.tensor(flags, dtype=torch.int32, device=torch.cuda.current_device())
    torch.distributed.all_reduce(
        joined, torch.distributed.ReduceOp.MAX, group=parallel_state.get_model_parallel_group()
    )
    return [bool(flag) for flag in joined.tolist()]
