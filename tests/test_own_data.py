"""A user's files go through the stages: their texts, columns, ids and labels, whatever these look like."""

import json

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


def test_texts_stay_what_they_are_through_every_stage(home, models, tmp_path):
    """Characters as they are, as msgspec writes them, in every second line, and as escapes in the others."""
    # r25, r33, r40 are held out
    rows = [{"id": f"r{n + 25}", "text": text, "answer": text[::-1], "rank": text} for n, text in enumerate(TEXTS)]
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(rows)]
    path.write_text("".join(lines), encoding="utf-8", newline="")
    task, expected = ("--task-file", home / "flip.toml"), {r["id"]: (r["text"], r["answer"]) for r in rows}

    def held(output) -> dict:
        records = [r for _, r in read_records(output)]
        assert all(r["source"] == f"flip: {r['text']}" and r["target"] == r["answer"] for r in records)
        assert all(r["original_rank"] == r["text"] for r in records)
        return {r["id"]: (r["text"], r["answer"]) for r in records}

    band, student = ("--low", 0, "--high", 1), ("--model", models["t5"])
    scored, feedback, again = (tmp_path / f"{name}.jsonl" for name in ("scored", "feedback", "again"))
    files = ("--output-file", scored, "--feedback-file", feedback)
    done("score_ood.py", *task, *student, "--input-file", path, *files, *band)
    assert held(scored) == held(feedback) == expected
    done("score_ood.py", *task, "--input-file", scored, "--feedback-file", again, *band)
    assert held(again) == expected
    done("evaluate.py", *task, *student, "--test-file", feedback, "--output-dir", tmp_path / "e")
    assert held(tmp_path / "e" / "predictions.jsonl") == expected
    train = ("--train-file", feedback, "--output-dir", tmp_path / "student", "--num-train-epochs", 1)
    done("train_student.py", *task, *student, *train)
    kept = held(tmp_path / "student" / "held_out.jsonl")
    assert len(kept) == 3 and kept.items() <= expected.items()


OWN = {"source": "imdb", "target": 1, "correct": "yes", "energy": 0.5, "prediction": "Warm", "score": 5, "rank": "a"}


def test_own_columns_are_in_every_output(home, models, tmp_path):
    rows = [pair(n) | OWN | {"source": ("imdb", "yelp")[n % 2], "energy": n / 40} for n in range(40)]
    path = write_lines(tmp_path / "mine.jsonl", rows)
    task, student = ("--task-file", home / "pairs.toml"), ("--model", models["t5"])

    def kept(output, but: tuple = ()) -> list[dict]:
        records = read_lines(output)
        for record in records:
            row = rows[int(record["id"].removeprefix("mine:")) - 1]
            assert {f"original_{k}": v for k, v in row.items() if k in OWN and k not in but}.items() <= record.items()
        return records

    measure = ("evaluate.py", *task, "--test-file", path, "--output-dir")
    said = done(*measure, tmp_path / "e", *student, "--group-by", "source")
    assert "is a column of yours with a name that the stages write: kept as 'original_" in said
    assert {r["correct"] for r in kept(tmp_path / "e" / "predictions.jsonl")} <= {True, False}
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {name: group["n"] for name, group in metrics["by_original_source"].items()} == {"imdb": 20, "yelp": 20}
    # Their predictions are measured: all say Warm, so half is correct
    done(*measure, tmp_path / "p", "--prediction-field", "prediction")
    assert sum(r["correct"] for r in kept(tmp_path / "p" / "predictions.jsonl", ("prediction",))) == 20
    # A student's energies stand beside theirs
    scored, feedback, mine = (tmp_path / f"{name}.jsonl" for name in ("scored", "feedback", "mine_selected"))
    select = ("score_ood.py", *task, "--input-file", path, "--feedback-file")
    done(*select, feedback, *student, "--output-file", scored)
    assert all(r["energy"] < 0 for r in kept(scored))
    assert {type(r["rank"]) for r in kept(feedback)} == {int}
    # And the selection goes by theirs where no model is given: of 20 of a label 0.5 to 0.8
    done(*select, mine, "--score", "energy")
    assert {r["score"] for r in kept(mine, ("energy",))} == {n / 40 for n in range(20, 32)}


def test_soft_labels_of_the_user_are_trained_on(home, models, tmp_path):
    """No stage wrote these probabilities: --loss kl asks for them; without it they are a column like any other."""
    rows = [pair(n) | {"label_probs": {"Warm": 0.9, "not warm": 0.1}, "teacher_label": "Warm"} for n in range(30)]
    words = ("--task-file", home / "pairs.toml", "--model", models["bert"], "--output-dir", tmp_path / "student")
    words += ("--train-file", write_lines(tmp_path / "mine.jsonl", rows), "--dry-run")
    assert "original_" not in done("train_student.py", *words, "--loss", "kl")
    assert "'label_probs' is a column of yours" in done("train_student.py", *words)


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
        assert min(r["tfidf"] for r in read_lines(tmp_path / f"{n}.jsonl")) > 0.01
