"""Build the embedded models of a task from nothing: the teacher LLM and the student bases, in minutes on a CPU.

Reads prompts/<task>.toml (the teacher is trained on documents in the very form of its prompts) and the grammar
data/<task>_grammar.py. Writes data/<task>/models/<name>/ in the Hugging Face format, each with a run record.

    python -m data.build_models reviews teacher t5         # what `bash loop.sh` needs; once
    python -m data.build_models reviews bert llama         # students of the other families: STUDENT=data/reviews/models/bert
    python -m data.build_models word_problems teacher t5   # what `bash loop.sh prompts/word_problems.toml` needs
    python -m data.build_models word_problems_reasons teacher t5      # and STRATEGY=rationales: their teacher writes reasons

    python -m data.build_models reviews teacher --label-noise 0.25 --output-dir runs/noisy    # learns from wrong answers too

teacher   Llama, trained from scratch on documents of several examples whose topics come in bursts, so that it goes on with
          the topic that it is shown last: without in-context learning no feedback could reach it.
t5, bert, llama  student bases with random weights and tokenizers of their own: one of each family.
"""

import importlib
import random
import string
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import typer

from data.zipf import burst_topics, draw_topic
from gold.command import new_app, run_command
from gold.prompts import render_prompt, split_example
from gold.runs import finish_run, start_run
from gold.task import Task, load_task

HERE = Path(__file__).parent
EOS = "</s>"
SPECIAL = {
    "teacher": ["<pad>", EOS],
    "t5": ["<pad>", EOS],
    "llama": ["<pad>", EOS],
    "bert": ["[PAD]", "[CLS]", "[SEP]", "[MASK]"],
}

# A grammar is a module with WEIGHTS, the topics of the task with their frequency, make_example(rng, topic, plain), which
# draws a record of the task (plain: of the simplest kind), corrupt(example), the same with a wrong answer, and
# TEACHER_STEPS.

# How the teacher is taught, tuned on the share of reviews that say what was asked: with one label in sight and neither
# negation nor contrast at first it learns in seconds what a label is for; without, often not within two minutes.
# Up to these shares of the steps: plain examples one by one; all examples one by one. After them documents.
PLAIN, SINGLES = 0.2, 0.5
PEAK = 5e-3  # learning rate

# ---------------------------------------------------------------------------------------------------------------------
# Text


def make_noisy(rng: random.Random, grammar: ModuleType, topic: str, noise: float) -> dict[str, str]:
    """An example of the topic, with probability `noise` under a wrong answer."""
    example = grammar.make_example(rng, topic)
    return grammar.corrupt(example) if noise and rng.random() < noise else example


def make_document(rng: random.Random, task: Task, grammar: ModuleType, burst: float, noise: float = 0.0) -> str:
    """A prompt of the training kind (3 of 4) or of the validation kind, with the example that answers it.

    Training: a chain of topics that stay with probability `burst` and else jump by Zipf's law; the answer is the next
    link. It begins anywhere, so that the teacher knows its tail topics as well as a large model would; where a chain goes
    is what the prompts of the loop ask. Validation: two shots, and an answer of a topic that neither of them has.
    """
    begin = rng.choice(list(grammar.WEIGHTS))
    if rng.random() < 0.75:
        split, topics = "train", burst_topics(rng, grammar.WEIGHTS, rng.randint(4, 9), burst, begin)
    else:
        shown = [begin, rng.choice(list(grammar.WEIGHTS))]
        split, topics = "validation", [*shown, draw_topic(rng, grammar.WEIGHTS, shown)]
    *shots, answer = (make_noisy(rng, grammar, topic, noise) for topic in topics)
    label = answer[task.answer_field] if task.labels else None
    system, user = render_prompt(task, split, shots, label)
    start, _ = split_example(task.prompt.example, {task.answer_field: label} if task.labels else {})
    rest = string.Template(task.prompt.example).substitute(answer).removeprefix(start)
    return f"{system}\n\n{user}{rest}{EOS}"


def make_single(rng: random.Random, task: Task, grammar: ModuleType, plain: bool, noise: float = 0.0) -> str:
    """One example alone, of any topic; a plain one, by which the teacher finds out what an answer is, has no noise."""
    topic = rng.choice(list(grammar.WEIGHTS))
    example = grammar.make_example(rng, topic, True) if plain else make_noisy(rng, grammar, topic, noise)
    return string.Template(task.prompt.example).substitute(example) + EOS


