"""What the folder or file given as --model is, where it is no model that can be loaded, and what to do instead."""

import re
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

    Only names of files are looked at. A name on the hub, where there is no such path, passes.
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
        base = re.search(r'"base_model_name_or_path": *"(.+?)"', adapter.read_text(encoding="utf-8", errors="replace"))
        return ADAPTER.format(of=f" of {base[1]}" if base else "")
    if any(path.glob("*.gguf")):
        return GGUF
    inner = sorted(p.parent for p in path.glob("*/config.json"))
    return f"has no config.json, but {inner[0]} has one; give that folder" if inner else None


def check_model_folder(model: str) -> None:
    """End the stage (exit 1) where a path is no whole model: at once, before anything heavy is imported."""
    if problem := explain_model_folder(model):
        fail(f"--model {model}: {problem}")


def refuse_model(model: str, what: str, error: Exception, remote_code: str) -> NoReturn:
    """End the stage (exit 1) where transformers cannot load a model.

    what: such as "no student there". remote_code: the cure where the model comes with code of its own.
    """
    if "trust_remote_code" in str(error):
        fail(f"--model {model}: {REMOTE}; {remote_code}")
    fail(f"--model {model}: {what} that transformers can load: {cause_of(error)}")
