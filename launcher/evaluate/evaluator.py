"""Evaluates trials, one after the other, in one process: the base model is loaded once.

In a trial's folder evaluation/: settings.json (what its answers depend on, and how many prompts there are),
answers.jsonl (a line a prompt), reference.jsonl (the reference policy's answers, as the cache has them), scores.json
(values a prompt and a pair; written last), error.json (why the last try failed). What is there is not made again,
unless it was made with other settings.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.models.export import adapter_file
from launcher import whole_file
from launcher.dotted_keys import at
from launcher.evaluate import answers, held_out, judging, prompt_columns, scores, trackers
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.common_setup import Setting
from launcher.evaluate.engine import Say
from launcher.evaluate.judges.endpoint import JudgeFailed
from launcher.evaluate.judges.judge import Judge
from launcher.evaluate.models import AnsweringModel, base_folder, exported, is_adapter
from launcher.evaluate.options import Asked, data_file, pairs_file
from launcher.evaluate.place import refuse_taken, working
from launcher.evaluate.policy import Generator, PromptProgress, fill
from launcher.evaluate.prompts import Prompt
from launcher.evaluate.reference import ReferenceAnswers
from launcher.evaluate.vllm_engine import Engines
from launcher.findings import Finding, Refused
from launcher.report.recorded_scores import TRANSFORMERS
from launcher.sweep import evaluation
from launcher.sweep.checkpoints import Checkpoint, parts_of
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial
from launcher.train.nemo_aligner.savings.reference_cache import file_digest, group_name


class Evaluator:
    """Evaluates policies of one sweep. Loads no model before it is needed."""

    def __init__(self, sweep: Sweep, changes: Mapping[str, Any], say: Say, *, again: bool = False) -> None:
        """`changes` are the command's options (None: as configured); `again` drops what is there."""
        sweep.refuse_foreign("evaluate")
        self._sweep, self._changes, self._say, self._again = sweep, changes, say, again
        self._settings: dict[str, Setting] = {}
        self._model: AnsweringModel | None = None
        self._references: dict[str, ReferenceAnswers] = {}
        self._judges: dict[str, Judge | None] = {}
        self._engines = Engines(sweep, say)

    def close(self) -> None:
        """End what runs beside this process."""
        self._engines.close()

    @property
    def reference_generated(self) -> int:
        """Prompts that the reference policy answered in this process."""
        return sum(reference.generated for reference in self._references.values())

    def trial(self, trial: Trial, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
        """Evaluate one trial, or a checkpoint that it kept, into evaluation/step-N; returns its scores.

        Raises Refused, Busy, or an error of the models, which is noted.
        """
        result = trial.result()
        if result is None:
            why = "has no result: it is not done"
            raise Refused([Finding(f"trial {trial.name}", "", why, "wait for it, or `retry` it; see `status`")])
        folder, title = trial.folder / "evaluation", f"trial {trial.name}"
        if checkpoint:
            folder, title = folder / f"{evaluation.STEP}{checkpoint.step}", f"{title}, step {checkpoint.step}"
        with working(folder, title):
            config = trial.config()
            setting = self._setting(config)
            file = _checkpoint_file(checkpoint, config) if checkpoint else adapter_file(trial, result)
            if known := self._known(folder, setting, whole_file.sha256(file), title):
                return known
            base = base_folder(setting.nemo, setting.base, setting.cache)
            with exported(self._sweep, trial, base, file if checkpoint else None) as policy:
                scored = self._evaluate(folder, setting, policy, title, trial.beta)
            for problem in [] if checkpoint else trackers.send(trial, config, scored):
                self._say(problem)
            return scored

    @contextlib.contextmanager
    def exported(self, trial: Trial) -> Iterator[tuple[Path, Path, dict[str, str]]]:
        """(base model, policy, what their results depend on) as folders that are there for the block."""
        setting = self._setting(trial.config())
        base = base_folder(setting.nemo, setting.base, setting.cache)
        digest = whole_file.sha256(adapter_file(trial, trial.result() or {}))
        made_with = {"base": setting.base, "policy": digest, "device": f"{setting.device.name} {setting.device.dtype}"}
        with exported(self._sweep, trial, base) as policy:
            yield base, policy, made_with

    def beside(self, path: Path) -> dict[str, Any]:
        """Evaluate another adapter or Hugging Face folder on the prompts of the sweep's first trial; see `trial`."""
        path = path.expanduser().absolute()
        if not (path / "config.json").is_file() and not is_adapter(path):
            why = "is neither a Hugging Face folder nor a peft adapter"
            raise Refused(
                [Finding("--beside", str(path), why, "name a folder with config.json or adapter_config.json")]
            )
        folder = self._sweep.folder / "evaluation" / path.name
        with working(folder, path.name):
            setting = self._setting(self._sweep.trials[0].config())
            digest = file_digest(path, setting.cache / "files")
            refuse_taken(folder, path, digest)
            known = self._known(folder, setting, digest, path.name, str(path))
            return known or self._evaluate(folder, setting, path, path.name)

    # -- one policy ----------------------------------------------------------------------------------------------------

    def _known(
        self, folder: Path, setting: Setting, policy: str, title: str, beside: str | None = None
    ) -> dict[str, Any] | None:
        """The scores, if there is nothing to do; else the folder is made ready for what there is to do.

        `beside`: where a policy is that is no trial's.
        """
        settings = {**setting.key, "policy": policy}
        before = whole_file.read_json(folder / "settings.json")
        if self._again or not isinstance(before, dict) or before.get("made_with") != settings:
            if (folder / "answers.jsonl").exists():
                self._say(f"{title}: {'asked to be' if self._again else 'other settings than before:'} evaluated anew")
            for name in ("answers.jsonl", "scores.json"):
                (folder / name).unlink(missing_ok=True)
        now = {"made_with": settings, "prompts": len(setting.prompts), **({"path": beside} if beside else {})}
        if before != now:
            whole_file.write_json(folder / "settings.json", now)
        known = whole_file.read_json(folder / "scores.json")
        if (
            isinstance(known, dict)
            and known["made"]["judge"] == asdict(setting.judge)
            and not {prompt.prompt_id for prompt in setting.prompts} - set(known["prompt_ids"])
            and not any(it.get("failed") for it in known["judges"].values())
        ):
            self._say(f"{title}: evaluated already")
            return known
        return None

    def _evaluate(
        self, folder: Path, setting: Setting, policy: Path, title: str, beta: float | None = None
    ) -> dict[str, Any]:
        began = time.monotonic()
        base = self._base(setting)
        with contextlib.ExitStack() as stack:
            model = base
            if is_adapter(policy):
                stack.enter_context(base.adapted(policy))
            else:
                model = AnsweringModel(policy, setting.device)
            same = model is base or model.tokenizer.get_vocab() == base.tokenizer.get_vocab()
            generate = self._generator(setting, model, base if same else None)
            fill(folder / "answers.jsonl", setting.prompts, generate, title, self._say)
            pairs = generate.held_out(self._pairs(setting, model), _beat(title, self._say)) if same else None
        reference, reference_pairs = self._reference(setting)
        lines = "".join(f"{answer.line()}\n" for answer in reference.values())
        whole_file.write_text(folder / "reference.jsonl", lines)
        wanted = {prompt.prompt_id for prompt in setting.prompts}
        answered = [answer for answer in answers.read(folder / "answers.jsonl") if answer.prompt_id in wanted]
        scored = scores.of(
            answered,
            reference if same else {},
            held_out.compare(pairs, reference_pairs) if pairs else None,
            vocabulary=len(model.tokenizer),
        )
        self._judge(setting, scored, answered, reference)
        seconds = round(time.monotonic() - began, 3)
        scored |= {
            "made": {
                "engine": TRANSFORMERS,
                **setting.key,
                "beta": beta,
                "judge": asdict(setting.judge),
                "seconds": seconds,
                "tokens": generate.tokens,
            }
        }
        whole_file.write_json(folder / "scores.json", scored)
        self._say(f"{title}: evaluated on {len(wanted)} prompts in {seconds:.0f} s")
        return scored

    def _judge(
        self,
        setting: Setting,
        scored: dict[str, Any],
        answered: Sequence[PromptAnswers],
        reference: Mapping[str, PromptAnswers],
    ) -> None:
        """Add the win rates to `scored`, or why there are none: a judge that fails leaves the other scores, and is
        asked again by the next `evaluate`."""
        name = repr([setting.judge, setting.key, setting.pairs_files])
        try:
            if name not in self._judges:
                apart = {prompt.text for prompt in setting.prompts}
                base = self._base(setting)
                self._judges[name] = judging.make(setting.judge, base, setting.pairs_files, apart, setting.cache)
            judge = self._judges[name]
            if judge is None:
                return
            self._say(f"judged by {judge.name}")
            wins, scored["judges"] = prompt_columns.judged(
                judge, answered, list(reference.values()), setting.judge.samples
            )
        except (JudgeFailed, ValueError, OSError, RuntimeError) as error:  # RuntimeError: torch's, memory among them
            why = " ".join(str(error).split())[:400]
            failed: dict[str, Any] = {"name": setting.judge.kind, "facts": {}, "unusable": why, "failed": True}
            scored["judges"] = {"reference": failed}
            self._say(f"! no win rate: {why}; `evaluate` asks the judge again")
        else:
            scored["per_prompt"] |= wins

    def _reference(self, setting: Setting) -> tuple[dict[str, PromptAnswers], dict[str, Any]]:
        """The reference policy's answers by prompt, and its columns of the held-out pairs."""
        name = group_name(setting.key)
        base = self._base(setting)
        owner = f"{socket.gethostname()} {os.getpid()} {self._sweep.folder}"
        kept = self._references.setdefault(name, ReferenceAnswers(setting.cache, setting.key, owner))
        generate = self._generator(setting, base, None)
        progress = PromptProgress("reference", len(setting.prompts), self._say)

        def answered(missing: Sequence[Prompt]) -> list[PromptAnswers]:
            made = generate(missing, lambda token: progress.at(kept.generated, f", token {token}"))
            progress.tokens = generate.tokens
            return made

        answered_by_id = kept.all(generate.batches(setting.prompts), answered)
        pairs = self._pairs(setting, base)
        digest = group_name({"pairs": [[pair.prompt, *pair.responses] for pair in pairs]})
        return answered_by_id, kept.held_out(lambda: generate.held_out(pairs, _beat("reference", self._say)), digest)

    # -- what policies share -------------------------------------------------------------------------------------------

    def _setting(self, config: Mapping[str, Any]) -> Setting:
        asked = Asked.of(config, **self._changes)
        name = repr([asked, data_file(config), pairs_file(config), at(config, "pretrained_checkpoint")])
        if name not in self._settings:
            self._settings[name] = Setting(self._sweep, config, asked)
        return self._settings[name]

    def _base(self, setting: Setting) -> AnsweringModel:
        """The base model, without an adapter; one is kept in memory."""
        folder = base_folder(setting.nemo, setting.base, setting.cache)
        if self._model is None or self._model.folder != folder:
            self._model = None  # so that its memory is free
            self._say(f"loading {setting.nemo.name}")
            self._model = AnsweringModel(folder, setting.device)
        return self._model

    def _generator(self, setting: Setting, model: AnsweringModel, reference: AnsweringModel | None) -> Generator:
        engine = self._engines.of(setting, model, adapters=model is self._model)
        return Generator(model, setting.asked, model.stop(setting.form), reference, engine)

    @staticmethod
    def _pairs(setting: Setting, model: AnsweringModel) -> list[held_out.HeldOutPair]:
        return held_out.read(setting.pairs_file, setting.pairs, model.tokens, model.longest)


def _checkpoint_file(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Path:
    """The file with the checkpoint's adapters. Raises Refused where it has none, or was removed meanwhile."""
    name, remedy = str(checkpoint.path), "evaluate without --checkpoints"
    if at(config, "model.peft.peft_scheme") != "lora":
        raise Refused(
            [Finding(name, "", "holds whole weights, which only a trial's result can be exported from", remedy)]
        )
    parts = [part for part in parts_of(checkpoint.path) if part.is_file()]
    if not parts:
        raise Refused([Finding(name, "", "is not there any more", remedy)])
    return parts[0]


def _beat(title: str, say: Say) -> Callable[[int], None]:
    spoke = time.monotonic()

    def beat(done: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke > 15:
            spoke = time.monotonic()
            say(f"{title}: {done} held-out pairs")

    return beat
