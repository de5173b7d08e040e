"""loop.sh as a user runs it, two small iterations: files, table, feedback. And without any stage: what it would run."""

import importlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from conftest import ROOT, loop, read_lines


@pytest.mark.engine
def test_the_files_of_a_run_its_table_and_its_feedback(finished):
    run, printed = finished
    in_iteration = {
        "train.jsonl", "train.jsonl.run.json", "train.rejected.jsonl", "validation.jsonl", "validation.jsonl.run.json",
        "validation.rejected.jsonl", "student", "student.run.json", "scored.jsonl", "scored.jsonl.run.json",
        "feedback.jsonl", "predictions.jsonl", "predictions.jsonl.run.json", "metrics.json", "README.md",
    }  # fmt: skip
    assert {p.name for p in (run / "iter-00").iterdir()} == in_iteration
    without = {name for name in in_iteration if name.startswith(("validation", "scored", "feedback"))}
    assert {p.name for p in (run / "iter-01").iterdir()} == in_iteration - without  # it feeds no other
    folders = {"iter-00", "iter-01", "final", "untrained", "teacher"}
    files = {"loop.log", "metrics.jsonl", "report.html"}
    assert {p.name for p in run.iterdir() if not p.name.startswith(".")} == folders | files
    assert {p.name for p in (run / "final").iterdir()} >= {"student", "predictions.jsonl", "metrics.json", "test_zipf"}

    rows = read_lines(run / "metrics.jsonl")
    assert [r["iteration"] for r in rows] == ["iter-00", "iter-01", "final", "final/test_zipf", "untrained", "teacher"]
    for row in rows[:2]:
        folder = run / row["iteration"]
        paths = [path for s in ("train", "validation") if (path := folder / f"{s}.jsonl.run.json").exists()]
        counts = [json.loads(path.read_text())["counts"] for path in paths]
        assert row["attempted"] == sum(c["attempted"] for c in counts)
        assert row["accepted"] == {"iter-00": 140, "iter-01": 80}[row["iteration"]]
        assert row["accuracy"] == json.loads((folder / "metrics.json").read_text())["overall"]["accuracy"]["value"]
        assert f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in printed

    feedback = {r["id"] for r in read_lines(run / "iter-00/feedback.jsonl")}
    assert len(feedback) == 18  # 30 examples a label, the band from .5 to .8
    made = read_lines(run / "iter-01/train.jsonl")
    fed = [r for r in made if r["feedback"]]
    assert 0.3 < len(fed) / len(made) < 0.7 and all(set(r["shots"][-2:]) <= feedback for r in fed)
    assert not {r["review"] for r in read_lines(run / "iter-00/train.jsonl")} & {r["review"] for r in made}
    counts = json.loads((run / "iter-01/student.run.json").read_text())["counts"]
    assert counts["train_examples"] + counts["held_out_examples"] == 160


# ---------------------------------------------------------------------------------------------------------------------
# The shell alone: PYTHON=true, so that every stage succeeds at once

HOME = {"TEACHER": "org/teacher", "STUDENT": "org/student"}
REVIEWS, TEST = "prompts/reviews.toml", "data/reviews/test.jsonl"


def dry_loop(*args: object, **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHON": "true", "ITERATIONS": "1", **env}
    command = ["bash", "loop.sh", *map(str, args)]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def commands(done: subprocess.CompletedProcess, stage: str) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(f"+ {stage}")]


def parsed(line: str) -> None:
    """Parse a stage's command line as the stage itself would; an option or value that does not exist raises."""
    stage, *words = shlex.split(line.removeprefix("+ "))
    if stage.endswith(".py"):
        typer.main.get_command(importlib.import_module(stage.removesuffix(".py")).app).make_context(stage, words)


