"""evaluate.py and report.py: intervals against exact binomial quantiles, the files of a measurement, the table of a run."""

import collections
import json
import math

import pytest
from conftest import call, flipped, pair, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from gold.examples import read_examples
from gold.metrics import mean_interval
from gold.predict import predict
from gold.student import lengths_of, load_trained
from report import distinct_n

# ---------------------------------------------------------------------------------------------------------------------
# Intervals


def binomial_quantile(n: int, p: float, q: float) -> int:
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= q:
            return k
    raise AssertionError


@pytest.mark.parametrize("n, hits", [(100, 80), (40, 39), (250, 125)])
def test_interval_is_that_of_the_binomial(n, hits):
    """A resample of n right-or-wrong outcomes is binomial(n, hits / n); its quantiles are known without resampling."""
    found = mean_interval([i < hits for i in range(n)], seed=0, resamples=20_000)
    assert found["value"] == pytest.approx(hits / n)
    for name, q in (("low", 0.025), ("high", 0.975)):  # within one example: a quantile of a sample may be a neighbour
        assert abs(found[name] * n - binomial_quantile(n, hits / n, q)) <= 1.01, name


@settings(deadline=None, max_examples=40)
@given(correct=st.lists(st.booleans(), min_size=1, max_size=80), seed=st.integers(0, 99))
def test_interval_holds_the_mean_and_is_of_the_seed(correct, seed):
    found = mean_interval(correct, seed, 500)
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    assert found == mean_interval(correct, seed, 500)


@pytest.mark.parametrize("value", [True, False])
def test_interval_of_all_alike(value):
    assert mean_interval([value] * 7, 0, 1000) == dict.fromkeys(("value", "low", "high"), float(value))


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def evaluate(home, output, *args, test="test.jsonl"):
    return call(
        "evaluate.py", "--task-file", home / "pairs.toml", "--test-file", home / test, "--output-dir", output, *args
    )


def test_stored_predictions(home, tmp_path):
    """By hand: 12 records, 6 of each label; the teacher is right on 8, of which 3 are Warm; two answers are no label."""
    answers = ["Warm", " WARM", "warm\n", "not warm", "hot", "Not warm"]  # of the six Warm ones: 3 right, 1 no label
    others = ["not warm", "NOT WARM", "not warm", " not warm ", "Not Warm", 3]  # 5 right, 1 no label
    rows = [pair(2 * i) | {"teacher_label": a, "group": "head" if i < 3 else "tail"} for i, a in enumerate(answers)]
    rows += [pair(2 * i + 1) | {"teacher_label": a, "group": 7} for i, a in enumerate(others)]
    write_lines(tmp_path / "some.jsonl", rows)
    done = evaluate(
        home,
        tmp_path / "out",
        "--prediction-field",
        "teacher_label",
        "--group-by",
        "group",
        test=tmp_path / "some.jsonl",
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "predictions.jsonl", "metrics.json", "predictions.jsonl.run.json",
    }  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metric"] == "accuracy" and metrics["test_file"] == str(tmp_path / "some.jsonl")
    assert (metrics["overall"]["accuracy"]["value"], metrics["n"]) == (pytest.approx(8 / 12, abs=1e-4), 12)
    assert {k: (m["recall"]["value"], m["n"]) for k, m in metrics["by_label"].items()} == {
        "Warm": (0.5, 6), "not warm": (0.8333, 6),
    }  # fmt: skip
    assert {k: (m["accuracy"]["value"], m["n"]) for k, m in metrics["by_group"].items()} == {
        "7": (0.8333, 6), "head": (1.0, 3), "tail": (0.0, 3),
    }  # fmt: skip
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
    accuracy, f1 = (metrics["overall"][name] for name in head)
    assert head == ["accuracy", "macro_f1"] and shown == [
        "all", "0.667", f"[{accuracy['low']:.3f},", f"{accuracy['high']:.3f}]",
        f"{f1['value']:.3f}", f"[{f1['low']:.3f},", f"{f1['high']:.3f}]", "n=12",
    ]  # fmt: skip
    assert any(line.split()[:3] == ["group", "tail", "0.000"] for line in done.stdout.splitlines())
    assert sum("label Warm" in line for line in done.stdout.splitlines()) == 1


