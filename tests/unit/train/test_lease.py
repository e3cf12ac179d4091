"""Claims on shared work: held while the owner lives, others' once it is dead."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from launcher.train.nemo_aligner.savings import lease
from launcher.train.nemo_aligner.savings.lease import Claims


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "DEAD", 0.5)


def take_and_stay(folder: Path, taken: object) -> None:
    assert Claims(folder, "another").take("work") is not None
    taken.set()
    time.sleep(60)


def on_another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path, owner: str) -> Path:
    """A claim whose owner has died on a machine whose processes cannot be asked for."""
    path = folder / "work"
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_place", lambda: "elsewhere")
        path.write_text(lease._words(owner, 7))
    return path


def test_one_owner_at_a_time(tmp_path: Path, quick: None) -> None:
    mine, theirs = Claims(tmp_path, "me"), Claims(tmp_path, "you")
    held = mine.take("work")
    assert held is not None
    assert theirs.take("work") is None
    time.sleep(1.0)  # twice as long as a silent owner is believed
    assert theirs.take("work") is None
    assert theirs.take("other work") is not None
    held.release()
    assert theirs.take("work") is not None


def test_killed_owner_on_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    process = context.Process(target=take_and_stay, args=(tmp_path, taken), daemon=True)
    process.start()
    assert taken.wait(30)
    claims = Claims(tmp_path, "me")
    assert claims.take("work") is None
    process.kill()
    process.join()
    held = claims.take("work")
    assert held is not None
    held.release()


def test_silent_owner_elsewhere_is_followed_when_it_has_been_silent_for_long(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_another_machine(monkeypatch, tmp_path, "another")
    claims = Claims(tmp_path, "me")
    assert claims.take("work") is None
    end = time.monotonic() + 20
    while (held := claims.take("work")) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    held.release()


def test_a_claim_without_a_word_counts_as_silent(tmp_path: Path, quick: None) -> None:
    (tmp_path / "work").touch()
    claims = Claims(tmp_path, "me")
    assert claims.take("work") is None
    time.sleep(0.6)
    assert claims.take("work") is not None


def test_a_trial_that_starts_again_takes_its_own_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_another_machine(monkeypatch, tmp_path, "me")
    held = Claims(tmp_path, "me").take("work")
    assert held is not None
    held.release()
    assert not list(tmp_path.iterdir())


def test_claims_on_work_that_is_done_are_removed(tmp_path: Path) -> None:
    """The owner was killed after it had written its part and before it released its claim: nobody claims it again."""
    for name in ("done", "waiting"):
        assert Claims(tmp_path, "killed").take(name)
    Claims(tmp_path, "me").discard({"done", "never claimed"})
    assert [path.name for path in tmp_path.iterdir()] == ["waiting"]