POOL, TRAIN, PEOPLE = "iter-00/validation.jsonl --model", "iter-00/train.jsonl --output-file", f"{TEST} --model"
STRATEGIES = {  # what is scored, with a student or without; how; options of generate.py
    "gold": (POOL, "--score energy --low 0.5 --high 0.8", "--feedback-rate 0.5"),
    "released-code": (POOL, "--score energy_padded --low 0.5 --high 0.8 --group-size 8", "--num-validation 187"),
    "zerogen": (None, None, "--num-validation 0"),
    "attrprompt": (None, None, "--num-validation 0 --attributes"),
    "rationales": (None, None, "--num-validation 0"),
    "random": ("iter-00/validation.jsonl --output-file", "--score random", "--feedback-rate 0.5"),
    "random-train": (TRAIN, "--score random --low 0 --high 1", "--num-validation 0 --feedback-rate 0.5"),
    "s3": (PEOPLE, "--score error --low 0 --high 1", "--num-validation 0 --feedback-rate 0.5"),
    "pgkd": (POOL, "--score hard_negative --low 0.5 --high 1", "--feedback-rate 0.5"),
    "active": (POOL, "--score nll --low 0.8 --high 1", "--feedback-rate 0.5"),
    "uncertain": (POOL, "--score msp --low 0.8 --high 1", "--feedback-rate 0.5"),
    "genco": (PEOPLE, "--unlabelled --score msp --low 0 --high 0.8", "--num-validation 0 --rewrite"),
    "retrieval": (None, None, f"--num-validation 0 --corpus-file {TEST}"),
    "tuned-teacher": (None, None, "--num-validation 0"),
    "tfidf": ("iter-00/train.jsonl --train-file", "--score tfidf --low 0.8", "--num-validation 0 --feedback-rate 1"),
}


TEXTS = "data/reviews/test_zipf.jsonl"  # any file will do
SYSTEMS = {  # what runs in the second iteration, R = the run folder: the words of a stage's line
    "critic": [
        ("generate.py", "--exclude-file R/iter-00/train.jsonl"),
        ("score_ood.py", "--input-file R/iter-01/train.jsonl --model org/critic --output-file R/iter-01/criticised.jsonl "
         "--feedback-file R/iter-01/kept.jsonl --rejected-file R/iter-01/dropped.jsonl --score nll --low 0 --high 0.8"),
        ("train_student.py", "--train-file R/iter-00/kept.jsonl --train-file R/iter-01/kept.jsonl"),
    ],
    "self-consistency": [
        ("generate.py", "--exclude-file R/iter-00/train.jsonl"),
        ("label.py", "--input-file R/iter-01/train.jsonl --output-file R/iter-01/labelled.jsonl --relabel --min-share 0.6"),
        ("train_student.py", "--train-file R/iter-00/labelled.jsonl --train-file R/iter-01/labelled.jsonl"),
    ],
    "generation-distillation": [
        ("generate.py", "--unlabelled --exclude-file R/iter-00/train.jsonl"),
        ("label.py", "--input-file R/iter-01/train.jsonl --output-file R/iter-01/labelled.jsonl --relabel"),
        ("train_student.py", "--train-file R/iter-00/labelled.jsonl --train-file R/iter-01/labelled.jsonl --loss kl"),
        ("train_student.py", "--train-file R/iter-01/labelled.jsonl --loss kl --learning-rate 7e-4"),
    ],
    "supergen": [
        ("generate.py", "--teacher-nll --exclude-file R/iter-00/train.jsonl"),
        ("score_ood.py", "--input-file R/iter-01/train.jsonl --feedback-file R/iter-01/kept.jsonl "
         "--rejected-file R/iter-01/dropped.jsonl --score teacher_nll --low 0 --high 0.8"),
        ("train_student.py", "--train-file R/iter-00/kept.jsonl --train-file R/iter-01/kept.jsonl"),
    ],
    "llmaaa": [
        ("score_ood.py", f"--input-file {TEXTS} --unlabelled --train-file R/iter-00/annotated.jsonl "
         "--score entropy --low 0 --high 1 --model R/iter-00/student --num-selected 90 --output-file R/iter-01/texts.jsonl "
         "--feedback-file R/iter-01/chosen.jsonl"),
        ("label.py", "--input-file R/iter-01/chosen.jsonl --output-file R/iter-01/annotated.jsonl --relabel"),
        ("train_student.py", "--train-file R/iter-00/annotated.jsonl --train-file R/iter-01/annotated.jsonl "
         "--confidence-weights"),
    ],
}  # fmt: skip
NEEDED = {"TEXTS_FILE": TEXTS, "CRITIC": "org/critic", "HUMAN_FILE": TEST}


