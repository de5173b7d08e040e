"""loop.sh as a user runs it, two small iterations: files, table, feedback, rerun."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import loop


@pytest.mark.engine
def test_the_files_of_a_run(finished):
    run, _, _ = finished
    in_iteration = {
        "train.jsonl", "train.jsonl.run.json", "train.rejected.jsonl", "validation.jsonl", "validation.jsonl.run.json",
        "validation.rejected.jsonl", "student", "student.run.json", "scored.jsonl", "scored.jsonl.run.json",
        "feedback.jsonl", "predictions.jsonl", "predictions.jsonl.run.json", "metrics.json",
    }  # fmt: skip
    assert {p.name for p in (run / "iter-00").iterdir()} == in_iteration
    assert {p.name for p in (run / "iter-01").iterdir()} == in_iteration
    assert {p.name for p in run.iterdir()} == {"iter-00", "iter-01", "final", "untrained", "loop.log", "metrics.jsonl"}
    assert {p.name for p in (run / "final").iterdir()} >= {"student", "predictions.jsonl", "metrics.json", "test_zipf"}


@pytest.mark.engine
def test_the_table_says_what_the_files_say(finished):
    run, printed, _ = finished
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [r["iteration"] for r in rows] == ["iter-00", "iter-01", "final", "final/test_zipf", "untrained"]
    for row in rows[:2]:
        made = [
            json.loads((run / row["iteration"] / f"{s}.jsonl.run.json").read_text()) for s in ("train", "validation")
        ]
        assert row["attempted"] == sum(m["counts"]["attempted"] for m in made) and row["accepted"] == 140
        assert (
            row["accuracy"]
            == json.loads((run / row["iteration"] / "metrics.json").read_text())["overall"]["accuracy"]["value"]
        )
        assert f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in printed
    assert "Look into" in printed and "Try next" in printed


@pytest.mark.engine
def test_feedback_of_one_iteration_steers_the_next(finished):
    run, _, _ = finished
    feedback = {json.loads(line)["id"] for line in (run / "iter-00/feedback.jsonl").open()}
    assert len(feedback) == 18  # 30 examples a label, the band from .5 to .8
    made = [json.loads(line) for line in (run / "iter-01/train.jsonl").open()]
    fed = [r for r in made if r["feedback"]]
    assert 0.3 < len(fed) / len(made) < 0.7 and all(set(r["shots"][-2:]) <= feedback for r in fed)
    earlier = [json.loads(line)["review"] for line in (run / "iter-00/train.jsonl").open()]
    assert not set(earlier) & {r["review"] for r in made}
    log = json.loads((run / "iter-01/student.run.json").read_text())
    assert log["counts"]["train_examples"] + log["counts"]["held_out_examples"] == 160


@pytest.mark.engine
def test_run_again_everything_is_up_to_date(finished, embedded):
    run, _, _ = finished
    files = sorted(p for p in run.rglob("*.json*") if p.name != "metrics.jsonl")
    before = {p: p.read_bytes() for p in files}
    again = loop(run, embedded)
    assert again.returncode == 0, again.stdout[-3000:]
    # two splits and three stages twice; final, two tests, untrained
    assert again.stdout.count("up to date") == 4 + 2 * 3 + 4
    assert {p: p.read_bytes() for p in files} == before


def dry_loop(*args: object, **env: str) -> subprocess.CompletedProcess:
    """The shell alone: with `true` in the place of Python every stage succeeds at once."""
    env = {**os.environ, "PYTHON": "true", "ITERATIONS": "1", **env}
    return subprocess.run(["bash", "loop.sh", *map(str, args)], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["reviews", "word_problems"])
def test_an_embedded_task_brings_its_models(name, tmp_path):
    done = dry_loop(f"prompts/{name}.toml", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert lines[:2] == [f"+ -m data.build_models {name} {model}" for model in ("teacher", "t5")]
    assert f"--model data/{name}/models/t5 " in lines[2] and f"--test-file data/{name}/test.jsonl" in lines[2]
    assert "--group-by group" in lines[2] and any("--learning-rate 5e-4" in line for line in lines)


def test_models_of_one_task_for_another(tmp_path):
    student = "data/reviews/models/t5"
    done = dry_loop("prompts/word_problems.toml", tmp_path / "run", TEACHER="org/teacher", STUDENT=student, GROUP_BY="")
    assert done.returncode == 0, done.stderr
    assert "+ -m data.build_models reviews t5" in done.stdout and "models teacher" not in done.stdout
    assert "--group-by" not in done.stdout


@pytest.mark.parametrize("given", [{}, {"TEACHER": "org/teacher"}, {"STUDENT": "org/student"}])
def test_another_task_needs_models(given, tmp_path):
    task = tmp_path / "reviews.toml"  # the name alone does not make it the embedded one
    task.write_text(Path("prompts/reviews.toml").read_text())
    env = {"TEACHER": "", "STUDENT": "", **given}
    done = dry_loop(task, tmp_path / "run", **env)
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "run").exists()
    assert done.stderr == (
        f"error: {task} has no embedded models; name yours: TEACHER=... STUDENT=... bash loop.sh {task} {tmp_path}/run\n"
    )


def test_any_task_file_will_do_and_the_knobs_reach_the_stages(tmp_path):
    """With `true` in the place of Python every stage succeeds at once: what is left is the shell itself."""
    task = tmp_path / "other.toml"
    task.write_text(Path("prompts/reviews.toml").read_text())
    env = {**os.environ, "PYTHON": "true", "TEACHER": "org/teacher", "STUDENT": "org/student", "ITERATIONS": "2"}
    env |= {"LAUNCH": "env A=1", "SCORE_ARGS": "--energy-temperature 2", "TEST_FILE": "data/reviews/test.jsonl"}
    done = subprocess.run(
        ["bash", "loop.sh", str(task), str(tmp_path / "run")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("+ ")]
    stages = ["generate.py", "train_student.py", "score_ood.py", "evaluate.py"]
    first = ["evaluate.py", "generate.py", "evaluate.py"]  # the untrained student, the teacher
    assert ran == [*first, *stages, *stages, "train_student.py", "evaluate.py", "evaluate.py", "report.py"]
    assert "--prediction-field teacher_label" in done.stdout
    assert "--energy-temperature 2" in done.stdout and "--group-by" not in done.stdout
