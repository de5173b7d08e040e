"""evaluate.py and report.py: the files of a measurement, the table of a run."""

import json

import pytest
from conftest import call, evaluate, flipped, metrics_in, pair, read_lines, scores_of, write_lines

from gold.examples import read_examples
from gold.text import distinct_2

# ---------------------------------------------------------------------------------------------------------------------
# evaluate.py


def measure(home, output, *args, task="pairs", test="test.jsonl"):
    return evaluate(home / f"{task}.toml", home / test, output, "--num-resamples", 500, *args)


def test_stored_predictions(home, tmp_path):
    """12 records, 6 of each label; the teacher is correct on 8, of which 3 are Warm; two answers are no label."""
    answers = ["Warm", " WARM", "warm\n", "not warm", "hot", "Not warm"]  # of the six Warm ones: 3 correct, 1 no label
    others = ["not warm", "NOT WARM", "not warm", " not warm ", "Not Warm", 3]  # 5 correct, 1 no label
    rows = [pair(2 * i) | {"teacher_label": a, "group": "head" if i < 3 else "tail"} for i, a in enumerate(answers)]
    rows += [pair(2 * i + 1) | {"teacher_label": a, "group": 7} for i, a in enumerate(others)]
    write_lines(tmp_path / "some.jsonl", rows)
    how = ("--prediction-field", "teacher_label", "--group-by", "group")
    done = measure(home, tmp_path / "out", *how, test=tmp_path / "some.jsonl")
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["metrics.json", "predictions.jsonl", "predictions.jsonl.run.json"]
    metrics = metrics_in(tmp_path / "out")
    assert metrics["metric"] == "accuracy" and metrics["test_file"] == str(tmp_path / "some.jsonl")
    assert (metrics["overall"]["accuracy"]["value"], metrics["n"]) == (pytest.approx(8 / 12, abs=1e-4), 12)
    by_label = {k: (m["recall"]["value"], m["n"]) for k, m in metrics["by_label"].items()}
    assert by_label == {"Warm": (0.5, 6), "not warm": (0.8333, 6)}
    by_group = {k: (m["accuracy"]["value"], m["n"]) for k, m in metrics["by_group"].items()}
    assert by_group == {"7": (0.8333, 6), "head": (1.0, 3), "tail": (0.0, 3)}
    assert metrics["no_label"] == 2 and "2 predictions are no label" in done.stderr
    predictions = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert list(predictions[0])[:6] == ["id", "first", "second", "label", "prediction", "correct"]
    assert [p["id"] for p in predictions] == [f"some:{n}" for n in range(1, 13)]
    assert [p["correct"] for p in predictions] == [True] * 3 + [False] * 3 + [True] * 5 + [False]
    assert [p["prediction"] for p in predictions[:5]] == ["warm", "warm", "warm", "not warm", "hot"]
    assert all(row.items() <= p.items() for row, p in zip(rows, predictions, strict=True))  # nothing is lost
    counts = json.loads((tmp_path / "out" / "predictions.jsonl.run.json").read_text())["counts"]
    assert counts == {"records": 12, "correct": 8}
    head, shown = (line.split() for line in done.stdout.splitlines()[:2])
    numbers = [f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for x in map(metrics["overall"].get, head)]
    assert head == ["accuracy", "macro_f1"] and " ".join(shown) == f"all {' '.join(numbers)} n=12"
    assert any(line.split()[:3] == ["group", "tail", "0.000"] for line in done.stdout.splitlines())
    by_itself = measure(home, tmp_path / "b", *how[:2], "--group-by", "label", test=tmp_path / "some.jsonl")
    for shown in (done.stdout, by_itself.stdout):
        assert sum("label Warm" in line for line in shown.splitlines()) == 1


