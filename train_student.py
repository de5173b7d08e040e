"""Fine-tune a small language model on generated examples: the student of one iteration, or the final one.

Reads a task file, one or more train.jsonl, and a base model: an encoder-decoder (T5), an encoder (BERT, ModernBERT) or a
decoder-only model (Llama, Qwen2). Writes --output-dir as a Hugging Face model folder with training_log.jsonl in it, and a
run record beside it.

    python train_student.py --task-file prompts/reviews.toml --model google-t5/t5-base \
        --train-file runs/a/iter-00/train.jsonl --output-dir runs/a/iter-00/student
    python train_student.py ... --loss sce                            # symmetric cross-entropy, against wrong labels
    python train_student.py ... --loss gce --ce-epochs 2              # generalised cross-entropy, after two epochs of ce
    python train_student.py ... --loss kl                             # soft labels: the label_probs of generate.py label
    python train_student.py ... --dry-run                             # what would be read, split and trained; no model
    torchrun --nproc-per-node 2 train_student.py ...                  # several GPUs (or processes), one training

Under torchrun a step's batch is --per-device-train-batch-size times the processes (times --gradient-accumulation-steps):
2 processes x 8 take the very steps of 1 process x 16, but for dropout and rounding. The first process alone holds the lock
and writes; torchrun itself ends with exit code 1 whatever the error was.

The best epoch is chosen on a tenth of the training examples, picked by a hash of the id, never on validation or test; they
stand in held_out.jsonl of the student.
"""

import contextlib
import math
import os
import string
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from gold.control_tokens import frame_of, plain_ids
from gold.decoding import decode_plainly, greedy_texts, texts_of
from gold.model_folder import explain_model_folder, refuse_misfit, refuse_model
from gold.trained import SOURCE_LENGTH, TARGET_LENGTH, write_trained
from gold.truncation import cut_fields, field_spans
from gold.unreadable import told_of_losses
from records import beside, expand, fail, finish_run, read_examples, run_command, say, start_run, write_records
from task import Task, is_correct, load_task

# ---------------------------------------------------------------------------------------------------------------------
# Student: loading, encoding (score_ood.py and evaluate.py use these too, so that all three see the same strings)


# What a config says of its model changing the logits after the output layer (Gemma 2, Cohere, Granite, Falcon-H1)
AFTER_HEAD = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")


T5_TYPES = ("t5", "mt5", "umt5", "longt5")  # encoder-decoders whose output layer score_ood.py can take off


def family_of(model: str, task: Task) -> tuple[Any, str]:
    """(config, family) of a folder or hub name, before any weights are read; family: encoder-decoder | encoder | decoder.

    Ends the stage (exit 1) when there is no config, or the family does not fit the task or our code.
    """
    from transformers import AutoConfig, logging
    from transformers.models.auto import modeling_auto as auto

    logging.set_verbosity_error()
    if problem := explain_model_folder(model):
        fail(f"--model {model}: {problem}")
    try:
        config = AutoConfig.from_pretrained(
            model, trust_remote_code=False
        )  # left out, transformers asks at the terminal
    except Exception as error:  # broken files make transformers raise many kinds
        no_student(model, error)
    kind = config.model_type
    if config.is_encoder_decoder:
        if kind not in T5_TYPES:
            fail(f"--model {model}: {kind} is an encoder-decoder other than T5; choose a T5, an encoder or a decoder")
        return config, "encoder-decoder"
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # before the decoders: BERT has a class of theirs too
        if not task.labels:
            fail(
                f"--model {model}: an encoder ({kind}) chooses among labels, {task.path} has none; use a T5 or a decoder"
            )
        return config, "encoder"
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        for key in AFTER_HEAD:
            if (value := getattr(config.get_text_config(), key, None)) not in (None, 1):
                fail(
                    f"--model {model}: {kind} changes the logits after its output layer ({key} {value}), which is not "
                    "supported; choose a model without, such as Llama or Qwen2"
                )
        return config, "decoder"
    fail(
        f"--model {model}: {kind} is none of encoder-decoder (T5), encoder (BERT) and decoder-only model (Llama, Qwen2)"
    )


def no_student(model: str, error: Exception) -> NoReturn:
    refuse_model(
        model, "no student there", error, "choose one that transformers knows, such as a T5, a BERT or a Llama"
    )


def load_encoder(model: str, config: Any, task: Task, new_head: bool, how: dict) -> tuple[Any, dict]:
    """(an encoder with a classification head in the order of the task's labels, loading info); how: of from_pretrained.

    A base gets a new head, as does a checkpoint that was fine-tuned on other labels with `new_head`, which keeps the weights
    below it. Without it such a checkpoint ends the stage (exit 1).
    """
    from transformers import AutoModelForSequenceClassification as auto

    labels = list(task.labels)
    trained = "SequenceClassification" in "".join(config.architectures or [])
    if trained and not new_head and [config.id2label[i] for i in range(config.num_labels)] != labels:
        fail(
            f"--model {model}: has the labels {list(config.id2label.values())}, {task.path} has {labels}; train_student.py "
            "--new-head keeps what is below its head and draws a new one for these"
        )
    heads = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if not trained or not new_head:
        return auto.from_pretrained(model, num_labels=len(labels), **heads, **how)
    old, told = auto.from_pretrained(model, **how)
    # In place: num_labels alone would leave the old names in label2id
    config.id2label, config.label2id, config.problem_type = heads["id2label"], heads["label2id"], None
    network = auto.from_config(config, dtype=how["dtype"])
    network.base_model.load_state_dict(old.base_model.state_dict())
    return network, told


