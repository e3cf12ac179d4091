"""The 25 kinds of instructions of IFEval (Zhou et al. 2311.07911, table 4), each a function of an answer.

The keys and arguments are those of IFEval's data. Where the paper leaves a count open, the rule is the one that its
authors' scores rest on, so that the scores are the same on the same answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from launcher.evaluate.instructions import text

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""Of `detectable_format:constrained_response`."""

Check = Callable[..., bool]
CHECKERS: dict[str, Check] = {}
"""By instruction id: (answer, the instruction's arguments) -> whether the answer follows it."""


def follows(answer: str, instruction: str, arguments: Mapping[str, object] | None = None) -> bool:
    """Whether the answer follows one instruction. An empty answer follows none.

    Raises ValueError for an unknown id, or arguments that it does not take or lacks.
    """
    check = CHECKERS.get(instruction)
    if check is None:
        raise ValueError(f"there is no instruction {instruction!r}; there are {', '.join(CHECKERS)}")
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    if not answer.strip():
        return False
    try:
        return check(answer, **given)
    except TypeError as error:
        raise ValueError(f"{instruction}: {error}") from error


def _checks(instruction: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        CHECKERS[instruction] = check
        return check

    return register


def _compare(count: int, relation: str, threshold: float) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"the relation is {relation!r}, neither 'at least' nor 'less than'")
    return count >= threshold if relation == "at least" else count < threshold


@_checks("keywords:existence")
def _existence(answer: str, keywords: Sequence[str]) -> bool:
    return all(re.search(re.escape(word), answer, re.IGNORECASE) for word in keywords)


@_checks("keywords:frequency")
def _frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(len(re.findall(re.escape(keyword.strip()), answer, re.IGNORECASE)), relation, frequency)


@_checks("keywords:forbidden_words")
def _forbidden(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in forbidden_words)


@_checks("keywords:letter_frequency")
def _letters(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(answer.lower().count(letter.strip().lower()), let_relation, let_frequency)


@_checks("language:response_language")
def _language(answer: str, language: str) -> bool:
    return text.language(answer) in (language, None)


@_checks("length_constraints:number_sentences")
def _sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _compare(text.count_sentences(answer), relation, num_sentences)


@_checks("length_constraints:number_paragraphs")
def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of `***`. One at the beginning or the end may be empty, and does not count."""
    full = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", answer)]
    return all(full[1:-1]) and sum(full) == num_paragraphs


@_checks("length_constraints:number_words")
def _number_of_words(answer: str, num_words: int, relation: str) -> bool:
    return _compare(text.count_words(answer), relation, num_words)


@_checks("length_constraints:nth_paragraph_first_word")
def _first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between empty lines; the nth is counted with empty ones, the number of them without."""
    paragraphs = [part.strip() for part in answer.split("\n\n")]
    count = sum(map(bool, paragraphs))
    if count != num_paragraphs or not 0 < nth_paragraph <= count or not paragraphs[nth_paragraph - 1]:
        return False
    begin = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", begin)[0].lower() == first_word.lower()


@_checks("detectable_content:number_placeholders")
def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


@_checks("detectable_content:postscript")
def _postscript(answer: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(known.get(marker, re.escape(marker.lower())), answer.lower()))


@_checks("detectable_format:number_bullet_lists")
def _bullets(answer: str, num_bullets: int) -> bool:
    """Lines that begin with `-`, or with one `*` only."""
    stars = re.findall(r"^\s*\*[^*].*$", answer, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", answer, re.MULTILINE)) == num_bullets


@_checks("detectable_format:constrained_response")
def _constrained(answer: str) -> bool:
    return any(option in answer for option in OPTIONS)


@_checks("detectable_format:number_highlighted_sections")
def _highlights(answer: str, num_highlights: int) -> bool:
    """`*one*` and `**two**` count, if there is text in them."""
    single = [it[1:-1] for it in re.findall(r"\*[^\n*]*\*", answer)]
    double = [it[2:-2] for it in re.findall(r"\*\*[^\n*]*\*\*", answer)]
    return sum(bool(it.strip()) for it in [*single, *double]) >= num_highlights


@_checks("detectable_format:multiple_sections")
def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", answer)) >= num_sections


@_checks("detectable_format:json_format")
def _json(answer: str) -> bool:
    """With or without a Markdown fence."""
    body = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_checks("detectable_format:title")
def _title(answer: str) -> bool:
    return any(it.lstrip("<").rstrip(">").strip() for it in re.findall(r"<<[^\n]+>>", answer))


@_checks("combination:two_responses")
def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    full = [part for part in parts if part]
    return all(parts[1:-1]) and len(full) == 2 and full[0] != full[1]


@_checks("combination:repeat_prompt")
def _repeat(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_checks("startend:end_checker")
def _end(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_checks("startend:quotation")
def _quotation(answer: str) -> bool:
    body = answer.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


@_checks("change_case:capital_word_frequency")
def _capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(sum(map(str.isupper, text.treebank_words(answer))), capital_relation, capital_frequency)


@_checks("change_case:english_capital")
def _capital(answer: str) -> bool:
    return answer.isupper() and text.language(answer) in ("en", None)


@_checks("change_case:english_lowercase")
def _lowercase(answer: str) -> bool:
    return answer.islower() and text.language(answer) in ("en", None)


@_checks("punctuation:no_comma")
def _no_comma(answer: str) -> bool:
    return "," not in answer