def ran(done: subprocess.CompletedProcess, folder: Path) -> list[str]:
    """What a loop ran, from its loop on; options that no strategy changes are left out."""
    lines = [line.removeprefix("+ ").replace(str(folder), "R") for line in commands(done, "")]
    begin = next(i for i, line in enumerate(lines) if "R/iter-00" in line)
    return [re.sub(r" --(task-file|seed) \S+", "", line) for line in lines[begin:] if "evaluate.py" not in line]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_of_other_papers_is_a_few_variables(name, tmp_path):
    asked = {k: v for k, v in NEEDED.items() if k in (ROOT / f"strategies/{name}.sh").read_text()}
    done = dry_loop(REVIEWS, tmp_path / "r", STRATEGY=name, ITERATIONS="2", NUM_EXAMPLES="90", **asked)
    for line in commands(done, ""):
        parsed(line)
    second = [line for line in ran(done, tmp_path / "r") if "R/iter-01" in line]
    assert [line.split()[0] for line in second[: len(SYSTEMS[name])]] == [stage for stage, _ in SYSTEMS[name]]
    for line, (stage, words) in zip(second, SYSTEMS[name], strict=False):
        assert words in line, f"{stage}: {line}"
    if asked:
        told = dry_loop(REVIEWS, tmp_path / "x", STRATEGY=name).stderr
        assert f"STRATEGY={name} needs {next(iter(asked))}=" in told and told.count("\n") == 1


def test_two_systems_combine_by_their_variables(tmp_path):
    """GOLD whose training examples a critic filters; GOLD beside labelled texts of people."""
    done = dry_loop(REVIEWS, tmp_path / "r", ITERATIONS="2", CRITIC="org/critic", ANNOTATE="1", TEXTS_FILE=TEXTS)
    for line in commands(done, ""):
        parsed(line)
    stages = ["generate.py", "score_ood.py", "score_ood.py", "label.py", "train_student.py", "score_ood.py"]
    lines = ran(done, tmp_path / "r")
    assert [line.split()[0] for line in lines] == [*stages, *stages[:-1], "train_student.py", "report.py"]
    kept, people = ([f"--train-file R/iter-0{i}/{name}.jsonl" for i in (0, 1)] for name in ("kept", "annotated"))
    assert f"{kept[0]} {people[0]} {kept[1]} {people[1]}" in lines[-2]
    assert (
        "--feedback-file R/iter-00/feedback.jsonl" in lines[6]
        and "iter-00/validation.jsonl --model R/iter-00" in lines[5]
    )


REAL = {  # strategy: (variables, what is trained on, where the rest stands with its reasons)
    "self-consistency": ({"RELABEL": "--relabel --min-share 0.505"}, "labelled", "labelled.rejected"),
    "supergen": ({}, "kept", "dropped"),
    "llmaaa": ({"TEXTS_FILE": TEXTS}, "annotated", None),
}


@pytest.mark.engine
def test_three_strategies_run_for_real(embedded, tmp_path):
    """loop.sh itself; its stages run in one process, with one engine (bench/warm.py)."""
    place = tmp_path / "socket"
    how = {"PYTHON": "bench/warm_python", "WARM_SOCKET": str(place), "ITERATIONS": "2", "NUM_EXAMPLES": "40"}
    how |= {"GENERATE_ARGS": "--min-p 0 --max-tokens 64", "TRAIN_ARGS": "--num-train-epochs 15 --learning-rate 5e-3"}
    how |= {"LABEL_ARGS": "--limit 10", "EVALUATE_ARGS": "--limit 20"}
    with subprocess.Popen([sys.executable, "-m", "bench.warm", str(place)], cwd=ROOT) as process:
        try:
            while not place.exists():
                assert process.poll() is None
                time.sleep(0.1)
            for name, (variables, *_) in REAL.items():
                done = loop(tmp_path / name, embedded, **how, STRATEGY=name, **variables)
                assert done.returncode == 0, done.stdout
        finally:
            process.kill()
    for name, (_, file, left) in REAL.items():
        run = tmp_path / name
        used = [read_lines(run / f"iter-0{i}/{file}.jsonl") for i in (0, 1)]
        counts = [json.loads((run / f"iter-0{i}/student.run.json").read_text())["counts"] for i in (0, 1)]
        trained = [c["train_examples"] + c["held_out_examples"] for c in counts]
        assert trained == [len(used[0]), len(used[0]) + len(used[1])] and 0 < trained[0] <= 40
        assert {r["label"] for rows in used for r in rows} <= {"positive", "negative"}
        rows = read_lines(run / "metrics.jsonl")
        assert [r["accepted"] for r in rows[:2]] == [len(rows) for rows in used] and rows[1]["tokens"] > 0
        if left:  # what is not trained on has its reason
            rest = read_lines(run / f"iter-00/{left}.jsonl")
            assert len(rest) + trained[0] == 40 and {r["reason"] for r in rest} <= {"unsure", "outside_band"}
    texts = [r["review"] for rows in used for r in rows]
    assert len(set(texts)) == len(texts) == 80 and set(texts) <= {r["review"] for r in read_lines(ROOT / TEXTS)}


