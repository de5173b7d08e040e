"""The student: an encoder-decoder (T5), an encoder with a classification head (BERT) or a decoder-only model (Llama).

student = load_student(model, task, seed=0)                           to be trained
student = load_trained(model, task, lengths_of(model), "float32")     to be measured, with the lengths of its training
features = student.encode(examples)                                   input_ids, attention_mask, labels
student.save(folder, dtype="float32")
"""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from gold.command import fail, option_name, say
from gold.disk import read_json, write_json
from gold.encoding import encode_sources, encode_targets
from gold.model_folder import check_model_folder, refuse_model
from gold.task import Task
from gold.text import exact_form

T5_TYPES = ("t5", "mt5", "umt5", "longt5")  # encoder-decoders whose output layer can be taken off
# What a config says of its model changing the logits after the output layer (Gemma 2, Cohere, Granite, Falcon-H1)
AFTER_HEAD = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")
OTHER_CODE = "choose one that transformers knows, such as a T5, a BERT or a Llama"
TRAINED = "gold.json"  # beside the weights: what the student was trained with
BASE_LENGTHS = {"max_source_length": 512, "max_target_length": 128}  # tokens: of a base model that has no such file

MaxSourceLength = Annotated[int | None, typer.Option(min=1, help="Tokens read (as it was trained; 512 of a base).")]
MaxTargetLength = Annotated[int | None, typer.Option(min=1, help="Tokens written (as it was trained; 128 of a base).")]


@dataclass
class Student:
    """A model with its tokenizer. Lengths are in tokens; positions: how many the model holds, None = no known bound."""

    network: Any
    tokenizer: Any
    family: str  # encoder-decoder | encoder | decoder
    task: Task
    positions: int | None
    lengths: dict[str, int] = field(default_factory=lambda: dict(BASE_LENGTHS))

    def encode(self, examples: list[dict]) -> list[dict]:
        """Features by example: input_ids, attention_mask, labels (target ids with EOS, or an encoder's class id).

        What is longer than the lengths is cut, a source in its longest field. That is said, and what cannot be read.
        """
        if not examples:
            return []
        sources = encode_sources(examples, self.tokenizer, self.family, self.task, self.lengths, self.positions)
        if self.family == "encoder":
            names = list(self.task.labels)
            labels: list[Any] = [names.index(e[self.task.answer_field]) for e in examples]
        else:
            limit = self.lengths["max_target_length"]
            labels = encode_targets([e["target"] for e in examples], self.tokenizer, self.family, limit)
        return [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
            for ids, label in zip(sources, labels, strict=True)
        ]

    @property
    def max_new_tokens(self) -> int:
        """How many tokens it may write: no more than the longest label has, since what goes on longer is no label."""
        if self.family == "encoder":
            return 0
        limit = self.lengths["max_target_length"]
        labels = [] if self.task.target_has_reasons else self.label_ids()  # reasons are as long as they are
        return min(limit, max(map(len, labels), default=limit))

    def label_ids(self) -> list[list[int]]:
        return encode_targets(self.task.targets, self.tokenizer, self.family)

    def save(self, folder: Path, dtype: str) -> None:
        """Weights, tokenizer, and gold.json: lengths, dtype of the computations and templates of the training."""
        self.network.config.use_cache = True  # Trainer turns it off, and saves that
        if self.family != "encoder":  # for other programs: our own stages say it at every call
            self.network.generation_config.update(do_sample=False, max_new_tokens=self.max_new_tokens)
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        templates = {"source": self.task.student.source, "target": self.task.student.target}
        write_json(folder / TRAINED, {**self.lengths, "dtype": dtype, **templates})


def read_config(model: str) -> Any:
    """The config of a folder or hub name; ends the stage (exit 1) where there is none."""
    from transformers import AutoConfig, logging

    logging.set_verbosity_error()
    check_model_folder(model)
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # broken files make transformers raise many kinds
        refuse_model(model, "no student there", error, OTHER_CODE)