def train_tokenizer(texts: list[str], family: str, prefix_space: bool = False) -> Any:
    """Byte-level BPE in which the words of the grammar become single tokens; special tokens as the family has them.

    prefix_space: a word at the beginning of a text is the token that it is elsewhere.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    special = SPECIAL[family]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    ids = {token: i for i, token in enumerate(special)}
    if family == "bert":
        template = "[CLS] $A [SEP]"
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    else:
        template = f"$A {EOS}"
        names = {"pad_token": "<pad>", "eos_token": EOS}
    if family not in ("teacher", "llama"):  # a prompt must not end with the end
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ids.items()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def build_teacher(
    folder: Path, task: Task, grammar: ModuleType, seed: int, burst: float, steps: int, noise: float = 0.0
) -> dict:
    """Train a small Llama from scratch on rendered documents; returns counts for the run record."""
    import torch
    from tqdm import tqdm
    from transformers import LlamaConfig, LlamaForCausalLM

    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([make_document(rng, task, grammar, burst) for _ in range(2000)], "teacher")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        initializer_range=0.06,  # with the usual 0.02 the labels take twice as long
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / 40, (1 - s / steps) / 0.6))
    groups: list[list[str]] = []
    tokens = 0
    for step in (bar := tqdm(range(steps), desc="teacher", unit="step")):
        if not groups:  # eight batches at a time, so that texts of one length can share a batch
            if step < SINGLES * steps:
                size, texts = 60, [make_single(rng, task, grammar, step < PLAIN * steps, noise) for _ in range(8 * 60)]
            else:
                size, texts = 6, [make_document(rng, task, grammar, burst, noise) for _ in range(8 * 6)]
            texts.sort(key=len)
            groups = [texts[i : i + size] for i in range(0, len(texts), size)]
            rng.shuffle(groups)
        batch = tokenizer(groups.pop(), padding=True, return_tensors="pt", return_token_type_ids=False)
        loss = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += int(batch["attention_mask"].sum())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", tokens=f"{tokens:,}", refresh=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters(), "steps": steps, "tokens": tokens, "final_loss": round(loss.item(), 4)}


def build_student(folder: Path, family: str, task: Task, grammar: ModuleType, seed: int) -> dict:
    """A student base with random weights; its tokenizer has seen texts of the task, topics by Zipf's law."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    rng = random.Random(seed)
    torch.manual_seed(seed)
    topics = rng.choices(list(grammar.WEIGHTS), list(grammar.WEIGHTS.values()), k=3000)
    examples = [grammar.make_example(rng, topic) for topic in topics]
    lessons = [task.student, *filter(None, [task.student.rationale])]
    sources, targets = (
        [string.Template(getattr(lesson, side)).substitute(example) for lesson in lessons for example in examples]
        for side in ("source", "target")
    )
    # Where answers are made of the words of the text, a word is one token in both
    tokenizer = train_tokenizer([*sources, *(task.labels or targets)], family, prefix_space=not task.labels)
    if family == "t5":
        config = T5Config(
            vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=1, num_heads=4,
            dropout_rate=0.0, feed_forward_proj="relu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    elif family == "llama":
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
            max_position_embeddings=256, pad_token_id=0,
        )  # fmt: skip
        model = BertForMaskedLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters()}


# ---------------------------------------------------------------------------------------------------------------------
# Command

TaskName = Literal["reviews", "word_problems", "word_problems_reasons"]
Name = StrEnum("Name", ["teacher", "t5", "bert", "llama"])  # typer takes no list of a Literal
app = new_app()


@app.command()
def main(
    task_name: Annotated[TaskName, typer.Argument(help="Task to build for.", metavar="TASK")],
    names: Annotated[list[Name], typer.Argument(help="What to build.")],
    output_dir: Annotated[Path | None, typer.Option(help="Folder of the models (data/TASK/models).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of the teacher (the task's own).")] = None,
    burst: Annotated[
        float, typer.Option(min=0, max=1, help="How often a topic stays (0 = no in-context topic).")
    ] = 0.75,
    label_noise: Annotated[
        float, typer.Option(min=0, max=1, help="Share of wrong answers in what the teacher learns from.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of weights and text.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Build anew what is there already.")] = False,
) -> None:
    """Build embedded models of a task."""
    task_file = HERE.parent / "prompts" / f"{task_name}.toml"
    grammar_name = f"{task_name.removesuffix('_reasons')}_grammar"  # it writes the reasons too
    task, grammar = load_task(task_file), importlib.import_module(f"data.{grammar_name}")
    if "bert" in names and not task.labels:
        raise typer.BadParameter(f"bert: an encoder chooses among labels, {task_name} has none; build t5")
    output_dir, steps = output_dir or HERE / task_name / "models", steps or grammar.TEACHER_STEPS
    inputs = {"task_file": task_file, "grammar": HERE / f"{grammar_name}.py", "topics": HERE / "zipf.py"}
    for name in names:
        options = inputs | {"seed": seed}
        options |= {"burst": burst, "steps": steps, "label_noise": label_noise} if name == "teacher" else {}
        stage = f"build_models.py {task_name} {name}"
        run = start_run(stage, output_dir / name, options, list(inputs), overwrite=overwrite)
        if run is None:
            continue
        if name == "teacher":
            counts = build_teacher(run.partial, task, grammar, seed, burst, steps, label_noise)
        else:
            counts = build_student(run.partial, name, task, grammar, seed)
        finish_run(run, counts)


if __name__ == "__main__":
    run_command(app)
