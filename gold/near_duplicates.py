"""Near-duplicates among many texts: exact, and without comparing every pair.

near = NearDuplicates(0.7)
near.add("the cat sat on a mat"); near.overlaps("the cat sat on the mat")         True
"""

import math
from array import array
from collections import Counter

from gold.text import words

SHARED = 5  # rare words that two texts must have in common: with more, longer lists are read, and fewer texts compared
RATIO = 1.2  # texts are kept apart by length, each group's longest so much longer than its shortest


class NearDuplicates:
    """Texts, and whether a new one overlaps with any (ROUGE-L F1 of the words, gold/parsing.py) beyond a limit.

    Two texts of n and m words overlap more than the limit t only with more than t (n + m) / 2 words in common. So of
    the n words of one all but a few may be left out, the frequent ones, and the other still has SHARED of the rest
    (prefix filtering, Chaudhuri et al. 2006). A posting list of each word names the texts that have it; those named
    often enough are compared in full. The second `the` of a text is another word than the first.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.texts: list[array] = []  # numbers of the words, 4 bytes each
        self.numbers: dict[str, int] = {}  # of words
        self.postings: dict[tuple[int, int, int], array] = {}  # (group, word, how often before in the text): texts

    def word_numbers(self, text: str) -> array:
        return array("I", [self.numbers.setdefault(word, len(self.numbers)) for word in words(text)])

    def add(self, text: str) -> None:
        found = self.word_numbers(text)
        for token in tokens_of(found):
            self.postings.setdefault((group_of(len(found)), *token), array("I")).append(len(self.texts))
        self.texts.append(found)

    def overlaps(self, text: str) -> bool:
        from rapidfuzz.distance import Indel

        mine, t = self.word_numbers(text), self.limit
        if not mine:
            return not all(self.texts)  # another one without words
        n, tokens = len(mine), tokens_of(mine)
        shortest = above(t * n / (2 - t))  # words in common are at most those of the shorter text
        for group in range(group_of(shortest), group_of(int(n * (2 - t) / max(t, 0.01)) + 1) + 1):
            common = max(1, above(t * (n + max(shortest, math.ceil(RATIO**group))) / 2))
            lists = [found for token in tokens if (found := self.postings.get((group, *token)))]
            empty = n - len(lists)  # of these words the group has none: they are the rarest
            shared = min(SHARED, common)
            lists = sorted(lists, key=len)[: max(0, n - common + shared - empty)]
            if any(Indel.normalized_similarity(mine, self.texts[k]) > t for k in named_often(lists, shared)):
                return True
        return False


def named_often(lists: list[array], times: int) -> list[int]:
    """The numbers that stand in so many of the lists, each of which has a number once."""
    import numpy as np

    if len(lists) < times:
        return []
    named = np.sort(np.concatenate([np.frombuffer(one, np.uint32) for one in lists]))
    rest = named[times - 1 :]
    return np.unique(rest[rest == named[: len(rest)]]).tolist()


def group_of(length: int) -> int:
    return int(math.log(max(length, 1), RATIO) + 1e-9)


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