def family_of(model: str, task: Task) -> str:
    """encoder-decoder | encoder | decoder, by the config alone; ends the stage where task or our code cannot use it."""
    from transformers.models.auto import modeling_auto as auto

    config = read_config(model)
    kind = config.model_type
    if config.is_encoder_decoder:
        if kind in T5_TYPES:
            return "encoder-decoder"
        fail(f"--model {model}: {kind} is an encoder-decoder other than T5; choose a T5, an encoder or a decoder")
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # before the decoders: BERT has a class of theirs too
        if task.labels and task.teaches_reasons:
            cure = f"use a T5 or a decoder, or leave ${task.rationale_field} and [student.rationale] out"
            fail(f"--model {model}: an encoder ({kind}) writes no reasons, and {task.path} asks for them; {cure}")
        if task.labels:
            return "encoder"
        fail(f"--model {model}: an encoder ({kind}) chooses among labels, {task.path} has none; use a T5 or a decoder")
    if kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        fail(f"--model {model}: {kind} is none of encoder-decoder (T5), encoder (BERT), decoder (Llama)")
    for key in AFTER_HEAD:
        if (value := getattr(config.get_text_config(), key, None)) not in (None, 1):
            problem = f"{kind} changes the logits after its output layer ({key} {value}), which is not supported"
            fail(f"--model {model}: {problem}; choose a model without, such as Llama or Qwen2")
    return "decoder"


def load_student(model: str, task: Task, seed: int = 0, new_head: bool = False) -> Student:
    """A student in evaluation mode, in float32.

    A base encoder gets a classification head, drawn with `seed`, in the order of the task's labels; a trained one must
    have these, or gets one with `new_head`. Without a padding token the end token pads: masks and labels go by lengths.
    Ends the stage (exit 1) where nothing can be loaded, or tokenizer, model and task do not fit together.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, logging

    family = family_of(model, task)
    if new_head and family != "encoder":
        fail(f"--new-head: --model {model} is no encoder, so it has no head of labels; leave the option out")
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        # float32: bfloat16 by autocast only. Mismatched sizes are refused below, with both shapes
        how = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
        if family == "encoder":
            network, loaded = load_encoder(model, task, new_head, how)
        else:
            auto = AutoModelForCausalLM if family == "decoder" else AutoModelForSeq2SeqLM
            network, loaded = auto.from_pretrained(model, **how)
    except Exception as error:  # broken files make transformers raise many kinds
        refuse_model(model, "no student there", error, OTHER_CODE)
    for name, found, wanted in sorted(loaded["mismatched_keys"], key=str):
        problem = f"{name} has the shape {tuple(found)}, the config asks for {tuple(wanted)}"
        fail(f"--model {model}: its weights are not those of its config.json: {problem}; save both from one model")
    check_tokenizer(model, tokenizer, network, family)
    if family == "decoder":
        takes = {"logits_to_keep", "position_ids"} <= set(inspect.signature(network.forward).parameters)
        if not takes or not isinstance(getattr(network, "lm_head", None), torch.nn.Linear):
            kind = network.config.model_type
            fail(f"--model {model}: {kind} is built unlike Llama and Qwen2, which a decoder-only student must be")
    if family != "encoder":
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = tokenizer.pad_token_id
        decode_plainly(network, tokenizer)
    return Student(network.eval(), tokenizer, family, task, positions_of(network, family))


def load_encoder(model: str, task: Task, new_head: bool, how: dict) -> tuple[Any, dict]:
    """(an encoder whose head has the task's labels, loading info). how: of from_pretrained."""
    from transformers import AutoModelForSequenceClassification as Auto

    config, labels = read_config(model), list(task.labels)
    trained = "SequenceClassification" in "".join(config.architectures or [])
    if trained and not new_head and [config.id2label[i] for i in range(config.num_labels)] != labels:
        problem = f"has the labels {list(config.id2label.values())}, {task.path} has {labels}"
        fail(f"--model {model}: {problem}; train_student.py --new-head keeps all but its head and draws a new one")
    id2label, label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    if not trained or not new_head:
        return Auto.from_pretrained(model, num_labels=len(labels), id2label=id2label, label2id=label2id, **how)
    old, loaded = Auto.from_pretrained(model, **how)
    # In place: num_labels alone would leave the old names in label2id
    config.id2label, config.label2id, config.problem_type = id2label, label2id, None
    network = Auto.from_config(config, dtype=how["dtype"])
    network.base_model.load_state_dict(old.base_model.state_dict())
    return network, loaded


def check_tokenizer(model: str, tokenizer: Any, network: Any, family: str) -> None:
    """transformers makes up a tokenizer without a word where its files are missing."""
    vocabulary, known = tokenizer.get_vocab(), network.get_input_embeddings().num_embeddings
    if len(set(vocabulary) - set(tokenizer.all_special_tokens)) < 2:
        fail(f"--model {model}: its tokenizer knows no words (are its files missing?); save it with the model")
    if (last := max(vocabulary.values())) >= known:
        fail(f"--model {model}: its tokenizer has a token {last:,}, the model only {known:,} tokens; save a pair")
    if family != "encoder" and tokenizer.eos_token_id is None:
        fail(f"--model {model}: its tokenizer has no end token, so no answer would end; set eos_token and save it")


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


def positions_of(network: Any, family: str) -> int | None:
    """How many tokens the model can hold; None = no bound that the config knows of (T5's positions are relative)."""
    import torch

    if family == "encoder-decoder":
        return None
    for name, module in network.named_modules():  # RoBERTa counts from padding_idx + 1: of its 514 positions 512 serve
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding) and module.padding_idx:
            return module.num_embeddings - module.padding_idx - 1
    return getattr(network.config.get_text_config(), "max_position_embeddings", None)


