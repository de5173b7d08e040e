"""train_student.py under torchrun, on CPUs (gloo): two processes take the steps of one with the batch of both."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, call, fitted, one_error, read_lines, still

from gold.examples import read_examples
from train_student import is_held_out, soft_examples

# Each step holds all 48 examples, whatever their order, which transformers draws by the batch of a process
HOW = {"num_train_epochs": 3, "lr_scheduler_type": "linear", "warmup_ratio": 0.34, "weight_decay": 0.01}
CASES = {
    "t5": {"loss": "ce"},
    "bert": {"loss": "kl"},
    "llama": {"loss": "kl"},
    "llama with LoRA": {"loss": "ce", "lora_rank": 4},
}

# Each of the two processes: all cases and then the command twice, because it takes longer to start than to train
DRIVER = """
import contextlib, json, os, sys
from pathlib import Path

sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "tests")]
from conftest import fitted
from gold.command import run_command
from gold.task import load_task
from train_student import app

given = json.loads(Path(sys.argv[1]).read_text())
for name, (model, rows, how) in given["cases"].items():
    folder = Path(given["folder"]) / f"{name}.{os.environ['RANK']}"
    _, counts, log = fitted(model, load_task(Path(given["task"])), rows, given["held_out"], folder, **how)
    folder.with_suffix(folder.suffix + ".json").write_text(json.dumps([counts, log]))
for _ in range(2):
    with contextlib.suppress(SystemExit):
        run_command(lambda: app(given["command"]))
"""


def torchrun(*args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def command_of(home, models, folder):
    return ["--task-file", home / "pairs.toml", "--model", models["t5"], "--train-file", home / "train.jsonl",
            "--output-dir", folder / "student", "--num-train-epochs", 2, "--per-device-train-batch-size", 10]  # fmt: skip


def test_two_processes_follow_one(home, models, pairs, tmp_path):
    """The loss of a step is that of one process with the same examples, in four times the batch; so are held-out scores
    and weights. Of a command the first process alone writes and speaks."""
    from safetensors.torch import load_file

    rows = read_examples(home / "train.jsonl", pairs)
    rows = [e | {"label_probs": {"Warm": n / 60, "not warm": 1 - n / 60}} for n, e in enumerate(rows)]
    train = [e for e in rows if not is_held_out(e["id"])][:48]
    held_out = [e for e in rows if is_held_out(e["id"])]
    cases, expected = {}, {}
    for name, options in CASES.items():
        base = still(models[name.split()[0]], tmp_path / "still" / name)
        part = (
            soft_examples(train, pairs, "encoder" if name == "bert" else "decoder")
            if options["loss"] == "kl"
            else train
        )
        part = part[: len(part) // 4 * 4]
        how = HOW | options | {"per_device_train_batch_size": len(part)}
        expected[name] = fitted(base, pairs, part, held_out, tmp_path / f"{name}.one", **how)[1:]
        how |= {"per_device_train_batch_size": len(part) // 4, "gradient_accumulation_steps": 2, "processes": 2}
        cases[name] = (str(base), part, how)
    (tmp_path / "driver.py").write_text(DRIVER)
    given = {"task": str(pairs.path), "held_out": held_out, "folder": str(tmp_path), "cases": cases}
    command = command_of(home, models, tmp_path / "out")
    (tmp_path / "given.json").write_text(json.dumps(given | {"command": list(map(str, command))}))
    done = torchrun(tmp_path / "driver.py", tmp_path / "given.json")
    assert done.returncode == 0, done.stderr
    for name, (counts, log) in expected.items():
        assert counts["steps"] == 3
        for rank in (0, 1):
            other_counts, other_log = json.loads((tmp_path / f"{name}.{rank}.json").read_text())
            assert other_counts == counts
            for key, number in (("loss", 1), ("grad_norm", 1), ("eval_loss", 3), ("eval_accuracy", 3)):
                here, there = ([r[key] for r in rows if key in r] for rows in (log, other_log))
                assert len(here) == number and there == pytest.approx(here, rel=1e-4), (name, key)
        one, two = (load_file(tmp_path / f"{name}.{which}" / "model.safetensors") for which in ("one", 0))
        # AdamW divides by the root of the squared gradient: where that is next to nothing, rounding turns a step round
        assert min((abs(one[k] - two[k]) < 1e-3).float().mean().item() for k in one) > 0.95, name
    folder = tmp_path / "out" / "student"
    assert done.stderr.count("55 examples, 6 steps") == done.stderr.count(f"up to date: {folder}\n") == 1, done.stderr
    assert done.stdout == "" and {p.name for p in folder.parent.iterdir()} == {"student", "student.run.json"}
    assert json.loads((folder.parent / "student.run.json").read_text())["options"]["processes"] == 2
    assert len(read_lines(folder / "held_out.jsonl")) == 5
    # Alone, with half the examples a step: another training
    one_error(call("train_student.py", *command).stderr, "was made with --processes 2, now 1")


def test_an_error_in_the_middle_is_told_once(home, models, tmp_path):
    """And no process is left over."""
    done = torchrun("train_student.py", *command_of(home, models, tmp_path), "--learning-rate", 1e30)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(told) == 1 and "lower --learning-rate" in told[0], done.stderr
    assert not (tmp_path / "student").exists()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == ""
