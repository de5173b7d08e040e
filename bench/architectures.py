"""Which students work: a tiny random model of every architecture that transformers lists, by our stages' functions.

    python -m bench.architectures                    # those that have no row yet; a process each, with a time limit
    python -m bench.architectures gpt2 bert          # these anew
    python -m bench.architectures --table            # docs/students.md from the rows

Listed are models for sequence classification, seq2seq and causal language modelling. `plain`: AutoModel loads it, and its
own loss has gradients. `ours`: load_student, fit (one epoch), save, load_trained, score_examples, with scores that agree.
"""

import collections
import multiprocessing
import re
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from gold.jsonl import append_records, read_records

RESULTS, PAGE = (
    Path(__file__).parent / "results" / "architectures.jsonl",
    Path(__file__).parent.parent / "docs/students.md",
)
SECONDS, LARGEST = 240, 20_000_000  # a process's time limit; parameters of what still counts as tiny
TEXTS = [
    "the sun is warm",
    "a big melon",
    "snow falls",
    "the frost is cold",
    "a swim in the lake",
    "a sledge in the field",
]
TASK = """
name = "seasons"
description = "The season."
kind = "classification"
metric = "accuracy"
fields = ["text"]
answer_field = "label"
seed_examples = "seed.jsonl"
[labels]
warm = "summer"
cold = "winter"
[prompt]
train = "$shots $start"
validation = "$shots $start"
example = "$label: $text"
[student]
source = "the $text"
target = "$label"
"""
SMALL = (  # what the numbers of a config are called: what they become, None = as they are
    (r"vocab", "vocabulary"),
    (r"n_group|topk_group|num_zero_exp|n_shared|first_k_dense", 1),
    (r"experts_per_tok|top_?k|num_selected|moe_k", 2),
    (r"num_.*experts|n_.*experts", 4),
    (r"layers|n_layer$|num_blocks|depth$|_layer$", 2),
    (r"head_dim|rotary_dim|d_kv|kv_channels|qk_.*dim|v_head|head_size|dim_per_head", 8),
    (r"heads|n_head|num_kv", 4),
    (r"lora_rank|_rank$", 8),
    (r"intermediate|ffn|d_ff|d_inner|mlp_dim|feed_forward|ff_dim|inner_dim|n_inner", 64),
    (r"conv|kernel|groups|state|chunk|window", None),
    (r"hidden_size|d_model|n_embd|^dim$|embed_dim|embedding_size|emb_dim|width|model_dim|hidden_dim|d_embed", 32),
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Types of models, as config.json has them.")] = None,
    table: Annotated[bool, typer.Option(help="Write docs/students.md from the rows.")] = False,
) -> None:
    """Try every architecture that has no row yet, or `names` anew; then one row each."""
    rows = {row["type"]: row for _, row in read_records(RESULTS)} if RESULTS.exists() else {}
    if table:
        PAGE.write_text(page(rows), encoding="utf-8")
        return
    import torch  # once, for all processes
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    for name in names or [name for name in listed() if name not in rows]:
        row = {"type": name, "listed": listed()[name]} | tried(name)
        append_records(RESULTS, [row])
        typer.echo(f"{name:<24} plain: {row['plain'][:60]:<62} ours: {row['ours'][:120]}  {row['seconds']} s")


def listed() -> dict[str, list[str]]:
    """Types of models, and for what transformers lists them."""
    from transformers.models.auto import modeling_auto as auto

    kinds = {
        "sequence classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    found = collections.defaultdict(list)
    for kind, types in kinds.items():
        for name in types:
            found[name].append(kind)
    return dict(sorted(found.items()))


def tried(name: str) -> dict:
    """The row of one type, made in a process of its own: it may run forever, or die."""
    began, context = time.monotonic(), multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, sender))
    process.start()
    row = {"plain": "not tried", "ours": "not tried"}
    while process.is_alive() and time.monotonic() - began < SECONDS:
        if receiver.poll(0.2):
            row |= receiver.recv()
    while receiver.poll():
        row |= receiver.recv()
    if process.is_alive():
        process.kill()
        row = {k: f"more than {SECONDS} s" if v == "not tried" else v for k, v in row.items()}
    process.join()
    return row | {"exit": process.exitcode, "seconds": round(time.monotonic() - began, 1)}


