"""How far an example is from the training examples: 1 - the largest cosine with one of them, itself left out."""

from typing import Any


def tfidf_distances(examples: list[dict], train_examples: list[dict]) -> list[float]:
    """By the TF-IDF vectors of the sources' words; document frequencies are those of both sets together."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from gold.text import words

    texts, known = [e["source"] for e in examples], [e["source"] for e in train_examples]
    vectorizer = TfidfVectorizer(analyzer=words).fit([*texts, *known])
    return nearest_distances(vectorizer.transform(texts), vectorizer.transform(known), examples, train_examples)


def nearest_distances(points: Any, known: Any, examples: list[dict], train_examples: list[dict]) -> list[float]:
    """points (n, d) of the examples, known (m, d) of the training examples, dense or sparse. 1 where there is no other."""
    import numpy as np
    from sklearn import config_context
    from sklearn.metrics import pairwise_distances_chunked

    places = {e["id"]: place for place, e in enumerate(train_examples)}

    def nearest(distances: Any, first: int) -> Any:
        for row, example in zip(distances, examples[first : first + len(distances)], strict=True):
            if example["id"] in places:
                row[places[example["id"]]] = np.inf
        return distances.min(axis=1)

    # In MiB; a broken student's NaN is refused where it is written
    with config_context(working_memory=128, assume_finite=True):
        chunks = list(pairwise_distances_chunked(points, known, metric="cosine", reduce_func=nearest))
    distances = np.concatenate(chunks)
    return np.where(np.isinf(distances), 1.0, distances).tolist()
