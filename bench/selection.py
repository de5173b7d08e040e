"""Nearest training examples and near-duplicates from 1,000 to a million texts: seconds, memory, recall.

    python -m bench.selection texts wiki.txt reviews.txt              # once: pieces of 15 words of any text files (.gz too)
    python -m bench.selection words --sizes 1000,10000,100000,1000000
    python -m bench.selection embedding --sizes 1000,10000,100000,1000000
    python -m bench.selection near --sizes 1000,10000,100000,1000000
    python -m bench.selection --table

A text is two pieces of 15 words of the files, drawn at random; its representation the mean of those that all-MiniLM-L6-v2
gives the pieces (20,000 of them). Each example is looked for among all, itself left out. Against it stands the code of
commit ebbda87, taken from git: every pair; of many texts for the first ROWS alone, and linear in them. recall: the share of
those ROWS whose distance is the one of every pair, within 1e-5. --share .05: only that share of the examples is looked for
among all, and the seconds are taken as linear in them, but for those of the index. near: texts one after the other, as
generate.py has them; recall is that of 1,000 copies whose words were changed to an overlap of .8 to .85. A size runs in a
process of its own: MiB are its peak above what stood before the search.
A line a run in bench/results/selection.jsonl.
"""

import ast
import ctypes
import gc
import gzip
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from bench.stages import lines_of, note
from gold.near_duplicates import NearDuplicates
from gold.nearest import embedding_distances, tfidf_distances
from gold.parsing import overlap
from gold.runs import git_state
from gold.text import words

RESULTS, WORK = Path("bench/results/selection.jsonl"), Path("runs/selection")
PIECE, EMBEDDED, ROWS, COPIES = 15, 20_000, 1000, 1000
BEFORE = "ebbda87"


def cut_pieces(files: list[Path]) -> None:
    """The pieces of the files' words, and the representations of the first ones."""
    pieces = []
    for path in files:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            found = file.read().split()
        pieces += [" ".join(found[i : i + PIECE]) for i in range(0, len(found) - PIECE + 1, PIECE)]
    random.Random(0).shuffle(pieces)
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "pieces.txt").write_text("\n".join(pieces), encoding="utf-8")
    print(f"{len(pieces):,} pieces")
    np.save(WORK / "points.npy", represent(pieces[:EMBEDDED]))


def represent(texts: list[str]) -> np.ndarray:
    """Mean of the last hidden states, as all-MiniLM-L6-v2 is used; (n, 384)."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModel, AutoTokenizer

    folder = "data/models/all-minilm-l6-v2"
    tokenizer, model, found = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder), []
    with torch.inference_mode():
        for i in tqdm(range(0, len(texts), 256)):
            batch = tokenizer(texts[i : i + 256], padding=True, truncation=True, max_length=48, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            found.append(((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(found)


def draw(size: int, of: int) -> np.ndarray:
    """Places of the two pieces of each text, (size, 2)."""
    return np.random.default_rng(size).integers(0, of, (size, 2))


def draw_texts(size: int) -> list[dict]:
    pieces = (WORK / "pieces.txt").read_text(encoding="utf-8").split("\n")
    return [{"id": n, "source": f"{pieces[a]} {pieces[b]}"} for n, (a, b) in enumerate(draw(size, len(pieces)))]


def old_functions() -> dict[str, Any]:
    """tfidf_vectors and nearest_distances as they stood at BEFORE."""
    source = subprocess.run(
        ["git", "show", f"{BEFORE}:score_ood.py"], capture_output=True, text=True, check=True
    ).stdout
    names = ("tfidf_vectors", "nearest_distances")
    kept = [node for node in ast.parse(source).body if getattr(node, "name", None) in names]
    found: dict[str, Any] = {"Any": Any}
    exec(compile(ast.Module(kept, []), BEFORE, "exec"), found)
    return found


def timed(function: Any, *args: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(*args), time.perf_counter() - began


def peak(name: str = "VmHWM") -> float:
    """MiB: the highest since `begin`, or with VmRSS what is held now."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def begin() -> float:
    """Give freed memory back, and forget the highest use so far; the use now."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak("VmRSS")


def every_pair(points: Any, known: Any, examples: list[dict]) -> tuple[list[float], float]:
    """The old code's distances of the first ROWS; seconds, as for all of them."""
    rows = min(ROWS, len(examples))
    found, seconds = timed(old_functions()["nearest_distances"], points[:rows], known, examples[:rows], examples)
    return found, seconds * len(examples) / rows


def search(look: Callable[[int], list[float]], size: int, share: float) -> tuple[list[float], float]:
    """look(n): the distances of the first n examples. Those of a share of them, and the seconds as for all."""
    if share == 1:
        return timed(look, size)
    look(1)  # what it imports
    _, index = timed(look, 1)
    found, seconds = timed(look, max(ROWS, round(size * share)))
    return found, index + (seconds - index) * size / len(found)


