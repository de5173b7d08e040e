"""Retrieval: which texts of a corpus are near, what a prompt shows of them, and that no copy of one becomes an example."""

from dataclasses import replace

import pytest
from conftest import FED_PAIRS, PAIRS, ROOT, encoder_of, pair, read_lines, refusal, write_lines

from gold.attempts import Pools, draw_attempt
from gold.prompts import render_prompt
from gold.retrieval import nearest_texts, with_passages
from gold.split import Split, longest_need, task_in_form
from gold.task import load_task

HOW = {"seed": 0, "num_fewshot": 3, "feedback_rate": 0.5, "num_feedback_shots": 2, "feedback_label": "any"}
HOW |= {"num_passages": 2, "corpus_file": "corpus.jsonl", "rewrite": False, "attributes": False}
SHOWS = PAIRS.replace("$shots\n\nAnother that", "$shots\n\nSeen elsewhere:\n$passages\n\nAnother that")


@pytest.fixture(scope="module")
def shows(tmp_path_factory):
    """pairs.toml with $passages in `train`, its seed examples beside it."""
    folder = tmp_path_factory.mktemp("shows")
    (folder / "pairs.toml").write_text(SHOWS, encoding="utf-8")
    write_lines(folder / "seed.jsonl", [pair(n) | {"id": f"s{n}"} for n in range(6)])
    return load_task(folder / "pairs.toml")


def text(number: int, first: str, second: str, **more) -> dict:
    return {"id": f"c{number}", "first": first, "second": second, **more}


def test_the_nearest_texts_by_words(shows, tmp_path):
    """Ten of those that share a word with the query, the nearest first, whatever their own labels are."""
    near = [
        text(1, "the lake", "sun and moon", label=7),
        text(2, "The LAKE,", "sun and moon"),
        text(3, "the lake", "sun!"),
    ]
    far = [text(4, "stone", "lake"), text(5, "stone", "moon")]
    corpus = write_lines(tmp_path / "corpus.jsonl", [*far, *near])
    query = {"source": "q", "first": "the lake", "second": "sun"}
    found = nearest_texts(corpus, shows, [query])
    # c2 has the words of c1 again, c3 is the query itself, c5 shares none. Of 3 words c1 shares all and has 2 more: a
    # cosine of at least .6 with equal weights (3 / sqrt(3 * 5) = .77); c4 shares one of two (1 / sqrt(3 * 2) = .41)
    assert [t["id"] for t in found["q"]] == ["c1", "c4"]
    assert found["q"][0]["source"] == "pair: the lake with sun and moon"
    many = write_lines(tmp_path / "many.jsonl", [text(n, "lake", "sun " + "stone " * n) for n in range(1, 31)])
    assert [t["id"] for t in nearest_texts(many, shows, [query])["q"]] == [f"c{n}" for n in range(1, 11)]
    assert nearest_texts(None, shows, [query]) == {}


def test_an_attempt_draws_from_the_texts_near_a_shot_and_is_the_same_otherwise(pairs):
    pools = Pools(*([pair(n) | {"id": f"{letter}{n}", "source": f"{letter}{n}"} for n in numbers]
                    for letter, numbers in {"s": range(6), "f": range(20, 27)}.items()))  # fmt: skip
    nearest = {e["id"]: [{"id": f"{e['id']}-{n}"} for n in range(10)] for e in [*pools.seed, *pools.feedback]}
    shown, labels = set(), {e["id"]: e["label"] for e in [*pools.seed, *pools.feedback]}
    for number in range(800):
        plain = draw_attempt(pairs, 1, "train", number, pools, HOW)
        a = with_passages(plain, pairs, nearest, HOW)
        assert replace(a, passages=None) == plain and a == with_passages(plain, pairs, nearest, HOW)
        queries = {t["id"].split("-")[0] for t in a.passages}
        assert len(a.passages) == 2 and len({t["id"] for t in a.passages}) == 2 and len(queries) == 1
        [query] = queries
        own = {shot["id"] for shot in a.shown}
        assert query in own
        assert labels[query] == a.label or a.label not in {shot["label"] for shot in a.shown}
        assert "passages" not in plain.lineage
        assert a.lineage == plain.lineage | {"passages": [t["id"] for t in a.passages]}
        shown |= {t["id"] for t in a.passages}
    assert len(shown) > 100  # of 13 * 10
    few = with_passages(plain, pairs, {name: texts[:1] for name, texts in nearest.items()}, HOW)
    assert len(few.passages) == 1
    assert with_passages(replace(plain, shots=[], feedback=[]), pairs, nearest, HOW).passages == []


PASSAGES = [text(1, "a $5 lake", "sun", source="pair: a $5 lake with sun"), text(2, "x", "y", source="pair: x with y")]


def test_what_a_prompt_shows(shows, pairs):
    """As the student reads them, without an answer; without passages the line goes, with its heading."""
    shots = [pair(0), pair(1)]
    user = render_prompt(shows, "train", shots, "Warm", passages=PASSAGES).user
    told = "Second: a big snow\n\nSeen elsewhere:\npair: a $5 lake with sun\n\npair: x with y\n\nAnother that is Warm"
    assert told in user
    assert render_prompt(shows, "train", shots, "Warm") == render_prompt(pairs, "train", shots, "Warm")


