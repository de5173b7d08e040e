"""Retrieval augmentation (RADA, Seo et al. 2024, arXiv 2402.13482): texts of a corpus, near a shot, stand in the prompt.

pools.nearest = nearest_texts(path, task, [*pools.seed, *pools.feedback])
attempt = with_passages(attempt, task, pools.nearest, options)
"""

import random
from dataclasses import replace
from pathlib import Path

from gold.attempts import Attempt
from gold.examples import example_key, read_examples
from gold.task import Task
from gold.text import words

NEAREST = 10  # texts of the corpus from which an attempt at a query draws


def nearest_texts(path: Path | None, task: Task, queries: list[dict]) -> dict[str, list[dict]]:
    """By a query's source: the NEAREST texts of the corpus, by TF-IDF cosine of the words, the nearest first.

    Not among them: the query's own text, and what shares no word with it. {} without a corpus; of equal texts one counts.
    """
    if not path:
        return {}
    from sklearn import config_context
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    read = read_examples(path, task, keep=["id", *task.fields, "source"], answers=False, foreign=True)
    corpus = {example_key(task, text): text for text in reversed(read)}  # of equal ones the first
    keys, texts, asked = list(corpus), list(corpus.values()), {q["source"]: example_key(task, q) for q in queries}
    vectors, nearest = TfidfVectorizer(analyzer=words).fit_transform([*keys, *asked.values()]), {}
    search = NearestNeighbors(n_neighbors=min(NEAREST + 1, len(keys)), metric="cosine", algorithm="brute")
    search.fit(vectors[: len(keys)])
    with config_context(working_memory=128):  # MiB: distances of so many queries at a time
        found = zip(*search.kneighbors(vectors[len(keys) :]), strict=True)
    for (source, own), (distances, places) in zip(asked.items(), found, strict=True):
        near = [place for place, distance in zip(places, distances, strict=True) if distance < 1 and keys[place] != own]
        nearest[source] = [texts[place] for place in near[:NEAREST]]
    return nearest


def with_passages(a: Attempt, task: Task, nearest: dict[str, list[dict]], options: dict) -> Attempt:
    """The attempt with passages drawn from the texts nearest to one of its shots, of the label asked for where one is.

    The stream is their own: label, shots and seeds are those of a run without passages.
    """
    rng = random.Random(f"{a.stream}/passages")
    queries = [shot for shot in a.shown if shot[task.answer_field] == a.label] or a.shown
    near = nearest[rng.choice(queries)["source"]] if queries else []
    return replace(a, passages=rng.sample(near, min(options["num_passages"], len(near))))
