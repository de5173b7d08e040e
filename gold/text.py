"""Texts as people read them, in any script: when two are the same, what their words are, where one stands in another.

    text_key("Hello,  World!")      "hello world"       equal keys = duplicates
    text_key("C++ :) a < b")        "c++ :) a < b"      a key keeps all that can change the meaning
    words("Great phone, 5 stars")   ["great", "phone", "5", "stars"]
    rouge_words("don't, 3.5")       ["don", "t", "3", "5"]      as Google's rouge-score has them
    squad_form("“1066”。")          "1066"
    exact_form(" Café ")            "café"

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no blanks between words: there a character with its marks is a word.
Texts in ASCII go through the standard library alone, by the same rule; `regex` is imported for the others.
"""

import functools
import re
import unicodedata
from types import SimpleNamespace


def _apart(code: int) -> str:
    """What keeps a raised, lowered or broken number apart from its neighbours under NFKC: 2\u00b3 is 2^3, not 23."""
    kind = unicodedata.decomposition(chr(code)).partition(" ")[0]
    sign = {"<super>": "^", "<sub>": "_", "<fraction>": " "}.get(kind, "")
    return sign + unicodedata.normalize("NFKC", chr(code)).replace("\u2212", "-")


# Before NFKC. Invisible: soft hyphen, zero-width blank, directions, variation selectors. The joiners U+200C and U+200D
# stay: they spell words of Persian and of Indian languages.
UNSEEN = (0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF)
RAISED = (0xB2, 0xB3, 0xB9, *range(0xBC, 0xBF), *range(0x2070, 0x209D), *range(0x2150, 0x2160), 0x2189)
APART = dict.fromkeys(map(chr, (*UNSEEN, *range(0xFE00, 0xFE10))), "") | {chr(code): _apart(code) for code in RAISED}
# After NFKC: one form of the quotes and of the minus
ALIKE = dict.fromkeys("\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f«»「」『』", '"')
ALIKE |= {"\u2212": "-"}

# Punctuation that a key leaves out: what ends or quotes a word. Nothing between blanks, nothing within a word, no symbol.
EDGES = r"""[.,;:?!"'] (?:
      (?<=[a-z][a-z].) [.,;:?!"']* (?!\S)                   # behind a word
    | (?<=[a-z0-9%][.,;:?]) [.,;:?]* (?!\S)                 # behind a number or a single letter: 5! and y' stay
    | (?<=[a-z0-9%)\]}][)\]}][.,;:?]) [.,;:?]* (?!\S)       # behind a closing bracket
    | (?<=["']) (?<![^ (\[{].) ["']* (?=[a-z0-9])           # quotes before a word
)"""
UNICODE = {
    "a-z": r"\p{L}\p{M}", "0-9": r"\p{N}", ".,;:?": r"[\p{Terminal_Punctuation}--[!]]", r")\]}": r"\p{Pe}",
    r"(\[{": r"\p{Ps}", "\"'": "\"'\u00bf\u00a1",
}  # fmt: skip
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]&&[\p{L}\p{M}]"

FAR = re.compile("[\u0e00-\U0010ffff]")  # without such a letter a text has blanks: found sooner than a script


@functools.cache
def _ascii_edges() -> re.Pattern:
    return re.compile(EDGES, re.VERBOSE)