def child(name: str, sender: Any) -> None:
    """Send {"family", "parameters", "plain", "ours"}, each as soon as it is known: "works" or the reason."""
    from transformers import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        try:
            family, auto, number = save_tiny(name, Path(folder))
        except BaseException as error:  # of every kind, and a fail of ours
            sender.send({"plain": f"no tiny model: {reason(error)}"})
            return
        sender.send({"family": family, "parameters": number})
        for what, function in (("plain", by_transformers), ("ours", by_stages)):
            try:
                function(Path(folder), auto)
                sender.send({what: "works"})
            except BaseException as error:
                sender.send({what: reason(error)})


def reason(error: BaseException) -> str:
    text = re.sub(r"--model \S+: |^error: |/tmp/\S+", "", str(error)).strip().split("\n")[0][:200]
    return text if isinstance(error, SystemExit) else f"{type(error).__name__}: {text}"


# ---------------------------------------------------------------------------------------------------------------------
# A tiny model


def shrunk(values: dict, vocabulary: int) -> dict:
    """The numbers of a config, made small by their names; what is no number keeps its default."""
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("_config"):
            small[name] = shrunk(value, vocabulary) | {k: v for k, v in value.items() if k == "model_type"}
        elif type(value) is int and value > 0 and not name.endswith("token_id"):
            new = next((new for pattern, new in SMALL if re.search(pattern, name)), None)
            if new is not None:
                small[name] = vocabulary if new == "vocabulary" else min(new, value)
    return small


def save_tiny(name: str, folder: Path) -> tuple[str, Any, int]:
    """A model of the type with random weights, and a tokenizer for TEXTS: (how we read it, AutoModel class, parameters)."""
    import torch
    import transformers as hf
    from transformers.models.auto import modeling_auto as auto

    kinds = listed()[name]
    config_class = hf.models.auto.configuration_auto.CONFIG_MAPPING[name]
    encodes = name in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or "causal" not in kinds
    default = config_class()
    if default.is_encoder_decoder and "seq2seq" in kinds:
        family, kind = "encoder-decoder", hf.AutoModelForSeq2SeqLM
    elif "sequence classification" in kinds and encodes:
        family, kind = "encoder", hf.AutoModelForSequenceClassification
    else:
        family, kind = "decoder", hf.AutoModelForCausalLM if "causal" in kinds else hf.AutoModelForSeq2SeqLM
    (folder / "task.toml").write_text(TASK, encoding="utf-8")
    marks = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 0}
    small = shrunk(default.to_dict(), vocabulary := 400)
    config = config_class(**small, **marks)
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 0
    with torch.device("meta"):
        number = kind.from_config(config).num_parameters()
    if number > LARGEST:
        raise ValueError(f"{number:,} parameters even after its config was shrunk")
    torch.manual_seed(0)
    made = {hf.AutoModelForSequenceClassification: auto.MODEL_FOR_MASKED_LM_MAPPING}.get(kind, {})
    base = hf.AutoModelForMaskedLM if type(config) in made else hf.AutoModel if family == "encoder" else kind
    base.from_config(config).save_pretrained(folder)  # an encoder as it is before anybody fine-tunes it
    save_tokenizer(folder, vocabulary, family)
    return family, kind, number


def save_tokenizer(folder: Path, vocabulary: int, family: str) -> None:
    """The first kind of tokenizer that AutoTokenizer reads back, for many types have a class of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"} if family == "encoder" else {}
    special = list(names.values())
    how = {"vocab_size": vocabulary, "special_tokens": special, "show_progress": False}
    texts = [f"{text} warm cold" for text in TEXTS]
    template = {"encoder": "[CLS] $A [SEP]", "encoder-decoder": "$A </s>", "decoder": "$A"}[family]
    for model, trainer, marks, decoder in (
        (models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
        (models.Unigram(), trainers.UnigramTrainer, pre_tokenizers.Metaspace(), decoders.Metaspace()),
        (
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer,
            pre_tokenizers.Whitespace(),
            decoders.WordPiece(),
        ),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer, tokenizer.decoder = marks, decoder
        more = {"initial_alphabet": marks.alphabet()} if isinstance(model, models.BPE) else {}
        more |= {"unk_token": "<unk>"} if isinstance(model, models.Unigram) else {}
        tokenizer.train_from_iterator(texts, trainer(**how, **more))
        ids = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
        try:
            read = AutoTokenizer.from_pretrained(folder)
            if all(read.decode(read(text)["input_ids"], skip_special_tokens=True).strip() == text for text in TEXTS):
                return
        except Exception:
            continue


# ---------------------------------------------------------------------------------------------------------------------
# The two ways


def by_transformers(folder: Path, auto: Any) -> None:
    """Load, compute the model's own loss, and see that it has gradients."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    heads = {"num_labels": 2} if auto is AutoModelForSequenceClassification else {}
    model, tokenizer = auto.from_pretrained(folder, **heads), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = torch.tensor([0, 0, 1, 1, 0, 1]) if heads else inputs["input_ids"]
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    if not torch.isfinite(loss) or not any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()):
        raise ValueError(f"the loss is {loss}, or has no gradient")


