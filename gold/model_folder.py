"""What the folder or file given as --model is, where it is no model that can be loaded, and what to do instead."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from gold.causes import cause_of
from gold.command import fail

GGUF = (
    "is in the GGUF format, which holds no transformers model; convert it once: AutoModelForCausalLM.from_pretrained(folder, "
    "gguf_file=name) and AutoTokenizer likewise (pip install gguf), save_pretrained() both into a new folder, and give that"
)
ADAPTER = (
    "is a LoRA adapter{of}, not a whole model; merge it once: peft.AutoPeftModelForCausalLM.from_pretrained(folder)"
    ".merge_and_unload().save_pretrained(new), the base's tokenizer beside it, and give that folder"
)
REMOTE = "needs Python code of its own, which transformers and vLLM run only when they are told to"


def explain_model_folder(model: str) -> str | None:
    """Why a path is no whole model in the form of transformers, with the cure; None where nothing speaks against it.

    Looks at names of files alone; a name on the hub, where there is no such path, is not looked at.
    """
    path = Path(model)
    if path.is_file():
        gguf = path.suffix == ".gguf" or path.open("rb").read(4) == b"GGUF"
        return GGUF if gguf else "is a file; give the folder that holds the model's config.json"
    if not path.exists() and (path.is_absolute() or model.startswith((".", "~"))):
        return "no such file or folder; check the path"
    if not path.is_dir() or (path / "config.json").exists():
        return None
    if (adapter := path / "adapter_config.json").exists():
        return ADAPTER.format(of=base_of(adapter))
    if any(path.glob("*.gguf")):
        return GGUF
    inner = sorted(p.parent for p in path.glob("*/config.json"))
    return f"has no config.json, but {inner[0]} has one; give that folder" if inner else None


def base_of(adapter: Path) -> str:
    """ " of BASE": the model that an adapter belongs to, as far as its config tells."""
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return f" of {base}" if base else ""


def refuse_model(model: str, what: str, error: Exception, remote_code: str) -> NoReturn:
    """End the stage (exit 1) where transformers cannot load a model: what: "no student there". remote_code: the cure where
    the model comes with code of its own."""
    if "trust_remote_code" in str(error):
        fail(f"--model {model}: {REMOTE}; {remote_code}")
    fail(f"--model {model}: {what} that transformers can load: {cause_of(error)}")


def refuse_misfit(model: str, mismatched: Iterable[tuple]) -> None:
    """End the stage (exit 1) where weights have other shapes than the config says, as from_pretrained's loading info lists
    them: (name, shape in the file, shape by the config)."""
    for name, found, wanted in sorted(mismatched, key=str):
        fail(
            f"--model {model}: its weights are not those of its config.json: {name} has the shape {tuple(found)}, the "
            f"config asks for {tuple(wanted)}; save both from one model"
        )
