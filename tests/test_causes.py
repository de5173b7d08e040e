"""One line with the cause of a library's error: hand-made errors, and what the installed libraries really raise."""

import json
import shutil

import pytest
from conftest import one_error, train

from gold.causes import cause_of


def raised(error: Exception, cause: Exception, explicit: bool = True) -> Exception:
    """The error as it is caught after `raise error from cause`, or a plain `raise error` while the cause is handled."""
    setattr(error, "__cause__" if explicit else "__context__", cause)
    return error


@pytest.mark.parametrize(
    "error, told",
    [
        (ValueError("no such thing"), "no such thing"),
        (ValueError(""), "ValueError('')"),
        (KeyError("a.weight"), "KeyError: 'a.weight'"),
        (ValueError("First says it.\nSecond adds to it."), "First says it."),
        (ValueError("Nothing worked:\n (1) one,\n\n (2) two"), "Nothing worked: (1) one, (2) two"),
        (raised(RuntimeError("For details look at the above report!"), OSError("it is torn")), "it is torn"),
        (raised(RuntimeError("Engine core initialization failed. See root cause above."), OSError("no GPU"), False), "no GPU"),
        (raised(RuntimeError(""), OSError("")), "RuntimeError('')"),
        (ValueError("a " * 300), "a " * 198 + "..."),
        (raised(RuntimeError("outer says it"), OSError("inner")), "outer says it"),
    ],
)  # fmt: skip
def test_the_cause_by_hand(error, told):
    assert cause_of(error) == told


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