def test_a_student_is_measured_by_its_predictions(home, trained, models, pairs, tmp_path):
    """Every other answer is what it predicts, when asked before."""
    examples = read_examples(home / "test.jsonl", pairs)[:12]
    predicted = [s["prediction"] for s in scores_of(trained["bert"], pairs, examples)]
    answers = [{"warm": "not warm", "not warm": "Warm"}[p] if i % 2 else p for i, p in enumerate(predicted)]
    rows = [{"first": e["first"], "second": e["second"]} for e in examples]
    rows = [r | {"label": a, "group": i % 3} for i, (r, a) in enumerate(zip(rows, answers, strict=True))]
    test, args = write_lines(tmp_path / "test.jsonl", rows), ("--model", trained["bert"], "--group-by", "group")
    done = measure(home, tmp_path / "a", *args, "--per-device-eval-batch-size", 4, test=test)
    assert done.returncode == 0, done.stderr
    predictions, metrics = read_lines(tmp_path / "a/predictions.jsonl"), metrics_in(tmp_path / "a")
    assert [p["prediction"] for p in predictions] == predicted
    assert [p["correct"] for p in predictions] == [True, False] * 6
    assert [m["accuracy"]["value"] for m in (metrics["overall"], *metrics["by_group"].values())] == [0.5] * 4
    again = measure(home, tmp_path / "a", *args, test=test)
    assert again.returncode == 0 and "up to date" in again.stderr
    other = measure(home, tmp_path / "a", "--model", models["bert"], "--group-by", "group", test=test)
    assert other.returncode == 1 and "--model has changed" in other.stderr
    # The same numbers come from the predictions that it left
    test, args = tmp_path / "a/predictions.jsonl", ("--prediction-field", "prediction", "--group-by", "group")
    assert measure(home, tmp_path / "b", *args, test=test).returncode == 0
    assert metrics_in(tmp_path / "b") == metrics | {"test_file": str(test)}


def test_each_further_test_file_has_a_folder(home, tmp_path):
    rows = [pair(n) | {"said": "Warm"} for n in range(4)]
    (tmp_path / "other").mkdir()
    one, two, same = (tmp_path / name for name in ("one.jsonl", "two.jsonl", "other/two.jsonl"))
    for path, count in ((one, 4), (two, 1), (same, 4)):
        write_lines(path, rows[:count])
    how = ("--prediction-field", "said", "--test-file", two)
    done = measure(home, tmp_path / "out", *how, "--dry-run", test=one)
    assert (
        done.stdout.splitlines()[1] == f"would measure said on 1 records of {two}" and not (tmp_path / "out").exists()
    )
    assert measure(home, tmp_path / "out", *how, test=one).returncode == 0
    assert [metrics_in(folder)["n"] for folder in (tmp_path / "out", tmp_path / "out/two")] == [4, 1]
    again = measure(home, tmp_path / "out", *how, test=one)
    assert again.returncode == 0 and again.stderr.count("up to date") == 2 and not again.stdout
    done = measure(home, tmp_path / "out", *how, "--test-file", same, test=one)
    assert done.returncode == 1 and "--test-file: two files have the same name" in done.stderr


@pytest.mark.parametrize("args, told", [
    (("--prediction-field", "teacher_label"), "has no field 'teacher_label'"),
    (("--model", "none", "--group-by", "area"), "has no field 'area'"),
])  # fmt: skip
def test_missing_fields_are_refused(args, told, home, tmp_path):
    done = measure(home, tmp_path / "out", *args)
    assert done.returncode == 1 and told in done.stderr and done.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_group_by_label_where_the_answer_is_another_field(home, tmp_path):
    text = (home / "pairs.toml").read_text().replace("label", "season").replace("[seasons]", "[labels]")
    text = text.replace("$seasons", "$labels").replace("$season (", "$label (").replace("seed.jsonl", "none.jsonl")
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "pairs.toml").write_text(text)
    row = {"first": "a", "second": "sun", "season": "Warm", "label": "x", "said": "warm"}
    write_lines(tmp_path / "test.jsonl", [row])
    by = ("--prediction-field", "said", "--group-by", "label")
    of_text = {"task": "flip", "test": write_lines(tmp_path / "flip.jsonl", [flipped(0) | {"said": "x", "label": "x"}])}
    for folder, more in ((tmp_path, {}), (home, of_text)):
        done = measure(folder, tmp_path / "out", *by, **more)
        assert done.returncode == 1 and done.stderr.startswith("error: --group-by label: "), done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# report.py


