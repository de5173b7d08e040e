"""What is given as --model and is no model: named as what it is, with what to do instead; teachers and students alike."""

import json
import shutil

import pytest
from conftest import call, one_error, refusal

from gold.model_folder import check_model_folder
from gold.teacher import load_encoder


def adapter(folder, **base):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, **base}, indent=2))
    return folder


def test_what_each_kind_is_told(models, tmp_path):
    checkpoint = shutil.copytree(models["t5"], tmp_path / "run" / "checkpoint-10")
    told = {
        adapter(tmp_path / "c"): "is a LoRA adapter, not",
        tmp_path / "run": "has no config.json",
        checkpoint / "model.safetensors": "is a file",
        tmp_path / "none": "no such file or folder",
    }
    for path, part in told.items():
        assert f"--model {path}: {part}" in refusal(check_model_folder, str(path))
    for fine in (models["t5"], "google-t5/t5-base"):
        check_model_folder(str(fine))


@pytest.fixture
def remote(models, tmp_path):
    """A Llama whose config comes with code of its own."""
    folder = shutil.copytree(models["llama"], tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    code = "from transformers import LlamaConfig\n\n\nclass OddConfig(LlamaConfig):\n    model_type = 'odd'\n"
    (folder / "configuration_odd.py").write_text(code)
    return folder


@pytest.mark.parametrize("stage", ["generate.py", "train_student.py"])
def test_both_stages_refuse_it_in_one_line(stage, home, remote, tmp_path):
    more = ["--dry-run"] if stage == "generate.py" else ["--train-file", home / "train.jsonl"]
    for model, told in ((adapter(tmp_path / "a"), "LoRA adapter"), (remote, "code of its own")):
        words = ["--task-file", home / "pairs.toml", "--model", model, "--output-dir", tmp_path / "iter-00"]
        done = call(stage, *words, *more)
        one_error(done.stderr, f"error: --model {model}: ", told)
    assert ("--trust-remote-code" in done.stderr) == (stage == "generate.py")


def test_code_of_a_teacher_is_run_when_it_is_allowed(remote, pairs, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    encoder = load_encoder(str(remote), pairs, "auto", {}, trust_remote_code=True)
    assert len(encoder.tokenizer) and encoder.context
