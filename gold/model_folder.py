"""Where the folder or file given as --model is no model that can be loaded: what it is, and what to do instead."""

from pathlib import Path
from typing import NoReturn

from gold.causes import cause_of
from gold.command import fail

REMOTE = "needs Python code of its own, which transformers and vLLM run only when they are told to"


def check_model_folder(model: str) -> None:
    """End the stage (exit 1) where a path is no whole model: at once, before anything heavy is imported.

    Only names of files are looked at. A name on the hub, where there is no such path, passes.
    """
    path, problem = Path(model), None
    if path.is_file():
        problem = "is a file"
    elif path.is_dir() and not (path / "config.json").exists():
        is_adapter = (path / "adapter_config.json").exists()
        problem = "is a LoRA adapter, not a whole model" if is_adapter else "has no config.json"
    elif not path.exists() and (path.is_absolute() or model.startswith((".", "~"))):
        fail(f"--model {model}: no such file or folder; check the path")
    if problem:
        fail(
            f"--model {model}: {problem}; give the folder of a model in the form of transformers (docs/troubleshooting.md)"
        )


def refuse_model(model: str, what: str, error: Exception, remote_code: str) -> NoReturn:
    """End the stage (exit 1) where transformers cannot load a model.

    what: such as "no student there". remote_code: the cure where the model comes with code of its own.
    """
    if "trust_remote_code" in str(error):
        fail(f"--model {model}: {REMOTE}; {remote_code}")
    fail(f"--model {model}: {what} that transformers can load: {cause_of(error)}")