def test_every_strategy_has_a_row_in_the_readme_and_here():
    """The README's is made of the first lines of the files, which say what is selected and what it costs."""
    files = {path.stem: path.read_text().splitlines() for path in ROOT.glob("strategies/*.sh")}
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \|$", (ROOT / "README.md").read_text(), re.M)
    table = [row for row in rows if row[0] in files]
    assert sorted(table) == sorted((name, lines[0].removeprefix("# ")) for name, lines in files.items())
    for _, second, third, *rest in files.values():
        assert second.startswith("# Selects: ") and third.startswith("# Costs: ") and len(rest) <= 10
    assert set(files) == set(STRATEGIES) | set(SYSTEMS)


def test_gold_is_the_default_strategy(tmp_path):
    default, gold = (dry_loop(REVIEWS, tmp_path / "r", **env) for env in ({}, {"STRATEGY": "gold"}))
    assert commands(default, "") == commands(gold, "")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_gives_the_stages_options_that_they_have(name, tmp_path):
    pool, selected, generated = STRATEGIES[name]
    env = {
        "STRATEGY": name,
        "HUMAN_FILE": TEST,
        "TEXTS_FILE": TEST,
        "ITERATIONS": "3",
        "NUM_EXAMPLES": "90",
    }
    task = REVIEWS
    if name == "pgkd":  # needs $report
        task, env = "prompts/rte.toml", env | HOME
    if name == "rationales":  # needs a task of whose kind there is one with reasons
        task = "prompts/word_problems.toml"
    done = dry_loop(task, tmp_path / "r", **env)
    for line in commands(done, ""):
        parsed(line)
    made, scored = commands(done, "generate.py"), commands(done, "score_ood.py")
    asked = [*re.findall(r"--\S+(?: [^-]\S*)?", generated), "--num-examples 90"]
    assert len(made) == 3 and all(f" {option}" in line for option in asked for line in made)
    if pool == POOL:  # the last iteration feeds no other: it has a pool only where that is trained on
        assert [line.endswith("--num-validation 0") for line in made] == [False, False, name != "released-code"]
    excluded = {"released-code": [0, 2, 4], "tuned-teacher": [1, 2, 3]}
    assert [line.count("--exclude-file") for line in made] == excluded.get(name, [0, 1, 2])
    assert [line.count("--feedback-file") for line in made] == ([0, 0, 0] if pool is None else [0, 1, 1])
    assert len(scored) == (0 if pool is None else 2)
    assert all(pool in line and selected in line for line in scored[:1])
    if pool == POOL:  # the newest student, and the newest pool
        assert f"iter-01/validation.jsonl --model {tmp_path}/r/iter-01/student" in scored[1]
    if name in ("random-train", "tfidf"):  # all training examples so far
        assert [line.count("/train.jsonl") for line in scored] == ([1, 2] if name == "random-train" else [2, 4])
    reports = [f"--report-file {tmp_path}/r/iter-0{i}/report/metrics.json" in made[i + 1] for i in range(2)]
    assert reports == [name == "pgkd"] * 2


