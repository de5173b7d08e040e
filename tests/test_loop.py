"""loop.sh as a user runs it, two small iterations: files, table, feedback, rerun."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, call, copy_of, loop


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
def test_run_again_everything_is_up_to_date(finished, embedded, tmp_path):
    run = copy_of(finished, tmp_path)
    files = sorted(p for p in run.rglob("*.json*") if p.name != "metrics.jsonl")
    before = {p: p.read_bytes() for p in files}
    again = loop(run, embedded)
    assert again.returncode == 0, again.stdout[-3000:]
    # two splits and three stages twice; final, two tests, untrained
    assert again.stdout.count("up to date") == 4 + 2 * 3 + 4
    assert {p: p.read_bytes() for p in files} == before


@pytest.fixture(scope="session", autouse=True)
def no_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """NO_STAGE: in the place of Python, every stage succeeds at once; what loop.sh asks with -c is answered."""
    python = tmp_path_factory.mktemp("no_stage") / "python"
    python.write_text(f'#!/bin/bash\nif [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi\n')
    python.chmod(0o755)
    os.environ["NO_STAGE"] = str(python)
    yield
    del os.environ["NO_STAGE"]


def dry_loop(*args: object, before: str = "", **env: str) -> subprocess.CompletedProcess:
    """The shell alone, after the commands `before`: with no_stage in the place of Python."""
    env = {**os.environ, "PYTHON": os.environ["NO_STAGE"], "ITERATIONS": "1", **env}
    command = ["bash", "-c", f'{before}\nexec bash loop.sh "$@"', "bash", *map(str, args)]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name, rate, batch", [("reviews", "7e-4", 32), ("word_problems", "5e-4", 16)])
def test_an_embedded_task_brings_its_models(name, rate, batch, tmp_path):
    done = dry_loop(f"prompts/{name}.toml", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert lines[:2] == [f"+ -m data.build_models {name} {model}" for model in ("teacher", "t5")]
    assert f"--model data/{name}/models/t5 " in lines[2] and f"--test-file data/{name}/test.jsonl" in lines[2]
    assert "--group-by group" in lines[2]
    trainings = [line for line in lines if line.startswith("+ train_student.py ")]
    assert len(trainings) == 2  # of the one iteration, and the final one
    assert all(f"--learning-rate {rate} --per-device-train-batch-size {batch} " in line for line in trainings)


def test_models_of_one_task_for_another(tmp_path):
    student = "data/reviews/models/t5"
    done = dry_loop("prompts/word_problems.toml", tmp_path / "run", TEACHER="org/teacher", STUDENT=student, GROUP_BY="")
    assert done.returncode == 0, done.stderr
    assert "+ -m data.build_models reviews t5" in done.stdout and "models teacher" not in done.stdout
    assert "--group-by" not in done.stdout


HOME = {"TEACHER": "org/teacher", "STUDENT": "org/student"}


def test_a_task_file_elsewhere_is_not_the_embedded_one_of_that_name(tmp_path):
    """Neither this project's test data nor its special cases: the test file lies beside the task's own seed examples."""
    (tmp_path / "prompts").mkdir()
    task = tmp_path / "prompts/reviews.toml"
    task.write_text((ROOT / "prompts/reviews.toml").read_text())
    done = dry_loop(task, tmp_path / "r", **HOME)
    assert done.returncode == 0 and "evaluate.py" not in done.stdout and "--group-by" not in done.stdout, done.stderr
    assert f"no {tmp_path}/data/reviews/test.jsonl: org/student is not measured" in done.stderr
    (tmp_path / "data/reviews").mkdir(parents=True)
    for name in ("test", "test_hard"):
        (tmp_path / f"data/reviews/{name}.jsonl").write_text("")
    done = dry_loop(task, tmp_path / "r", **HOME)
    assert f"test file: {tmp_path}/data/reviews/test.jsonl, beside the seed examples" in done.stderr
    tested = re.findall(r"--test-file (\S+)", " ".join(commands(done, "evaluate.py --task-file")))
    own = f"{tmp_path}/data/reviews/test"
    assert {t for t in tested if "/r/" not in t} == {f"{own}.jsonl", f"{own}_hard.jsonl"}
    # The embedded student goes by its place, however that is written, and its special rate by the embedded task
    for student in ("data/reviews/models/t5", f"{ROOT}/data/../data/reviews/models/t5"):
        done = dry_loop(task, tmp_path / "r", **HOME | {"STUDENT": student})
        assert "--learning-rate 5e-4 --per-device-train-batch-size 16" in done.stdout
        assert "+ -m data.build_models reviews t5" in done.stdout
    linked = tmp_path / "linked.toml"
    linked.symlink_to(ROOT / "prompts/reviews.toml")
    assert "+ -m data.build_models reviews teacher" in dry_loop(linked, tmp_path / "r").stdout


def test_a_copy_beside_the_embedded_task_file_has_its_seed_examples_and_so_its_test_file(tmp_path):
    task = tmp_path / "mine.toml"
    text = (ROOT / "prompts/reviews.toml").read_text()
    task.write_text(text.replace("../data/reviews/", f"{ROOT}/data/reviews/"))
    done = dry_loop(task, tmp_path / "r", **HOME)
    assert f"--test-file {ROOT}/data/reviews/test.jsonl" in done.stdout, done.stderr


def test_a_given_test_file_is_the_only_one(tmp_path):
    """What lies beside it under a like name (test_old.jsonl, test_raw.jsonl) is the user's own."""
    for name in ("test", "test_old"):
        (tmp_path / f"{name}.jsonl").write_text("")
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", TEST_FILE=f"{tmp_path}/test.jsonl")
    assert done.returncode == 0 and "test_old" not in done.stdout and f"{tmp_path}/test.jsonl" in done.stdout