def load_student(model: str, task: Task, seed: int = 0, new_head: bool = False) -> tuple[Any, Any, str]:
    """(model in evaluation mode, tokenizer, family) of a folder or hub name; family: encoder-decoder | encoder | decoder.

    A base encoder gets a new classification head, drawn with `seed`, in the order of the task's labels; a trained one must
    have these, or gets one with `new_head`. A decoder's tokenizer without a padding token pads with the end token: masks
    and labels go by lengths.
    Ends the stage (exit 1) when nothing can be loaded, or the family does not fit the task.
    """
    import inspect

    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        logging,
    )

    config, family = family_of(model, task)
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        how = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below
        if family == "encoder":
            network, told = load_encoder(model, config, task, new_head, how)
        else:  # bf16 by autocast only
            auto = AutoModelForCausalLM if family == "decoder" else AutoModelForSeq2SeqLM
            network, told = auto.from_pretrained(model, **how)
    except Exception as error:  # broken files make transformers raise many kinds
        no_student(model, error)
    refuse_misfit(model, told["mismatched_keys"])
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:  # transformers makes one up in silence
        fail(
            f"--model {model}: its tokenizer knows no words (are the tokenizer's files missing?); save it with the model"
        )
    if (last := max(tokenizer.get_vocab().values())) >= (known := network.get_input_embeddings().num_embeddings):
        fail(f"--model {model}: its tokenizer has a token {last:,}, the model only {known:,} tokens; save a pair")
    if family == "decoder":
        takes = {"logits_to_keep", "position_ids"} <= set(inspect.signature(network.forward).parameters)
        if not takes or not isinstance(getattr(network, "lm_head", None), torch.nn.Linear):
            fail(
                f"--model {model}: {config.model_type} is built unlike Llama and Qwen2, which a decoder-only student must be"
            )
    if family != "encoder":
        if tokenizer.eos_token_id is None:
            fail(f"--model {model}: its tokenizer has no end token, so no answer would end; set eos_token and save it")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = tokenizer.pad_token_id
        decode_plainly(network, tokenizer)
    return network.eval(), tokenizer, family


def positions_of(network: Any, family: str) -> int | None:
    """How many tokens the model can hold; None = no bound that the config knows of (T5's positions are relative)."""
    import torch

    if family == "encoder-decoder":
        return None
    for name, module in network.named_modules():  # RoBERTa counts from padding_idx + 1: of its 514 positions 512 serve
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding) and module.padding_idx:
            return module.num_embeddings - module.padding_idx - 1
    return getattr(network.config.get_text_config(), "max_position_embeddings", None)


def targets_of(task: Task) -> list[str]:
    """What the student writes for each label, in the order of the labels."""
    return [string.Template(task.student["target"]).substitute({task.answer_field: name}) for name in task.labels]


def target_ids(texts: list[str], tokenizer: Any, family: str) -> list[list[int]]:
    """The tokens that the student writes for each text, the end token included."""
    return ended(plain_ids(tokenizer, texts)[0], tokenizer, family)


def ended(targets: list[list[int]], tokenizer: Any, family: str) -> list[list[int]]:
    """Target tokens in the frame that the tokenizer puts around a text: of a T5 the end token."""
    if family == "decoder":  # the tokenizer of a base model often appends none, but may prepend a BOS
        return [[*ids, tokenizer.eos_token_id] for ids in targets]
    before, after = frame_of(tokenizer)
    return [before + ids + after for ids in targets]


def answer_length(task: Task, tokenizer: Any, family: str, max_target_length: int) -> int:
    """How many tokens a student may write: no more than the longest label has, as what goes on longer is no label."""
    names = target_ids(targets_of(task), tokenizer, family) if task.labels else []
    return min(max_target_length, max(map(len, names), default=max_target_length))


def check_labels(task: Task, tokenizer: Any, model: str, max_target_length: int) -> None:
    """Ends the stage (exit 1) where a student that writes could never be right about a label of the task.

    Its tokens must spell each label, and each as another text; predictions are compared stripped and lower-cased.
    """
    family = family_of(model, task)[1]
    if family == "encoder" or not task.labels:
        return
    targets = targets_of(task)
    rows = target_ids(targets, tokenizer, family)
    texts = [text.strip().lower() for text in texts_of(rows, tokenizer)]
    cure = "rename the label in the task file and the data, or choose a student that can write it"
    for name, target, ids, text in zip(task.labels, targets, rows, texts, strict=True):
        if len(ids) > max_target_length:
            problem = f"the label {name!r} takes {len(ids)} tokens, its end included"
            fail(f"--max-target-length {max_target_length}: {problem}; give {len(ids)} or more")
        if texts.count(text) > 1:
            alike = " and ".join(repr(n) for n, t in zip(task.labels, texts, strict=True) if t == text)
            fail(f"--model {model}: its tokens write the labels {alike} alike, {text!r}; {cure}")
        if text != target.strip().lower():
            fail(f"--model {model}: its tokens write {text!r} for {target!r}, the label {name!r}; {cure}")


