"""Near-duplicates among many texts: exact, and without comparing every pair.

near = NearDuplicates(0.7)
near.add("the cat sat on a mat"); near.find("the cat sat on the mat")     0, the number of the text that was added
"""

import math
from array import array
from collections import Counter

from gold.text import words

SHARED = 3  # rare words that two texts must have in common: with more, longer lists are read, and fewer texts compared


class NearDuplicates:
    """Texts, and which of them a new one overlaps (ROUGE-L F1 of the words, as gold/parsing.py has it) beyond a limit.

    Two texts of n and m words overlap more than the limit t only with more than t (n + m) / 2 words in common. So of
    the n words of one all but a few may be left out, the frequent ones, and the other still has SHARED of the rest
    (prefix filtering, Chaudhuri et al. 2006). A posting list of each word names the texts that have it; those named
    often enough are compared in full. The second `the` of a text is another word than the first.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.texts: list[array] = []  # numbers of the words, 4 bytes each
        self.numbers: dict[str, int] = {}  # of words
        self.postings: dict[tuple[int, int], array] = {}  # (word, how often before in the text): texts

    def word_numbers(self, text: str) -> array:
        return array("I", [self.numbers.setdefault(word, len(self.numbers)) for word in words(text)])

    def add(self, text: str) -> None:
        number, found = len(self.texts), self.word_numbers(text)
        self.texts.append(found)
        for token in tokens_of(found):
            self.postings.setdefault(token, array("I")).append(number)

    def find(self, text: str) -> int | None:
        """The first text added that overlaps with this one beyond the limit, or None."""
        import numpy as np
        from rapidfuzz.distance import Indel

        mine, t = self.word_numbers(text), self.limit
        n = len(mine)
        if not n:
            return next((number for number, other in enumerate(self.texts) if not other), None)
        shortest = above(t * n / (2 - t))  # words in common are at most those of the shorter text
        common = max(1, above(t * (n + shortest) / 2))
        shared = min(SHARED, common)
        lists = sorted((self.postings.get(token, array("I")) for token in tokens_of(mine)), key=len)
        named = np.sort(np.concatenate([np.frombuffer(one, np.uint32) for one in lists[: n - common + shared]] or [[]]))
        often = np.unique(named[shared - 1 :][named[shared - 1 :] == named[: max(0, len(named) - shared + 1)]])
        for number in often.astype(int).tolist():
            if Indel.normalized_similarity(mine, self.texts[number]) > t:
                return number
        return None


def above(x: float) -> int:
    """The least whole number above x; x itself where it is one but for rounding."""
    return math.floor(x - 1e-9) + 1


def tokens_of(numbers: array) -> list[tuple[int, int]]:
    """Each word with the number of times that it came before."""
    seen: Counter[int] = Counter()
    tokens = []
    for number in numbers:
        tokens.append((number, seen[number]))
        seen[number] += 1
    return tokens