@pytest.mark.parametrize("texts, budget, expected", [
    ("a b a b c", 9, 3 / 4),  # a b, b a, a b, b c
    ("a b a b c", 4, 2 / 3), ("a", 9, 0.0), ("", 9, 0.0),
    ("a b|b a|a b", 9, 2 / 3),  # within texts only: a b, b a, a b
    ("a b|b a|a b", 4, 1.0), ("a b|c d e", 4, 1.0), ("a b|a b c|a b", 5, 2 / 3),  # the last text may be cut
])  # fmt: skip
def test_distinct_2_by_hand(texts, budget, expected):
    assert distinct_2(texts.split("|"), budget) == pytest.approx(expected)


@pytest.fixture
def run_folder(tmp_path):
    """Two iterations and a final student, the first iteration complete, of numbers that are all different."""

    def interval(accuracy, low, high):
        return {"macro_f1": {"value": 0.111}, "accuracy": {"value": accuracy, "low": low, "high": high}}

    metrics = {"metric": "accuracy", "n": 50, "overall": interval(0.7126, 0.61, 0.803)}
    metrics["by_label"] = {"Warm": interval(0.9, 0, 1)}
    metrics["by_group"] = {"head": interval(0.951, 0.9, 1.0), "tail": interval(0.453, 0.4, 0.5)}
    counts = [{"attempted": 1300, "accepted": 40, "computed_tokens": 1800}]
    counts += [{"attempted": 31, "accepted": 20, "computed_tokens": 1200}]
    files = {
        "iter-00/train.jsonl.run.json": {"counts": counts[0], "seconds": 11.25},
        "iter-00/validation.jsonl.run.json": {"counts": counts[1], "seconds": 12.5},
        "iter-00/student.run.json": {"counts": {}, "seconds": 21.5},
        "iter-00/scored.jsonl.run.json": {"options": {"score": "energy"}, "means": {"energy": -4.126}, "seconds": 3.5},
        "iter-00/predictions.jsonl.run.json": {"counts": {}, "seconds": 4.5},
        "iter-00/metrics.json": metrics,
        "iter-01/train.jsonl.run.json": {"counts": {"attempted": 77, "accepted": 60}, "seconds": 5.76},  # of an earlier build
        "final/metrics.json": metrics | {"overall": interval(0.812, 0.7, 0.9)},
        "final/student.run.json": {"counts": {}, "seconds": 31.5},
        "final/test_zipf/metrics.json": metrics | {"overall": interval(0.512, 0.4, 0.6)},
        "untrained/metrics.json": {"metric": "accuracy", "n": 50, "overall": interval(0.25, 0.2, 0.3)},
    }  # fmt: skip
    for name, value in files.items():
        path = tmp_path / "my run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    # The first four words: ab ba ab = 2 of 3; ab bc cd = 3 of 3
    write_lines(tmp_path / "my run/iter-00/train.jsonl", [{"source": "A b a B"}, {"source": "c d"}])
    write_lines(tmp_path / "my run/iter-01/train.jsonl", [{"source": "a b"}, {"source": "c d"}])
    write_lines(tmp_path / "my run/untrained/predictions.jsonl", [{"source": "c D."}, {"source": "e f"}])
    return tmp_path / "my run"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_table_has_the_numbers_of_the_files(run_folder):
    done = call("report.py", run_folder)
    assert done.returncode == 0, done.stderr
    lines = {cells(line)[0]: cells(line)[1:] for line in done.stdout.splitlines() if line.strip()}
    assert str(run_folder) in done.stdout
    assert cells(done.stdout.splitlines()[1])[4:6] == ["energy", "accuracy [95 % interval]"]
    # attempted, accepted, tokens, distinct-2, energy, accuracy, head, tail, generate s (the longer: one start), train s, ...
    assert lines["iter-00"] == [
        "1,331", "60", "50", "0.667", "-4.13", "0.713 [0.610, 0.803]", "0.951", "0.453", "12.5", "21.5", "3.5", "4.5",
    ]  # fmt: skip
    assert lines["iter-01"] == ["77", "60", "-", "1.000", "-", "-", "-", "-", "5.8", "-", "-", "-"]
    assert lines["final"] == ["-", "-", "-", "-", "-", "0.812 [0.700, 0.900]", "0.951", "0.453", "-", "31.5", "-", "-"]
    assert lines["final/test_zipf"][5] == "0.512 [0.400, 0.600]"
    assert lines["untrained"] == ["-", "-", "-", "-", "-", "0.250 [0.200, 0.300]", *"------"]
    # 12.5 + 21.5 + 3.5 + 4.5 + 5.76 + 31.5 = 79.26
    assert "all stages: 79 s" in done.stdout
    assert "2 training examples repeat a text of the test sets" in done.stdout  # "c d" and "c D." are one text
    # The same rows are written
    rows = read_lines(run_folder / "metrics.jsonl")
    assert [r["iteration"] for r in rows] == ["iter-00", "iter-01", "final", "final/test_zipf", "untrained"]
    seconds = {"generate": 12.5, "train": 21.5, "score": 3.5, "evaluate": 4.5}
    assert rows[0] == {
        "iteration": "iter-00", "attempted": 1331, "accepted": 60, "tokens": 50.0, "distinct_2": 0.6667,
        "repeats_of_test": 1, "score": "energy", "mean_score": -4.126, "metric": "accuracy", "accuracy": 0.7126,
        "low": 0.61, "high": 0.803, "n": 50,
        "accuracy_head": 0.951, "accuracy_tail": 0.453, "seconds": seconds,
    }  # fmt: skip
    assert "accuracy" not in rows[1] and rows[1]["distinct_2"] == 1.0 and rows[4]["accuracy"] == 0.25
    before = (run_folder / "metrics.jsonl").read_bytes()
    assert call("report.py", run_folder).returncode == 0
    assert (run_folder / "metrics.jsonl").read_bytes() == before


