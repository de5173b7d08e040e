"""Texts as people read them, in any script: when two are duplicates, what their words are, whether one holds another.

    text_key("Hello,  World!")      "hello world"       equal keys = duplicates; what can change the meaning stays
    words("Great phone, 5 stars")   ["great", "phone", "5", "stars"]
    rouge_words("don't, 3.5")       ["don", "t", "3", "5"]          as Google's rouge-score has them
    squad_words("The “1066”。")     ["1066"]                        as SQuAD's script has them

Chinese, Japanese, Thai, Lao, Khmer, Burmese have no blanks between words: there a character with its marks is a word.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def apart(code: int) -> str:
    """What keeps a raised, lowered or broken number separate from its neighbours under NFKC: 2\u00b3 is 2^3, not 23."""
    sign = {"<super>": "^", "<sub>": "_", "<fraction>": " "}.get(unicodedata.decomposition(chr(code)).split(" ")[0], "")
    return sign + unicodedata.normalize("NFKC", chr(code)).replace("\u2212", "-")


# Replaced before NFKC. Invisible: soft hyphen, zero-width blank, directions, variation selectors. The joiners U+200C and
# U+200D stay: they spell words of Persian and of Indian languages.
UNSEEN = (0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF)
RAISED = (0xB2, 0xB3, 0xB9, *range(0xBC, 0xBF), *range(0x2070, 0x209D), *range(0x2150, 0x2160), 0x2189)
APART = dict.fromkeys((*UNSEEN, *range(0xFE00, 0xFE10)), "") | {code: apart(code) for code in RAISED}
# One form of the quotes and of the minus; the last six are wide and vertical forms, which NFKC makes such quotes
APART |= dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b"), "'") | {0x2212: "-"}
APART |= dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f«»「」『』\uff62\uff63\ufe41\ufe42\ufe43\ufe44"), '"')

# The punctuation that a key leaves out: what ends or quotes a word. Nothing between blanks, nothing within a word, no
# symbol. A letter of a script without capitals (\p{Lo}) may be a word, and is no name of a number.
LETTER, NUMBER, QUOTE, END = r"\p{L}\p{M}", r"\p{N}", "\"'\u00bf\u00a1", r"[\p{Terminal_Punctuation}--[!]]"
EDGES = rf"""[{END}!{QUOTE}] (?:
      (?:(?<=[{LETTER}][{LETTER}].) | (?<=\p{{Lo}}.)) [{END}!{QUOTE}]* (?!\S)    # behind a word
    | (?<=[{LETTER}{NUMBER}%]{END}) {END}* (?!\S)           # behind a number or a single letter: 5! and y' stay
    | (?<=[{LETTER}{NUMBER}%\p{{Pe}}]\p{{Pe}}{END}) {END}* (?!\S)                # behind a closing bracket
    | (?<=[{QUOTE}]) (?<![^ \p{{Ps}}].) [{QUOTE}]* (?=[{LETTER}{NUMBER}])        # quotes before a word
)"""
UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{M}]]"
PATTERNS = {
    "edges": EDGES,
    "punctuation": r"[\p{P}[\p{S}&&\p{ASCII}]]",
    "unspaced": rf"{UNSPACED}\p{{M}}*",
    "inside": rf"(?<={UNSPACED})[\s\p{{Terminal_Punctuation}}{QUOTE}]+(?={UNSPACED})",
    "words": rf"{UNSPACED}\p{{M}}*|[\S--{UNSPACED}]+",
    "rouge": rf"{UNSPACED}\p{{M}}*|[[{LETTER}{NUMBER}\u200c\u200d]--{UNSPACED}]+|[\p{{S}}--\p{{ASCII}}]",
    "limit": rf"(?<!\w(?=\p{{M}}))(?<![\w--{UNSPACED}](?=[\w--{UNSPACED}]))",
}
MAY_LACK_BLANKS = re.compile("[\u0e00-\U0010ffff]")  # a quick test: the scripts below these have blanks


@functools.cache
def pattern(name: str) -> Any:
    import regex  # here: it takes a tenth of the time of a --help

    return regex.compile(PATTERNS[name], regex.VERSION1 | regex.VERBOSE)


def folded(text: str) -> str:
    """Without what cannot be seen, and of one case and form: Unicode's NFKC_Casefold, but for raised numbers."""
    if text.isascii():
        return text.lower()
    seen = text.translate(APART)
    text = unicodedata.normalize("NFKD", seen if seen.strip() else text)
    for _ in range(2):
        text = unicodedata.normalize("NFKC", text.casefold())
    return text


@functools.lru_cache(maxsize=1_000)  # examples that prompts show come again and again
def text_key(text: str) -> str:
    """What makes two texts duplicates. It folds case, white space, Unicode compatibility forms and quotes, and leaves
    out the punctuation at the ends of words. Operators, marks and symbols stay; "1,000" and "1000" are two texts."""
    text, before = pattern("edges").sub("", " ".join(folded(text).split())), None
    while text != before and MAY_LACK_BLANKS.search(text):  # what goes may bring other punctuation to the end of a word
        before, text = text, pattern("edges").sub("", pattern("inside").sub("", text))
    return text


def words(text: str) -> list[str]:
    """The words of a text's key, symbols that stand alone among them; no text that can be seen is without one."""
    key = text_key(text)
    return pattern("words").findall(key) if MAY_LACK_BLANKS.search(key) else key.split()


def distinct_2(texts: Sequence[str], budget: int) -> float:
    """Different / all pairs of neighbouring words within texts, of their first `budget` words (Li et al. 2016)."""
    pairs = []
    for text in texts:
        some = words(text)[:budget]
        pairs += pairwise(some)
        budget -= len(some)
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def rouge_words(text: str) -> list[str]:
    """Runs of letters, marks and digits, and symbols beyond ASCII (an emoji): what ROUGE compares."""
    return pattern("rouge").findall(folded(text))


def squad_words(text: str) -> list[str]:
    """The words that SQuAD's script compares: lower-cased, without punctuation and English articles."""
    text = pattern("punctuation").sub("", unicodedata.normalize("NFC", text).lower())
    text = pattern("unspaced").sub(r" \g<0> ", text)
    return re.sub(r"\b(?:a|an|the)\b", " ", text).split()


def exact_form(text: str) -> str:
    """Stripped, lower-cased and composed (NFC): what an exact match compares."""
    return unicodedata.normalize("NFC", text.strip().lower())


def holds_span(text: str, span: str) -> bool:
    """Whether a span stands in a text, letter by letter, as whole words: eight is none of weight."""
    limit = pattern("limit")
    places = re.finditer(rf"(?={re.escape(span)})", text) if span else []
    return any(limit.match(text, p.start()) and limit.match(text, p.start() + len(span)) for p in places)
