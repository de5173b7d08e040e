"""Build the embedded models of the reviews task from nothing: the teacher LLM and the student bases, in minutes on a CPU.

Reads prompts/reviews.toml (the teacher is trained on documents in the very form of its prompts) and the grammar of
data/reviews_grammar.py. Writes data/reviews/models/<name>/ in the Hugging Face format, each with a run record.

    python -m data.build_reviews teacher t5        # what `bash loop.sh` needs; once
    python -m data.build_reviews bert              # an encoder student: STUDENT=data/reviews/models/bert bash loop.sh

teacher   Llama, trained from scratch on documents of several reviews whose topics come in bursts, so that it goes on with
          the topic that it is shown last: without in-context learning no feedback could reach it.
t5, bert  student bases with random weights and tokenizers of their own.
"""

import random
import string
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from data import reviews_grammar as grammar
from records import finish_run, run_command, start_run
from task import Task, load_task, render_prompt

HERE = Path(__file__).parent
TASK_FILE = HERE.parent / "prompts" / "reviews.toml"
EOS = "</s>"
SPECIAL = {
    "teacher": ["<pad>", EOS],
    "t5": ["<pad>", EOS],
    "bert": ["[PAD]", "[CLS]", "[SEP]", "[MASK]"],
}

# How the teacher is taught, found by the share of its reviews that say what was asked: with one label in sight and neither
# negation nor contrast at first it learns in seconds what a label is for; without, often not within two minutes.
PLAIN, SINGLES = (
    0.2,
    0.5,
)  # up to these shares of the steps: plain reviews one by one; all reviews one by one; documents
PEAK = 5e-3  # learning rate

# ---------------------------------------------------------------------------------------------------------------------
# Text


def make_example(rng: random.Random, task: Task, topic: str, plain: bool = False) -> dict:
    """A record of the task, with a label at random."""
    label = rng.choice(list(task.labels))
    return {"review": grammar.make_review(rng, topic, label, plain), "label": label}


def make_document(rng: random.Random, task: Task, burst: float) -> str:
    """A prompt of the training kind (3 of 4) or of the validation kind, with the review that answers it.

    Training: a chain of topics that stay with probability `burst` and else jump by Zipf's law; the answer is the next
    link. It begins anywhere, so that the teacher knows its tail topics as well as a large model would; where a chain goes
    is what the prompts of the loop ask. Validation: two shots, and an answer of a topic that neither of them has.
    """
    begin = rng.choice(list(grammar.TOPICS))
    if rng.random() < 0.75:
        split, topics = "train", grammar.burst_topics(rng, rng.randint(4, 9), burst, begin)
    else:
        shown = [begin, rng.choice(list(grammar.TOPICS))]
        split, topics = "validation", [*shown, grammar.different_topic(rng, shown)]
    *shots, answer = (make_example(rng, task, topic) for topic in topics)
    system, user = render_prompt(task, split, shots, answer["label"])
    return f"{system}\n\n{user} {answer['review']}{EOS}"


def make_single(rng: random.Random, task: Task, plain: bool) -> str:
    """One example alone, of any topic."""
    example = make_example(rng, task, rng.choice(list(grammar.TOPICS)), plain)
    return string.Template(task.prompt["example"]).substitute(example) + EOS


def train_tokenizer(texts: list[str], family: str) -> Any:
    """Byte-level BPE in which the words of the grammar become single tokens; special tokens as the family has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
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
    if family != "teacher":  # a prompt must not end with the end
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ids.items()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def build_teacher(folder: Path, task: Task, seed: int, burst: float, steps: int) -> dict:
    """Train a small Llama from scratch on rendered documents; returns counts for the run record."""
    import torch
    from tqdm import tqdm
    from transformers import LlamaConfig, LlamaForCausalLM

    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([make_document(rng, task, burst) for _ in range(2000)], "teacher")
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
                size, texts = 60, [make_single(rng, task, step < PLAIN * steps) for _ in range(8 * 60)]
            else:
                size, texts = 6, [make_document(rng, task, burst) for _ in range(8 * 6)]
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


def build_student(folder: Path, family: str, task: Task, seed: int) -> dict:
    """A student base with random weights; its tokenizer has seen unlabelled reviews of the same Zipf distribution."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    rng = random.Random(seed)
    torch.manual_seed(seed)
    topics = rng.choices(list(grammar.TOPICS), grammar.zipf_weights(len(grammar.TOPICS)), k=3000)
    reviews = (make_example(rng, task, topic)["review"] for topic in topics)
    texts = [string.Template(task.student["source"]).substitute(review=review) for review in reviews]
    tokenizer = train_tokenizer([*texts, *task.labels], family)
    if family == "t5":
        config = T5Config(
            vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=1, num_heads=4,
            dropout_rate=0.0, feed_forward_proj="relu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
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

Name = StrEnum("Name", ["teacher", "t5", "bert"])
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[Name], typer.Argument(help="What to build.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the models (git-ignored).")] = HERE / "reviews" / "models",
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the teacher.")] = 1800,
    burst: Annotated[
        float, typer.Option(min=0, max=1, help="How often a topic stays (0 = no in-context topic).")
    ] = 0.75,
    seed: Annotated[int, typer.Option(help="Seed of weights and text.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Build anew what is there already.")] = False,
) -> None:
    """Build embedded models of the reviews task."""
    task = load_task(TASK_FILE)
    inputs = {"the task file": TASK_FILE, "the grammar": HERE / "reviews_grammar.py"}
    for name in names:
        options = {"seed": seed} | ({"burst": burst, "steps": steps} if name == "teacher" else {})
        run = start_run(f"build_reviews.py {name}", output_dir / name, options, inputs, overwrite=overwrite)
        if run is None:
            continue
        if name == "teacher":
            counts = build_teacher(run.partial, task, seed, burst, steps)
        else:
            counts = build_student(run.partial, name, task, seed)
        finish_run(run, counts)


if __name__ == "__main__":
    run_command(app)
