"""gold/text.py: which texts are one, what their words are, where one stands in another; in any script."""

# ruff: noqa: RUF001  texts of other scripts are what is tested

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gold.text import APART, holds_span, text_key, words

ALIKE = [
    ("Great  phone.", "great phone"), ("Hello, world!", "hello world"), ('He said "yes."\n', "he said yes"),
    ("“Great” phone", '"great" phone'), ("(So they say).", "(so they say)"), ("I have 3.", "I have 3"),
    ("3 \u2212 4", "3 - 4"), ("ＡＢＣ　５％", "abc 5%"), ("Straße", "STRASSE"), ("café", "cafe\u0301"),
    ("good\u00adbye\u200b", "goodbye"), ("don’t", "don't"), ("¡Hola!", "hola"), ("Привет, мир!", "привет мир"),
    ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
    ("مرحبا؟", "مرحبا"), ("你好，世界！", "你好世界"), ("他说：“好”。", "他说好"), ("❤\ufe0f", "❤"),
]  # fmt: skip
DIFFERENT = [
    ("2 + 3", "2 - 3"), ("3 * 4", "3 / 4"), ("(2 + 3) * 4", "2 + (3 * 4)"), ("a < b", "a > b"), ("C++", "C#"),
    ("C++", "C"), (":)", ":("), ("3.5", "35"), ("-3", "3"), ("1,000", "1000"), ("5%", "5"), ("$5", "5"),
    ("5! / 3", "5 / 3"), ("y' = y", "y = y'"), ("2³", "23"), ("1½", "11/2"), ("x_1", "x 1"),
    ("well-known", "wellknown"), ("कमल की", "कमल का"), ("كتب", "كتّب"), ("が", "か"), ("👍", "👎"), ("a . b", "a b"),
    ("x ≤ 3", "x ≥ 3"), ("می\u200cخواهم", "میخواهم"), ("\u200b", ""),
]  # fmt: skip


@pytest.mark.parametrize("one, other, alike", [(*p, True) for p in ALIKE] + [(*p, False) for p in DIFFERENT])
def test_texts_are_one_or_two(one, other, alike):
    assert (text_key(one) == text_key(other)) is alike and text_key(one)


OPERATORS = "+ - * / < > = ^ % & | ~ ≤ ≥ ≠ × ÷ ∈ ∉ → ++ -- == != <= >= :) :( :-D ;) C++ C# ( ) [ ] { }".split()


@given(st.lists(st.sampled_from(OPERATORS), max_size=4), st.lists(st.sampled_from(OPERATORS), max_size=4))
def test_different_operators_are_different_texts(ours, theirs):
    assert (text_key(" ".join(["a", *ours, "b"])) == text_key(" ".join(["a", *theirs, "b"]))) is (ours == theirs)


# Letters and signs on which a rule could work twice, and any text
ODD = st.text(
    st.sampled_from("aBſßİΣςé\u0301\u0345ﬁ²½ﾊﾞが你好ーกำक़ी\u200d.,!?:;'\"“’¿()[]+-−%59 \n\u00a0\u200b\ufe0f。।，「」"),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(ODD | st.text(max_size=20) | st.text(st.characters(max_codepoint=127)))
def test_a_key_is_its_own_key_and_its_words_are_all_of_it(text):
    key = text_key(text)
    assert text_key(key) == key == " ".join(key.split()) and bool(key) is bool(text.split())
    assert "".join(words(text)) == "".join(key.split())
    if text.isascii():
        assert text_key(f"é {text}") == f"é {key}".strip() and text_key(text.upper()) == key
        assert len(words(text)) == len(text.split())  # nothing that stands alone is lost


def test_every_character_has_a_key_of_its_own_key():
    for char in map(chr, range(0x110000)):
        if unicodedata.normalize("NFKC", char) != char or char.casefold() != char:
            key = text_key(f"a {char}b")
            assert text_key(key) == key, hex(ord(char))


@settings(deadline=None, max_examples=200)
@given(st.lists(ODD | st.text(max_size=8), min_size=1, max_size=4))
def test_case_blanks_and_forms_do_not_count(pieces):
    text = " ".join(pieces)
    assert text_key("\n  " + "\t ".join(pieces) + " ") == text_key(text)
    for form in ("NFC", "NFD", *(() if set(map(ord, text)) & APART.keys() else ("NFKC", "NFKD"))):
        assert text_key(unicodedata.normalize(form, text)) == text_key(text)
    # An iota below is a letter beside in lower case, and marks do not change places with it
    if "\u0345" not in text and not set(map(ord, text)) & APART.keys():
        assert text_key(unicodedata.normalize("NFD", text).casefold()) == text_key(text)


@pytest.mark.parametrize("text, expected", [
    ("Great phone, 5 stars!", "great phone 5 stars"), ("don't :)", "don't :)"), ("👍 !!", "👍 !!"), (" \n", ""),
    ("( 12 - 5.5 ) * 3", "( 12 - 5.5 ) * 3"),  # as many as between blanks
    ("我喜欢iPhone手机，很好。", "我 喜 欢 iphone 手 机 很 好"), ("カーテン", "カ ー テ ン"), ("สวัสดี", "ส วั ส ดี"),
    ("ສະບາຍ", "ສ ະ ບ າ ຍ"), ("ខ្មែរ", "ខ្ មែ រ"), ("မြန်မာ", "မြ န် မာ"), ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
    ("안녕하세요 여러분", "안녕하세요 여러분"),
])  # fmt: skip
def test_words_by_hand(text, expected):
    assert words(text) == unicodedata.normalize("NFKC", expected).split()


@pytest.mark.parametrize("text, span, there", [
    ("it is the weight", "weight", True), ("it is the weight", "eight", False), ("it is the weight", "Weight", False),
    ("the weight", "the weight", True), ("in C++ (new)", "C++", True), ("a", "", False), ("कम है", "कम", True),
    ("कमी है", "कम", False),  # a vowel sign is part of the word
    ("我爱北京天安门", "北京", True), ("用iPhone手机", "手机", True), ("用iPhone手机", "Phone", False),
    ("สวัสดี", "สวัสด", False),  # within a character
])  # fmt: skip
def test_a_span_is_whole_words_of_any_script(text, span, there):
    assert holds_span(text, span) is there
