"""Students of well-known shapes with random weights, for measurements where no model hub is at hand.

    from bench.shapes import SHAPES, build
    folder = build("t5-base", Path("runs/shapes"))      # runs/shapes/t5-base, made once, in the Hugging Face format

The numbers of layers, widths and vocabulary entries are those of the published configurations, so time and memory are too.
The tokenizers are small ones, trained on texts of the embedded reviews: they write a text in about as many tokens as a large
vocabulary would, and of the vocabulary of the model they use the first few thousand entries.
"""

import json
import random
from pathlib import Path
from typing import Any

from data import reviews_grammar
from gold.task import load_task
from gold.templates import render

ROOT = Path(__file__).resolve().parent.parent
TASK_FILE = ROOT / "prompts" / "reviews.toml"

# name -> (class of transformers, what its configuration says); sources: the model cards' config.json of google-t5/t5-base,
# answerdotai/ModernBERT-base and Qwen/Qwen2.5-0.5B
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5-base": ("T5", {
        "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12,
        "num_heads": 12, "feed_forward_proj": "relu",
    }),
    "modernbert-base": ("ModernBert", {
        "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
        "num_attention_heads": 12, "max_position_embeddings": 8192, "global_attn_every_n_layers": 3, "local_attention": 128,
    }),
    "qwen2.5-0.5b": ("Qwen2", {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True,
    }),
    "tiny-t5": ("T5", {
        "vocab_size": 4096, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4,
    }),
    "tiny-bert": ("Bert", {
        "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    }),
    "tiny-qwen": ("Qwen2", {
        "vocab_size": 4096, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    }),
}  # fmt: skip
CLASSES = {"T5": "ForConditionalGeneration", "Bert": "ForMaskedLM", "ModernBert": "ForMaskedLM", "Qwen2": "ForCausalLM"}


def reviews(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Examples of the embedded reviews as read_examples gives them, topics by Zipf's law; ids made of the seed."""
    task, rng = load_task(TASK_FILE), random.Random(seed)
    topics = rng.choices(list(reviews_grammar.WEIGHTS), list(reviews_grammar.WEIGHTS.values()), k=number)
    made = []
    for i, topic in enumerate(topics):
        example = reviews_grammar.make_example(rng, topic)
        sides = {"source": render(task.student.source, example), "target": render(task.student.target, example)}
        made.append({"id": f"grammar-{seed}-{i}", **example, **sides})
    return made


def build(name: str, folder: Path) -> Path:
    """folder/name: a model of that shape with random weights (seed 0) and its tokenizer; one that is there is kept."""
    made = folder / name
    if (made / "complete").exists():
        return made
    import torch
    import transformers

    kind, shape = SHAPES[name]
    tokenizer = make_tokenizer(kind)
    marks = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "T5":
        marks |= {"decoder_start_token_id": tokenizer.pad_token_id}
    if kind in ("Bert", "ModernBert"):
        marks |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        marks |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    if kind == "Qwen2":
        marks |= {"bos_token_id": None}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape, **marks)
    getattr(transformers, kind + CLASSES[kind])(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    (made / "complete").touch()
    return made


def make_tokenizer(kind: str) -> Any:
    """A tokenizer of the reviews' words that transformers loads with a model of this kind."""
    from data.build_models import train_tokenizer

    texts = [text for example in reviews(3000) for text in (example["source"], example["target"])]
    if kind != "Qwen2":
        return train_tokenizer(texts, "t5" if kind == "T5" else "bert")
    from transformers import Qwen2Tokenizer  # with a Qwen2 transformers loads no other

    trained = train_tokenizer(texts, "llama")
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=merges, eos_token="</s>", pad_token="<pad>", unk_token=None)
