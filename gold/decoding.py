"""What a student that writes (T5, Llama, Qwen2) writes: decoded greedily, from its own tokens alone.

decode_plainly(network, tokenizer)                          no settings of the base model's own
texts = greedy_texts(network, tokenizer, features, hits, max_new_tokens, at_once)
"""

from typing import Any


def decode_plainly(network: Any, tokenizer: Any) -> None:
    """Replace the base model's generation settings: plain greedy decoding up to the tokenizer's end token.

    A base may come with sampling, beams, penalties, lengths, forced tokens and other end tokens in generation_config.json.
    The token that an encoder-decoder's decoder starts with is the one that it is trained with.
    """
    from transformers import GenerationConfig

    before, config = network.generation_config, network.config
    start = getattr(config, "decoder_start_token_id", None) if config.is_encoder_decoder else None
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=before.decoder_start_token_id if start is None else start,
    )


def greedy_texts(
    network: Any, tokenizer: Any, features: list[dict], hits: list[list[bool]], max_new_tokens: int, at_once: int,
    encoded: Any = None,
) -> list[str]:  # fmt: skip
    """The text that the student writes for each example, in the order of features (input_ids, labels).

    hits: whether each token of the labels is the likeliest one, and no other as likely, with those before it given. Where
    all are, up to the first end token, greedy decoding writes these tokens; only the other examples are decoded, at_once at
    a time. encoded: the encoder's last hidden states and mask of these examples, where they are known, (B, S, d) and (B, S).
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    written: dict[int, list[int]] = {}
    for row, (feature, hit) in enumerate(zip(features, hits, strict=True)):
        ids, end = feature["labels"], tokenizer.eos_token_id
        length = ids.index(end) + 1 if end in ids else 0  # a target that was cut has no end: what follows is not known
        if 0 < length <= max_new_tokens and all(hit[:length]):
            written[row] = ids[:length]
    rest = [row for row in range(len(features)) if row not in written]
    for begin in range(0, len(rest), at_once):
        rows = rest[begin : begin + at_once]
        if encoded is None:
            begun = prompts([features[row]["input_ids"] for row in rows], tokenizer, network)
        else:
            states, mask = (part[torch.tensor(rows, device=part.device)] for part in encoded)
            begun = {"encoder_outputs": BaseModelOutput(states), "attention_mask": mask}
        output = network.generate(**begun, max_new_tokens=max_new_tokens)
        # What it begins with: a decoder's prompt, or the token that an encoder-decoder's decoder starts with
        read = 1 if network.config.is_encoder_decoder else begun["input_ids"].shape[1]
        written |= dict(zip(rows, output[:, read:].tolist(), strict=True))
    return texts_of([written[row] for row in range(len(features))], tokenizer)


def texts_of(rows: list[list[int]], tokenizer: Any) -> list[str]:
    """The text of tokens without special ones; blanks stay as they are, which a tokenizer may be set to take from " ,"."""
    return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def prompts(sources: list[list[int]], tokenizer: Any, network: Any) -> dict[str, Any]:
    """input_ids and attention_mask (B, S) of what is read; a decoder's begin with the padding, as it writes at the end."""
    import torch

    width, left = max(map(len, sources)), not network.config.is_encoder_decoder
    columns = {"input_ids": (sources, tokenizer.pad_token_id), "attention_mask": ([[1] * len(s) for s in sources], 0)}
    made = {}
    for name, (rows, value) in columns.items():
        gaps = [[value] * (width - len(row)) for row in rows]
        padded = [gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)]
        made[name] = torch.tensor(padded, device=network.device)
    return made
