"""train_student.py under torchrun, on CPUs (gloo): two processes take the steps of one with the batch of both."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, call, fitted, read_lines, still

from gold.examples import read_examples
from train_student import is_held_out, soft_examples

# Each step holds all 48 examples, whatever their order, which transformers draws by the batch of a process
HOW = {"num_train_epochs": 3, "lr_scheduler_type": "linear", "warmup_ratio": 0.34, "weight_decay": 0.01}
CASES = {
    name: (name.split("-")[0], name.split("-")[1]) for name in ("t5-ce", "bert-ce", "llama-ce", "bert-kl", "llama-kl")
}

# Each of the two processes: all cases one after the other, because it takes longer to start than to train them
DRIVER = """
import json, os, sys
from pathlib import Path

sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "tests")]
from conftest import fitted
from gold.task import load_task

given = json.loads(Path(sys.argv[1]).read_text())
for name, (model, rows, how) in given["cases"].items():
    folder = Path(given["folder"]) / f"{name}.{os.environ['RANK']}"
    _, counts, log = fitted(model, load_task(Path(given["task"])), rows, given["held_out"], folder, **how)
    folder.with_suffix(folder.suffix + ".json").write_text(json.dumps([counts, log]))
"""


def torchrun(*args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def trainings(home, models, pairs, tmp_path_factory):
    """Case -> (counts, log) of one process, and of each of two with a quarter of the batch twice; folder of the students."""
    folder = tmp_path_factory.mktemp("trainings")
    rows = read_examples(home / "train.jsonl", pairs)
    rows = [e | {"label_probs": {"Warm": n / 60, "not warm": 1 - n / 60}} for n, e in enumerate(rows)]
    train = [e for e in rows if not is_held_out(e["id"])][:48]
    held_out = [e for e in rows if is_held_out(e["id"])]
    bases = {name: still(models[name], folder / "still" / name) for name in ("t5", "bert", "llama")}
    cases, found = {}, {}
    for name, (base, loss) in CASES.items():
        part = soft_examples(train, pairs, "encoder" if base == "bert" else "decoder") if loss == "kl" else train
        part = part[: len(part) // 4 * 4]
        how = HOW | {"loss": loss, "per_device_train_batch_size": len(part)}
        found[name] = [fitted(bases[base], pairs, part, held_out, folder / f"{name}.one", **how)[1:]]
        how |= {"per_device_train_batch_size": len(part) // 4, "gradient_accumulation_steps": 2, "processes": 2}
        cases[name] = (str(bases[base]), part, how)
    (folder / "driver.py").write_text(DRIVER)
    given = {"task": str(pairs.path), "held_out": held_out, "folder": str(folder), "cases": cases}
    (folder / "given.json").write_text(json.dumps(given))
    done = torchrun(folder / "driver.py", folder / "given.json")
    assert done.returncode == 0, done.stderr
    for name in CASES:
        found[name] += [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    return folder, found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_follow_one(name, trainings):
    """The loss of a step is that of one process with the same examples; so are the held-out scores and the weights."""
    from safetensors.torch import load_file

    folder, found = trainings
    (counts, log), *others = found[name]
    assert counts["steps"] == 3
    for other_counts, other_log in others:
        assert other_counts == counts
        for key, number in (("loss", 1), ("grad_norm", 1), ("eval_loss", 3), ("eval_accuracy", 3)):
            here, there = ([r[key] for r in rows if key in r] for rows in (log, other_log))
            assert len(here) == number and there == pytest.approx(here, rel=1e-4), key
    one, two = (load_file(folder / f"{name}.{which}" / "model.safetensors") for which in ("one", 0))
    # AdamW divides by the root of the squared gradient: where that is next to nothing, rounding turns a step round
    assert min((abs(one[k] - two[k]) < 1e-3).float().mean().item() for k in one) > 0.95


def errors(done):
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_command(home, models, tmp_path):
    """The first process alone writes and speaks."""
    folder = tmp_path / "student"
    args = ("--task-file", home / "pairs.toml", "--model", models["t5"], "--train-file", home / "train.jsonl",
            "--output-dir", folder, "--per-device-train-batch-size", 10, "--num-train-epochs", 2)  # fmt: skip
    done = torchrun("train_student.py", *args)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("55 examples, 6 steps") == 1 and done.stdout == ""
    record = json.loads((tmp_path / "student.run.json").read_text())
    assert record["options"]["processes"] == 2 and record["options"]["per_device_train_batch_size"] == 10
    assert {p.name for p in tmp_path.iterdir()} == {"student", "student.run.json"}
    assert len(read_lines(folder / "held_out.jsonl")) == 5
    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = torchrun("train_student.py", *args)
    assert again.returncode == 0 and again.stderr.count(f"up to date: {folder}\n") == 1, again.stderr
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    # Alone, with half the examples a step: another training
    alone = call("train_student.py", *args)
    assert alone.returncode == 1 and "was made with --processes 2, now 1" in errors(alone)[0]


@pytest.mark.parametrize("content, option, told", [
    ('{"first": "a"\n', (), "train.jsonl:1: not a JSON object"),  # an error of both
    (None, ("--learning-rate", "1e30"), "lower --learning-rate"),  # in the middle of the training
])  # fmt: skip
def test_errors_are_told_once(content, option, told, home, models, tmp_path):
    """And no process is left over."""
    data = tmp_path / "train.jsonl"
    data.write_text(content or (home / "train.jsonl").read_text())
    args = ("--task-file", home / "pairs.toml", "--model", models["t5"], "--train-file", data, "--output-dir",
            tmp_path / "student", "--num-train-epochs", 2, *option)  # fmt: skip
    done = torchrun("train_student.py", *args)
    assert done.returncode == 1 and len(errors(done)) == 1 and told in errors(done)[0], done.stderr
    assert not (tmp_path / "student").exists()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""