def test_a_task_file_that_is_none_stops_the_loop_before_any_model_is_built(tmp_path):
    task = tmp_path / "task.toml"
    task.write_text('name = "x"\n')
    done = dry_loop(task, tmp_path / "r", **HOME)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"error: {task}: "), done.stderr


def test_no_task_file(tmp_path):
    done = dry_loop(tmp_path / "none.toml", tmp_path / "run")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith(f"error: no {tmp_path}/none.toml: ")


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
    task = tmp_path / "other.toml"
    task.write_text(Path("prompts/reviews.toml").read_text())
    env = {"TEACHER": "org/teacher", "STUDENT": "org/student", "ITERATIONS": "2"}
    env |= {"LAUNCH": "env A=1", "SCORE_ARGS": "--energy-temperature 2", "TEST_FILE": "data/reviews/test.jsonl"}
    done = dry_loop(task, tmp_path / "run", **env)
    assert done.returncode == 0, done.stderr
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("+ ")]
    stages = ["generate.py", "train_student.py", "score_ood.py", "evaluate.py"]
    first = ["evaluate.py", "generate.py", "evaluate.py"]  # the untrained student, the teacher
    assert ran == [*first, *stages, *stages, "train_student.py", "evaluate.py", "report.py"]
    assert "--prediction-field teacher_label" in done.stdout
    assert "--energy-temperature 2" in done.stdout and "--group-by" not in done.stdout


def commands(done: subprocess.CompletedProcess, stage: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith(f"+ {stage}")]


@pytest.mark.parametrize("score", ["random", "tfidf", "msp"])
def test_feedback_from_the_training_examples_so_far(score, tmp_path):
    """random and tfidf need no student, so none is loaded to select."""
    knobs = {"FEEDBACK_POOL": "train", "SCORE": score, "NUM_VALIDATION": "0", "ITERATIONS": "3"}
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", **knobs)
    assert done.returncode == 0, done.stderr
    scoring = commands(done, "score_ood.py")
    assert [line.count("--input-file") for line in scoring] == [1, 2, 3]
    assert [line.count("--train-file") for line in scoring] == ([1, 2, 3] if score == "tfidf" else [0] * 3)
    assert [f"--model {tmp_path}/r/iter-00/student" in line for line in scoring] == [score == "msp", False, False]
    assert [line.count("--feedback-file") for line in commands(done, "generate.py sample")] == [0, 1, 1]


def test_by_default_the_training_examples_far_from_all_others_steer_every_prompt(tmp_path):
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", ITERATIONS="2")
    assert all("--num-validation 0 --feedback-rate 1" in line for line in commands(done, "generate.py sample"))
    first, second = commands(done, "score_ood.py")
    assert "--score tfidf --low 0.8 --high 1 " in first and "--model" not in first
    for option in ("--input-file", "--train-file"):
        assert [f"{option} {tmp_path}/r/iter-0{i}/train.jsonl" in second for i in range(2)] == [True, True]


