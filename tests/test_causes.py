"""One line with the cause of a library's error, as the installed libraries raise it; test_engine.py has vLLM's."""

import json
import shutil

import pytest
from conftest import one_error, train


def refused(home, model, tmp_path, *told):
    done = train(home, model, tmp_path / "student")
    assert done.returncode == 1
    one_error(done.stderr, f"error: --model {model}: ", *told)
    assert "above report" not in done.stderr


@pytest.mark.parametrize("name", ["t5", "bert", "qwen2"])
def test_weights_that_do_not_fit_the_config_are_named(name, home, models, tmp_path):
    """transformers says "For details look at the above report!", which nobody has seen."""
    broken = shutil.copytree(models[name], tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["d_ff" if name == "t5" else "intermediate_size"] = 48  # made with 64
    (broken / "config.json").write_text(json.dumps(config))
    refused(home, broken, tmp_path, "its weights are not those of its config.json", "64", "48", "save both")


def test_a_tokenizer_that_cannot_be_made_says_why(home, models, tmp_path):
    """transformers: "Couldn't instantiate the backend tokenizer from one of:" and then what it tried."""
    broken = shutil.copytree(models["t5"], tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    refused(home, broken, tmp_path, "no student there that transformers can load: Couldn't instantiate", "(1)", "(3)")
