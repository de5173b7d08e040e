"""How far an example is from all training examples: 1 - the largest cosine with one of them, itself apart."""

from typing import Any

COSINES_AT_ONCE = 2**24  # 128 MiB


def tfidf_distances(examples: list[dict], train_examples: list[dict]) -> list[float]:
    """By the TF-IDF vectors of the sources' words; document frequencies are those of both sets together."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from gold.text import words

    texts, known = [e["source"] for e in examples], [e["source"] for e in train_examples]
    vectorizer = TfidfVectorizer(analyzer=words).fit([*texts, *known])
    return nearest_distances(vectorizer.transform(texts), vectorizer.transform(known).T, examples, train_examples)


def embedding_distances(points: Any, known: Any, examples: list[dict], train_examples: list[dict]) -> list[float]:
    """By the student's representations, points (n, d) and known (m, d), as score_examples gives them."""
    from torch.nn.functional import normalize

    points, known = (normalize(p, dim=-1).numpy() for p in (points, known))
    return nearest_distances(points, known.T, examples, train_examples)


def nearest_distances(points: Any, known: Any, examples: list[dict], train_examples: list[dict]) -> list[float]:
    """points (n, d) and known (d, m) are of unit length, dense or sparse. 1 where there is no other training
    example."""
    import numpy as np

    places = {e["id"]: k for k, e in enumerate(train_examples)}
    found: list[float] = []
    rows = max(1, COSINES_AT_ONCE // len(train_examples))
    for begin in range(0, len(examples), rows):
        cosines = points[begin : begin + rows] @ known
        cosines = cosines.toarray() if hasattr(cosines, "toarray") else cosines
        for k, example in enumerate(examples[begin : begin + rows]):
            if example["id"] in places:
                cosines[k, places[example["id"]]] = -np.inf
        nearest = cosines.max(axis=1)
        found += np.where(np.isfinite(nearest), 1 - nearest, 1.0).tolist()
    return found