def test_the_released_code_trains_on_what_was_scored_and_goes_on_with_the_student(tmp_path):
    done = dry_loop(REVIEWS, tmp_path / "r", STRATEGY="released-code", ITERATIONS="2", **HOME)
    first, second, final = commands(done, "train_student.py")
    assert [line.count("--train-file") for line in (first, second, final)] == [1, 3, 4]
    assert "--model org/student " in first and f"--model {tmp_path}/r/iter-00/student " in second
    assert "--model org/student " in final and "--loss sce --sce-alpha 0.01 --sce-beta 1" in final
    assert "--learning-rate 5e-5" in first and final.endswith("--learning-rate 1e-5")


def test_rationales_take_the_task_with_reasons_and_the_tests_of_the_one_without(tmp_path):
    given, same = (
        dry_loop(f"prompts/{name}.toml", tmp_path / "r", STRATEGY="rationales")
        for name in ("word_problems", "word_problems_reasons")
    )
    lines = commands(given, "")
    assert lines == commands(same, "") and lines[0] == "+ -m data.build_models word_problems_reasons teacher t5"
    assert all("--task-file prompts/word_problems_reasons.toml" in line for line in lines[1:-1])
    tests = [f"--test-file data/word_problems/{name}.jsonl" for name in ("test", "test_zipf")]
    assert tests[0] in lines[1] and " ".join(tests) in commands(given, "evaluate.py")[-1]
    trained = commands(dry_loop("prompts/word_problems.toml", tmp_path / "r"), "train_student.py")
    without = [line.replace("word_problems_reasons", "word_problems") for line in commands(given, "train_student.py")]
    assert without == trained  # with the same options
    # A task of the name that has tests of its own keeps them
    folder = tmp_path / "data/rte_reasons"
    folder.mkdir(parents=True)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/rte_reasons.toml").write_text((ROOT / "prompts/rte.toml").read_text())
    assert f"no {tmp_path}/data/rte/test.jsonl: not measured" in (
        dry_loop(tmp_path / "prompts/rte_reasons.toml", tmp_path / "r", **HOME).stderr
    )
    (folder / "test.jsonl").write_text("")
    done = dry_loop(tmp_path / "prompts/rte_reasons.toml", tmp_path / "r", **HOME)
    assert f"--test-file {folder}/test.jsonl" in commands(done, "evaluate.py")[0]


def test_a_teacher_is_fine_tuned_before_anything_asks_it(tmp_path):
    """On the seed examples, or on TUNE_FILE; beside any strategy; what it was tuned on counts as known."""
    run, how = tmp_path / "r", {"TUNE": "--lora-rank 16", "STRATEGY": "tfidf", "ITERATIONS": "2", **HOME}
    lines = commands(dry_loop(REVIEWS, run, **how), "")
    assert "--as-teacher auto --model org/teacher --output-dir" in lines[0] and lines[0].endswith("--lora-rank 16")
    asking = [line for line in lines if line.startswith(("+ generate.py", "+ label.py"))]
    assert len(asking) == 3 and all(f"--model {run}/tuned-teacher " in line for line in asking)
    known = [f"--exclude-file {run}/tuned-teacher/tuned_on.jsonl" in line for line in lines if "+ generate" in line]
    assert known == [True, True] and "org/teacher" not in "".join(lines[1:])
    for line in lines:
        parsed(line)
    more = commands(dry_loop(REVIEWS, run, **how, TUNE_FILE=TEST), "train_student.py")
    assert f"--train-file {TEST} --output-dir {run}/tuned-teacher" in more[0]


@pytest.mark.parametrize("name, rate", [("reviews", "7e-4"), ("word_problems", "5e-4")])
def test_an_embedded_task_brings_its_models(name, rate, tmp_path):
    done = dry_loop(f"prompts/{name}.toml", tmp_path / "run")
    lines = commands(done, "")
    assert lines[0] == f"+ -m data.build_models {name} teacher t5"
    assert f"--model data/{name}/models/t5 " in lines[1] and f"--test-file data/{name}/test.jsonl" in lines[1]
    assert "--group-by group" in lines[1]
    assert [f"--learning-rate {rate}" in line for line in commands(done, "train_student.py")] == [True, True]
    done = dry_loop(f"prompts/{name}.toml", tmp_path / "run", STUDENT="org/student")
    assert commands(done, "")[0] == f"+ -m data.build_models {name} teacher" and "--learning-rate" not in done.stdout
    assert "build_models" not in dry_loop(f"prompts/{name}.toml", tmp_path / "run", **HOME).stdout


