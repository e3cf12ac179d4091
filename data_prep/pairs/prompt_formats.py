"""Writes a Conversation for the model: in HH-RLHF's form, Llama 3's, or the chat template of the trial's tokenizer.

A format is an object with a `name`, `facts` for dataset.json and `render(conversation) -> Pair | Drop`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from data_prep.pairs import hh_format
from data_prep.pairs.conversation import Conversation, Drop, Pair
from data_prep.pairs.tokenizer_files import TokenizerFiles
from launcher.findings import Finding, Refused

NAMES = ("hh", "llama3", "chat")


class PromptFormat(Protocol):
    facts: dict[str, str]

    def render(self, conversation: Conversation) -> Pair | Drop: ...


def choose(name: str, tokenizer: TokenizerFiles | None) -> PromptFormat:
    """The format called `name`. Raises Refused if it needs a tokenizer or a chat template that is not given."""
    if name == "hh":
        return HH()
    if name == "llama3":
        return Llama3()
    if tokenizer is None:
        remedy = "add --tokenizer models/<name>.nemo"
        raise Refused([Finding("--prompt-format", "chat", "needs the tokenizer's chat template", remedy)])
    template = tokenizer.chat_template
    if template is None:
        why = "has no chat template, like most base models"
        remedy = "use --prompt-format llama3 or hh, or the tokenizer of the instruct model"
        raise Refused([Finding("--tokenizer", str(tokenizer.path), why, remedy)])
    return Template(template, tokenizer.special_tokens)


class HH:
    facts = {"name": "hh"}

    def render(self, conversation: Conversation) -> Pair | Drop:
        return hh_format.render(conversation)


class Llama3:
    """Llama 3's chat format, as its model card describes it. Base models can use it: their tokenizer has its tokens."""

    facts = {"name": "llama3"}
    BEGIN, END, HEAD = "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>{}<|end_header_id|>\n\n"
    TOKENS = (BEGIN, END, "<|start_header_id|>", "<|end_header_id|>")

    def render(self, conversation: Conversation) -> Pair | Drop:
        if any(token in text for text in texts(conversation) for token in self.TOKENS):
            return Drop.MARKER
        turns = "".join(self.HEAD.format(role) + text + self.END for role, text in _messages(conversation))
        prompt = self.BEGIN + turns + self.HEAD.format("assistant")
        chosen, rejected = conversation.chosen + self.END, conversation.rejected + self.END
        return Pair(prompt, chosen, rejected, conversation.turns[0], conversation.rewards)


class Template:
    """The Jinja template that Hugging Face's tokenizers carry, run as transformers runs it.

    It does not define `strftime_now`: templates that write today's date then use their fixed fallback date, so equal
    sources give equal files on any day.
    """

    def __init__(self, text: str, special_tokens: dict[str, str]) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(why: str) -> None:
            raise TemplateError(why)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            why = f"has a chat template that Jinja cannot parse ({error})"
            raise Refused([Finding("--tokenizer", "", why, "use --prompt-format hh or llama3")]) from error
        self._special_tokens = special_tokens
        self.facts = {"name": "chat", "template_sha256": hashlib.sha256(text.encode()).hexdigest()}

    def render(self, conversation: Conversation) -> Pair | Drop:
        messages = [{"role": role, "content": text} for role, text in _messages(conversation)]
        try:
            prompt = self._write(messages, True)
            sides = [
                self._write([*messages, {"role": "assistant", "content": text}], False)
                for text in (conversation.chosen, conversation.rejected)
            ]
        except Exception:  # a template is foreign code: it refuses roles, and may fail in any way
            return Drop.TEMPLATE
        chosen, rejected = (side[len(prompt) :] for side in sides)
        whole = all(side.startswith(prompt) for side in sides)
        whole = whole and conversation.chosen in chosen and conversation.rejected in rejected
        if not whole or not all(text in prompt for text in (conversation.system, *conversation.turns)):
            return Drop.TEMPLATE
        return Pair(prompt, chosen, rejected, conversation.turns[0], conversation.rewards)

    def _write(self, messages: Sequence[dict[str, str]], waiting: bool) -> str:
        values: dict[str, Any] = {"messages": messages, "add_generation_prompt": waiting, **self._special_tokens}
        return self._template.render(values)


def _messages(conversation: Conversation) -> list[tuple[str, str]]:
    roles = ("user", "assistant")
    turns = [(roles[number % 2], text) for number, text in enumerate(conversation.turns)]
    return [("system", conversation.system), *turns] if conversation.system else turns


def texts(conversation: Conversation) -> tuple[str, ...]:
    return (conversation.system, *conversation.turns, conversation.chosen, conversation.rejected)
