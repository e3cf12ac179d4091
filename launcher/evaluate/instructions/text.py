"""Words, sentences and the language of a text, as IFEval's checkers count them, without models that must be downloaded.

IFEval counts sentences with NLTK's Punkt model and detects languages with langdetect. The rules here agree with Punkt
on ordinary answers (docs/evaluation.md has the figure). Where langdetect is installed, it is used: short texts in
capitals are guessed wrongly by it, and scores that are compared with published ones have to share that.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

_END = re.compile(r"(\S*?)([.!?]+)([\"')\]}*”’]*)\s+(?=(\S+))")
_ABBREVIATIONS = """
adm ave bros co col corp dr ft gen inc jr lt ltd maj mr mrs ms ok prof rep sen sr st v vs a.m p.m d.c ph.d u.k u.n u.s
jan feb aug sep sept oct nov dec
"""
_STARTERS = """
although both but despite does even finally he here however i if in indeed instead it many maybe meanwhile moreover most
nevertheless overall please remember since so some such sure the there therefore these they this though thus under when
which while yes yet your
"""
"""Words that begin a sentence after an abbreviation or an ellipsis; other capitalised words may be names."""
_ABBREVIATED, _STARTING = frozenset(_ABBREVIATIONS.split()), frozenset(_STARTERS.split())


def count_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def count_sentences(text: str) -> int:
    """0 for a text without a character to read."""
    if not text.strip():
        return 0
    return 1 + sum(_ends_sentence(*sentences.groups()) for sentences in _END.finditer(text.strip()))


def _ends_sentence(word: str, marks: str, closers: str, following: str) -> bool:
    if marks.strip("."):
        return True  # an exclamation mark or a question mark
    next_word = re.sub(r"^[\"'(\[*_]+|['’.,;:!?].*$", "", following)
    starts = next_word.lower() in _STARTING and next_word[:1].isupper()
    if len(marks) > 1:
        return starts
    word = word.lstrip("\"'([*_").lower()
    if word in _ABBREVIATED:
        return starts
    if re.fullmatch(r"(?!e\.g|i\.e|p\.s)([a-hj-z]|[a-z]\.[a-z])", word):
        return starts  # initials
    return not (word.isdigit() and next_word[:1].islower())


def treebank_words(text: str) -> list[str]:
    """The words that the Penn Treebank's rules make of a text; punctuation is left out."""
    spaced = re.sub(r"[;@#$%&?!*()\[\]{}<>\"“”‘’«»…]|--|\.{2,}|[:,](?!\d)", " ", text)
    spaced = re.sub(r"(?i)\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b", _split, spaced)
    words: list[str] = []
    for word in spaced.split():
        ending = re.fullmatch(r"(.+?)('[sSmMdD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)", word.rstrip(".'"))
        words += ending.groups() if ending else [word]
    return words


def _split(match: re.Match[str]) -> str:
    return " ".join(part for part in match.groups() if part)


def detector() -> str:
    """Which detector `language` uses, for the record beside the scores: `langdetect`, or `own rules`."""
    return "langdetect" if _langdetect() else "own rules"


def language(text: str) -> str | None:
    """ISO 639-1 code of a text's language; None where there is nothing to tell it by."""
    module = _langdetect()
    if module is None:
        return guess_language(text)
    try:
        return str(module.detect(text))
    except module.LangDetectException:
        return None


@cache
def _langdetect() -> Any:
    try:
        import langdetect
    except ImportError:
        return None
    langdetect.DetectorFactory.seed = 0  # it draws at random otherwise
    return langdetect


_SCRIPTS = (
    ("ko", "가-힣"), ("ja", "぀-ヿ"), ("zh", "一-鿿"), ("he", "֐-׿"), ("th", "฀-๿"), ("bn", "ঀ-৿"), ("pa", "਀-੿"),
    ("gu", "઀-૿"), ("ta", "஀-௿"), ("te", "ఀ-౿"), ("kn", "ಀ-೿"), ("ml", "ഀ-ൿ"), ("el", "Ͱ-Ͽ"),
    ("arabic", "؀-ۿ"), ("devanagari", "ऀ-ॿ"), ("cyrillic", "Ѐ-ӿ"), ("latin", "a-zß-ɏ"),
)  # fmt: skip
_FUNCTION_WORDS = {
    "latin": {
        "en": "the of and to in is that it for was with as on are this be at by have from or not but you they which we "
        "an i my your can will",
        "de": "der die das und ist nicht ein eine zu den mit von für auf sich auch es ich dem des im sie wir",
        "fr": "le la les et est des un une du que pour dans qui pas sur au avec ce il elle nous vous je sont",
        "es": "el la los las y es un una que de en por con para no se del al lo como más su yo son muy",
        "pt": "o os as e é um uma que de em por com para não se do da no na como mais seu eu são muito",
        "it": "il lo la gli e è un una che di in per con non si del della nel sono come più ho questo molto",
        "nl": "de het een en van is dat niet te voor met op zijn aan er ook als maar ik je wij",
        "pl": "i w z na jest nie się że do to jak o po ale od za przez dla są ma czy",
        "vi": "là và của có không được một những cho với các trong này đã người tôi",
        "sw": "na ya wa kwa ni katika za la kuwa hii cha yake lakini kama mimi sana",
        "fi": "ja on ei se että hän oli mutta kun myös ovat tai kuin minä joka ole",
        "sv": "och att det som en är på av för inte med till den har jag ett om vi",
        "tr": "ve bir bu için ile de da çok olarak daha ben gibi ama var değil",
    },
    "arabic": {
        "ar": "في من على أن إلى هذا التي الذي عن مع هو هي كان لا ما",
        "fa": "در به از که این را با است برای آن یک های می شود",
        "ur": "کے کی میں ہے اور سے کا کو یہ نے پر ہیں کہ",
    },
    "devanagari": {
        "hi": "है के में की और से का को यह हैं पर मैं नहीं एक",
        "mr": "आहे आणि च्या मध्ये हे ते नाही आहेत एक मी या होते",
        "ne": "छ र को मा हो यो लागि पनि छन् गर्न भएको म",
    },
    "cyrillic": {
        "ru": "и в не на что я с как это по но из для он они мы вы был",
        "uk": "і в не на що я з як це та але для він вони ми ви був є",
        "bg": "и в не на че аз с как това по но за той те ние вие беше е да се",
    },
}
_BY_LANGUAGE = {
    script: {code: frozenset(listed.split()) for code, listed in languages.items()}
    for script, languages in _FUNCTION_WORDS.items()
}


def guess_language(text: str) -> str | None:
    """By the script that most letters belong to, then by the most frequent words of the languages written in it.

    None where there are no letters. A text in Latin letters with none of the listed words counts as English.
    """
    text = text.lower()
    letters = {name: len(re.findall(f"[{script}]", text)) for name, script in _SCRIPTS}
    if letters["ja"]:  # Japanese has Chinese characters too
        letters["ja"] += letters["zh"]
    script = max(letters, key=lambda name: letters[name])
    if not letters[script]:
        return None
    if script not in _BY_LANGUAGE:
        return script
    words = Counter(re.findall(r"[^\s\d.,;:!?\"'()\[\]{}*،؟।]+", text))
    votes = {
        code: sum(times for word, times in words.items() if word in listed)
        for code, listed in _BY_LANGUAGE[script].items()
    }
    return max(votes, key=lambda code: votes[code])
