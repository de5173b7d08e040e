"""train_student.py under torchrun, on CPUs (gloo): two processes take the steps of one with the batch of both."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT, call, read_lines

from bench.kill import is_locked
from records import read_examples
from train_student import is_held_out, train_on

OPTIONS = {
    "loss": "ce", "learning_rate": 1e-2, "num_train_epochs": 3, "per_device_train_batch_size": 20,
    "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear", "warmup_ratio": 0.3, "weight_decay": 0.01,
    "max_source_length": 64, "max_target_length": 16, "seed": 0, "dtype": "float32", "limit": None,
}  # fmt: skip
ACCUMULATED = {"per_device_train_batch_size": 10, "gradient_accumulation_steps": 2}
CASES = {
    "t5": ("t5", {}), "bert": ("bert", {}), "llama": ("llama", {}), "t5-accumulated": ("t5", ACCUMULATED),
    "bert-kl": ("bert", {"loss": "kl"}), "llama-kl-accumulated": ("llama", ACCUMULATED | {"loss": "kl"}),
}  # fmt: skip

# Each of the two processes: all cases one after the other, because it takes longer to start than to train them
DRIVER = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, os.getcwd())
from task import load_task
from train_student import train_on

given = json.loads(Path(sys.argv[1]).read_text())
for name, how in given["cases"].items():
    folder = Path(given["folder"]) / name
    task, parts = load_task(Path(given["task"])), (given["train"], given["held_out"])
    counts, log = train_on(task, how["model"], *parts, folder, how["options"])
    (Path(given["folder"]) / f"{name}.{os.environ['RANK']}.json").write_text(json.dumps([counts, log]))
"""


def launch(*args):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)]