def test_group_by_the_label_itself_is_shown_once(home, tmp_path):
    rows = [pair(n) | {"teacher_label": "Warm"} for n in range(4)]
    write_lines(tmp_path / "some.jsonl", rows)
    args = ("--prediction-field", "teacher_label", "--group-by", "label")
    done = evaluate(home, tmp_path / "out", *args, test=tmp_path / "some.jsonl")
    assert done.returncode == 0 and sum("label Warm" in line for line in done.stdout.splitlines()) == 1


@pytest.mark.parametrize("name", ["t5", "llama", "qwen2"])
def test_a_student_is_measured_by_its_predictions(name, home, trained, pairs, tmp_path):

    done = evaluate(home, tmp_path, "--model", trained[name], "--group-by", "group", "--per-device-eval-batch-size", 4)
    assert done.returncode == 0, done.stderr
    predictions = read_lines(tmp_path / "predictions.jsonl")
    student = load_trained(str(trained[name]), pairs, lengths_of(str(trained[name])), "float32")
    expected = predict(student, read_examples(home / "test.jsonl", pairs), 8)
    assert [p["prediction"] for p in predictions] == expected
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    hits = collections.Counter(p["group"] for p in predictions if p["correct"])
    sizes = collections.Counter(p["group"] for p in predictions)
    assert {g: m["accuracy"]["value"] for g, m in metrics["by_group"].items()} == {
        g: pytest.approx(hits[g] / sizes[g], abs=1e-4) for g in sizes
    }
    assert metrics["overall"]["accuracy"]["value"] == pytest.approx(sum(hits.values()) / len(predictions), abs=1e-4)
    again = evaluate(home, tmp_path, "--model", trained[name], "--group-by", "group")
    assert again.returncode == 0 and "up to date" in again.stderr
    other = evaluate(home, tmp_path, "--model", trained["bert"], "--group-by", "group")
    assert other.returncode == 1 and "--model has changed" in other.stderr


def test_measuring_predictions_again_as_a_field(home, trained, tmp_path):
    """The same numbers come from the model and from the predictions that it left."""
    assert evaluate(home, tmp_path / "a", "--model", trained["bert"], "--group-by", "group").returncode == 0
    args = ("--prediction-field", "prediction", "--group-by", "group")
    assert evaluate(home, tmp_path / "b", *args, test=tmp_path / "a" / "predictions.jsonl").returncode == 0
    a, b = (json.loads((tmp_path / x / "metrics.json").read_text()) for x in "ab")
    assert {k: v for k, v in a.items() if k != "test_file"} == {k: v for k, v in b.items() if k != "test_file"}


@pytest.mark.parametrize("name", ["bert", "t5", "qwen2"])
def test_untrained_student_is_measured_alike_twice(name, home, models, pairs):
    """A new head has random weights: without a seed the row "untrained" of a table would be another each time."""

    examples = read_examples(home / "test.jsonl", pairs)[:4]
    found = [
        predict(load_trained(str(models[name]), pairs, lengths_of(str(models[name])), "float32"), examples, 8)
        for _ in range(2)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["flip", "flip_bos"])