def test_each_run_is_a_table(run_folder, tmp_path):
    other = tmp_path / "other"
    done = call("report.py", run_folder, other)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {other}: no such folder")
    (other / "iter-00").mkdir(parents=True)
    done = call("report.py", run_folder, other)
    assert done.returncode == 0 and done.stdout.count("iter-00") == 2 and f"\n{other}\n" in done.stdout
    assert len(read_lines(other / "metrics.jsonl")) == 1


def test_one_metric_is_the_title(run_folder):
    paths = sorted(run_folder.rglob("metrics.json"))
    for path in paths:
        path.write_text(path.read_text().replace("accuracy", "rouge_l"))
    done = call("report.py", run_folder)
    assert done.returncode == 0
    assert cells(done.stdout.splitlines()[1])[5:8] == ["rouge_l [95 % interval]", "head", "tail"]
    assert read_lines(run_folder / "metrics.jsonl")[0]["rouge_l_head"] == 0.951
    paths[0].write_text(paths[0].read_text().replace("rouge_l", "f1"))
    done = call("report.py", run_folder)
    assert done.returncode == 1 and f"{run_folder}: measured by f1 and by rouge_l; " in done.stderr


@pytest.mark.parametrize("name, content, told", [
    ("metrics.json", "{", "iter-00/metrics.json: "),
    ("metrics.json", '{"a": 1}', ": a run record or metrics.json is not what a stage writes: KeyError: 'metric'"),
    ("train.jsonl.run.json", '{"counts": [], "seconds": 1}', ": a run record or metrics.json is not what"),
])  # fmt: skip
def test_files_that_were_broken_by_hand(name, content, told, run_folder):
    (run_folder / "iter-00" / name).write_text(content)
    done = call("report.py", run_folder)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {run_folder}") and told in done.stderr