@pytest.mark.parametrize("name, shown", [
    ("ag_news", ["text: a thing of $5", "Other papers:\n- a thing of $5\n- another\n\nNews agency reports, World desk:"]),
    ("sst2", ["text: a thing of $5", "Other reviews:\n- a thing of $5\n- another\n\nShort positive phrases"]),
])  # fmt: skip
def test_both_forms_of_the_tasks(name, shown):
    task = load_task(ROOT / f"prompts/{name}.toml")
    label, texts = list(task.labels)[-1 if name == "sst2" else 0], ["a thing of $5", "another"]
    shots, passages = [{"text": "one", "label": label}], [{"text": t, "source": f"text: {t}"} for t in texts]
    for form, told in zip(("chat", "completion"), shown, strict=True):
        given = task.in_form(form)
        for feedback in ([], shots):
            user = render_prompt(given, "train", shots, label, feedback, passages=passages).user
            assert told in user and "$" not in user.replace("$5", "")
            plain = render_prompt(given, "train", shots, label, feedback).user
            assert "passages" not in plain and plain.count("\n\n\n") == 0 and not set(texts) & {*plain.split("\n")}


def test_a_template_without_a_place_for_passages_is_refused(tmp_path):
    path = tmp_path / "task.toml"
    fed = FED_PAIRS.replace("$shots\n\nAnother that", "$shots\n\n$passages\n\nAnother that")
    trec = (ROOT / "prompts/trec.toml").read_text()
    for task_file, form, fed_back, told in (
        (PAIRS, "chat", False, "prompt.train: has no $passages"),
        (fed, "chat", True, "prompt.feedback: has no $passages"),
        (trec, "completion", False, "completion.train: has no $passages"),
    ):
        path.write_text(task_file)
        message = refusal(task_in_form, load_task(path), form, HOW, fed_back)
        assert message.startswith(f"error: {path}: {told}"), message
        task_in_form(load_task(path), form, HOW | {"corpus_file": None}, fed_back)
    for task_file, form, fed_back in ((SHOWS, "completion", True), (fed, "chat", False)):  # no such template, or prompt
        path.write_text(task_file)
        task_in_form(load_task(path), form, HOW, fed_back)
    path.write_text(SHOWS.replace("Seen elsewhere:\n$passages\n\n", "").replace("$shots\n", "$shots\n$passages\n", 1))
    assert f"{path}: prompt.train: $shots would go with the lines of $passages" in refusal(load_task, path)


def test_the_stage_shows_passages_and_takes_no_copy_of_one(command, shows, tmp_path):
    """Of the train split alone; what repeats a passage is rejected as a copied shot is."""
    corpus = write_lines(
        tmp_path / "corpus.jsonl", [text(n, f"the {p}", "cold tea") for n, p in enumerate(("lake", "beach"))]
    )
    how = ("--task-file", shows.path, "--corpus-file", corpus, "--max-attempts", 200)

    def answer(seed: int) -> tuple[str, str]:
        return (" the Beach\nSecond: cold tea." if seed % 3 == 0 else f" the {seed}\nSecond: sun"), "stop"

    done = command(*how, answer=answer)
    assert done.returncode == 0, done.stderr
    records = [read_lines(tmp_path / "iter-00" / f"train{end}.jsonl") for end in ("", ".rejected")]
    assert all({*r["passages"]} <= {"c0", "c1"} and len(r["passages"]) == 2 for rows in records for r in rows)
    assert [*records[0][0]][9:13] == ["feedback", "shots", "passages", "sampling_seed"]
    copied = [r for r in records[1] if r["first"] == "the Beach"]
    assert copied and {r["reason"] for r in copied} == {"copied_shot"}
    assert not any(r["first"] == "the Beach" for r in records[0])
    assert not any("passages" in r for r in read_lines(tmp_path / "iter-00/validation.jsonl"))
    # Other passages are other prompts
    write_lines(corpus, [text(1, "the lake", "tea")])
    assert "--corpus-file has changed" in command(*how).stderr


def test_the_context_holds_the_longest_passages(shows, tmp_path):
    """Passages are longer than all else; a token a byte, so that the need is the length of the longest prompt and more."""
    from transformers import ByT5Tokenizer

    long = [text(n, "the lake", "sun " * 200 * n) for n in (1, 2, 3)]
    seeds = [e | {"source": "q"} for e in read_lines(shows.path.parent / "seed.jsonl")]
    nearest = nearest_texts(write_lines(tmp_path / "c.jsonl", long), shows, seeds)
    options = HOW | {"output_dir": tmp_path, "shard": None, "limit": None, "num_examples": 8, "temperature": 1}
    options |= {"max_attempts": None, "structured": False, "max_tokens": 32, "verify": False}
    train, encoder = Split("train", shows, options, Pools(seeds, nearest=nearest), set()), encoder_of(ByT5Tokenizer())
    prompts = encoder.encode([train.prompt(train.draw(n)) for n in range(40)])
    assert 2000 * 2 < max(map(len, prompts)) <= longest_need(train, encoder) - 32 < 6000