def encode(
    examples: list[dict], tokenizer: Any, family: str, task: Task, max_source_length: int, max_target_length: int,
    positions: int | None = None,
) -> list[dict]:  # fmt: skip
    """Features by example: input_ids, attention_mask, labels (target token ids incl. EOS; or [class id] of an encoder).

    Lengths in tokens. What is longer is cut, a source in its longest field, and said; so is what the tokenizer cannot read.
    positions: what the model holds (positions_of), an upper limit of the source, for a decoder together with a newline and
    a target of max_target_length.
    A decoder reads the source as its tokenizer frames it (a BOS stays, an EOS at the end goes), a newline, and writes the
    target and EOS. The three are tokenised apart, so that training and decoding see the same tokens at the seams.
    """
    if not examples:
        return []
    decoder = family == "decoder"
    newline = plain_ids(tokenizer, ["\n"])[0][0] if decoder else []  # none, if whitespace is nothing
    limit, told = max_source_length, f"--max-source-length {max_source_length}"
    if positions and positions - (len(newline) + max_target_length if decoder else 0) < limit:
        limit = positions - (len(newline) + max_target_length if decoder else 0)
        told = f"the {limit} tokens that the model's {positions} positions leave them"
        if limit < 1:
            fail(
                f"--max-target-length {max_target_length}: leaves no room for a source in {positions} positions; lower it"
            )
    before, after = frame_of(tokenizer)
    if decoder and after[-1:] == [tokenizer.eos_token_id]:
        after = after[:-1]
    sources = readable_ids("sources", [e["source"] for e in examples], tokenizer)
    sources = cut_sources(sources, examples, tokenizer, task, max(limit - len(before) - len(after), 0), told)
    sources = [before + ids + after + newline for ids in sources]
    if decoder:  # an empty prompt predicts nothing: it begins with EOS
        sources = [ids or [tokenizer.eos_token_id] for ids in sources]
    features = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sources]
    if family == "encoder":
        ids = {name: i for i, name in enumerate(task.labels)}
        for feature, example in zip(features, examples, strict=True):
            feature["labels"] = ids[example[task.answer_field]]
        return features
    targets = ended(readable_ids("targets", [e["target"] for e in examples], tokenizer), tokenizer, family)
    if cut := sum(len(ids) > max_target_length for ids in targets):
        say(f"{cut:,} of {len(examples):,} targets are longer than --max-target-length {max_target_length}: cut")
    for feature, ids in zip(features, targets, strict=True):
        feature["labels"] = ids[:max_target_length]
    return features