def test_the_profile_of_the_paper(tmp_path):
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", before="source profiles/paper.sh")
    (made,), (scored,) = commands(done, "generate.py sample"), commands(done, "score_ood.py")
    assert "--num-validation 200 --feedback-rate 0.5" in made and "--score energy --low 0.5 --high 0.8 " in scored
    assert f"--input-file {tmp_path}/r/iter-00/validation.jsonl --model {tmp_path}/r/iter-00/student " in scored


def test_no_feedback(tmp_path):
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", FEEDBACK="none", NUM_VALIDATION="0", ITERATIONS="2")
    assert done.returncode == 0 and "--feedback-file" not in done.stdout and not commands(done, "score_ood.py")
    wrong = dry_loop("prompts/reviews.toml", tmp_path / "w", FEEDBACK="energy")
    assert wrong.returncode == 1 and "error: FEEDBACK=energy is none of score none" in wrong.stderr


@pytest.mark.parametrize("rounds, files", [("newest", [0, 1, 1]), ("all", [0, 1, 2])])
def test_newest_or_all_rounds(rounds, files, tmp_path):
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", FEEDBACK_ROUNDS=rounds, ITERATIONS="3", SCORE="msp")
    assert [line.count("--feedback-file") for line in commands(done, "generate.py sample")] == files
    assert f"--feedback-file {tmp_path}/r/iter-01/feedback.jsonl" in commands(done, "generate.py sample")[2]


def test_knobs_of_the_feedback(tmp_path):
    run, task = tmp_path / "r", "prompts/rte.toml"  # its [prompt] feedback has $report
    mine = {"FEEDBACK_POOL": "data/reviews/test.jsonl", "SCORE": "error", "LOW": "0", "HIGH": "1", "REPORT": "1"}
    mine |= {"TEACHER": "org/teacher", "STUDENT": "org/student", "SEED": "7"}
    done = dry_loop(task, run, ITERATIONS="2", CONTINUE_STUDENT="1", FINAL_TRAIN_ARGS="--ce-epochs 2", **mine)
    assert done.returncode == 0, done.stderr
    scoring = commands(done, "score_ood.py")
    assert all(
        "--input-file data/reviews/test.jsonl" in line and "--score error --low 0 --high 1 --seed 7" in line
        for line in scoring
    )
    assert f"--report-file {run}/iter-00/report/metrics.json" in commands(done, "generate.py sample")[1]
    assert f"--prediction-field prediction --test-file {run}/iter-00/scored.jsonl" in done.stdout
    first, second, final = commands(done, "train_student.py")
    assert "--model org/student " in first and f"--model {run}/iter-00/student " in second
    assert "--model org/student " in final and "--ce-epochs 2" in final and "--ce-epochs" not in first + second


@pytest.mark.parametrize(
    "score, needs", [("energy_delta", "--base-model data/reviews/models/t5"), ("embedding", "--train-file")]
)
def test_a_score_gets_the_files_that_it_needs(score, needs, tmp_path):
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", SCORE=score)
    assert needs in commands(done, "score_ood.py")[0]
    without = dry_loop("prompts/reviews.toml", tmp_path / "r", SCORE="energy")
    assert needs not in commands(without, "score_ood.py")[0]


def test_validation_examples_are_trained_on_once_scored(tmp_path):
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", SCORE="msp", TRAIN_ON_VALIDATION="1", ITERATIONS="2")
    trained = [line.split().count("--train-file") for line in commands(done, "train_student.py")]
    assert trained == [1, 3, 4]  # after the last iteration its own as well
    assert commands(done, "generate.py sample")[1].count("--exclude-file") == 2