def test_the_data_of_a_task_lie_beside_its_file(tmp_path):
    """A file of the same name elsewhere is not the embedded task: neither its models nor its test data."""
    (tmp_path / "prompts").mkdir()
    task = tmp_path / "prompts/reviews.toml"
    task.write_text((ROOT / "prompts/reviews.toml").read_text())
    assert f"error: {task} has no embedded models: TEACHER=" in dry_loop(task, tmp_path / "r").stderr
    done = dry_loop(task, tmp_path / "r", **HOME, BUILD="-m something.of.another.program")
    assert not commands(done, "evaluate.py") and "--group-by" not in done.stdout and "something" not in done.stdout
    assert f"no {tmp_path}/data/reviews/test.jsonl: not measured" in done.stderr
    (tmp_path / "data/reviews").mkdir(parents=True)
    for name in ("test", "test_hard"):
        (tmp_path / f"data/reviews/{name}.jsonl").write_text("")
    tested = [f"--test-file {tmp_path}/data/reviews/{name}.jsonl" for name in ("test", "test_hard")]
    measured = commands(dry_loop(task, tmp_path / "r", **HOME), "evaluate.py")
    assert tested[0] in measured[0] and tested[1] not in measured[0]
    assert " ".join(tested) in measured[-1]  # the final student: all
    done = dry_loop(task, tmp_path / "r", **HOME, TEST_FILE=f"{tmp_path}/data/reviews/test_hard.jsonl")
    assert tested[0] not in done.stdout and tested[1] in done.stdout  # a given one is the only one


def test_the_variables_reach_the_stages(tmp_path):
    names = ("GENERATE", "TRAIN", "SCORE", "EVALUATE", "LABEL", "FINAL_TRAIN")
    env = HOME | {f"{name}_ARGS": f"--of-{name.lower()}" for name in names} | {"SEED": "7", "LAUNCH": "env A=1"}
    done = dry_loop(REVIEWS, tmp_path / "run", ITERATIONS="2", **env)
    ran = [line.split()[1] for line in commands(done, "")]
    stages = ["generate.py", "train_student.py", "evaluate.py", "score_ood.py"]
    first = ["evaluate.py", "label.py", "evaluate.py"]  # the untrained student, the teacher
    assert ran == [*first, *stages, *stages[:-1], "train_student.py", "evaluate.py", "report.py"]
    for name, stage in zip(names, ["generate", "train_student", "score_ood", "evaluate", "label"], strict=False):
        lines = commands(done, f"{stage}.py")
        assert all(f"--of-{name.lower()}" in line for line in lines)
        assert stage == "evaluate" or all("--seed 7" in line for line in lines)
    assert ["--of-final_train" in line for line in commands(done, "train_student.py")] == [False, False, True]
    assert "--loss sce" not in done.stdout
    assert "--loss sce" in commands(dry_loop(REVIEWS, tmp_path / "run"), "train_student.py")[-1]


