"""The prompts that policies answer: held-out ones of the trial's data, checkable instructions, IFEval's, the user's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.pairs import hh_format, prompt_formats
from data_prep.pairs.conversation import Conversation, Drop
from data_prep.pairs.prompt_formats import Llama3, PromptFormat
from data_prep.pairs.tokenizer_files import read as read_tokenizer
from launcher import whole_file
from launcher.findings import Finding, Refused

Source = Literal["heldout", "instructions", "ifeval", "user"]

INSTRUCTIONS = Path(__file__).parent / "instructions" / "instructions.jsonl"
"""The instructions that come with the project, in IFEval's form."""
_HUMAN = "\n\nHuman:"


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    prompt_id: str
    """Source and a digest of what is asked: the same prompt has the same id in every trial."""
    source: Source
    text: str
    """As the model gets it, in the form of the trial's data."""
    messages: list[dict[str, str]] | None = None
    """The conversation, where it is known: for judges that have a chat form of their own."""
    chosen: str | None = None
    """The data's own good answer, for held-out prompts."""
    instructions: list[dict[str, Any]] | None = None
    """[{"id", "kwargs"}] that a checker can check."""


@dataclass(frozen=True)
class PromptForm:
    """How the trial's data write a conversation, and what ends an answer in it beside the tokenizer's own end."""

    name: str
    """`hh`, `llama3` or `chat`, as in dataset.json."""
    writer: PromptFormat | None
    """None where the tokenizer has no chat template: then the instruction itself is the prompt."""

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that begin the human's next turn."""
        return (_HUMAN,) if self.name == "hh" else ()

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        return (Llama3.END,) if self.name == "llama3" else ()

    def write(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages (user and assistant by turns, the user last; a system prompt may come first) as a prompt."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        turns = tuple(message["content"].strip() for message in messages if message["role"] != "system")
        if self.writer is None:
            return turns[-1]
        pair = self.writer.render(Conversation(turns, "yes", "no", system))
        if isinstance(pair, Drop):
            why = f"cannot be written in the data's form ({self.name}): {pair.value}"
            raise Refused([Finding("--prompts", turns[-1][:80], why, "leave it out")])
        return pair.prompt


def form_of(data: Path, tokenizer: Path) -> PromptForm:
    """The form of the data in file `data`, from the dataset.json beside it, else from its first prompt.

    `tokenizer` is the folder of the model's tokenizer.
    """
    dataset = whole_file.read_json(data.parent / "dataset.json")
    name = str(((dataset if isinstance(dataset, dict) else {}).get("prompt_format") or {}).get("name") or "")
    if not name:
        first = next(_rows(data), {})
        name = "hh" if str(first.get("prompt", "")).startswith(_HUMAN) else "chat"
    files = read_tokenizer(tokenizer) if name == "chat" else None
    if files is not None and files.chat_template is None:
        return PromptForm(name, None)
    return PromptForm(name, prompt_formats.choose(name if name in prompt_formats.NAMES else "hh", files))


def held_out(data: Path, count: int, form: PromptForm) -> list[Prompt]:
    """The first `count` different prompts of a file of pairs, evenly spread over it."""
    found: dict[str, str] = {}
    for row in _rows(data):
        found.setdefault(row["prompt"], row["chosen_response"])
    rows = list(found.items())
    count = min(count, len(rows))
    picked = [rows[number * len(rows) // count] for number in range(count)]
    return [
        Prompt(_name("heldout", text), "heldout", text, _conversation(text, form), chosen.strip())
        for text, chosen in picked
    ]


def _conversation(text: str, form: PromptForm) -> list[dict[str, str]] | None:
    """The messages of a prompt in HH's form; None in another."""
    turns = hh_format.read_turns(text) if form.name == "hh" else []
    if not hh_format.in_order(turns):
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[turn.role], "content": turn.text} for turn in turns[:-1]]


def checkable(file: Path, source: Source, form: PromptForm, count: int | None = None) -> list[Prompt]:
    """Instructions in IFEval's form: {"prompt", "instruction_id_list", "kwargs"} a line; evenly spread ones.

    Raises Refused where the file cannot be read.
    """
    rows = [row for row in _rows(file) if "prompt" in row and "instruction_id_list" in row]
    count = len(rows) if count is None else min(count, len(rows))
    return [_instructed(rows[number * len(rows) // count], source, form) for number in range(count)]


def _instructed(row: Mapping[str, Any], source: Source, form: PromptForm) -> Prompt:
    messages = [{"role": "user", "content": str(row["prompt"])}]
    kwargs = row.get("kwargs") or [{}] * len(row["instruction_id_list"])
    checks = [
        {"id": name, "kwargs": {key: value for key, value in (given or {}).items() if value is not None}}
        for name, given in zip(row["instruction_id_list"], kwargs, strict=True)
    ]
    text = form.write(messages)
    return Prompt(_name(source, json.dumps([text, checks], sort_keys=True)), source, text, messages, None, checks)


def users(file: Path, form: PromptForm) -> list[Prompt]:
    """The user's own: {"prompt": text} or {"messages": [...]} a line, both with IFEval's keys if there are any.

    A prompt in the data's own form is taken as it is. Raises Refused.
    """
    found = []
    for row in _rows(file):
        if "instruction_id_list" in row and "prompt" in row:
            found.append(_instructed(row, "user", form))
            continue
        messages = row.get("messages") or [{"role": "user", "content": str(row.get("prompt") or "")}]
        if not messages[-1].get("content"):
            raise Refused([Finding("--prompts", str(file), "has a line without a prompt", 'write {"prompt": "..."}')])
        written = str(row.get("prompt") or "")
        text = written if _is_written(written, form) else form.write(messages)
        chosen = row.get("chosen", row.get("chosen_response"))
        found.append(Prompt(_name("user", text), "user", text, messages, str(chosen).strip() if chosen else None))
    return found


def _is_written(text: str, form: PromptForm) -> bool:
    if form.name == "hh":
        return text.startswith(_HUMAN) and hh_format.read_turns(text)[-1].role == "Assistant"
    return form.name == "llama3" and Llama3.BEGIN in text


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield row
    except (OSError, ValueError) as error:
        raise Refused([Finding(str(file), "", f"cannot be read ({error})", "name a JSONL file")]) from error


def _name(source: Source, what: str) -> str:
    return f"{source}-{hashlib.blake2b(what.encode(), digest_size=6).hexdigest()}"
