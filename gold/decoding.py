"""What a student that writes (T5, Llama, Qwen2) writes: decoded greedily, from its own tokens alone."""

from typing import Any


def decode_plainly(network: Any, tokenizer: Any) -> None:
    """Replace the base model's generation settings: plain greedy decoding up to the tokenizer's end token.

    A base may come with sampling, beams, penalties, lengths, forced tokens and other end tokens in its
    generation_config.json. The decoder of an encoder-decoder starts with the token that it is trained with.
    """
    from transformers import GenerationConfig

    start = getattr(network.config, "decoder_start_token_id", None) if network.config.is_encoder_decoder else None
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=network.generation_config.decoder_start_token_id if start is None else start,
    )


def pad_batch(tokenizer: Any, rows: list[list[int]], device: Any, side: str = "right", width: int | None = None) -> Any:
    """input_ids and attention_mask, each (B, L): L is the longest row's length, or `width`."""
    how = {"padding": "max_length" if width else True, "max_length": width, "padding_side": side}
    return tokenizer.pad({"input_ids": rows}, **how, return_attention_mask=True, return_tensors="pt").to(device)


def greedy_texts(
    network: Any, tokenizer: Any, features: list[dict], hits: list[list[bool]], max_new_tokens: int, at_once: int,
    encoded: tuple[Any, Any],
) -> list[str]:  # fmt: skip
    """The text that the student writes for each example, in the order of features (input_ids, labels).

    hits: whether each token of the labels is the likeliest one, and no other as likely, with those before it given. Where
    all are, up to the first end token, greedy decoding writes these tokens; only the other examples are decoded, at_once
    at a time. encoded: an encoder-decoder's last encoder states (B, S, d) and their mask (B, S).
    """
    from transformers.modeling_outputs import BaseModelOutput

    written: dict[int, list[int]] = {}
    for row, (feature, hit) in enumerate(zip(features, hits, strict=True)):
        ids, end = feature["labels"], tokenizer.eos_token_id
        length = ids.index(end) + 1 if end in ids else 0  # a target that was cut has no end: what follows is not known
        if 0 < length <= max_new_tokens and all(hit[:length]):
            written[row] = ids[:length]
    rest = [row for row in range(len(features)) if row not in written]
    for rows in (rest[i : i + at_once] for i in range(0, len(rest), at_once)):
        if network.config.is_encoder_decoder:
            states, mask = (part[rows] for part in encoded)
            given, read = {"encoder_outputs": BaseModelOutput(states), "attention_mask": mask}, 1  # the start token
        else:  # a decoder goes on where the prompt ends: padding stands before it
            given = pad_batch(tokenizer, [features[row]["input_ids"] for row in rows], network.device, side="left")
            read = given["input_ids"].shape[1]
        output = network.generate(**given, max_new_tokens=max_new_tokens)
        written |= dict(zip(rows, output[:, read:].tolist(), strict=True))
    # A tokenizer may be set to clean up blanks, such as that before a comma: they stay as they were written
    ids = [written[row] for row in range(len(features))]
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