REFUSED = [  # task file, variables, what is told
    ("none.toml", {}, "no none.toml: give a task file"),
    ("prompts/rte.toml", {"TEACHER": "org/teacher"}, "prompts/rte.toml has no embedded models: TEACHER=... STUDENT="),
    (REVIEWS, {"STRATEGY": "gld"}, "no strategies/gld.sh: STRATEGY is one of active "),
    (REVIEWS, {"POOL": "nowhere.jsonl"}, "no file POOL=nowhere.jsonl"),
    (REVIEWS, {"ITERATIONS": "-1"}, "ITERATIONS=-1 is no number from 1 on"),
    (REVIEWS, {"NUM_EXAMPLES": "0"}, "NUM_EXAMPLES=0 is no number from 1 on"),
    (REVIEWS, {"TEST_FILE": "nowhere.jsonl"}, "no TEST_FILE nowhere.jsonl"),
    (REVIEWS, {"TUNE_FILE": "nowhere.jsonl"}, "no TUNE_FILE nowhere.jsonl"),
    (REVIEWS, {"STRATEGY": "pgkd"}, "STRATEGY=pgkd needs $report in [prompt] feedback of prompts/reviews.toml"),
    (
        REVIEWS,
        {"STRATEGY": "rationales"},
        "STRATEGY=rationales needs prompts/reviews_reasons.toml: prompts/reviews.toml with",
    ),
    (REVIEWS, {"STRATEGY": "s3"}, "STRATEGY=s3 needs HUMAN_FILE=/path/to/labelled.jsonl"),
    (REVIEWS, {"ANNOTATE": "1", "TEXTS_FILE": "nowhere.jsonl"}, "no TEXTS_FILE nowhere.jsonl; check the path"),
    (REVIEWS, {"ANNOTATE": "1"}, "ANNOTATE=1 needs TEXTS_FILE=/path/to/texts.jsonl"),
    (REVIEWS, {"GENERATE": "0"}, "GENERATE=0 without ANNOTATE=1 leaves nothing to train on"),
    (
        REVIEWS,
        {"GENERATE": "0", "ANNOTATE": "1", "TEXTS_FILE": TEST},
        "GENERATE=0 with STRATEGY=gold: feedback, RELABEL",
    ),
    (REVIEWS, {"STRATEGY": "supergen", "CRITIC": "org/critic"}, "a critic has no teacher_nll; leave one of them out"),
    (
        "prompts/word_problems.toml",
        {"ANNOTATE": "1", "TEXTS_FILE": TEST},
        "of which a student predicts no label: give CHOOSE",
    ),
]


@pytest.mark.parametrize("task, variables, told", REFUSED)
def test_variables_that_will_not_do_are_refused_at_once(task, variables, told, tmp_path):
    done = dry_loop(task, tmp_path / "r", **variables)
    assert done.returncode == 1 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "" and not (tmp_path / "r").exists()


@pytest.fixture
def serving(tmp_path):
    """A stand-in for Python: `-m gold.serve` listens on its port, another stage asks whether somebody does, and may wait."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    stub = tmp_path / "python"
    stub.write_text(f"""#!/usr/bin/env bash
if [[ $2 == gold.serve ]]; then echo $$ > {tmp_path}/pid; exec {sys.executable} -m http.server "$5" --bind 127.0.0.1; fi
exec 3<> /dev/tcp/127.0.0.1/{port}
if [[ $1 == generate.py && -n ${{SLOW:-}} ]]; then touch {tmp_path}/working; sleep 60; fi
""")
    stub.chmod(0o755)
    return {"SERVE": "1", "PORT": str(port), "PYTHON": str(stub), **HOME}


def lives(tmp_path) -> bool:
    pid = (tmp_path / "pid").read_text().strip()
    return Path(f"/proc/{pid}").exists() and "http.server" in Path(f"/proc/{pid}/cmdline").read_text()


def test_one_server_for_all_iterations_ends_with_the_loop(serving, tmp_path):
    done = dry_loop(REVIEWS, tmp_path / "run", **serving, ITERATIONS="2")
    assert done.returncode == 0, done.stderr
    url = f"--server-url http://127.0.0.1:{serving['PORT']}/v1"
    asking = [line for line in done.stdout.splitlines() if re.match(r"\+ (generate|label)\.py", line)]
    assert len(asking) == 3 and all(url in line for line in asking)
    assert done.stdout.count("+ vllm serve org/teacher") == 1 and not lives(tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_the_server_ends_with_a_loop_that_is_stopped(name, serving, tmp_path):
    env, command = {**os.environ, **serving, "SLOW": "1"}, ["bash", "loop.sh", REVIEWS, str(tmp_path / "run")]
    loop = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "working").exists():
        assert loop.poll() is None
        time.sleep(0.05)
    assert lives(tmp_path)
    loop.send_signal(getattr(signal, name))
    loop.wait(30)
    time.sleep(0.5)
    subprocess.run(["pkill", "-s", str(loop.pid)], check=False)  # SIGKILL leaves the stage behind
    assert not lives(tmp_path)


def test_a_port_that_is_taken_is_told(serving, tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", int(serving["PORT"])))
        one.listen()
        done = dry_loop(REVIEWS, tmp_path / "run", **serving)
    assert done.returncode == 1 and "give another PORT" in done.stderr
