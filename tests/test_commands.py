"""Every command as its user meets it: help at once, dry runs that write nothing, one line for every bad input; and the
commands that the documents show."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import typer
from conftest import PAIRS, ROOT, call, pair, read_lines, run, write_lines

import gold.engine

STAGES = ("generate.py", "label.py", "train_student.py", "score_ood.py", "evaluate.py")
SCRIPTS = (*STAGES, "report.py")
PROBE = f"""
import contextlib, io, json, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
for sys.argv in json.loads(sys.argv[1]):
    code = None
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    print(json.dumps([shown.getvalue(), code, [*sys.modules]]))
"""


def probe(*commands: list) -> list[tuple[str, object, set[str]]]:
    """Standard output, exit code and the modules loaded so far, of commands in one new process."""
    argv = json.dumps([[str(ROOT / script), *map(str, args)] for script, *args in commands])
    done = subprocess.run([sys.executable, "-c", PROBE, argv], capture_output=True, text=True, check=True, timeout=60)
    return [(shown, code, set(loaded)) for shown, code, loaded in map(json.loads, done.stdout.splitlines())]


@pytest.fixture
def command(home, models, tmp_path):
    """The options of a command that would work, by name; the output is tmp_path / "out"."""
    shared, out = {"--task-file": home / "pairs.toml", "--model": models["t5"]}, tmp_path / "out"
    teacher, asked = shared | {"--model": models["llama"]}, home / "asked.toml"  # label.py needs a prompt of its own
    prompts = 'label = "$shots\\n\\n$start"\nlabel_example = "$first, $second: $label"\n[parse]'
    asked.write_text(PAIRS.replace("[parse]", prompts))
    return {
        "generate.py": teacher | {"--output-dir": out, "--feedback-file": home / "test.jsonl"},
        "label.py": teacher
        | {"--task-file": asked, "--input-file": home / "test.jsonl", "--output-file": out / "labelled.jsonl"},
        "train_student.py": shared | {"--train-file": home / "train.jsonl", "--output-dir": out},
        "score_ood.py": shared | {"--input-file": home / "validation.jsonl", "--output-file": out / "scored.jsonl"},
        "evaluate.py": shared | {"--test-file": home / "test.jsonl", "--output-dir": out},
    }


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(gold.engine, "start_llm", lambda *args, **options: pytest.fail("an engine was started"))


def words_of(options: dict) -> list:
    return [word for pair in options.items() for word in pair]


DATA = {
    "generate.py": "--feedback-file", "label.py": "--input-file", "train_student.py": "--train-file",
    "score_ood.py": "--input-file", "evaluate.py": "--test-file",
}  # fmt: skip
OUTPUT = {s: "--output-file" if s in ("score_ood.py", "label.py") else "--output-dir" for s in STAGES}

# ---------------------------------------------------------------------------------------------------------------------
# Help, options


def test_help_is_quick():
    for script, (shown, code, loaded) in zip(SCRIPTS, probe(*([s, "--help"] for s in SCRIPTS)), strict=True):
        assert code == 0 and "Usage" in shown and not {"torch", "transformers", "vllm", "numpy"} & loaded, script
        names = ("task-file", "limit", "dry-run", "overwrite", "seed") if script != "report.py" else ()
        assert all(f"--{name}" in shown for name in names), script


BAD_OPTIONS = [  # script, options added, what is told
    *((script, {"--learning-rat": 3}, "learning-rat") for script in STAGES),
    ("generate.py", {"--num-examples": 0}, "--num-examples"),
    ("generate.py", {"--feedback-rate": 1.5}, "--feedback-rate"),
    ("generate.py", {"--feedback-label": "warm"}, "--feedback-label"),
    ("generate.py", {"--chat-template-kwargs": "{"}, "--chat-template-kwargs"),
    ("generate.py", {"--dtype": "float99"}, "--dtype"),
    *(("generate.py", {"--shard": text}, "such as 0/4") for text in ("4/4", "a/b", "\u0661/\u0664")),
    ("label.py", {"--num-samples": 5}, "--num-samples"),  # it is a task with labels
    ("score_ood.py", {"--output-file": "."}, "--output-file"),
    ("train_student.py", {"--loss": "mse"}, "--loss"),
    ("train_student.py", {"--learning-rate": "fast"}, "--learning-rate"),
    ("score_ood.py", {"--low": 0.5, "--high": 0.5}, "--low"),
    ("score_ood.py", {"--score": "luck"}, "--score"),
    ("score_ood.py", {"--dtype": "float16"}, "--dtype"),
    ("evaluate.py", {"--prediction-field": "label"}, "--model"),
    ("evaluate.py", {"--num-resamples": 5}, "--num-resamples"),
]


@pytest.mark.parametrize("script, added, told", BAD_OPTIONS)
def test_bad_option(script, added, told, command, tmp_path, no_engine):
    done = call(script, *words_of(command[script] | added))
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", STAGES)
def test_required_option(script, command):
    assert call(script, *words_of({k: v for k, v in command[script].items() if k != "--model"})).returncode == 2
    done = call(script)
    assert done.returncode == 2 and "Missing option" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Dry runs

DRY = {  # what is told; what is told with --limit 12; an option written with an underscore
    "train_student.py": ("would train {} on 55 examples (5 held out)", "on 12 examples (0 held out)", "learning_rate"),
    "score_ood.py": ("of {1} with {0}\nwould select 6 by energy in [0.5, 0.8)", "score 12 ", "energy_temperature"),
    "evaluate.py": ("would measure {} on 22 records of {}", "on 12 records", "num_resamples"),
}


def test_dry_run(command, tmp_path):
    command["score_ood.py"]["--feedback-file"] = tmp_path / "out" / "feedback.jsonl"
    done = probe(*([script, *words_of(command[script]), "--dry-run"] for script in DRY))
    for (script, (told, limited, name)), (shown, code, loaded) in zip(DRY.items(), done, strict=True):
        one = {k: v for k, v in command[script].items() if k != "--feedback-file"}  # 12 are too few for feedback
        assert told.format(one["--model"], one[DATA[script]]) in shown
        assert not code and not {"torch", "transformers", "vllm"} & loaded
        done = call(script, *words_of(one), "--limit", 12, "--dry_run", f"--{name}", 200)
        assert done.returncode == 0 and limited in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_teacher_shows_the_prompts(command, tmp_path, no_engine):
    words = words_of(command["generate.py"])
    done = call("generate.py", *words, "--dry_run", "--num_examples", 7, "--num-validation", 0)
    assert done.returncode == 0, done.stderr
    prompts = done.stdout.split("--- ")[1:]
    assert len(prompts) == 4 and "would write 7 examples of the train split" in done.stdout  # two of either kind
    assert "validation" not in done.stdout
    assert [p.split(": ")[0][:12] for p in prompts] == ["pairs-00-tra"] * 4
    shots = [p.splitlines()[0].split("shots ")[1].split(", ") for p in prompts]
    assert sorted(len(s) for s in shots) == [3, 3, 5, 5] and all(i.startswith("seed:") for s in shots for i in s[:3])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Bad input

RECORD = json.dumps(pair(0)) + "\n"
TORN = RECORD + RECORD[:25]
CONTENTS = {  # tests/test_records.py has every fault of a record
    "torn.jsonl": (TORN, ":2: not a JSON object"),
    "twice.jsonl": (RECORD.replace("}", ', "id": "a"}') * 2, ":2: the id 'a' is already in"),
    "none.jsonl": (None, ": cannot be read"),
    ".": (None, ": cannot be read"),
}


def one_line(done, *told: str) -> None:
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and done.stdout == "", done.stderr
    assert all(text in done.stderr for text in told), done.stderr


@pytest.mark.parametrize("script", STAGES)
@pytest.mark.parametrize("name", CONTENTS)
def test_bad_data_file(script, name, command, tmp_path):
    content, told = CONTENTS[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    done = call(script, *words_of(command[script] | {DATA[script]: tmp_path / name}))
    one_line(done, f"error: {tmp_path / name}{told}")
    assert not (tmp_path / "out").exists()


def test_records_that_are_not_meant(command, tmp_path):
    """Of another task, rejected completions, and the answer as its own prediction."""
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "a", "task": "sst2", "sampling_seed": 1}) + "\n")
    told = "no field 'first'; found text, task, sampling_seed, a record of the task 'sst2'; give another file"
    one_line(
        call("train_student.py", *words_of(command["train_student.py"] | {"--train-file": tmp_path / "other.jsonl"})),
        told,
    )
    rejected = pair(0) | {"id": "r", "sampling_seed": 1, "reason": "duplicate"}
    (tmp_path / "train.rejected.jsonl").write_text(json.dumps(rejected) + "\n")
    files = {"--train-file": tmp_path / "train.rejected.jsonl"}
    one_line(
        call("train_student.py", *words_of(command["train_student.py"] | files)),
        "r is a rejected completion (duplicate)",
    )
    words = {k: v for k, v in command["evaluate.py"].items() if k != "--model"} | {"--prediction-field": "label"}
    done = call("evaluate.py", *words_of(words))
    assert done.returncode == 2 and "is the answer that predictions" in done.stderr


def test_a_body_without_a_head_is_no_teacher(command, models, tmp_path, no_engine):
    folder = shutil.copytree(models["bert"], tmp_path / "body")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    for script in ("generate.py", "label.py"):
        done = call(script, *words_of(command[script] | {"--model": folder}))
        one_line(done, "is a bert (BertModel); a teacher is a causal language model")


@pytest.mark.parametrize("script", STAGES)
def test_paths_that_are_not_there(script, command, home, tmp_path):
    below = home / "train.jsonl" / "below" / "it"
    for option, path, told in (
        ("--task-file", home / "none", f"error: {home / 'none'}: no such task file"),
        ("--model", "./none", "--model ./none: no such file or folder"),
        (OUTPUT[script], below, "cannot be written"),
    ):
        one_line(call(script, *words_of(command[script] | {option: path})), told)
        if option != OUTPUT[script]:
            one_line(call(script, *words_of(command[script] | {option: path}), "--dry-run"), told)
    assert list(tmp_path.iterdir()) == []


OWN = {
    "generate.py": ["train.jsonl", "validation.jsonl"],  # where the second is the user's, the first is not begun
    "label.py": ["labelled.jsonl"], "train_student.py": ["notes.txt"], "score_ood.py": ["scored.jsonl"],
    "evaluate.py": ["predictions.jsonl", "metrics.json"],
}  # fmt: skip


@pytest.mark.parametrize("script, name", [(script, name) for script, names in OWN.items() for name in names])
def test_output_of_the_user(script, name, command, tmp_path, no_engine):
    path = tmp_path / "out" / name
    path.parent.mkdir()
    path.write_text("mine")
    done = call(script, *words_of(command[script]))
    if script == "train_student.py":  # --overwrite would delete all that is in the folder
        one_line(done, f"{path.parent}: is a folder that train_student.py has not made")
        done = call(script, *words_of(command[script]), "--overwrite")
        assert done.returncode == 1 and "give another name" in done.stderr
    else:
        one_line(done, "has no run record, so it is yours", "--overwrite")
    assert path.read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_seed_examples_are_read_strictly(command, tmp_path):
    (tmp_path / "task.toml").write_text(PAIRS)
    words, seed = words_of(command["generate.py"] | {"--task-file": tmp_path / "task.toml"}), tmp_path / "seed.jsonl"
    one_line(call("generate.py", *words), f"error: {seed}: cannot be read")
    write_lines(seed, [pair(0), {"first": "a"}])
    one_line(call("generate.py", *words), f"error: {seed}:2: no field 'second'")


@pytest.mark.parametrize("script, name", [("generate.py", "t5"), ("label.py", "bert")])
def test_a_teacher_must_be_a_causal_model(script, name, command, models):
    done = call(script, *words_of(command[script] | {"--model": models[name]}), "--dry-run")
    one_line(done, f"error: --model {models[name]}: is a {name}", "a teacher is a causal language model")


def test_bad_input_in_a_process_of_its_own(command, tmp_path):
    """What `call` shows in this process is what the shell sees: one line, exit code 1, no traceback."""
    path = tmp_path / "torn.jsonl"
    path.write_text(TORN)
    done = run("score_ood.py", *words_of(command["score_ood.py"] | {"--input-file": path}))
    one_line(done, f"error: {path}:2: not a JSON object")
    one_line(run("report.py", tmp_path), f"error: {tmp_path}: no iter-00 in it")


def test_what_nobody_foresaw_shows_its_traceback():
    """All of it, and exit code 1."""
    code = "from gold.command import run_command\ndef stumbles(): {}['a tensor']\nrun_command(stumbles)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("KeyError: 'a tensor'\n")


def test_stages_one_after_another(home, models, tmp_path):
    """As README has them: data on stdout, talk on stderr."""
    iteration = tmp_path / "run" / "iter-00"
    task, student = ("--task-file", home / "pairs.toml"), ("--model", iteration / "student")
    steps = (
        ("train_student.py", *task, "--model", models["t5"], "--train-file", home / "train.jsonl", "--output-dir",
         iteration / "student", "--num-train-epochs", 1),
        ("score_ood.py", *task, *student, "--input-file", home / "validation.jsonl", "--output-file",
         iteration / "scored.jsonl", "--feedback-file", iteration / "feedback.jsonl"),
        ("evaluate.py", *task, *student, "--test-file", home / "test.jsonl", "--output-dir", iteration),
        ("report.py", tmp_path / "run"),
    )  # fmt: skip
    for step, shows in zip(steps, (False, False, True, True), strict=True):
        done = call(*step)
        assert done.returncode == 0 and bool(done.stdout) is shows, done.stderr
    row = read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["accuracy"] == json.loads((iteration / "metrics.json").read_text())["overall"]["accuracy"]["value"]
    record = json.loads((iteration / "scored.jsonl.run.json").read_text())
    assert row["mean_score"] == record["means"]["energy"] and record["command"].startswith(str(ROOT / "score_ood.py"))


# ---------------------------------------------------------------------------------------------------------------------
# The commands of the documents

DOCUMENTS = ["README.md", "setup.sh", "loop.sh", *SCRIPTS]
DOCUMENTS += [str(p.relative_to(ROOT)) for d in ("docs/*.md", "slurm/*.sbatch", "tests/run.sh") for p in ROOT.glob(d)]
COMMAND = re.compile(r"(?:python|torchrun|srun)\b.*?\s(?:([a-z_]+\.py)|-m ((?:bench|data)\.[a-z_.]+))(?=\s|$)(.*)")
PLACES = re.compile(r"(?<![\w./-])(?:prompts|data|bench|strategies|slurm|docs|tests|gold|findings)/[\w./-]*\w\.\w+")
MADE = re.compile(r"/models/|/real/|mine|results/")  # is made by a command, or is the reader's own


def shown_commands(document: str) -> list[str]:
    """Lines of code in a document: of fences and backticks, a docstring, or the comment on top of a shell script."""
    text = (ROOT / document).read_text()
    if document.endswith(".py"):
        text = ast.get_docstring(ast.parse(text))
    elif document.endswith(".md"):
        fences = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S)
        ticks = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))
        text = "\n".join([*fences, *ticks])
    else:
        text = "\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return re.sub(r"\\\n\s*(#\s*)?", " ", text).splitlines()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_that_a_document_shows_can_be_run(document):
    """Stages, modules, options and files are there; a whole command (one without `...`) is parsed."""
    for line in shown_commands(document):
        explained = r"\s#\s" if document.endswith(("md", "py")) else r" {3,}"
        line = re.split(explained, line.strip())[0]
        for path in PLACES.findall(line):
            assert MADE.search(path) or (ROOT / path).exists(), f"{line}: no {path}"
        for name in re.findall(r"\b([A-Z_]+)=\S*(?= .*\bbash loop\.sh)", line):
            known = (ROOT / "loop.sh", ROOT / "gold/jobs.sh", ROOT / "setup.sh", *ROOT.glob("strategies/*.sh"))
            assert any(re.search(rf"\b{name}\b", path.read_text()) for path in known), f"{line}: no variable {name}"
        for name in re.findall(r"STRATEGY=([\w-]+)", line):
            assert (ROOT / f"strategies/{name}.sh").exists(), line
        if not (found := COMMAND.search(line)):
            continue
        script, module, rest = found.groups()
        assert not script or (ROOT / script).exists(), line
        part = importlib.import_module(module or script.removesuffix(".py"))
        app = getattr(part, "app", None) or typer.Typer()
        if not hasattr(part, "app"):
            app.command()(part.main)
        stage = typer.main.get_command(app)
        commands = [stage, *getattr(stage, "commands", {}).values()]
        known = {option for one in commands for parameter in one.params for option in parameter.opts} | {"--help"}
        wrong = set(re.findall(r"(?<=\s)--[a-z-]+", rest)) - known
        assert not wrong, f"{line}: {wrong}"
        if script and "..." not in line and "--help" not in line and not re.search(r"[<>|&;]", rest):
            stage.make_context(script, shlex.split(rest))
