"""People's own files go through the stages: their texts, their columns, their ids and labels, whatever these look like."""

import json

import pytest
from conftest import call, pair, read_lines, write_lines

from gold.jsonl import read_records

# What other readers of JSON Lines make dates, numbers, lists of, or cut in two
TEXTS = (
    "2020-01-01", "007", "[1, 2]", "1e5", "true", "null", '"q"', " 5", "NaN", "{}", "12345678901234567890", "a\u2028b",
    "a\u2029b", "a\u0085b", "a\x0bb", "a\x1cb", "a\rb", "a\r\nb", "\ufeffa", "C:\\new", "e\u0301 \u00e9", "a\x00b",
)  # fmt: skip


def done(script: str, *words: object) -> str:
    """What a command says that has to end well."""
    ended = call(script, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def student(home, models, tmp_path_factory):
    """A T5 that was trained for one step on the flip task."""
    folder = tmp_path_factory.mktemp("student") / "t5"
    words = ("--task-file", home / "flip.toml", "--model", models["t5"], "--output-dir", folder, "--limit", 20)
    done("train_student.py", *words, "--train-file", home / "flip_train.jsonl", "--num-train-epochs", 1)
    return folder


@pytest.mark.parametrize("raw", [True, False])
def test_texts_stay_what_they_are_through_every_stage(raw, home, models, student, tmp_path):
    """raw: characters as they are, as json.dumps(..., ensure_ascii=False) and msgspec write them; else as escapes."""
    # r25, r33, r40 are held out
    rows = [{"id": f"r{n + 25}", "text": text, "answer": text[::-1]} for n, text in enumerate(TEXTS)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=not raw) + "\n" for r in rows), encoding="utf-8", newline="")
    task, expected = ("--task-file", home / "flip.toml"), {r["id"]: (r["text"], r["answer"]) for r in rows}

    def held(output) -> dict:
        records = [r for _, r in read_records(output)]
        assert all(r["source"] == f"flip: {r['text']}" and r["target"] == r["answer"] for r in records)
        return {r["id"]: (r["text"], r["answer"]) for r in records}

    scored, feedback = tmp_path / "scored.jsonl", tmp_path / "feedback.jsonl"
    files = ("--output-file", scored, "--feedback-file", feedback, "--low", 0, "--high", 1)
    done("score_ood.py", *task, "--model", student, "--input-file", path, *files)
    assert held(scored) == held(feedback) == expected
    again = ("--feedback-file", tmp_path / "f.jsonl", "--low", 0, "--high", 1)
    done("score_ood.py", *task, "--input-file", scored, *again)
    assert held(tmp_path / "f.jsonl") == expected
    done("evaluate.py", *task, "--model", student, "--test-file", feedback, "--output-dir", tmp_path / "e")
    assert held(tmp_path / "e" / "predictions.jsonl") == expected
    out = tmp_path / "student"
    train = ("--train-file", feedback, "--output-dir", out, "--num-train-epochs", 1)
    done("train_student.py", *task, "--model", models["t5"], *train)
    kept = held(out / "held_out.jsonl")
    assert len(kept) == 3 and kept.items() <= expected.items()


OWN = {"source": "imdb", "target": 1, "correct": "yes", "energy": 0.5, "prediction": "Warm", "score": 5, "rank": "a"}


def test_own_columns_are_in_every_output(home, models, tmp_path):
    rows = [pair(n) | OWN | {"source": ("imdb", "yelp")[n % 2], "energy": n / 40} for n in range(40)]
    path = write_lines(tmp_path / "mine.jsonl", rows)
    task, t5 = ("--task-file", home / "pairs.toml"), ("--model", models["t5"])

    def kept(output, but: tuple = ()) -> list[dict]:
        records = read_lines(output)
        for record in records:
            row = rows[int(record["id"].removeprefix("mine:")) - 1]
            assert {f"original_{k}": v for k, v in row.items() if k in OWN and k not in but}.items() <= record.items()
        return records

    said = done("evaluate.py", *task, *t5, "--test-file", path, "--output-dir", tmp_path / "e", "--group-by", "source")
    assert "is a column of yours with a name that the stages write: kept as 'original_" in said
    assert {r["correct"] for r in kept(tmp_path / "e" / "predictions.jsonl")} <= {True, False}
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {name: group["n"] for name, group in metrics["by_original_source"].items()} == {"imdb": 20, "yelp": 20}
    # Their predictions are measured: all say Warm, so half is right; the file that was made is read once more
    for n, test_file in enumerate((path, tmp_path / "p0" / "predictions.jsonl")):
        words = ("--prediction-field", "prediction", "--test-file", test_file, "--output-dir", tmp_path / f"p{n}")
        done("evaluate.py", *task, *words)
        assert sum(r["correct"] for r in kept(tmp_path / f"p{n}" / "predictions.jsonl", ("prediction",))) == 20
    # A student's energies stand beside theirs
    files = ("--input-file", path, "--output-file", tmp_path / "s.jsonl", "--feedback-file", tmp_path / "f.jsonl")
    done("score_ood.py", *task, *t5, *files)
    assert all(r["energy"] < 0 for r in kept(tmp_path / "s.jsonl"))
    assert {type(r["rank"]) for r in kept(tmp_path / "f.jsonl")} == {int}
    # And theirs are what is selected by where no model is given: of 20 of a label 0.5 to 0.8
    done("score_ood.py", *task, "--input-file", path, "--feedback-file", tmp_path / "g.jsonl", "--score", "energy")
    assert {r["score"] for r in kept(tmp_path / "g.jsonl", ("energy",))} == {n / 40 for n in range(20, 32)}
    train = ("--train-file", path, "--output-dir", tmp_path / "student", "--num-train-epochs", 1)
    done("train_student.py", *task, *t5, *train)
    assert kept(tmp_path / "student" / "held_out.jsonl")


def test_soft_labels_of_ones_own_are_trained_on(home, models, tmp_path):
    """No stage wrote these probabilities: --loss kl asks for them; without it they are a column like any other."""
    rows = [pair(n) | {"label_probs": {"Warm": 0.9, "not warm": 0.1}, "teacher_label": "Warm"} for n in range(30)]
    words = ("--task-file", home / "pairs.toml", "--model", models["bert"], "--num-train-epochs", 1)
    words += ("--train-file", write_lines(tmp_path / "mine.jsonl", rows))
    assert "original_" not in done("train_student.py", *words, "--output-dir", tmp_path / "kl", "--loss", "kl")
    said = done("train_student.py", *words, "--output-dir", tmp_path / "ce")
    assert "'label_probs' is a column of yours" in said


def test_a_file_compared_with_itself_among_others_of_its_name(home, tmp_path):
    """tfidf leaves the example itself out, by id: it must have one id as input and as training example."""
    paths = [tmp_path / name / "train.jsonl" for name in "ab"]
    for n, path in enumerate(paths):
        path.parent.mkdir()
        write_lines(path, [pair(10 * n + k) for k in range(10)])
    words = ("--task-file", home / "pairs.toml", "--score", "tfidf", "--input-file", paths[0])
    for n, train in enumerate((paths, paths[1:])):
        files = [word for path in train for word in ("--train-file", path)]
        done("score_ood.py", *words, *files, "--output-file", tmp_path / f"{n}.jsonl")
        distances = [r["tfidf"] for r in read_lines(tmp_path / f"{n}.jsonl")]
        assert min(distances) > 0.01, distances