def readable_ids(what: str, texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of the texts without a frame; what the tokenizer cannot read of them is said. what: sources | targets."""
    ids, broken, _ = plain_ids(tokenizer, texts)
    if broken:
        say(
            f"{len(broken):,} of {len(texts):,} {what} spell out a control token of this student, whose tokenizer would "
            f"take it for a real one: broken up with a blank; such as {texts[broken[0]][:80]!r}"
        )
    for line in told_of_losses(what, texts, ids, tokenizer):
        say(line)
    return ids


def cut_sources(
    sources: list[list[int]], examples: list[dict], tokenizer: Any, task: Task, room: int, told: str
) -> list[list[int]]:
    """The sources (without a frame), each at most `room` tokens: its longest fields lose their ends, and it is said how much.

    Where that cannot be (a record without the task's fields, a tokenizer that tells no places) the end of the source goes.
    """
    long = [i for i, ids in enumerate(sources) if len(ids) > room]
    if not long:
        return sources
    rendered: dict[int, list] = {}
    for i in long if tokenizer.is_fast else []:
        values = {name: str(examples[i].get(name)) for name in task.fields}
        text, fields = field_spans(task.student["source"], values)
        if text == examples[i]["source"]:
            rendered[i] = fields
    texts = [examples[i]["source"] for i in rendered]
    spans = dict(zip(rendered, plain_ids(tokenizer, texts, spans=True)[2], strict=True))
    made, by_field, at_end = list(sources), {}, 0
    for i in long:
        found = cut_fields(sources[i], spans[i], rendered[i], room) if i in rendered else None
        made[i], lost = found or (sources[i][:room], {})
        at_end += not lost
        for name, tokens in lost.items():
            by_field.setdefault(name, []).append(tokens)
    parts = [
        f"field {name} of {len(tokens):,}, by {sum(tokens) / len(tokens):.0f} tokens in the mean"
        for name, tokens in by_field.items()
    ]
    parts += [f"the end of {at_end:,}, whatever stands there"] * bool(at_end)
    say(f"{len(long):,} of {len(sources):,} sources are longer than {told}: cut {'; '.join(parts)}")
    return made


def is_held_out(identifier: str) -> bool:
    """A tenth of all ids, by hash: the same examples in every iteration, however the files are ordered or split."""
    import hashlib

    return hashlib.sha256(identifier.encode()).digest()[0] < 26  # 26 / 256 = 10.2 %


# ---------------------------------------------------------------------------------------------------------------------
# Losses

LEAST_SHARE = 0.01  # kl: an answer that the teacher gives less than this is not trained on by a T5 or a decoder
LEAST_Q = 1e-6  # gce: below it q is ce, and soon nothing in float32
LOG_ZERO = -9.21  # A = log 1e-4, what the reverse cross-entropy takes for log 0 (Wang et al. 2019; GOLD's code)


def token_losses(
    logits: Any, labels: Any, loss: str, sce_alpha: float = 1.0, sce_beta: float = 0.1, soft: Any = None,
    gce_q: float = 0.7, label_smoothing_factor: float = 0.0,
) -> Any:  # fmt: skip
    """Loss at every position that has a label, in float32: logits (..., K), labels (...), -100 = none -> (n,).

    ce   -log p_y; with e = label_smoothing_factor > 0 a share e of the target is spread evenly over all K classes:
         (1 - e) * -log p_y + e * mean_k -log p_k. Szegedy et al. 2016, arXiv 1512.00567. Of sce it changes the ce alone.
    sce  alpha * ce + beta * rce, with the reverse cross-entropy -sum_k p_k log q_k. For a one-hot q and log 0 := A it is
         -A (1 - p_y): no one-hot matrix is built. Symmetric cross-entropy: Wang et al. 2019, arXiv 1908.06112.
    kl   KL(teacher || student) up to the teacher's entropy, a constant (Hinton et al. 2015; Generation-Distillation). Of an
         encoder -sum_k q_k log p_k, soft (B, K) = label_probs. A student that writes has each record once for each answer:
         q * ce at every token, soft (B,) = q of the row's answer. Without soft labels (the held-out tenth) it is ce.
    gce  (1 - p_y^q) / q with q = gce_q, 0 < q <= 1, generalised cross-entropy: ce as q goes to 0, 1 - p_y (half the L1
         distance to the one-hot target) at q = 1. Zhang and Sabuncu 2018, arXiv 1805.07836.
    """
    import torch
    import torch.nn.functional as F

    if loss == "kl" and soft is not None and soft.dim() == 2:
        return -(soft.float() * logits.float().log_softmax(-1)).sum(-1)
    keep = labels != -100
    logits, targets = logits[keep].float(), labels[keep]  # (n, K), (n,)
    ce = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing_factor)
    if loss == "kl" and soft is not None:
        return ce * soft.float()[:, None].expand(labels.shape)[keep]
    if loss in ("ce", "kl"):
        return ce
    log_p = -F.cross_entropy(logits, targets, reduction="none") if label_smoothing_factor else -ce  # log p_y
    if loss == "gce":
        return -torch.expm1(gce_q * log_p) / gce_q  # 1 - p_y^q would lose its digits where q * log_p is near 0
    return sce_alpha * ce - sce_beta * LOG_ZERO * (1 - log_p.exp())


def soft_examples(examples: list[dict], task: Task, family: str) -> list[dict]:
    """The examples with `soft`: of an encoder label_probs in the labels' order, else one copy by answer with its share.

    Ends the stage (exit 1) where label_probs are missing or are no distribution.
    """
    made = []
    for e in examples:
        probs = e.get("label_probs")
        sound = isinstance(probs, dict) and all(type(p) in (int, float) and 0 <= p <= 1 for p in probs.values())
        if not sound or abs(sum(probs.values()) - 1) > 0.01 or (task.labels and set(probs) != set(task.labels)):
            need = "a share of every label, which sum to 1" if task.labels else "shares of answers, which sum to 1"
            cure = "run generate.py label on the file" + ("" if task.labels else ", with --num-samples 5 or so")
            fail(f"--loss kl: {e['id']}: label_probs must hold {need}; found {probs!r}; {cure}")
        if family == "encoder":
            made.append(e | {"soft": [probs[name] for name in task.labels]})
            continue
        for answer, share in probs.items():
            if share >= LEAST_SHARE and answer.strip():
                target = string.Template(task.student["target"]).substitute({task.answer_field: answer})
                made.append(e | {"target": target, "soft": share})
    return made


Loss = StrEnum("Loss", ["ce", "sce", "gce", "kl"])
Schedule = StrEnum("Schedule", ["linear", "cosine", "constant"])

# ---------------------------------------------------------------------------------------------------------------------
# Processes of torchrun


def processes() -> tuple[int, int]:
    """(rank of this process, number of processes) of a training; (0, 1) when it was not started by torchrun."""
    found = os.environ.get("WORLD_SIZE", "1")
    if not found.isdecimal():
        fail(f"WORLD_SIZE {found!r} in the environment is no number; start with torchrun, or unset it")
    number = int(found)
    missing = [k for k in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
    if number > 1 and missing:
        fail(f"WORLD_SIZE {number} in the environment without {', '.join(missing)}; start with torchrun, or unset it")
    return (int(os.environ["RANK"]), number) if number > 1 else (0, 1)


@cache
def shared_store() -> Any:
    """The key-value store that torchrun's processes share: begin = train | stop, told = errors, end = exit code."""
    import datetime

    from torch import distributed

    store = next(distributed.rendezvous("env://"))[0]
    # As long as the first process reads, or saves; when it dies, torchrun ends all others
    store.set_timeout(datetime.timedelta(days=1))
    return distributed.PrefixStore("train_student.py", store)


def run_together(app: Callable[[], Any]) -> None:
    """run_command for each of torchrun's processes: the first one alone speaks, all end with its exit code.

    An error is told once, by the process that has it first: an unreadable file is one to all, a full GPU perhaps not.
    """
    rank, number = processes()
    if number == 1:
        run_command(app)
        return
    import ctypes
    import signal

    # torchrun gives each process a session of its own: without this they outlive a kill of torchrun, and keep the lock
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    store, out, err, code = shared_store(), sys.stdout, sys.stderr, 0
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        run_command(app)
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout, sys.stderr = out, err
    told = isinstance(code, str)
    if told:
        if store.add("told", 1) == 1:
            print(code, file=sys.stderr, flush=True)
            store.set("printed", "")
        store.wait(["printed"])  # torchrun ends all others as soon as one has ended
        code = 1
    if rank == 0:
        if code:
            store.set("begin", "stop")  # whoever waits for it
        store.set("end", str(code))
    elif not told:  # a wrong option (exit code 2) is printed by the first process, which must not be ended before
        code = int(store.get("end"))
    if "torch" in sys.modules and (distributed := sys.modules["torch"].distributed).is_initialized() and not code:
        distributed.destroy_process_group()
    sys.exit(code)


# ---------------------------------------------------------------------------------------------------------------------
# Command

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
files = partial(typer.Option, rich_help_panel="Files")
training = partial(typer.Option, rich_help_panel="Training")


@app.command()
def main(
    task_file: Annotated[Path, files(help="Task, as prompts/<task>.toml.")],
    model: Annotated[str, files(help="Student base (T5, BERT, Llama, Qwen2 ...): a folder or a name on the hub.")],
    train_file: Annotated[list[Path], files(help="Examples to train on; repeat, or a glob in quotes.")],
    output_dir: Annotated[Path, files(help="Folder of the trained student.")],
    loss: Annotated[Loss, training(help="ce; sce or gce against wrong labels; kl to label_probs.")] = Loss.ce,
    sce_alpha: Annotated[float, training(min=0, help="sce: weight of ce; near 0 an untaught student never starts.")] = 1.0,
    sce_beta: Annotated[float, training(min=0, help="sce: weight of the reverse cross-entropy.")] = 0.1,
    gce_q: Annotated[float, training(min=LEAST_Q, max=1, help="gce: (1 - p^q) / q, near ce at 0, 1 - p at 1.")] = 0.7,
    ce_epochs: Annotated[float, training(min=0, help="sce, gce: so many epochs of ce first, for an untaught student.")] = 0,
    label_smoothing_factor: Annotated[
        float, training(min=0, max=1, help="ce, sce: share of the target that is spread over all classes; below 1.")
    ] = 0,
    learning_rate: Annotated[float, training(min=0, help="Peak learning rate of AdamW.")] = 1e-4,
    num_train_epochs: Annotated[float, training(min=0, help="Passes over the data.")] = 10,
    per_device_train_batch_size: Annotated[
        int, training(min=1, help="A process (torchrun). Out of memory: halve it, double the next.")
    ] = 16,
    gradient_accumulation_steps: Annotated[int, training(min=1, help="Batches a step, as if they were one.")] = 1,
    lr_scheduler_type: Annotated[Schedule, training(help="The learning rate after the warm-up.")] = Schedule.linear,
    warmup_ratio: Annotated[float, training(min=0, max=1, help="Share of the steps with a rising rate.")] = 0.1,
    weight_decay: Annotated[float, training(min=0, help="AdamW's weight decay.")] = 0.01,
    max_source_length: Annotated[int, training(min=1, help="Tokens read; more are cut, and counted.")] = SOURCE_LENGTH,
    max_target_length: Annotated[int, training(min=1, help="Tokens written; more are cut, and counted.")] = TARGET_LENGTH,
    seed: Annotated[int, training(help="Seed of new weights, order and dropout.")] = 0,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"], training(help="auto = bfloat16 where the GPU has it.")
    ] = "auto",
    new_head: Annotated[
        bool, training(help="A new head for an encoder that was fine-tuned on other labels.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Try out: the first so many examples.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be trained on what; no model.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Train anew what is there already.")] = False,
) -> None:  # fmt: skip
    """Fine-tune the student on every --train-file."""
    check_loss_options(loss, ce_epochs, num_train_epochs, label_smoothing_factor)
    rank, number = processes()
    # Data
    task, shard_counts = load_task(task_file), {}
    train_file = expand("--train-file", train_file)
    # Soft labels may stand on texts that nobody else has labelled
    soft = loss == Loss.kl
    use = ("teacher_label", "label_probs") if soft else ()  # by whatever teacher
    examples = read_examples(train_file, task, answers=not soft, counts=shard_counts, use=use)[:limit]
    if loss == Loss.kl and (none := sum(e.get("label_probs") == {} for e in examples)):
        say(f"{none:,} of {len(examples):,} records have no answer of the teacher: left out")
        examples = [e for e in examples if e.get("label_probs") != {}]
        shard_counts["without_answer"] = none
    examples = [with_answer(e, task) for e in examples]
    held_out = [e for e in examples if is_held_out(e["id"])]
    train = [e for e in examples if not is_held_out(e["id"])]
    if not train:
        fail(f"{train_file[0]}: only {len(examples)} examples, all of them held out; give more")
    options = {
        "loss": str(loss), "learning_rate": learning_rate, "num_train_epochs": num_train_epochs,
        "per_device_train_batch_size": per_device_train_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "lr_scheduler_type": str(lr_scheduler_type),
        "warmup_ratio": warmup_ratio, "weight_decay": weight_decay, "max_source_length": max_source_length,
        "max_target_length": max_target_length, "seed": seed, "dtype": dtype, "limit": limit,
    }  # fmt: skip
    # Only what this training uses: so a student of before an option was there is still up to date
    options |= {"sce_alpha": sce_alpha, "sce_beta": sce_beta} if loss == Loss.sce else {}
    options |= {"gce_q": gce_q} if loss == Loss.gce else {}
    options |= {"ce_epochs": ce_epochs} if ce_epochs else {}
    options |= {"label_smoothing_factor": label_smoothing_factor} if label_smoothing_factor else {}
    if new_head and family_of(model, task)[1] != "encoder":
        fail(f"--new-head: --model {model} is no encoder, so it has no head of labels; leave the option out")
    options |= {"new_head": True} if new_head else {}
    options |= {"processes of torchrun": number} if number > 1 else {}  # as a name in words: it is no option of ours
    rows = soft_examples(train, task, family_of(model, task)[1]) if loss == Loss.kl else train  # are they all there?
    if dry_run:
        steps = math.ceil(len(rows) / step_batch(options)) * num_train_epochs
        print(
            f"would train {model} on {len(train):,} examples ({len(held_out):,} held out), {steps:,.0f} steps: {options}"
        )
        for e in train[:3]:
            print(f"--- {e['id']}\nsource: {e['source']}\ntarget: {e['target']}")
        return
    inputs = {"task_file": task_file, "model": model, "train_file": train_file}
    if rank:  # the first process has the lock and the say
        if shared_store().get("begin") == b"train":
            train_on(task, model, train, held_out, beside(output_dir, ".partial"), options)
        return
    run = start_run("train_student.py", output_dir, options, inputs, overwrite=overwrite)
    if number > 1:
        shared_store().set("begin", "train" if run else "stop")
    if run is None:
        return

    # Work
    counts, log = train_on(task, model, train, held_out, run.partial, options)
    with (run.partial / "training_log.jsonl").open("w", encoding="utf-8") as file:
        write_records(file, log)
    if held_out:  # for whoever wants to compare students on what none of them was trained on
        with (run.partial / "held_out.jsonl").open("w", encoding="utf-8") as file:
            write_records(file, held_out)
    record = finish_run(run, counts | shard_counts)
    say(
        f"{output_dir}: {counts['train_examples']:,} examples, {counts['steps']:,} steps in {record['seconds']:.0f} s; "
        f"best epoch {counts['best_epoch']}, held-out accuracy {counts['held_out_accuracy']}"
    )


def check_loss_options(loss: Loss, ce_epochs: float, num_train_epochs: float, label_smoothing_factor: float) -> None:
    """Options that would do nothing with this loss are errors of the command line (exit code 2)."""
    if label_smoothing_factor and loss not in (Loss.ce, Loss.sce):
        raise typer.BadParameter(
            f"smooths the labels of ce and sce, --loss {loss} has none to smooth; leave it out",
            param_hint="--label-smoothing-factor",
        )
    if label_smoothing_factor == 1:
        raise typer.BadParameter(
            "at 1 nothing of the label is left; give less, such as 0.1", param_hint="--label-smoothing-factor"
        )
    if ce_epochs and loss not in (Loss.sce, Loss.gce):
        raise typer.BadParameter(
            f"epochs of ce before those of sce or gce, found --loss {loss}; leave it out, or choose one of the two",
            param_hint="--ce-epochs",
        )
    if ce_epochs and ce_epochs >= num_train_epochs:
        raise typer.BadParameter(
            f"{ce_epochs:g} of {num_train_epochs:g} epochs leave none to {loss}; lower it, or raise --num-train-epochs",
            param_hint="--ce-epochs",
        )


def with_answer(example: dict, task: Task) -> dict:
    """The example; where only the teacher has labelled it, teacher_label is its answer."""
    if example.get(task.answer_field) is not None:
        return example
    answer = example.get("teacher_label")
    if not isinstance(answer, str) or not answer.strip() or (task.labels and answer not in task.labels):
        here = f"{example['id']}: neither {task.answer_field!r} nor a teacher_label"
        fail(f"{here}, found {answer!r}; run generate.py label on the file")
    target = string.Template(task.student["target"]).substitute({task.answer_field: answer})
    return example | {task.answer_field: answer, "target": target}


def step_batch(options: dict) -> int:
    """Examples in an optimiser step, of all processes together."""
    return options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] * processes()[1]


