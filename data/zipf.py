"""Topics whose frequency follows Zipf's law: what the grammars and the embedded models have in common."""

import random
from collections.abc import Container, Iterable


def zipf_weights(names: Iterable[str]) -> dict[str, float]:
    """Zipf's law for names in order of frequency: proportional to 1/rank, summing to 1."""
    names = list(names)
    total = sum(1 / rank for rank in range(1, len(names) + 1))
    return {name: 1 / rank / total for rank, name in enumerate(names, start=1)}


def draw_topic(rng: random.Random, weights: dict[str, float], shown: Container[str] = ()) -> str:
    """A draw by weight among the topics that are not in `shown` (at least one must be left)."""
    left = [topic for topic in weights if topic not in shown]
    return rng.choices(left, [weights[topic] for topic in left])[0]


def burst_topics(rng: random.Random, weights: dict[str, float], length: int, burst: float, begin: str) -> list[str]:
    """A chain of topics from `begin` on: with probability `burst` the one before again, else a draw by weight."""
    chain = [begin]
    while len(chain) < length:
        chain.append(chain[-1] if rng.random() < burst else draw_topic(rng, weights))
    return chain