def check_labels(student: Student, model: str) -> None:
    """Ends the stage (exit 1) where a student that writes could never be right about a label of the task."""
    if student.family == "encoder":
        return
    limit, labels = student.lengths["max_target_length"], student.task.labels
    for name, target, ids in zip(labels, student.task.targets, student.label_ids(), strict=True):
        if (size := len(ids)) > limit:
            fail(f"--max-target-length {limit}: the label {name!r} takes {size} tokens, its end included; give {size}")
        text = exact_form(student.tokenizer.decode(ids, skip_special_tokens=True))
        if text != exact_form(target):
            cure = "rename the label in the task file and the data, or choose a student that can write it"
            fail(f"--model {model}: its tokens write {text!r} for {target!r}, the label {name!r}; {cure}")


# ---------------------------------------------------------------------------------------------------------------------
# What it was trained with


def lengths_of(
    model: str, max_source_length: int | None = None, max_target_length: int | None = None
) -> dict[str, int]:
    """The lengths to measure a student with: as given, else as it was trained. Where these differ, it is said."""
    trained, lengths = read_trained(model), {}
    for name, given in (("max_source_length", max_source_length), ("max_target_length", max_target_length)):
        lengths[name] = given or trained.get(name, BASE_LENGTHS[name])
        if trained and lengths[name] != trained[name]:
            say(f"{option_name(name)} {given}: {model} was trained with {trained[name]}")
    return lengths


def load_trained(model: str, task: Task, lengths: dict[str, int], dtype: str) -> Student:
    """A student to be measured, on the GPU if there is one, its weights in `dtype`; other templates than those of its
    training are said."""
    import torch

    trained, student = read_trained(model), load_student(model, task)
    student.lengths = lengths
    for name in ("source", "target"):
        if (template := getattr(task.student, name)) != trained.get(name, template):
            say(f"{task.path}: student.{name} is {template!r}: {model} was trained with {trained[name]!r}")
    student.network.to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype))
    return student


def read_trained(model: str) -> dict[str, Any]:
    """What stands in a student's gold.json; {} for a model without it."""
    check_model_folder(model)
    path = Path(model, TRAINED)
    if not Path(model).is_dir():  # of the hub; importing transformers takes seconds, too long for "up to date"
        from transformers.utils import cached_file

        kinds = ("missing_entries", "connection_errors", "gated_repo")
        path = Path(cached_file(model, TRAINED, **{f"_raise_exceptions_for_{kind}": False for kind in kinds}) or path)
    trained = read_json(path)
    if trained and not all(type(n := trained.get(name)) is int and n > 0 for name in BASE_LENGTHS):
        fail(f"{path}: must hold the lengths {' and '.join(BASE_LENGTHS)} of the training; train the student again")
    return trained