def measure_words(size: int, share: float) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    examples = draw_texts(size)
    before = begin()
    found, seconds = search(lambda n: tfidf_distances(examples[:n], examples), size, share)
    mib = peak() - before
    (points, known), first = timed(old_functions()["tfidf_vectors"], examples, examples)
    _, old = every_pair(points, known, examples)
    texts = [e["source"] for e in examples]  # by today's words
    vectors = TfidfVectorizer(analyzer=words).fit([*texts[: len(found)], *texts]).transform(texts)
    true, _ = every_pair(vectors, vectors.T, examples)
    return {"seconds": seconds, "old_seconds": first + old, "mib": mib, "recall": same(found, true)}


def measure_embedding(size: int, share: float) -> dict[str, Any]:
    pieces, pairs = np.load(WORK / "points.npy"), draw(size, EMBEDDED)
    points = (pieces[pairs[:, 0]] + pieces[pairs[:, 1]]) / 2
    examples = [{"id": n} for n in range(size)]
    before = begin()
    found, seconds = search(lambda n: embedding_distances(points[:n], points, examples[:n], examples), size, share)
    mib = peak() - before
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    true, old = every_pair(units, units.T, examples)
    return {"seconds": seconds, "old_seconds": old, "mib": mib, "recall": same(found, true)}


def same(found: list[float], true: list[float]) -> float:
    return float(np.mean(np.abs(np.array(found[: len(true)]) - true) < 1e-5))


def measure_near(size: int, share: float) -> dict[str, Any]:
    texts, rng = [e["source"] for e in draw_texts(size)], random.Random(size)
    before = begin()
    near, hits, began = NearDuplicates(0.7), 0, time.perf_counter()
    for text in texts:
        hits += near.overlaps(text)
        near.add(text)
    seconds, mib = time.perf_counter() - began, peak() - before
    copies = [near_copy(text, rng) for text in rng.sample(texts, min(COPIES, size))]
    found = sum(near.overlaps(copy) for copy in copies)
    return {"seconds": seconds, "mib": mib, "recall": found / len(copies), "near_duplicates": hits}


def near_copy(text: str, rng: random.Random) -> str:
    """The text with words replaced until the overlap is .85 or less."""
    changed = text.split()
    for place in rng.sample(range(len(changed)), len(changed)):
        changed[place] = "other"
        if overlap(" ".join(changed), text) <= 0.85:
            break
    return " ".join(changed)


MEASURES = {"words": measure_words, "embedding": measure_embedding, "near": measure_near}


def show_table() -> None:
    lines = lines_of(RESULTS)
    print("| what | texts | looked for | seconds | before / now | MiB | recall |\n|---|---|---|---|---|---|---|")
    for part, size, share in sorted({(line["part"], line["size"], line.get("share", 1)) for line in lines}):
        some = [line for line in lines if (line["part"], line["size"], line.get("share", 1)) == (part, size, share)]
        ratios = sorted(line["old_seconds"] / line["seconds"] for line in some if "old_seconds" in line)
        middle = {k: float(np.median([line[k] for line in some])) for k in ("seconds", "mib", "recall")}
        ratio = f"{np.median(ratios):.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}]" if ratios else "-"
        print(
            f"| {part} | {size:,} | {share:.0%} | {middle['seconds']:,.1f} | {ratio} | {middle['mib']:,.0f} "
            f"| {middle['recall']:.4f} |"
        )


def main(
    part: Annotated[Literal["texts", "words", "embedding", "near"] | None, typer.Argument()] = None,
    files: Annotated[list[Path] | None, typer.Argument(help="For texts.")] = None,
    sizes: Annotated[str, typer.Option(help="Numbers of texts.")] = "1000,10000,100000,1000000",
    repeats: Annotated[int, typer.Option(help="Of each size.")] = 1,
    share: Annotated[float, typer.Option(help="Of the examples, words and embedding: the seconds are scaled.")] = 1,
    table: Annotated[bool, typer.Option(help="Print what is there.")] = False,
) -> None:
    if table or not part:
        return show_table()
    if part == "texts":
        return cut_pieces(files or [])
    for size in [int(s) for s in sizes.split(",")]:
        for _ in range(repeats):
            if "," in sizes or repeats > 1:
                command = [sys.executable, "-m", "bench.selection", part, "--sizes", str(size), "--share", str(share)]
                subprocess.run(command, check=True)
                continue
            found = {k: round(x, 4) for k, x in MEASURES[part](size, share).items()}
            note(RESULTS, {"part": part, "size": size, "share": share, **found, **git_state()})
            print(part, size, found, flush=True)


if __name__ == "__main__":
    typer.run(main)
