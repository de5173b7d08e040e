"""Low-rank adapters by peft (LoRA, Hu et al. 2021, arXiv 2106.09685): trained in place of the weights, merged at the end.

adapters = add_adapters(student, rank=16)          in place: W x becomes W x + 2 B A x in every linear layer but the last
student.network = adapters.merge_and_unload()      a model like any other
"""

from typing import Any

from gold.command import fail
from gold.student import Student


def add_adapters(student: Student, rank: int) -> Any:
    """peft's LoraModel around the student's network. Ends the stage (exit 1) for an encoder, and without peft."""
    if student.family == "encoder":
        fail("--lora-rank: is for T5 and decoder-only students, --model is an encoder; leave the option out")
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        fail("--lora-rank needs peft: bash setup.sh requirements-extra.txt (or pip install -r requirements-extra.txt)")
    # B is 0 at first: the student begins as its base. alpha / rank = 2
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return LoraModel(student.network, config, "default")