@functools.cache
def _unicode() -> SimpleNamespace:
    """The patterns for texts beyond ASCII, compiled when the first one comes."""
    import regex

    edges = EDGES
    for ours, theirs in UNICODE.items():
        edges = edges.replace(ours, theirs)
    # A letter of a script without capitals may be a word, and is no name of a number
    edges = edges.replace(r"(?<=[\p{L}\p{M}][\p{L}\p{M}].)", r"(?:(?<=[\p{L}\p{M}][\p{L}\p{M}].)|(?<=\p{Lo}.))")
    unspaced, word = f"[{UNSPACED}]", r"[\p{L}\p{M}\p{N}\u200c\u200d]"
    found = {
        "punctuation": r"[\p{P}--\p{ASCII}]",
        "unspaced": rf"{unspaced}\p{{M}}*",
        "edges": edges,
        "inside": rf"(?<={unspaced})[\s\p{{Terminal_Punctuation}}\"'\u00bf\u00a1]+(?={unspaced})",
        "words": rf"{unspaced}\p{{M}}*|[\S--{unspaced}]+",
        "rouge": rf"{unspaced}\p{{M}}*|[{word}--{unspaced}]+|[\p{{S}}--\p{{ASCII}}]",
        "limit": rf"(?<!\w(?=\p{{M}}))(?<![\w--{unspaced}](?=[\w--{unspaced}]))",
    }
    flags = regex.VERSION1 | regex.VERBOSE
    apart, alike = (re.compile(f"[{''.join(map(re.escape, table))}]") for table in (APART, ALIKE))
    patterns = {name: regex.compile(pattern, flags) for name, pattern in found.items()}
    return SimpleNamespace(apart=apart, alike=alike, **patterns)


def _folded(text: str) -> str:
    """Without what cannot be seen, and of one case and form: Unicode's NFKC_Casefold, but for raised numbers."""
    patterns = _unicode()
    seen = patterns.apart.sub(lambda found: APART[found[0]], text)
    text = unicodedata.normalize("NFKD", seen if seen.strip() else text)
    text = unicodedata.normalize("NFKC", text.casefold())
    if (again := text.casefold()) != text:
        text = unicodedata.normalize("NFKC", again)
    return patterns.alike.sub(lambda found: ALIKE[found[0]], text)


@functools.lru_cache(maxsize=1_000)  # examples that prompts show come again and again
def text_key(text: str) -> str:
    """What makes two texts duplicates. It folds case, white space, Unicode compatibility forms and quotes, and leaves
    out the punctuation at the ends of words. Operators, signs, marks and symbols stay; "1,000" and "1000" are two texts.
    """
    if text.isascii():
        return _ascii_edges().sub("", " ".join(text.lower().split()))
    patterns = _unicode()
    text, before = " ".join(_folded(text).split()), None
    while text != before:  # what goes may bring other punctuation to the end of a word
        before, text = text, patterns.edges.sub("", text)
        text = patterns.inside.sub("", text) if FAR.search(text) else text
    return text


def words(text: str) -> list[str]:
    """The words of a text's key, symbols that stand alone among them; no text that can be seen is without one."""
    key = text_key(text)
    return _unicode().words.findall(key) if FAR.search(key) else key.split()


def rouge_words(text: str) -> list[str]:
    """Runs of letters, marks and digits, and symbols beyond ASCII (an emoji): what ROUGE compares."""
    if text.isascii():
        return re.findall("[a-z0-9]+", text.lower())
    return _unicode().rouge.findall(_folded(text))


def squad_form(text: str) -> str:
    """What SQuAD's script is given: composed, without punctuation beyond ASCII, words apart in scripts without blanks.
    The script itself lower-cases and takes away ASCII punctuation and English articles."""
    if text.isascii():
        return text
    patterns = _unicode()
    text = patterns.punctuation.sub("", unicodedata.normalize("NFC", text))
    return patterns.unspaced.sub(r" \g<0> ", text)


def exact_form(text: str) -> str:
    """Stripped, lower-cased and composed (NFC): what an exact match compares."""
    return unicodedata.normalize("NFC", text.strip().lower())


def holds_span(text: str, span: str) -> bool:
    """Whether a span stands in a text, letter by letter, as whole words: eight is none of weight."""
    limit = _unicode().limit
    places = re.finditer(rf"(?={re.escape(span)})", text) if span else []
    return any(limit.match(text, p.start()) and limit.match(text, p.start() + len(span)) for p in places)
