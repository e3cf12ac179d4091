"""prepare_data.py from its command line: what it writes, and as the program a user starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from data_prep.pairs import sources, splits
from launcher.whole_file import sha256
from tests.unit.prepare_tools import FILES, ROOT, Prepare, hh, many, prompts, record_of, rows_of, write


def test_sample_has_its_exact_sizes_and_no_leak(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare("data=sample")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    record = record_of(folder)
    assert record["rows"] == {"train": 288, "validation": 32, "test": 40}
    assert record["dropped"] == {}
    assert "made up" in record["source"]["note"]
    train, validation, test = (prompts(folder, name) for name in splits.NAMES)
    assert len(train | validation | test) == 360
    assert "made up" in capsys.readouterr().out


def test_sample_rows_are_what_nemo_reads(prepare: Prepare) -> None:
    for row in rows_of(prepare("sample"), "train"):
        assert list(row) == ["prompt", "chosen_response", "rejected_response", "chosen_reward", "rejected_reward"]
        assert row["prompt"].endswith("\n\nAssistant:")
        assert re.match(r" \S", row["chosen_response"])
        assert re.match(r" \S", row["rejected_response"])
        assert (row["chosen_reward"], row["rejected_reward"]) == (1.0, 0.0)


def test_sample_is_varied_and_its_length_is_no_signal() -> None:
    rows = [json.loads(line) for line in sources.SAMPLE.read_bytes().splitlines()]
    openings = Counter(row["chosen"].split("\n\n")[1].casefold() for row in rows)
    responses = [row[side].rpartition("\n\nAssistant:")[2] for row in rows for side in ("chosen", "rejected")]
    assert openings.most_common(1)[0][1] == 1
    assert max(Counter(responses).values()) == 1
    assert max(Counter(" ".join(text.split()[:3]) for text in responses).values()) <= 4
    two_turns = sum(row["chosen"].count("\n\nHuman:") == 2 for row in rows)
    assert 0.1 < two_turns / len(rows) < 0.2
    # In characters; in SmolLM2's tokens, which is what is trained on, the two sides are longer equally often.
    more = [len(row["chosen"]) - len(row["rejected"]) for row in rows]
    assert 0.35 < sum(number > 0 for number in more) / len(rows) < 0.65
    assert abs(sum(more)) / len(rows) < 4


def test_same_source_gives_the_same_bytes(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", many(60))
    one, two = prepare(source, out="one"), prepare(source, out="two")
    assert [(one / name).read_bytes() for name in FILES] == [(two / name).read_bytes() for name in FILES]


def test_record_says_what_is_in_the_files(prepare: Prepare, tmp_path: Path) -> None:
    folder = prepare(write(tmp_path / "pairs.jsonl.gz", many(200)))
    record = record_of(folder)
    for name in splits.NAMES:
        path, facts = folder / f"{name}.jsonl", record["files"][f"{name}.jsonl"]
        assert (facts["bytes"], facts["sha256"]) == (path.stat().st_size, sha256(path))
        assert facts["rows"] == record["rows"][name] == len(rows_of(folder, name))
        assert sum(record["lengths"][name]["histogram"].values()) == facts["rows"]
    assert record["lengths"]["unit"] == "characters"
    assert record["source"]["files"][0]["sha256"] == sha256(tmp_path / "pairs.jsonl.gz")


def test_adding_rows_moves_none(prepare: Prepare, tmp_path: Path) -> None:
    before = prepare(write(tmp_path / "some.jsonl", many(200)), "--validation", "0.2", "--test", "0.1", out="before")
    after = prepare(
        write(tmp_path / "more.jsonl", many(400, -200)), "--validation", "0.2", "--test", "0.1", out="after"
    )
    for name in splits.NAMES:
        assert prompts(before, name) <= prompts(after, name)
    assert 20 <= len(rows_of(before, "validation")) <= 60


def test_stages_of_a_conversation_and_spellings_of_a_prompt_stay_together(prepare: Prepare, tmp_path: Path) -> None:
    rows = [
        hh(text, f"yes {number}")
        for number in range(100)
        for text in (f"Why {number}?", f"why  {number}?\n\nAssistant: Because.\n\nHuman: And?")
    ]
    folder = prepare(write(tmp_path / "pairs.jsonl", rows), "--validation", "0.3", "--test", "0.3")
    openings = [
        {prompt.split("\n\n")[1].casefold().replace("  ", " ") for prompt in prompts(folder, n)} for n in splits.NAMES
    ]
    assert sum(map(len, openings)) == len(set().union(*openings)) == 100


def test_numbers_are_met_exactly_without_dividing_a_prompt(prepare: Prepare, tmp_path: Path) -> None:
    rows = [hh(f"q{number % 30}", f"yes {number}") for number in range(80)]  # two or three rows a prompt
    folder = prepare(write(tmp_path / "pairs.jsonl", rows), "--validation", "16", "--test", "8")
    record = record_of(folder)
    assert (record["rows"]["validation"], record["rows"]["test"]) == (16, 8)
    assert record["dropped"].get("beyond the number asked for", 0) <= 4
    assert sum(record["rows"].values()) + sum(record["dropped"].values()) == 80
    assert not prompts(folder, "train") & prompts(folder, "validation")
    assert not prompts(folder, "test") & (prompts(folder, "validation") | prompts(folder, "train"))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_own_test_split_is_kept_and_what_train_knows_is_dropped(prepare: Prepare, tmp_path: Path, packed: str) -> None:
    write(tmp_path / "set" / f"train.jsonl{packed}", many(50))
    write(tmp_path / "set" / f"test.jsonl{packed}", many(50, 40) + [hh("Question  41?", "other")])
    folder = prepare(tmp_path / "set")
    record = record_of(folder)
    assert record["rows"]["train"] == 50
    assert record["dropped"] == {"prompt is in another split": 11}
    assert record["rows"]["validation"] + record["rows"]["test"] == 40
    assert record["rows"]["validation"] > 5 < record["rows"]["test"]


def test_own_validation_and_test_splits_are_kept(prepare: Prepare, tmp_path: Path) -> None:
    for number, name in enumerate(("train-00000", "dev", "test")):
        write(tmp_path / "set" / f"{name}.jsonl", many(10, 10 * number))
    folder = prepare(tmp_path / "set")
    assert record_of(folder)["rows"] == {"train": 10, "validation": 10, "test": 10}
    assert prompts(folder, "validation") == {f"\n\nHuman: question {n}?\n\nAssistant:" for n in range(10, 20)}


def test_copy_of_hh_rlhf_as_it_is_downloaded(prepare: Prepare, tmp_path: Path) -> None:
    for number, subset in enumerate(("harmless-base", "helpful-base")):
        write(tmp_path / "hh-rlhf" / subset / "train.jsonl.gz", many(40, 1000 * number))
        write(tmp_path / "hh-rlhf" / subset / "test.jsonl.gz", many(40, 1000 * number + 500))
    write(tmp_path / "hh-rlhf" / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": "x"}])
    assert record_of(prepare(tmp_path / "hh-rlhf"))["rows_read"] == 160
    assert record_of(prepare(tmp_path / "hh-rlhf", "--subset", "helpful-base"))["rows_read"] == 80


def test_limit_keeps_the_first_pairs(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", [hh("q", "same", "same"), *many(700)])
    record = record_of(prepare(source, "--limit", "600"))
    assert sum(record["rows"].values()) == 600
    assert record["rows_read"] == 601
    assert record["dropped"] == {"equal responses": 1}


def test_byte_order_mark_blank_lines_and_windows_line_ends_do_not_hurt(prepare: Prepare, tmp_path: Path) -> None:
    rows = [b"\xef\xbb\xbf" + json.dumps(hh("first")).encode() + b"\r", b"\r", b"", *many(60)]
    assert record_of(prepare(write(tmp_path / "pairs.jsonl", rows)))["rows_read"] == 61


def python(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


def test_script_runs_from_anywhere_and_writes_below_the_current_folder(tmp_path: Path) -> None:
    spaced = tmp_path / "a folder"
    spaced.mkdir()
    run = python(str(ROOT / "data_prep" / "prepare_data.py"), "sample", cwd=spaced)
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in (spaced / "data" / "sample").iterdir()) == FILES


def test_help_shows_examples_and_imports_nothing_heavy() -> None:
    run = python("data_prep/prepare_data.py", "--help")
    assert run.returncode == 0
    assert "examples:" in run.stdout
    heavy = "{'torch', 'transformers', 'datasets', 'tokenizers', 'numpy', 'hydra', 'rich'}"
    code = f"import sys, data_prep.prepare_data; print(sorted({heavy} & set(sys.modules)))"
    assert python("-c", code).stdout.strip() == "[]"


def test_hh_rlhf_by_name_through_datasets(tmp_path: Path) -> None:
    """The real library, given a folder in the place of the hub's repository, which it looks for first."""
    pytest.importorskip("datasets")
    place = tmp_path / "Anthropic" / "hh-rlhf" / "harmless-base"
    write(place / "train.jsonl.gz", many(40))
    write(place / "test.jsonl.gz", many(40, 38))
    script = str(ROOT / "data_prep" / "prepare_data.py")
    words = (script, "hh_rlhf", "--subset", "harmless-base")
    run = python(*words, cwd=tmp_path, HF_DATASETS_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    assert run.returncode == 0, run.stderr
    record = record_of(tmp_path / "data" / "hh_rlhf")
    assert record["rows_read"] == 80
    assert record["rows"]["train"] == 40
    assert record["dropped"] == {"prompt is in another split": 2}
    assert record["source"]["revision"] == sources.HH_REVISION
    again = python(*words, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert "up to date" in again.stdout


def test_hh_rlhf_without_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    script = str(ROOT / "data_prep" / "prepare_data.py")
    run = python(script, "hh_rlhf", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "give a folder with harmless-base/train.jsonl.gz" in run.stderr.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def real_pairs() -> Path | None:
    named = os.environ.get("HH_RLHF_FILE")
    path = Path(named) if named else ROOT.parent / "shared" / "data" / "hh_rlhf_harmless_base_test.jsonl.gz"
    return path if path.is_file() else None


@pytest.mark.skipif(
    real_pairs() is None, reason="no real HH-RLHF file: set HH_RLHF_FILE to harmless-base/test.jsonl.gz"
)
def test_real_pairs(prepare: Prepare) -> None:
    record = record_of(prepare(str(real_pairs())))
    assert record["rows_read"] == 2312
    assert record["dropped"] == {"broken turn order": 9, "empty response": 4}
    assert sum(record["rows"].values()) == 2299
