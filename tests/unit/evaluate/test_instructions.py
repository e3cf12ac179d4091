"""The checkers of instructions: equal to lm-eval's on recorded answers, and to a second computation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from launcher.evaluate.instructions import checkers, following, text
from launcher.evaluate.instructions.checkers import CHECKERS, follows

CASES = json.loads(Path(__file__).with_name("ifeval_cases.json").read_text())
OWN = Path(following.__file__).with_name("instructions.jsonl")
ROWS = [json.loads(line) for line in OWN.read_text().splitlines()]
LANGUAGE = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
HAS_LANGDETECT = importlib.util.find_spec("langdetect") is not None

FOLLOWED = {
    "keywords:existence": ({"keywords": ["sea", "Salt"]}, "The SEA is full of salt.", "The sea is deep."),
    "keywords:frequency": ({"keyword": "fox", "frequency": 2, "relation": "at least"}, "Fox and fox", "fox"),
    "keywords:forbidden_words": ({"forbidden_words": ["fur"]}, "It is furry.", "It has Fur."),
    "keywords:letter_frequency": ({"letter": "z", "let_frequency": 2, "let_relation": "less than"}, "Zoo", "zZ"),
    "language:response_language": ({"language": "de"}, "Das ist ein Haus und nicht die Katze.", "This is the house."),
    "length_constraints:number_sentences": ({"num_sentences": 2, "relation": "at least"}, "Yes. No!", "Mr. Lee."),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "less than"}, "two words", "now three words"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"},
        "One.\n\nHowever, two.",
        "However.\n\nTwo.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] and [b]", "[a and b]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP.S. Hello", "Bye. PS Hello"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a\n** b"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 a Part 2 b",
        "Part one, Part 2",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<A boat>>\nIt floats.", "<< >>"),
    "combination:two_responses": ({}, "Swan\n******\nGoose", "Swan ****** Swan"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "How far?"}, "how far? Not far.", "Well: How far?"),
    "startend:end_checker": ({"end_phrase": "Now wait."}, 'Dig. NOW WAIT."', "Now wait. Dig."),
    "startend:quotation": ({}, ' "Yes." ', '"Yes'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        "IT'S here",
        "It is HERE",
    ),
    "change_case:english_capital": ({}, "THE FLOOR IS WET AND THE DOOR IS OPEN.", "The floor is wet."),
    "change_case:english_lowercase": ({}, "the floor is wet and the door is open.", "The floor is wet."),
    "punctuation:no_comma": ({}, "a; b", "a, b"),
}


def test_all_25_kinds_are_there():
    assert len(CHECKERS) == 25 and set(FOLLOWED) == set(CHECKERS)
    assert {it["id"] for it in CASES["instructions"]} == set(CHECKERS)


@pytest.mark.parametrize("kind", FOLLOWED)
def test_each_kind_is_followed_and_not(kind):
    arguments, good, bad = FOLLOWED[kind]
    assert follows(good, kind, arguments) and not follows(bad, kind, arguments)
    assert not follows(" \n", kind, arguments)


@pytest.mark.parametrize("name", ["strict", "loose"])
def test_equal_to_lm_eval(name):
    """On 106 answers to each of 103 instructions; lm-eval detects languages with langdetect, which must be there."""
    score = getattr(following, name)
    compared = 0
    for it in CASES["instructions"]:
        if it["id"] in LANGUAGE and not HAS_LANGDETECT:
            continue
        own = "".join(str(int(score(answer, [it])[0])) for answer in CASES["answers"])
        assert own == it[name], it["id"]
        compared += len(own)
    assert compared >= 9500


def test_languages_agree_with_lm_eval_where_the_answer_is_long_enough():
    """Langdetect guesses at fragments; own rules are compared on answers of at least six words in one script."""
    for it in CASES["instructions"]:
        for answer, verdict in zip(CASES["answers"], it["strict"], strict=True):
            if it["id"] == LANGUAGE[0] and len(answer.split()) >= 6 and "\n" not in answer:
                assert (text.guess_language(answer) == it["kwargs"]["language"]) == bool(int(verdict)), answer


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("en", "The boats in the harbour are waiting for the tide."),
        ("de", "Die Boote im Hafen warten auf die Flut und der Wind ist still."),
        ("fr", "Les bateaux dans le port attendent la marée et le vent est calme."),
        ("es", "Los barcos en el puerto esperan la marea y el viento es suave."),
        ("pt", "Os barcos no porto esperam a maré e o vento não é forte."),
        ("it", "Le barche nel porto aspettano la marea e il vento è calmo con il sole."),
        ("pl", "Łodzie w porcie czekają na przypływ i wiatr jest cichy."),
        ("fi", "Veneet ovat satamassa ja tuuli on heikko."),
        ("ru", "Лодки в порту ждут прилива, и ветер не дует."),
        ("uk", "Човни в порту чекають на приплив, і вітер не дме."),
        ("ja", "港の船は潮を待っています。"),
        ("ko", "항구의 배들이 밀물을 기다립니다."),
        ("ar", "القوارب في الميناء من الصباح إلى المساء"),
        ("hi", "नाव बंदरगाह में है और हवा का ज़ोर कम है"),
        (None, "12345 ... !"),
    ],
)
def test_own_language_rules(code, sentence):
    assert text.guess_language(sentence) == code


def test_sentences_are_split_as_punkt_does():
    """Expected counts are Punkt's, with NLTK's English model."""
    counts = {
        "One. Two! Three?": 3,
        "Mr. Smith met Dr. Jones at 5 p.m. in the U.S. embassy.": 1,
        "Wait... The end. wait... what": 3,
        "He said (quietly.) Then he left.": 2,
        "1. First do this. 2. Then that.": 4,
        "no end": 1,
        "": 0,
    }
    assert {sentence: text.count_sentences(sentence) for sentence in counts} == counts


def test_words_are_those_of_the_penn_treebank():
    """A second computation: NLTK's tokenizer."""
    treebank = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer()
    for answer in CASES["answers"]:
        ours, theirs = ([word for word in words if word.isupper()] for words in (
            text.treebank_words(answer), treebank.tokenize(answer)))  # fmt: skip
        assert len(ours) == len(theirs), answer