def train_on(
    task: Task, model: str, train: list[dict], held_out: list[dict], folder: Path, options: dict
) -> tuple[dict, list]:
    """Fine-tune `model` on `train`, keep the best epoch on `held_out`, save into `folder`; (counts, log records).

    options: those of the command, by name. The held-out accuracy is that of what the student writes, decoded greedily and
    compared by the task's metric, as evaluate.py has it on held_out.jsonl. Of several processes each calls this; the first
    one saves.
    """
    import torch
    from torch.utils.data import Sampler
    from tqdm import tqdm
    from transformers import (
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_pt_utils import get_length_grouped_indices

    rank, number = processes()
    set_seed(options["seed"])
    network, tokenizer, family = load_student(model, task, options["seed"], options.get("new_head", False))
    check_labels(task, tokenizer, model, options["max_target_length"])
    cuda = torch.cuda.is_available()
    if cuda and (local := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > (there := torch.cuda.device_count()):
        fail(f"torchrun: {local} processes for {there} GPUs on this machine; lower --nproc-per-node")
    dtype = options["dtype"]
    if dtype == "auto":
        dtype = "bfloat16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if dtype == "float16" and network.config.model_type in T5_TYPES:
        fail("--dtype float16: T5 overflows in float16 (NaN); use bfloat16 or float32")
    lengths = {k: options[k] for k in ("max_source_length", "max_target_length")}
    lengths["positions"] = positions_of(network, family)
    rows = soft_examples(train, task, family) if options["loss"] == "kl" else train
    data = {
        name: encode(part, tokenizer, family, task, **lengths) for name, part in (("train", rows), ("eval", held_out))
    }
    decoder, targets = family == "decoder", targets_of(task)
    max_new_tokens = answer_length(task, tokenizer, family, options["max_target_length"])
    for feature, row in zip(data["train"], rows, strict=True) if options["loss"] == "kl" else []:
        feature["soft"] = row["soft"]

    def join(features: list[dict]) -> dict:
        """A decoder's batch: prompt and target in one row, padded on the left, so that all targets stand at the end.

        labels (B, T + 1) are the last T + 1 inputs, with -100 where there is no target token: always at their first place,
        which nothing predicts. So Trainer counts right whether or not it leaves the first place out (it does by model).
        """
        rows = [f["input_ids"] + f["labels"] for f in features]
        width, tail = max(map(len, rows)), max(len(f["labels"]) for f in features) + 1
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {
            "input_ids": torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
            "labels": torch.tensor([[-100] * (tail - len(f["labels"])) + f["labels"] for f in features]),
            **({"soft": torch.tensor([f["soft"] for f in features])} if "soft" in features[0] else {}),
        }

    collate = {
        "decoder": join,
        "encoder": DataCollatorWithPadding(tokenizer),
        # It pads labels with -100 and shifts them into decoder_input_ids
        "encoder-decoder": DataCollatorForSeq2Seq(tokenizer, model=network),
    }[family]

    def collate_or_fill(features: list[dict]) -> dict:
        """A batch in which a filler (no feature at all) is the first example of the data with no label, and so no loss."""
        batch = collate([f or data["train"][0] for f in features])
        fillers = torch.tensor([not f for f in features])
        batch["labels"][fillers] = -100
        if "soft" in batch:
            batch["soft"][fillers] = 0
        return batch

    how_much = {k: options[k] for k in ("sce_alpha", "sce_beta", "gce_q", "label_smoothing_factor") if k in options}
    all_together = options["per_device_train_batch_size"] * number  # examples that the processes take at once

    class SharedOrder(Sampler):
        """The order in which one process would take the examples with the batch of all; fillers make the last one whole."""

        def __len__(self):
            return math.ceil(len(rows) / all_together) * all_together

        def __iter__(self):
            # Drawn by each, because Trainer has no place for one; that of the first counts: dropout has set them apart
            drawn = [get_length_grouped_indices([len(f["input_ids"]) for f in data["train"]], step_batch(options))]
            torch.distributed.broadcast_object_list(drawn)
            return iter(drawn[0] + [len(rows)] * (len(self) - len(rows)))

    class StudentTrainer(Trainer):
        """Our own losses: sum over real tokens / their number in the whole step, whatever the batches (DESIGN 12)."""

        def _get_train_sampler(self, train_dataset=None):
            return SharedOrder() if number > 1 else super()._get_train_sampler(train_dataset)

        def floating_point_ops(self, inputs):
            return 0  # nobody reads the count, and it walks through all parameters at every batch

        def losses_of(self, model, inputs):
            labels = inputs["labels"]
            how = {} if family == "encoder" else {"use_cache": False}  # by default one is made, and not read
            # Logits of the last T + 1 positions alone: no (B, L, V) block, which is most of a small decoder's memory
            how |= {"logits_to_keep": labels.shape[1]} if decoder else {}
            outputs = model(**{k: v for k, v in inputs.items() if k not in ("labels", "soft")}, **how)
            # Of the training alone: the held-out tenth is measured by the same loss after every epoch
            ce_first = model.training and self.state.epoch < options.get("ce_epochs", 0)
            logits, labels = aligned(outputs.logits, labels)
            losses = token_losses(
                logits, labels, "ce" if ce_first else options["loss"], soft=inputs.get("soft"), **how_much
            )
            return losses, logits, labels

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # The items are counted over all processes, whose gradients are averaged: so times their number
            total = self.losses_of(model, inputs)[0].sum() * number / num_items_in_batch
            pending.append((self.state.global_step, total.detach()))
            return total

        def answers(self, features, logits, labels):
            """What the student writes for each example, or the target of the class that it chooses."""
            if family == "encoder":
                return [targets[k] for k in logits.argmax(-1).tolist()]
            two, real = logits.float().topk(2), labels != -100
            hit = (two.indices[..., 0] == labels) & (two.values[..., 0] > two.values[..., 1])
            hits = [row[there].tolist() for row, there in zip(hit, real, strict=True)]
            return greedy_texts(self.model, tokenizer, features, hits, max_new_tokens, len(features))

        def measured(self, places, context):
            """[right answers, sum of losses, tokens with a loss] of held-out examples, computed in a context of Trainer's."""
            sums = [0.0, 0.0, 0.0]
            self.model.eval()
            for begin in range(0, len(places), self.args.per_device_eval_batch_size):
                chosen = places[begin : begin + self.args.per_device_eval_batch_size]
                features = [data["eval"][i] for i in chosen]
                with torch.no_grad(), context():
                    losses, logits, labels = self.losses_of(self.model, self._prepare_inputs(collate(features)))
                    texts = self.answers(features, logits, labels)
                right = sum(is_correct(task, text, held_out[i]) for text, i in zip(texts, chosen, strict=True))
                sums = [a + b for a, b in zip(sums, (right, float(losses.sum()), losses.numel()), strict=True)]
            return sums

        def evaluate(self, *args, **kwargs):
            """eval_loss per token, eval_accuracy, and eval_choice, by which the best epoch is kept.

            Each process measures its own share, nothing twice: Trainer would make the batches of all alike with repeats.
            """
            start = time.time()
            # The longest first: examples of like length share a batch, and memory that does not suffice shows at once
            share = sorted(range(len(held_out)), key=lambda i: -len(data["eval"][i]["input_ids"]))[rank::number]
            sums = torch.tensor(
                self.measured(share, self.compute_loss_context_manager), dtype=torch.float64, device=self.args.device
            )
            right, loss, tokens = self.accelerator.reduce(sums, "sum").tolist()
            progress.refuse(self.state.global_step, loss)
            # Few examples, many ties: the later epoch wins them
            accuracy = right / len(held_out)
            found = {"eval_loss": loss / tokens, "eval_accuracy": accuracy}
            found |= {"eval_choice": accuracy + 1e-6 * self.state.epoch, "eval_runtime": round(time.time() - start, 4)}
            self.log(found)
            if rank == 0 and found["eval_choice"] > best.get("eval_choice", -1):
                best.update(found, epoch=self.state.epoch)
                kept.clear()
                if self.state.global_step < self.state.max_steps:  # else they are the last ones, which are at hand
                    kept.update((k, p.detach().to("cpu", copy=True)) for k, p in network.named_parameters())
            return found

    class Log(TrainerCallback):
        """Records instead of prints, and one bar on stderr; an end when a loss is no number."""

        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = tqdm(total=state.max_steps, desc="train", unit="step", disable=not state.is_world_process_zero)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(state.global_step - self.bar.n)
            if not cuda or state.global_step % 20 == 0:  # to look at a loss is to wait for the GPU
                self.look()

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.look()
            finite = {
                k: v if math.isfinite(v) else None for k, v in (logs or {}).items()
            }  # a float16 gradient may overflow
            log.append({"step": state.global_step, "seconds": round(time.time() - began, 2), **finite})
            shown = {k: f"{logs[k]:.3f}" for k in ("loss", "eval_accuracy") if k in logs}
            self.bar.set_postfix(shown, refresh=False)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

        def look(self):
            values = torch.stack([loss for _, loss in pending]).tolist() if pending else []
            for (step, _), value in zip(pending, values, strict=True):
                self.refuse(step, value)
            pending.clear()

        def refuse(self, step, loss):
            if not math.isfinite(loss):
                self.bar.close()
                fail(f"the loss is {loss} at step {step}: lower --learning-rate, or --dtype float32")

    def aligned(logits, labels):
        """A decoder's logits at one position are about the next token: each with the label that it predicts."""
        return (logits[:, :-1], labels[:, 1:]) if decoder else (logits, labels)

    log: list[dict] = []
    pending: list[tuple[int, Any]] = []  # (step, loss) of the batches at which nobody has looked yet
    best: dict[str, float] = {}  # what was measured after the best epoch, and
    kept: dict[str, Any] = {}  # the weights of then, in the host's memory
    progress = Log()
    began = time.time()
    total_steps = math.ceil(len(rows) / step_batch(options)) * options["num_train_epochs"]
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=options["learning_rate"],
        num_train_epochs=options["num_train_epochs"],
        per_device_train_batch_size=options["per_device_train_batch_size"],
        per_device_eval_batch_size=4 * options["per_device_train_batch_size"],
        gradient_accumulation_steps=options["gradient_accumulation_steps"],
        lr_scheduler_type=options["lr_scheduler_type"],
        warmup_steps=int(total_steps * options["warmup_ratio"]),
        weight_decay=options["weight_decay"],
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        use_cpu=not cuda,
        seed=options["seed"],
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if held_out else "no",
        save_strategy="no",
        use_cache=True,  # Trainer writes it into the config, which is saved: "false" would decode in quadratic time
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # it waits for the GPU at every batch
        ddp_find_unused_parameters=False,  # there are none, and to look for them takes time at every step
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
    )
    arguments._n_gpu = 1  # several visible GPUs would make Trainer split batches, and count items by GPU
    trainer = StudentTrainer(
        model=network,
        args=arguments,
        train_dataset=data["train"] + [{}] * (number > 1),  # the filler
        eval_dataset=data["eval"] or None,
        data_collator=collate if number == 1 else collate_or_fill,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model_accepts_loss_kwargs = True  # count the items of a step for every model: compute_loss divides by them
    if rank:
        torch.manual_seed(options["seed"] + rank)  # a dropout of its own; the order of the data is that of the first
    trainer.train()
    if rank == 0:
        with torch.no_grad():
            for name, values in network.named_parameters():
                values.copy_(kept.get(name, values))
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_trained(folder, task, lengths, dtype)
        if best and dtype != "float32":  # near ties fall otherwise in 16 bits; evaluate.py measures in 32
            trainer.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
            best["eval_accuracy"] = trainer.measured(range(len(held_out)), contextlib.nullcontext)[0] / len(held_out)
    counts = {
        "train_examples": len(train),
        **({"soft_targets": len(rows)} if options["loss"] == "kl" else {}),
        "held_out_examples": len(held_out),
        "steps": trainer.state.global_step,
        "best_epoch": best.get("epoch"),
        "held_out_accuracy": round(best["eval_accuracy"], 4) if best else None,
        "family": family,
        "parameters": network.num_parameters(),
        "dtype": dtype,
    }
    return counts, log


if __name__ == "__main__":
    run_together(app)
