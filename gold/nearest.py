"""How far an example is from the nearest training example, by cosine, without comparing every pair of many.

tfidf_distances(examples, train_examples)                         by the words of the sources
embedding_distances(points, known, examples, train_examples)      by the student's representations
k_center_distances(points, distances, 100)                        the same, as examples are chosen

Up to EXACT training examples every pair counts. Of more, CANDIDATES are compared in full: by words those that a part of each
vector finds, by representations those that faiss finds among vectors of 4 bits a part (product quantisation: Jegou et al.
2011; in registers: Andre et al. 2017), one more for each 10,000 training examples, MOST at most. Of 100,000 texts and of a
million .994 and more had the true distance (bench/selection.py).
"""

import math
import os
from typing import Any

from gold.text import words

EXACT = 20_000
CANDIDATES, MOST = 30, 60
# Of the squared length of a vector, by its heaviest words: (of an example, of a training example). Among so many training
# examples the nearest one is nearer, so that fewer words find it
KEPT, MANY, KEPT_OF_MANY = (0.94, 0.82), 600_000, (0.85, 0.6)
PARTS, TRAINED = 64, 4_096  # of a representation, each one of 16 values; so many examples tell which
CHUNK = 2_000  # examples at a time


def tfidf_distances(examples: list[dict], train_examples: list[dict]) -> list[float]:
    """1 - the largest cosine with a training example, itself left out; 1 where no other shares a word. (n,)

    The vectors are TF-IDF of the sources' words; document frequencies are those of both sets together.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sparse_dot_topn import sp_matmul_topn

    texts, known_texts = [e["source"] for e in examples], [e["source"] for e in train_examples]
    vectors = TfidfVectorizer(analyzer=words).fit_transform([*texts, *known_texts])
    points, known = vectors[: len(texts)], vectors[len(texts) :]
    own, few = own_places(examples, train_examples), len(known_texts) <= EXACT
    kept, kept_of_known = KEPT if len(known_texts) < MANY else KEPT_OF_MANY
    index = (known if few else heaviest(known, kept_of_known)).T.tocsr()
    distances = []
    for first in range(0, len(texts), CHUNK):
        rows = points[first : first + CHUNK]
        found = sp_matmul_topn(
            rows if few else heaviest(rows, kept), index, 2 if few else CANDIDATES, n_threads=num_threads()
        ).tocoo()
        cosines = rows[found.row].multiply(known[found.col]).sum(axis=1).A1
        cosines[own[first + found.row] == found.col] = 0
        nearest = np.zeros(rows.shape[0])
        np.maximum.at(nearest, found.row, cosines)
        distances += np.maximum(0, 1 - nearest).tolist()  # of a copy it may be -4e-16
    return distances


def heaviest(matrix: Any, share: float) -> Any:
    """Of each row of unit length the heaviest entries, until their squares add up to the share."""
    import numpy as np

    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.data, rows))
    squares = np.cumsum(matrix.data[order] ** 2)
    before = squares - matrix.data[order] ** 2
    begins = np.append(before, 0)[matrix.indptr[rows]]  # the sum at the beginning of the row
    kept = matrix.copy()
    kept.data[order[before - begins >= share]] = 0
    kept.eliminate_zeros()
    return kept


def embedding_distances(points: Any, known: Any, examples: list[dict], train_examples: list[dict]) -> list[float]:
    """1 - the largest cosine with a training example, itself left out; 1 where there is no other, nan from a broken student.

    points (n, d) of the examples, known (m, d) of the training examples, float32.
    """
    import faiss
    import numpy as np

    # By einsum, which makes no copy as numpy's norm does
    lengths, of_points = (np.sqrt(np.einsum("nd,nd->n", vectors, vectors)) for vectors in (known, points))
    if not (np.isfinite(lengths).all() and np.isfinite(of_points).all()):
        return [math.nan] * len(points)
    own, k = own_places(examples, train_examples), 2
    if len(known) > EXACT:  # of more, more look alike in 4 bits
        k = min(MOST, CANDIDATES + len(known) // 10_000)
    at_once = max(1, 2**25 // (known.shape[1] * k))  # 134 MB of candidates
    lengths[lengths == 0] = 1
    index = faiss.IndexFlatIP(known.shape[1])
    if len(known) > EXACT:
        parts = max(n for n in range(1, PARTS + 1) if known.shape[1] % n == 0)
        index = faiss.index_factory(known.shape[1], f"PQ{parts}x4fs", faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(1)  # many small clusterings: threads would wait for each other
    index.train(units(known[:: max(1, -(-len(known) // TRAINED))]))
    faiss.omp_set_num_threads(num_threads())
    for first in range(0, len(known), at_once):  # a part at a time: no copy of a million
        index.add(units(known[first : first + at_once]))
    nearest = np.empty(len(points))
    for first in range(0, len(points), at_once):
        rows = units(points[first : first + at_once])
        places = index.search(rows, k)[1]
        cosines = np.einsum("nkd,nd->nk", known[places], rows) / lengths[places]
        cosines[(places == own[first : first + at_once, None]) | (places < 0)] = -np.inf
        nearest[first : first + at_once] = cosines.max(axis=1)
    return np.where(np.isinf(nearest), 1.0, np.maximum(0, 1 - nearest)).tolist()


def units(vectors: Any) -> Any:
    """A copy of length 1 each (of 0: left as it is), (n, d) float32."""
    import faiss
    import numpy as np

    copy = np.array(vectors, np.float32, order="C")
    faiss.normalize_L2(copy)
    return copy


def own_places(examples: list[dict], train_examples: list[dict]) -> Any:
    """The place of each example among the training examples, -1 where it is none of them. (n,)"""
    import numpy as np

    places = {e["id"]: place for place, e in enumerate(train_examples)}
    return np.array([places.get(e["id"], -1) for e in examples])


def num_threads() -> int:
    return min(len(os.sched_getaffinity(0)), int(os.environ.get("OMP_NUM_THREADS") or 2**10))


def k_center_distances(points: Any, distances: list[float], steps: int) -> list[float]:
    """1 - the largest cosine with a training example or an example chosen before (k-center greedy, Sener & Savarese 2018,
    arXiv 1708.00489): the farthest example is chosen `steps` times, so that the highest values are its choices in order.

    points (n, d) of the examples; distances (n,): embedding_distances to the training examples.
    """
    import numpy as np

    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    closest, found = np.array(distances), np.full(len(points), np.nan)
    for _ in range(min(steps, len(points))):
        chosen = int(np.where(np.isnan(found), closest, -np.inf).argmax())
        found[chosen] = closest[chosen]
        closest = np.minimum(closest, 1 - units @ units[chosen])
    return np.where(np.isnan(found), closest, found).tolist()
