"""Held-out prompts: a judge that has a chat form of its own gets their turns, where the data's form shows them."""

from __future__ import annotations

import json

from launcher.evaluate.prompts import PromptForm, held_out


def test_the_turns_of_a_prompt_in_hhs_form(tmp_path):
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How are you?\n\nAssistant:"
    row = {"prompt": prompt, "chosen_response": " Fine.", "rejected_response": " No."}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = held_out(tmp_path / "test.jsonl", 5, PromptForm("hh", None))
    assert (found.text, found.chosen) == (prompt, "Fine.")
    assert [(it["role"], it["content"]) for it in found.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "How are you?"),
    ]
    (other,) = held_out(tmp_path / "test.jsonl", 5, PromptForm("chat", None))
    assert other.messages is None, "its form is not known here"