def by_stages(folder: Path, auto: Any) -> None:
    """What train_student.py, score_ood.py and evaluate.py do with a student."""
    import contextlib
    import io
    import math

    from bench.training import OPTIONS
    from gold.examples import with_rendered
    from gold.predict import score_examples
    from gold.student import check_labels, lengths_of, load_student, load_trained
    from gold.task import load_task
    from train_student import fit

    task = load_task(folder / "task.toml")
    rows = [{"id": str(i), "text": text, "label": ["warm", "cold"][i % 2]} for i, text in enumerate(TEXTS * 2)]
    rows = [with_rendered("", row, task, (), collections.Counter()) for row in rows]
    with contextlib.redirect_stderr(io.StringIO()):
        student = load_student(str(folder), task)
        student.lengths = {"max_source_length": 32, "max_target_length": 8}
        check_labels(student, "it")
        options = OPTIONS | {"per_device_train_batch_size": 4, "dtype": "float32"}
        fit(student, rows, rows[:4], folder / "checkpoints", options)
        student.save(folder / "trained", "float32")
        trained = load_trained(str(folder / "trained"), task, lengths_of(str(folder / "trained")), "float32")
        scores, _ = score_examples(trained, rows, 2, embed=True)
        before = score_examples(student, rows, 64)[0]
    for one, other in zip(scores, before, strict=True):
        assert all(math.isfinite(v) for v in one.values() if isinstance(v, float)), f"scores are not finite: {one}"
        assert abs(one["nll"] - other["nll"]) < 1e-3, (
            f"batches or saving change the score {other['nll']} to {one['nll']}"
        )


def page(rows: dict[str, dict]) -> str:
    """docs/students.md."""
    by = collections.defaultdict(list)
    for name, row in sorted(rows.items()):
        by[row["ours"] == "works", row["plain"] == "works"].append((name, row))
    works = collections.defaultdict(list)
    for name, row in [*by[True, True], *by[True, False]]:
        works[row["family"]].append(name)
    ok, plain_only, none = len(by[True, True]) + len(by[True, False]), len(by[False, True]), len(by[False, False])
    missing = [name for name in listed() if name not in rows]
    lines = [
        "# Which students work",
        "",
        "A tiny random model of each architecture that transformers 5.19 lists for sequence classification, seq2seq",
        "and causal language modelling, trained, saved, loaded, scored and evaluated by our stages' functions. The rows are in",
        "bench/results/architectures.jsonl: `python -m bench.architectures` makes those that are missing, `--table` this page.",
        "Nothing here says how good a student gets. granite works with a `logits_scaling` of 1 alone: released models",
        "have another, and are refused.",
        "",
        f"Of {len(rows)} types {ok} work, {plain_only} are refused or fail here while plain transformers code trains them,",
        f"and {none} plain code could not train either, or no tiny model could be made.",
        f"Not tried yet: {', '.join(missing) or 'none'}.",
        "",
        "## Work",
        "",
        "| family | types |",
        "|---|---|",
        *(f"| {family} | {', '.join(works[family])} |" for family in sorted(works)),
        "",
        "## Refused or failing here, trained by plain transformers code",
        "",
        "| type | reason |",
        "|---|---|",
        *(f"| {name} | {clean(row['ours'])} |" for name, row in by[False, True]),
        "",
        "## Not tried: plain transformers code fails on the tiny model too",
        "",
        "| type | reason |",
        "|---|---|",
        *(f"| {name} | {clean(row['plain'])} |" for name, row in by[False, False]),
    ]
    return "\n".join(lines) + "\n"


def clean(text: str) -> str:
    return re.sub(r"([|<>*_`])", r"\\\1", text)


if __name__ == "__main__":
    app()
