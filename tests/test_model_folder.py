"""What is given as --model and is no model: named as what it is, with what to do instead; teachers and students alike."""

import json
import shutil

import pytest
from conftest import call, one_error

from gold.model_folder import explain_model_folder
from gold.teacher import load_encoder


def gguf_file(folder, name="model.gguf"):
    folder.mkdir()
    (folder / name).write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(16))
    return folder / name


def adapter(folder, base="google-t5/t5-small"):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4} | ({"base_model_name_or_path": base} if base else {})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(bytes(8))
    return folder


def test_what_each_kind_is_told(models, tmp_path):
    for name in ("model.gguf", "q4"):  # the name may end otherwise
        told = explain_model_folder(str(gguf_file(tmp_path / f"of {name}", name)))
        assert "GGUF format" in told and "gguf_file=" in told
    gguf_file(tmp_path / "folder")
    assert "GGUF format" in explain_model_folder(str(tmp_path / "folder"))
    told = explain_model_folder(str(adapter(tmp_path / "a")))
    assert "a LoRA adapter of google-t5/t5-small" in told and "merge_and_unload" in told
    assert "a LoRA adapter, not" in explain_model_folder(str(adapter(tmp_path / "b", None)))
    shutil.copytree(models["t5"], tmp_path / "run" / "checkpoint-10")
    assert f"{tmp_path / 'run' / 'checkpoint-10'} has one" in explain_model_folder(str(tmp_path / "run"))
    assert "is a file" in explain_model_folder(str(tmp_path / "run" / "checkpoint-10" / "model.safetensors"))
    (tmp_path / "empty").mkdir()
    assert "no such file or folder" in explain_model_folder(str(tmp_path / "none"))
    for fine in (models["t5"], tmp_path / "empty", "google-t5/t5-base"):
        assert explain_model_folder(str(fine)) is None


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


@pytest.mark.parametrize(
    "kind, told", [("gguf", "GGUF format"), ("adapter", "LoRA adapter"), ("remote", "code of its own")]
)
@pytest.mark.parametrize("stage", ["generate.py", "train_student.py"])
def test_both_stages_refuse_it_in_one_line(kind, told, stage, home, remote, tmp_path):
    made = {"gguf": lambda: gguf_file(tmp_path / "g"), "adapter": lambda: adapter(tmp_path / "a")}
    model = made.get(kind, lambda: remote)()
    words = ["--task-file", home / "pairs.toml", "--model", model, "--output-dir", tmp_path / "iter-00"]
    more = ["--dry-run"] if stage == "generate.py" else ["--train-file", home / "train.jsonl"]
    done = call(stage, *words, *more)
    assert done.returncode == 1
    one_error(done.stderr, f"error: --model {model}: ", told)
    if kind == "remote":
        assert ("--trust-remote-code" in done.stderr) == (stage == "generate.py")


def test_code_of_a_teacher_is_run_when_it_is_allowed(remote, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    encoder = load_encoder(str(remote), "auto", {}, trust_remote_code=True)
    assert len(encoder.tokenizer) and encoder.context


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "GPTNeoX", "Falcon", "Bloom"])
def test_teachers_of_other_shapes_are_not_refused_by_a_name(kind, models, tmp_path):
    """Their classes are GPT2LMHeadModel, OPTForCausalLM, ...: which of them run is vLLM's to say."""
    import transformers as hf

    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    config = getattr(hf, f"{kind}Config")(architectures=[name])
    shutil.copytree(models["llama"], tmp_path / kind, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    config.save_pretrained(tmp_path / kind)
    load_encoder(str(tmp_path / kind), "auto", {}, trust_remote_code=False)