@pytest.mark.parametrize(
    "accuracies, iterations", [([0.5, 0.6, 0.6, 0.7], 3), ([0.5, 0.6, 0.7, 0.8], 4), ([0.9, 0.8], 2)]
)
def test_patience(accuracies, iterations, tmp_path):
    """It stops after an iteration that is no better than the best one before it, on the newest held-out examples."""
    for i in range(len(accuracies)):
        for k in range(i + 1):
            folder = tmp_path / f"r/iter-{i:02d}/held_out/iter-{k:02d}"
            folder.mkdir(parents=True)
            metrics = {"metric": "accuracy", "overall": {"accuracy": {"value": accuracies[k] - 0.3 * i}}}
            (folder / "metrics.json").write_text(json.dumps(metrics))  # the newer examples are harder for all
    knobs = {"PATIENCE": "1", "MEASURE_TEACHER": "0"}
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", ITERATIONS=str(len(accuracies)), **knobs)
    assert done.returncode == 0, done.stderr
    assert len(commands(done, "generate.py sample")) == iterations
    assert ("no better student in 1 iterations" in done.stderr) is (
        accuracies[iterations - 2] >= accuracies[iterations - 1]
    )
    last = tmp_path / f"r/iter-{iterations - 1:02d}"
    assert (
        f"--test-file {last}/student/held_out.jsonl --output-dir {last}/held_out/iter-{iterations - 2:02d}"
        in done.stdout
    )


@pytest.mark.parametrize(
    "knobs, told",
    [
        ({"FEEDBACK_ROUNDS": "Newest"}, "FEEDBACK_ROUNDS=Newest is none of newest all"),
        ({"REPORT": "yes"}, "REPORT=yes is none of 0 1"),
        ({"PATIENCE": "x"}, "PATIENCE=x is no number of iterations"),
        ({"FEEDBACK_POOL": "nowhere.jsonl"}, "no FEEDBACK_POOL nowhere.jsonl"),
        ({"FEEDBACK_POOL": "README.md", "FEEDBACK_ROUNDS": "all"}, "FEEDBACK_ROUNDS=all would repeat"),
        ({"FEEDBACK": "none", "REPORT": "1"}, "REPORT=1 needs FEEDBACK=score"),
        ({"FEEDBACK_POOL": "train", "SCORE": "tfidf", "REPORT": "1"}, "REPORT=1 tells of predictions"),
        ({"PATIENCE": "08"}, "PATIENCE=08 is no number"),
        ({"ITERATIONS": "-1"}, "ITERATIONS=-1 is no number from 1 on"),
        ({"PER_DEVICE_TRAIN_BATCH_SIZE": "0"}, "PER_DEVICE_TRAIN_BATCH_SIZE=0 is no number from 1 on"),
        ({"LEARNING_RATE": "abc"}, "LEARNING_RATE=abc is no number"),
        ({"MEASURE_TEACHER": "maybe"}, "MEASURE_TEACHER=maybe is none of 0 1"),
        ({"TEST_FILE": "nowhere.jsonl"}, "no TEST_FILE nowhere.jsonl"),
        ({"FEEDBACK": "none", "TRAIN_ON_VALIDATION": "1", "NUM_VALIDATION": "0"}, "TRAIN_ON_VALIDATION=1 with"),
        ({"SCORE": "msp", "NUM_VALIDATION": "0"}, "FEEDBACK=score with NUM_VALIDATION=0"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused_at_once(knobs, told, tmp_path):
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", **knobs)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {told}"), done.stderr
    assert done.stdout == "" and not (tmp_path / "r").exists()


def test_options_of_the_profile_are_options_of_the_stages(tmp_path):
    """With --dry-run the two stages check all they can without a model; generate.py would read the teacher's tokenizer."""
    done = dry_loop("prompts/reviews.toml", tmp_path / "r", before="source profiles/released-code.sh")
    assert done.returncode == 0, done.stderr
    assert len(commands(done, "generate.py sample")) == 8
    seeds = [json.loads(line) for line in Path("data/reviews/seed_examples.jsonl").read_text().splitlines()]
    for n in range(8):
        for name in ("train", "validation"):
            rows = [seeds[k % 6] | {"review": f"{name} {n} {k}", "id": f"{name}-{n}-{k}"} for k in range(40)]
            (tmp_path / f"r/iter-{n:02d}").mkdir(exist_ok=True)
            path = tmp_path / f"r/iter-{n:02d}/{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for stage, place in (("train_student.py", 0), ("train_student.py", 8), ("score_ood.py", 0)):
        _, script, *words = commands(done, stage)[place].split()
        checked = call(script, *words, "--dry-run")
        assert checked.returncode == 0, checked.stderr
        assert "would" in checked.stdout
    assert "would select 10 by energy_padded" in checked.stdout  # of 40, two of every eight