def run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def trainings(home, models, pairs, tmp_path_factory):
    """Case -> (counts, log) of one process, and of each of two with half the batch; folder of the students."""
    folder = tmp_path_factory.mktemp("trainings")
    for name in ("t5", "bert", "llama"):  # without dropout: it is drawn by batch, and so differs with the batches
        shutil.copytree(models[name], folder / "still" / name)
        path = folder / "still" / name / "config.json"
        off = {"dropout_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        path.write_text(json.dumps(json.loads(path.read_text()) | off))
    rows = read_examples(home / "train.jsonl", pairs)
    rows = [e | {"label_probs": {"Warm": n / 60, "not warm": 1 - n / 60}} for n, e in enumerate(rows)]
    train = [e for e in rows if not is_held_out(e["id"])]
    # 55 and 5: the last batch of an epoch is not whole, and neither is the half of the held-out examples
    held_out = [e for e in rows if is_held_out(e["id"])]
    cases, found = {}, {}
    for name, (model, more) in CASES.items():
        options = OPTIONS | more
        one = train_on(pairs, str(folder / "still" / model), train, held_out, folder / "one" / name, options)
        options = options | {"per_device_train_batch_size": options["per_device_train_batch_size"] // 2}
        cases[name] = {"model": str(folder / "still" / model), "options": options}
        found[name] = [one]
    (folder / "driver.py").write_text(DRIVER)
    given = {
        "task": str(pairs.path),
        "train": train,
        "held_out": held_out,
        "folder": str(folder / "two"),
        "cases": cases,
    }
    (folder / "two").mkdir()
    (folder / "given.json").write_text(json.dumps(given))
    done = run(launch(folder / "driver.py", folder / "given.json"))
    assert done.returncode == 0, done.stderr
    for name in CASES:
        found[name] += [json.loads((folder / "two" / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    return folder, found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_one(name, trainings):
    from safetensors.torch import load_file

    folder, found = trainings
    (counts, log), *others = found[name]
    assert len({r["loss"] for r in log if "loss" in r}) == 3 and counts["held_out_examples"] == 5
    assert others[0][0] == counts  # of the first process, which alone keeps the best epoch
    for _, other_log in others:
        for key in ("step", "epoch", "loss", "grad_norm", "learning_rate"):
            here, there = ([r[key] for r in rows if "loss" in r] for rows in (log, other_log))
            assert there == pytest.approx(here, rel=1e-4), key
        for key in ("eval_loss", "eval_accuracy", "eval_choice"):
            here, there = ([r[key] for r in rows if key in r] for rows in (log, other_log))
            assert len(here) == 3 and there == pytest.approx(here, rel=1e-4), key
    one, two = (load_file(folder / which / name / "model.safetensors") for which in ("one", "two"))
    assert one.keys() == two.keys()
    # AdamW divides by the root of the squared gradient: where that is next to nothing, rounding turns a step round
    close = [(abs(one[k] - two[k]) < 1e-3).float().mean().item() for k in one]
    assert min(close) > 0.95


def test_a_last_batch_that_is_not_whole(trainings):
    """What is compared above has a last batch of 15 in 10 + 5: fillers make no step, and none of the examples is left out."""
    _, found = trainings
    steps = {name: [counts["steps"] for counts, _ in of] for name, of in found.items()}
    assert steps["t5"] == steps["bert"] == steps["t5-accumulated"] == [9, 9, 9]
    assert found["llama-kl-accumulated"][0][0]["soft_targets"] > 55


# ---------------------------------------------------------------------------------------------------------------------
# The command


def errors(done):
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_command_killed_and_run_again(home, models, tmp_path):
    """The first process alone has the lock, writes and speaks; what a kill of torchrun leaves, the same command mends."""
    folder = tmp_path / "student"
    args = ("--task-file", home / "pairs.toml", "--model", models["t5"], "--train-file", home / "train.jsonl",
            "--output-dir", folder, "--per-device-train-batch-size", 10, "--num-train-epochs", 2)  # fmt: skip
    command = launch("train_student.py", *args)
    state = tmp_path / "student.partial.json"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not is_locked(state):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    end = time.monotonic() + 30
    while is_locked(state) and time.monotonic() < end:  # its processes end with it, although it could not tell them
        time.sleep(0.02)
    assert not is_locked(state) and not folder.exists()
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("55 examples, 6 steps") == 1 and done.stdout == ""
    record = json.loads((tmp_path / "student.run.json").read_text())
    assert record["options"]["processes of torchrun"] == 2 and record["options"]["per_device_train_batch_size"] == 10
    assert {p.name for p in tmp_path.iterdir()} == {"student", "student.run.json"}
    assert len(read_lines(folder / "held_out.jsonl")) == 5
    assert [r["step"] for r in read_lines(folder / "training_log.jsonl") if "loss" in r] == [3, 6]
    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = run(command)
    assert again.returncode == 0 and again.stderr.count(f"up to date: {folder}\n") == 1, again.stderr
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    # Alone, with the batch of both: another training, as far as the record goes
    alone = call("train_student.py", *args)
    assert alone.returncode == 1 and "was made with processes of torchrun 2, now None" in errors(alone)[0]


def test_errors_are_told_once(home, models, tmp_path):
    broken = tmp_path / "train.jsonl"
    broken.write_text('{"first": "a"\n')
    done = run(
        launch(
            "train_student.py", "--task-file", home / "pairs.toml", "--model", models["t5"], "--train-file", broken,
            "--output-dir", tmp_path / "student",
        )
    )  # fmt: skip
    assert done.returncode == 1 and len(errors(done)) == 1 and f"{broken}:1: not a JSON object" in errors(done)[0]
    assert not (tmp_path / "student").exists()


def test_an_environment_that_is_half_of_torchrun_is_refused():
    done = subprocess.run(
        [sys.executable, "train_student.py", "--help"], cwd=ROOT, env=os.environ | {"WORLD_SIZE": "2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: WORLD_SIZE 2 in the environment without RANK, LOCAL_RANK, MASTER_ADDR")