def test_text_to_text(name, home, trained, tmp_path):
    done = call(
        "evaluate.py", "--task-file", home / "flip.toml", "--model", trained[name], "--test-file",
        home / "flip_train.jsonl", "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    predictions = read_lines(tmp_path / "predictions.jsonl")
    assert set(metrics) == {"task", "metric", "test_file", "n", "overall"}
    assert (metrics["task"], metrics["metric"]) == ("flip", "exact_match")
    hits = sum(p["prediction"] == p["answer"] for p in predictions)
    assert metrics["overall"]["exact_match"]["value"] == pytest.approx(hits / 40, abs=1e-4) and hits > 10


@pytest.mark.parametrize(
    "args, told",
    [
        (("--prediction-field", "teacher_label"), "has no field 'teacher_label'"),
        (("--model", "{bert}", "--group-by", "area"), "has no field 'area'"),
    ],
)
def test_missing_fields_are_refused(args, told, home, models, tmp_path):
    done = evaluate(home, tmp_path / "out", *(str(a).format(**models) for a in args))
    assert done.returncode == 1 and told in done.stderr and done.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_metrics_of_the_user_are_not_touched(home, trained, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    done = evaluate(home, tmp_path, "--model", trained["bert"])
    assert done.returncode == 1 and "metrics.json" in done.stderr
    assert (tmp_path / "metrics.json").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------------------------
# Report


@pytest.mark.parametrize(
    "words, n, expected",
    [
        ("a b a b c", 2, 3 / 4),  # a b, b a, a b, b c
        ("a b a b c", 1, 3 / 5),
        ("a b a b c", 5, 1.0),
        ("a b a b c", 6, 0.0),  # no n-gram at all
        ("", 2, 0.0),
        ("x x x x", 2, 1 / 3),
        ("a b|b a|a b", 2, 2 / 3),  # within texts only: a b, b a, a b
    ],
)
def test_distinct_n_by_hand(words, n, expected):
    assert distinct_n([text.split() for text in words.split("|")], n) == pytest.approx(expected)


@pytest.fixture
def run_folder(tmp_path):
    """Two iterations and a final student, the first iteration complete, of numbers that are all different."""

    def put(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    def interval(accuracy, low, high):
        return {"macro_f1": {"value": 0.111}, "accuracy": {"value": accuracy, "low": low, "high": high}}

    run = tmp_path / "my run"
    first, second = run / "iter-00", run / "iter-01"
    put(first / "train.jsonl.run.json", {"counts": {"attempted": 1300, "accepted": 40}, "seconds": 11.25})
    put(first / "validation.jsonl.run.json", {"counts": {"attempted": 31, "accepted": 20}, "seconds": 12.5})
    put(first / "student.run.json", {"counts": {}, "seconds": 21.5})
    scored = {"counts": {}, "options": {"score": "energy"}, "means": {"energy": -4.126, "nll": 9.0}, "seconds": 3.5}
    put(first / "scored.jsonl.run.json", scored)
    put(first / "predictions.jsonl.run.json", {"counts": {}, "seconds": 4.5})
    metrics = {
        "metric": "accuracy",
        "n": 50,
        "overall": interval(0.7126, 0.61, 0.803),
        "by_label": {"Warm": interval(0.9, 0, 1)},
    }
    metrics["by_group"] = {"head": interval(0.951, 0.9, 1.0), "tail": interval(0.453, 0.4, 0.5)}
    put(first / "metrics.json", metrics)
    write_lines(first / "train.jsonl", [{"source": "A b a B"}, {"source": "c d"}])  # first four: ab ba ab = 2 of 3
    put(second / "train.jsonl.run.json", {"counts": {"attempted": 77, "accepted": 60}, "seconds": 5.76})
    write_lines(second / "train.jsonl", [{"source": "a b"}, {"source": "c d"}])  # ab bc cd = 3 of 3
    put(run / "final" / "metrics.json", metrics | {"overall": interval(0.812, 0.7, 0.9)})
    put(run / "final" / "student.run.json", {"counts": {}, "seconds": 31.5})
    put(run / "final" / "test_zipf" / "metrics.json", metrics | {"overall": interval(0.512, 0.4, 0.6)})
    put(run / "untrained" / "metrics.json", {"metric": "accuracy", "n": 50, "overall": interval(0.25, 0.2, 0.3)})
    return run


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_table_has_the_numbers_of_the_files(run_folder):
    done = call("report.py", run_folder)
    assert done.returncode == 0, done.stderr
    lines = {cells(line)[0]: cells(line)[1:] for line in done.stdout.splitlines() if line.strip()}
    assert str(run_folder) in done.stdout
    assert cells(done.stdout.splitlines()[1])[4:6] == ["energy", "accuracy [95 % interval]"]
    # attempted, accepted, distinct-2, energy, accuracy, head, tail, generate s (the longer: one start), train s, ...
    assert lines["iter-00"] == [
        "1,331", "60", "-", "0.667", "-4.13", "0.713 [0.610, 0.803]", "0.951", "0.453", "12.5", "21.5", "3.5", "4.5",
    ]  # fmt: skip
    assert lines["iter-01"] == ["77", "60", "-", "1.000", "-", "-", "-", "-", "5.8", "-", "-", "-"]
    assert lines["final"] == ["-", "-", "-", "-", "-", "0.812 [0.700, 0.900]", "0.951", "0.453", "-", "31.5", "-", "-"]
    assert lines["final/test_zipf"][5] == "0.512 [0.400, 0.600]"
    assert lines["untrained"] == ["-", "-", "-", "-", "-", "0.250 [0.200, 0.300]", *"------"]
    # 12.5 + 21.5 + 3.5 + 4.5 + 5.76 + 31.5 = 79.26
    assert "all stages: 79 s" in done.stdout


def test_the_same_rows_are_written(run_folder):
    call("report.py", run_folder)
    rows = read_lines(run_folder / "metrics.jsonl")
    assert [r["iteration"] for r in rows] == ["iter-00", "iter-01", "final", "final/test_zipf", "untrained"]
    first = rows[0]
    assert (first["attempted"], first["accepted"], first["mean_score"]) == (1331, 60, -4.126)
    assert first["distinct_2"] == pytest.approx(2 / 3, abs=1e-4) and rows[1]["distinct_2"] == 1.0
    assert (first["accuracy"], first["low"], first["high"]) == (0.7126, 0.61, 0.803)
    assert (first["accuracy_head"], first["accuracy_tail"]) == (0.951, 0.453) and "accuracy_Warm" not in first
    assert first["seconds"] == {"generate": 12.5, "train": 21.5, "score": 3.5, "evaluate": 4.5}
    assert "accuracy" not in rows[1] and rows[4]["accuracy"] == 0.25
    before = (run_folder / "metrics.jsonl").read_bytes()
    assert call("report.py", run_folder).returncode == 0
    assert (run_folder / "metrics.jsonl").read_bytes() == before


def test_two_runs_are_two_tables(run_folder):
    other = run_folder.with_name("other")
    (other / "iter-00").mkdir(parents=True)
    done = call("report.py", run_folder, other)
    assert done.returncode == 0 and done.stdout.count("iter-00") == 2 and f"\n{other}\n" in done.stdout
    assert len(read_lines(other / "metrics.jsonl")) == 1


@pytest.mark.parametrize("name", ["empty", "none", "file"])
def test_no_run_folder(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    done = call("report.py", tmp_path / name)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / name}: no iter-00 in it")
    assert len(done.stderr.splitlines()) == 1


def test_the_title_names_the_metric(run_folder):
    for path in run_folder.rglob("metrics.json"):
        path.write_text(path.read_text().replace("accuracy", "rouge_l"))
    done = call("report.py", run_folder)
    assert done.returncode == 0 and cells(done.stdout.splitlines()[1])[5:8] == [
        "rouge_l [95 % interval]",
        "head",
        "tail",
    ]
    assert read_lines(run_folder / "metrics.jsonl")[0]["rouge_l_head"] == 0.951


def test_two_metrics_are_no_column(run_folder):
    path = run_folder / "final" / "metrics.json"
    path.write_text(path.read_text().replace("accuracy", "f1"))
    done = call("report.py", run_folder)
    assert done.returncode == 1 and f"{run_folder}: measured by accuracy and by f1; " in done.stderr


# The last one is what evaluate.py wrote before it knew more than one number
OLD = '{"metric": "accuracy", "test_file": "x", "overall": {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9}}'


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', OLD])
def test_files_that_were_broken_by_hand(content, run_folder):
    (run_folder / "iter-00" / "metrics.json").write_text(content)
    done = call("report.py", run_folder)
    path = run_folder / "iter-00" / "metrics.json"
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"error: {path}: ")


def test_a_teacher_label_is_compared_as_what_a_student_would_write_for_it(home, tmp_path):
    text = (home / "flip.toml").read_text().replace('target = "$answer"', 'target = "it is: $answer"')
    (tmp_path / "flip.toml").write_text(text.replace("flip_seed", str(home / "flip_seed")))
    rows = [flipped(n) for n in range(4)]
    said = [rows[0]["answer"], rows[1]["answer"].upper(), "nothing", ""]
    write_lines(
        tmp_path / "test.jsonl", [row | {"teacher_label": answer} for row, answer in zip(rows, said, strict=True)]
    )
    done = call(
        "evaluate.py", "--task-file", tmp_path / "flip.toml", "--prediction-field", "teacher_label", "--test-file",
        tmp_path / "test.jsonl", "--output-dir", tmp_path / "teacher",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = read_lines(tmp_path / "teacher" / "predictions.jsonl")
    assert [r["correct"] for r in records] == [True, True, False, False]
    assert records[0]["prediction"] == f"it is: {rows[0]['answer']}" and records[3]["prediction"] == ""
