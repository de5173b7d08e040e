"""Every command as its user meets it: help at once, dry runs that write nothing, and one line for every bad input."""

import json
import subprocess
import sys

import pytest
from conftest import PAIRS, ROOT, call, pair, read_lines, run, write_lines

import generate

SCRIPTS = ("generate.py", "train_student.py", "score_ood.py", "evaluate.py", "report.py")
HEAVY = ("torch", "transformers", "vllm", "numpy")
PROBE = f"""
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(ROOT)!r})
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code, file=sys.stderr)
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def probe(script: str, *args: object) -> tuple[str, list[str]]:
    """Standard output, then the exit code and the heavy modules that were loaded, of a command."""
    command = [sys.executable, "-c", PROBE, str(ROOT / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, done.stderr.splitlines()


@pytest.fixture
def command(home, models, tmp_path):
    """The options of a command that would work, by name; the output is tmp_path / "out"."""
    shared = {"--task-file": home / "pairs.toml", "--model": models["t5"]}
    out = tmp_path / "out"
    return {
        "generate.py": shared
        | {"--model": models["llama"], "--output-dir": out, "--feedback-file": home / "test.jsonl"},
        "train_student.py": shared | {"--train-file": home / "train.jsonl", "--output-dir": out},
        "score_ood.py": shared | {"--input-file": home / "validation.jsonl", "--output-file": out / "scored.jsonl"},
        "evaluate.py": shared | {"--test-file": home / "test.jsonl", "--output-dir": out},
    }


def words_of(script: str, options: dict) -> list:
    return [*(["sample"] if script == "generate.py" else []), *(word for pair in options.items() for word in pair)]


STAGES = SCRIPTS[:4]
DATA = {
    "generate.py": "--feedback-file", "train_student.py": "--train-file", "score_ood.py": "--input-file",
    "evaluate.py": "--test-file",
}  # fmt: skip
OUTPUT = {s: "--output-file" if s == "score_ood.py" else "--output-dir" for s in STAGES}

# ---------------------------------------------------------------------------------------------------------------------
# Help, options


@pytest.mark.parametrize("words", [[script] for script in SCRIPTS] + [["generate.py", "sample"]], ids=" ".join)
def test_help_is_quick(words):
    shown, (code, loaded) = probe(*words, "--help")
    assert code == "0" and loaded == "[]" and "Usage" in shown
    if len(words) == 2 or words[0] in SCRIPTS[1:4]:
        assert all(f"--{name}" in shown for name in ("task-file", "limit", "dry-run", "overwrite", "seed"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_option(script):
    done = run(script, *(["sample"] if script == "generate.py" else []), "--learning-rat", "3")
    assert done.returncode == 2 and "learning-rat" in done.stderr and "Traceback" not in done.stderr


BAD_OPTIONS = [  # script, options added, what is told
    ("generate.py", {"--num-examples": 0}, "--num-examples"),
    ("generate.py", {"--feedback-rate": 1.5}, "--feedback-rate"),
    ("generate.py", {"--feedback-label": "warm"}, "--feedback-label"),
    ("generate.py", {"--temperature-end": 2.5}, "--temperature-end"),
    ("generate.py", {"--chat-template-kwargs": "{"}, "--chat-template-kwargs"),
    ("generate.py", {"--chat-template-kwargs": "[1]"}, "--chat-template-kwargs"),
    ("generate.py", {"--dtype": "float99"}, "--dtype"),
    ("train_student.py", {"--loss": "mse"}, "--loss"),
    ("train_student.py", {"--dtype": "float99"}, "--dtype"),
    ("train_student.py", {"--learning-rate": "fast"}, "--learning-rate"),
    ("score_ood.py", {"--low": 0.8, "--high": 0.5}, "--low"),
    ("score_ood.py", {"--low": 0.5, "--high": 0.5}, "--low"),
    ("score_ood.py", {"--score": "luck"}, "--score"),
    ("score_ood.py", {"--dtype": "float16"}, "--dtype"),
    ("evaluate.py", {"--prediction-field": "label"}, "--model"),
    ("evaluate.py", {"--num-resamples": 5}, "--num-resamples"),
    ("evaluate.py", {"--dtype": "float99"}, "--dtype"),
]


@pytest.mark.parametrize("script, added, told", BAD_OPTIONS)
def test_bad_option(script, added, told, command, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "start_engine", lambda *args, **options: pytest.fail("an engine was started"))
    done = call(script, *words_of(script, command[script] | added))
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", STAGES)
def test_required_option(script):
    done = call(script, *(["sample"] if script == "generate.py" else []))
    assert done.returncode == 2 and "Missing option" in done.stderr


def test_neither_model_nor_predictions(command):
    options = command["evaluate.py"]
    del options["--model"]
    assert call("evaluate.py", *words_of("evaluate.py", options)).returncode == 2


# ---------------------------------------------------------------------------------------------------------------------
# Dry runs

TOLD = {
    "train_student.py": "would train {model} on 55 examples (5 held out), 9 steps",  # ceil(55 / 20) = 3 steps, 3 epochs
    "score_ood.py": "would score 24 examples of {data} with {model}\nwould select 6 by energy in [0.5, 0.8)",
    "evaluate.py": "would measure {model} on 22 records of {data}",
}


@pytest.mark.parametrize("script", TOLD)
def test_dry_run(script, command, tmp_path, home):
    options = command[script]
    if script == "score_ood.py":
        options |= {"--feedback-file": tmp_path / "out" / "feedback.jsonl"}
    if script == "train_student.py":
        options |= {"--per-device-train-batch-size": 20, "--num-train-epochs": 3}
    shown, (*rest, loaded) = probe(script, *words_of(script, options), "--dry-run")
    assert TOLD[script].format(model=options["--model"], data=options[DATA[script]]) in shown
    assert rest in ([], ["0"], ["None"]) and not {"torch", "transformers", "vllm"} & set(
        json.loads(loaded.replace("'", '"'))
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["train_student.py", "score_ood.py", "evaluate.py"])
def test_limit(script, command):
    done = call(script, *words_of(script, command[script]), "--limit", 12, "--dry-run")
    assert done.returncode == 0 and ("12 " in done.stdout or "11 examples (1 held out)" in done.stdout), done.stdout


def test_dry_run_of_generate_shows_the_prompts(command, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "start_engine", lambda *args, **options: pytest.fail("an engine was started"))
    done = call(
        "generate.py", *words_of("generate.py", command["generate.py"]), "--dry_run", "--num_examples", 7,
        "--num-validation", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    prompts = done.stdout.split("--- ")[1:]
    assert len(prompts) == 4 and "would write 7 examples of the train split" in done.stdout  # two of either kind
    assert "validation" not in done.stdout
    assert [p.split(": ")[0][:12] for p in prompts] == ["pairs-00-tra"] * 4
    shots = [p.splitlines()[0].split("shots ")[1].split(", ") for p in prompts]
    assert sorted(len(s) for s in shots) == [3, 3, 5, 5] and all(i.startswith("seed:") for s in shots for i in s[:3])
    assert list(tmp_path.iterdir()) == []


UNDERSCORES = {
    "train_student.py": "learning_rate",
    "score_ood.py": "energy_temperature",
    "evaluate.py": "num_resamples",
}


@pytest.mark.parametrize("script, written", UNDERSCORES.items())
def test_options_with_underscores(script, written, command):
    done = call(script, *words_of(script, command[script]), f"--{written}", "200", "--dry_run")
    assert done.returncode == 0 and "would" in done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Bad input

RECORD = json.dumps(pair(0)) + "\n"
CONTENTS = {  # name: (content of the data file, what is told)
    "empty.jsonl": (b"", ": no records in it"),
    "torn.jsonl": (RECORD.encode() + RECORD.encode()[:25], ":2: "),
    "label.jsonl": (RECORD.replace("Warm", "Hot").encode(), ":1: no such label: 'Hot'"),
    "field.jsonl": (RECORD.replace('"second"', '"third"').encode(), ":1: no field 'second'"),
    "latin.jsonl": (RECORD.replace("the", "thé").encode("latin-1"), ":1: "),
    "nan.jsonl": (RECORD.replace("}", ', "x": NaN}').encode(), ":1: "),
    "source.jsonl": (RECORD.replace("}", ', "source": "x", "sampling_seed": 1}').encode(), ":1: 'source' is not what"),
    "twice.jsonl": ((RECORD.replace("}", ', "id": "a"}') * 2).encode(), ":2: the id 'a' is already in"),
}


def one_line(done, *told: str) -> None:
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and done.stdout == "", done.stderr
    assert all(text in done.stderr for text in told), done.stderr


BAD_DATA = [(script, name) for script in STAGES for name in [*CONTENTS, "none.jsonl", "."]]
BAD_DATA.remove(("generate.py", "empty.jsonl"))  # no feedback is no error


@pytest.mark.parametrize("script, name", BAD_DATA)
def test_bad_data_file(script, name, command, tmp_path):
    content, told = CONTENTS.get(name, (None, ": cannot be read"))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = call(script, *words_of(script, command[script] | {DATA[script]: tmp_path / name}))
    one_line(done, f"error: {tmp_path / name}{told}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, told",
    [
        (None, ": no such task file"),
        ("name = ", ": not a readable TOML file"),
        (PAIRS.replace('metric = "accuracy"', 'metrik = "accuracy"'), ": metrik: unknown key"),
        (PAIRS.replace("Second: $second", "Second: $secund"), ": prompt.example: unknown variable $secund"),
    ],
)
@pytest.mark.parametrize("script", STAGES)
def test_bad_task_file(script, text, told, command, tmp_path):
    path = tmp_path / "task.toml"
    if text is not None:
        path.write_text(text)
    one_line(call(script, *words_of(script, command[script] | {"--task-file": path})), f"error: {path}{told}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["./none", "/no/such/folder", "{home}/none"])
@pytest.mark.parametrize("script", STAGES)
def test_model_that_is_not_there(script, model, command, home, tmp_path):
    model = model.format(home=home)
    one_line(
        call(script, *words_of(script, command[script] | {"--model": model})), f"model {model}: no such file or folder"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", STAGES)
def test_output_that_cannot_be_written(script, command, home):
    path = home / "train.jsonl" / "below" / "it"
    one_line(call(script, *words_of(script, command[script] | {OUTPUT[script]: path})), "cannot be written")


OWN = {
    "generate.py": "train.jsonl",
    "train_student.py": "",
    "score_ood.py": "scored.jsonl",
    "evaluate.py": "predictions.jsonl",
}


@pytest.mark.parametrize("script", STAGES)
def test_output_of_the_user(script, command, tmp_path):
    path = tmp_path / "out" / OWN[script]
    path.parent.mkdir(exist_ok=True)
    if script == "train_student.py":
        path.mkdir()
        path /= "notes.txt"
    path.write_text("mine")
    done = call(script, *words_of(script, command[script]))
    one_line(done, "without a run record, so it is yours", "--overwrite")
    assert path.read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_output_of_the_user_in_the_second_split(command, tmp_path):
    """generate.py writes two files: where one of them is the user's, the command is refused before it begins the other."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "validation.jsonl").write_text("mine")
    one_line(
        call("generate.py", *words_of("generate.py", command["generate.py"])), "validation.jsonl: is there without"
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["validation.jsonl"]


def test_seed_examples_are_read_strictly(command, tmp_path):
    (tmp_path / "task.toml").write_text(PAIRS)
    options = command["generate.py"] | {"--task-file": tmp_path / "task.toml"}
    one_line(
        call("generate.py", *words_of("generate.py", options)), f"error: {tmp_path / 'seed.jsonl'}: cannot be read"
    )
    write_lines(tmp_path / "seed.jsonl", [pair(0), {"first": "a"}])
    one_line(
        call("generate.py", *words_of("generate.py", options)), f"error: {tmp_path / 'seed.jsonl'}:2: no field 'second'"
    )


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_teacher_must_be_a_causal_model(name, command, models):
    options = command["generate.py"] | {"--model": models[name], "--dry-run": ""}
    words = [w for w in words_of("generate.py", options) if w != ""]
    one_line(
        call("generate.py", *words),
        f"error: --model {models[name]}: is a {name}",
        "a teacher is a causal language model",
    )


def test_bad_input_in_a_process_of_its_own(command, home, tmp_path):
    """What `call` shows in this process is what the shell sees: one line, exit code 1, no traceback."""
    (tmp_path / "label.jsonl").write_bytes(CONTENTS["label.jsonl"][0])
    for script in STAGES:
        done = run(script, *words_of(script, command[script] | {DATA[script]: tmp_path / "label.jsonl"}))
        one_line(done, f"error: {tmp_path / 'label.jsonl'}:1: no such label: 'Hot'")
    one_line(run("report.py", tmp_path), f"error: {tmp_path}: no iter-00 in it")


def test_stages_by_hand_one_after_another(home, models, tmp_path, command):
    """train, score, evaluate and report in processes of their own, as README has them, data on stdout and talk on stderr."""
    iteration = tmp_path / "run" / "iter-00"
    task = ("--task-file", home / "pairs.toml")
    steps = (
        ("train_student.py", *task, "--model", models["t5"], "--train-file", home / "train.jsonl", "--output-dir",
         iteration / "student", "--num-train-epochs", 2),
        ("score_ood.py", *task, "--model", iteration / "student", "--input-file", home / "validation.jsonl", "--output-file",
         iteration / "scored.jsonl", "--feedback-file", iteration / "feedback.jsonl"),
        ("evaluate.py", *task, "--model", iteration / "student", "--test-file", home / "test.jsonl", "--output-dir", iteration),
        ("report.py", tmp_path / "run"),
    )  # fmt: skip
    shown = []
    for step in steps:
        done = run(*step)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        shown.append(done.stdout)
    assert [bool(text) for text in shown] == [False, False, True, True]
    assert {p.name for p in iteration.iterdir()} == {
        "student", "student.run.json", "scored.jsonl", "feedback.jsonl", "scored.jsonl.run.json", "predictions.jsonl",
        "metrics.json", "predictions.jsonl.run.json",
    }  # fmt: skip
    row = read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["accuracy"] == json.loads((iteration / "metrics.json").read_text())["overall"]["accuracy"]["value"]
    record = json.loads((iteration / "scored.jsonl.run.json").read_text())
    assert row["mean_score"] == record["means"]["energy"] and record["command"].startswith(str(ROOT / "score_ood.py"))


def test_what_nobody_foresaw_shows_its_traceback(tmp_path):
    """In a process of its own, as the shell sees it: all of it, and exit code 1."""
    code = "import records\ndef stumbles(): {}['a tensor']\nrecords.run_command(stumbles)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("KeyError: 'a tensor'\n")