def test_loose_takes_the_best_of_eight_variants():
    answer = "Sure:\n*My answer* is no.\nAsk me again."
    assert len(following.variants(answer)) == 8
    checks = [{"id": "startend:end_checker", "kwargs": {"end_phrase": "is no."}}, {"id": "punctuation:no_comma"}]
    assert following.strict(answer, checks) == [False, True]
    assert following.loose(answer, checks) == [True, True]
    assert following.loose("", checks) == [False, False]


def test_a_damaged_instruction_is_an_error():
    with pytest.raises(ValueError, match="there is no instruction 'length:none'"):
        follows("a", "length:none")
    with pytest.raises(ValueError, match=r"number_words: .*relation"):
        follows("a", "length_constraints:number_words", {"num_words": 3, "relation": None})
    with pytest.raises(ValueError, match="neither 'at least' nor 'less than'"):
        follows("a", "length_constraints:number_words", {"num_words": 3, "relation": "exactly"})


def test_a_keyword_is_no_pattern():
    assert follows("I like C++ (a lot).", "keywords:existence", {"keywords": ["c++", "(a"]})
    assert not follows("aaaa", "keywords:existence", {"keywords": ["a.a"]})


def test_the_own_set_uses_every_kind_and_all_its_arguments_are_good():
    assert len(ROWS) == 60 and len({row["prompt"] for row in ROWS}) == 60
    assert {kind for row in ROWS for kind in row["instruction_id_list"]} == set(CHECKERS)
    for row in ROWS:
        for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            assert follows("A sentence.", kind, arguments) in (True, False)


def test_the_own_set_says_in_its_prompts_what_it_checks():
    """Each argument that is a text or a number stands in the prompt."""
    for row in ROWS:
        prompt = row["prompt"].lower()
        for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            for name, value in arguments.items():
                wanted = value if isinstance(value, list) else [value]
                if name == "language":
                    wanted = [{"de": "german", "es": "spanish", "fr": "french"}[value]]
                if name in ("nth_paragraph", "num_highlights") or value in ("apples", ["apple", "apples"]):
                    continue
                assert all(str(one).lower() in prompt for one in wanted), (row["prompt"], kind, name)


def test_options_of_the_constrained_response_are_ifevals():
    assert checkers.OPTIONS == ("My answer is yes.", "My answer is no.", "My answer is maybe.")
