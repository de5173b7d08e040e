"""What the tests share: two tiny tasks with data, tiny models with random weights, and two ways to run a stage.

Everything is made here, in a temporary folder: no download, no file of the repository but the scripts themselves.
"""

import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from bench.kill import environment
from bench.stages import TRAIN_OPTIONS
from gold import engine, runs
from gold.command import run_command
from gold.task import load_task

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name of the hub fails at once, wherever the tests run
# Some virtual machines advertise AMX and then refuse its instructions: bfloat16 on such a CPU ends in SIGILL.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

ROOT = Path(__file__).parent.parent
# The slow files, and those that share a run of the loop: one of the two workers begins with these, the other in the middle of
# the tests, and who ends first takes half of what the other has left
FIRST = ("kill", "loop", "slurm", "interrupt", "shards", "engine", "running_text", "prompt_form", "torchrun")

PAIRS = """
name = "pairs"
version = 1
description = "Do both things belong to summer?"
kind = "classification"
metric = "accuracy"
fields = ["first", "second"]
answer_field = "label"
seed_examples = "seed.jsonl"
[labels]
Warm = "both belong to summer"
"not warm" = "one or both belong to winter"
[prompt]
system = "You write pairs of things."
train = '''
$labels

$shots

Another that is $label ($definition):
$start'''
validation = '''
$shots

Another, significantly different:
$start'''
example = '''
Kind: $label
First: $first
Second: $second'''
[parse]
stop = ["\\n\\n"]
min_words = {first = 2}
max_words = {second = 6}
[student]
source = "pair: $first with $second"
target = "$label"
"""

FED_PAIRS = PAIRS.replace(
    "[parse]",
    """feedback = '''
$labels

$shots

Unsure of:

$feedback

$report

Another that is $label ($definition):
$start'''
[parse]""",
)

VARIED = PAIRS.replace("($definition):\n$start", "($definition).\nIt has $attributes.\n\n$start").replace(
    "[parse]",
    """[prompt.attributes]
size = ["two words", "three words"]
where.Warm = ["at sea", "in a park"]
where."not warm" = ["on a hill"]
[parse]""",
)

FLIP = """
name = "flip"
description = "Say the two words the other way round."
kind = "text2text"
metric = "exact_match"
fields = ["text"]
answer_field = "answer"
seed_examples = "flip_seed.jsonl"
[prompt]
train = "$shots\\n\\n$start"
validation = "Something different:\\n\\n$shots\\n\\n$start"
example = '''
Text: $text
Answer: $answer'''
[student]
source = "flip: $text"
target = "$answer"
"""

PLACES = ("beach", "garden", "lake", "roof", "market", "field", "river", "tent")
SUMMER, WINTER = ("sun", "melon", "swim", "picnic", "sandal"), ("snow", "sledge", "scarf", "frost", "stove")


def pair(number: int) -> dict:
    """Example `number` of the pairs task: the label follows from the last word of the second field."""
    warm = number % 2 == 0
    thing = (SUMMER if warm else WINTER)[number // 2 % 5]
    place = PLACES[number // 10 % 8]
    label = "Warm" if warm else "not warm"
    return {"first": f"the {place}", "second": f"{'a big ' if number % 3 else ''}{thing}", "label": label}


def flipped(number: int) -> dict:
    a, b = PLACES[number % 8], SUMMER[number // 8 % 5]
    return {"text": f"{a} {b}", "answer": f"{b} {a}"}


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(script: str, *args: object) -> subprocess.CompletedProcess:
    """Run a script as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, args)], capture_output=True, text=True, check=False, timeout=300
    )


def call(script: str, *args: object) -> subprocess.CompletedProcess:
    """Run a script's command in this process, where torch is loaded already; an exception other than exit escapes."""
    argv, out, err, code = [str(ROOT / script), *map(str, args)], io.StringIO(), io.StringIO(), 0
    app = importlib.import_module(script.removesuffix(".py")).app
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)}
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "orig_argv", [sys.executable, *argv]),
    ):
        try:
            run_command(lambda: app(argv[1:]))
        except SystemExit as end:  # the interpreter would print a text and exit with 1
            code = 1 if isinstance(end.code, str) else end.code or 0
            if isinstance(end.code, str):
                print(end.code, file=err)
    if code == 75:  # the stage goes on in this process, and a frame of the exception may hold its lock
        gc.collect()
    for number, handler in handlers.items():  # the stages set their own, and this process goes on
        signal.signal(number, handler)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def train(home: Path, model: Path, output: Path, *args: object, task: Path | str = "pairs.toml", data="train.jsonl"):
    """train_student.py; task and data are names in home, or paths."""
    files = ("--train-file", home / data, "--output-dir", output)
    return call("train_student.py", "--task-file", home / task, "--model", model, *files, *args)


def evaluate(task: Path, test_file: Path, output: Path, *args: object) -> subprocess.CompletedProcess:
    files = ("--task-file", task, "--test-file", test_file, "--output-dir", output)
    return call("evaluate.py", *files, *args)


def metrics_in(output: Path) -> dict:
    return json.loads((output / "metrics.json").read_text())


def record_of(output: Path) -> dict:
    """The run record beside an output."""
    return json.loads(output.with_name(f"{output.name}.run.json").read_text())


def refusal(function, *args, **options) -> str:
    """The message with which a call ends the stage: one line, as `error: ...`."""
    with pytest.raises(SystemExit) as caught:
        function(*args, **options)
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


# ---------------------------------------------------------------------------------------------------------------------
# Students in this process

OPTIONS = TRAIN_OPTIONS | {
    "learning_rate": 1e-2, "num_train_epochs": 1, "per_device_train_batch_size": 20, "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0, "weight_decay": 0.0, "dtype": "float32",
}  # fmt: skip


def loaded(model: Path, task, source: int = 512, target: int = 128):
    """A student with these lengths."""
    from gold.student import load_student

    student = load_student(str(model), task)
    student.lengths = {"max_source_length": source, "max_target_length": target}
    return student


def encoder_of(tokenizer, **kwargs):
    """How a teacher with this tokenizer gets its prompts."""
    from gold.teacher import Encoder

    return Encoder(tokenizer, "chat" if tokenizer.chat_template else "completion", kwargs, None)


def scores_of(model: Path, task, examples: list[dict], batch_size: int = 64, target: int = 128, **how) -> list[dict]:
    from gold.predict import score_examples

    return score_examples(loaded(model, task, target=target), examples, batch_size, **how)[0]


def fitted(model: Path, task, rows: list[dict], held_out: list[dict], folder: Path, **how):
    """(student, counts, log) of train_student.fit with OPTIONS and `how`; the student is saved as folder."""
    from train_student import add_adapters, fit

    student = loaded(model, task, 64, 16)
    adapters = add_adapters(student, how["lora_rank"]) if "lora_rank" in how else None
    counts, log = fit(student, rows, held_out, folder / "checkpoints", OPTIONS | how)
    student.network = adapters.merge_and_unload() if adapters else student.network
    student.save(folder, counts["dtype"])
    return student, counts, log


def still(model: Path, folder: Path) -> Path:
    """A copy of a model without dropout, which is drawn by batch, and so differs with the batches."""
    shutil.copytree(model, folder)
    off = {"dropout_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = json.loads((folder / "config.json").read_text()) | off
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def loop(folder: Path, models: Path, **env: str) -> subprocess.CompletedProcess:
    """loop.sh with the tiny knobs of bench/kill.py, as a user runs it; stdout and stderr together in stdout."""
    command = ["bash", "loop.sh", "prompts/reviews.toml", str(folder)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, cwd=ROOT, env=environment(models) | env, check=False, **how)


def pytest_collection_modifyitems(items: list) -> None:
    places = {f"test_{name}": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))  # stable: the order within a file stays


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and data


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else vllm's libraries tell at the end what they find alive


@pytest.fixture(autouse=True)
def quick_collections():
    """What is there when a test begins, torch and all, is looked through by no collection: one would take half a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs.toml and flip.toml with their seed examples; train, validation and test files of both."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "pairs.toml").write_text(PAIRS, encoding="utf-8")
    (folder / "flip.toml").write_text(FLIP, encoding="utf-8")
    write_lines(folder / "seed.jsonl", [pair(n) for n in range(4)])
    write_lines(folder / "flip_seed.jsonl", [flipped(n) for n in range(3)])
    ids = [f"pairs-00-train-{n:06d}" for n in range(60)]
    write_lines(folder / "train.jsonl", [{"id": i, **pair(n)} for n, i in enumerate(ids)])
    write_lines(folder / "flip_train.jsonl", [flipped(n) for n in range(40)])
    write_lines(folder / "validation.jsonl", [pair(n) for n in range(60, 84)])
    write_lines(folder / "test.jsonl", [pair(n) | {"group": PLACES[n // 10 % 8]} for n in range(50, 72)])
    return folder


@pytest.fixture(scope="session")
def pairs(home: Path):
    return load_task(home / "pairs.toml")


@pytest.fixture(scope="session")
def flip(home: Path):
    return load_task(home / "flip.toml")


# ---------------------------------------------------------------------------------------------------------------------
# Models


def task_texts() -> list[str]:
    return [" ".join(["pair:", "with", "flip:", *pair(n).values(), *flipped(n).values()]) for n in range(100)]


def make_tokenizer(special: dict[str, str], template: str, newline: bool = False):
    """One token a word of the tasks' vocabulary (and the punctuation by itself), trained here with `tokenizers`.

    newline: a line's end is a token too; else it is nothing, as all white space.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = task_texts()
    tokenizer = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if newline:
        lines = pre_tokenizers.Split("\n", "isolated")
        words = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+|\n"), "removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
        texts.append("\n")
    trainer = trainers.WordLevelTrainer(special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokens = [(token, tokenizer.token_to_id(token)) for token in special.values()]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_bpe():
    """A tokenizer of Qwen2's own class (with a model of that type transformers loads no other) for the tasks' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer.train_from_iterator(task_texts(), trainers.BpeTrainer(vocab_size=400, show_progress=False, **special))
    made = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(vocab=made["vocab"], merges=[tuple(pair) for pair in made["merges"]])


def untie(folder: Path) -> None:
    """An output layer of its own, as FLAN-T5 has it: transformers ties every T5 that it builds, but not one that it loads."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"]) * 0.05
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("scale_decoder_outputs", None)
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models with random weights: t5, t5v11 (gated, untied), bert, modernbert, llama, bos, qwen2.

    llama: its tokenizer ends every text with EOS and knows no newline. bos, a Llama too: BOS but no EOS, a newline, no padding
    token. qwen2: byte-level BPE, end and padding the same token, the output layer tied, a base's sampling settings.
    """
    import torch
    import transformers as hf

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    t5 = make_tokenizer({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}, "$A </s>")
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    bert = make_tokenizer(names | {"mask_token": "[MASK]"}, "[CLS] $A [SEP]")
    causal = make_tokenizer({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "<s> $A", newline=True)
    qwen2 = make_bpe()
    shape = {"vocab_size": len(t5), "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1}
    shape |= {"num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    gated = shape | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    marks = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    heads = {"num_key_value_heads": 4, **small}
    tied = small | {"num_key_value_heads": 2, "tie_word_embeddings": True}
    kinds = {  # name: (class, configuration, tokenizer)
        "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**shape), t5),
        "t5v11": (hf.T5ForConditionalGeneration, hf.T5Config(**gated), t5),
        "bert": (hf.BertForMaskedLM, hf.BertConfig(vocab_size=len(bert), pad_token_id=0, **small), bert),
        "modernbert": (hf.ModernBertForMaskedLM, hf.ModernBertConfig(vocab_size=len(bert), **marks, **small), bert),
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(vocab_size=len(t5), **heads), t5),
        "bos": (hf.LlamaForCausalLM, hf.LlamaConfig(vocab_size=len(causal), **heads), causal),
        "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(vocab_size=len(qwen2), **tied), qwen2),
    }
    for name, (kind, config, tokenizer) in kinds.items():
        model = kind(config)
        if name == "qwen2":
            model.generation_config = hf.GenerationConfig(
                do_sample=True, temperature=3.0, top_p=0.9, repetition_penalty=5.0, eos_token_id=[3, 4, 5], min_new_tokens=4
            )  # fmt: skip
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    untie(folder / "t5v11")
    return {name: folder / name for name in kinds}


TRAINING = ("--num-train-epochs", "30", "--learning-rate", "1e-2", "--per-device-train-batch-size", "20")


@contextlib.contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that both workers see, locked: the first worker makes it, the other one waits for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".making").open("w") as lock:  # not .lock, which is the stage's own
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


class Trained(dict):
    """Students by the name of their model, trained when first asked for; flip and flip_bos learn the flip task."""

    def __init__(self, home: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
        self.home, self.models, self.factory = home, models, tmp_path_factory

    def __missing__(self, name: str) -> Path:
        task, data = ("flip", "flip_train.jsonl") if "flip" in name else ("pairs", "train.jsonl")
        model = self.models[{"flip": "t5", "flip_bos": "bos"}.get(name, name)]
        with made_once(self.factory, f"trained-{name}") as folder:
            if not folder.exists():
                done = train(self.home, model, folder, *TRAINING, task=f"{task}.toml", data=data)
                assert done.returncode == 0, done.stderr
        self[name] = folder
        return folder


@pytest.fixture(scope="session")
def trained(home, models, tmp_path_factory) -> Trained:
    return Trained(home, models, tmp_path_factory)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """The embedded teacher, trained for seconds (it keeps to the form, seldom to the label), and the embedded T5."""
    with made_once(tmp_path_factory, "embedded") as folder:
        if not (folder / "t5.run.json").exists():
            command = [sys.executable, "-m", "data.build_models", "reviews", "teacher", "t5", "--steps", "150"]
            subprocess.run([*command, "--output-dir", str(folder)], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def small_teacher(embedded):
    return embedded / "teacher"


@pytest.fixture(scope="session")
def finished(tmp_path_factory, embedded):
    """A tiny run that nobody interrupted: (folder, what its stages printed). Both workers read it: run on copies.

    The lines of loop.sh, in its order; in this process, where torch is loaded already, but for those that start vLLM.
    """
    with made_once(tmp_path_factory, "finished") as folder:
        printed = folder.with_suffix(".txt")
        if not printed.exists():
            said, dry = "", loop(folder, embedded, PYTHON="true")  # each stage does nothing and goes well
            for line in dry.stdout.splitlines():
                script, *words = line.removeprefix("+ ").split()
                with mock.patch.dict(os.environ, STRATEGY="gold"):
                    done = (run if script in ("generate.py", "label.py") else call)(script, *words)
                assert done.returncode == 0, done.stderr
                said += f"{line}\n{done.stdout}{done.stderr}"
            printed.write_text(said)
    return folder, printed.read_text()


def copy_of(finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def command_of(finished, copy: Path, output: str) -> tuple[str, list[str]]:
    """The script and the words of the command that made an output, of which there is a copy now."""
    script, *words = shlex.split(json.loads((copy / f"{output}.run.json").read_text())["command"])
    return Path(script).name, [word.replace(str(finished[0]), str(copy)) for word in words]


def one_error(printed: str, *told: str) -> None:
    """One line says what is wrong, and there is no traceback."""
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in printed, printed[-3000:]
    assert all(text in errors[0] for text in told), errors[0]


# ---------------------------------------------------------------------------------------------------------------------
# generate.py with a scripted engine


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def scripted(answer):
    """A stand-in for vLLM.LLM: answer(seed) -> (text, finish reason). It ends the requests last in, first out."""
    unfinished = []

    def add_request(identifier, prompt, params):
        text, finish_reason = answer(params.seed)
        shares = None if params.logprobs is None else [{5: SimpleNamespace(logprob=-float(k))} for k in (1, 2, 6)]
        completion = SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=[5, 6, 7], logprobs=shares)
        output = {"prompt_token_ids": prompt["prompt_token_ids"], "num_cached_tokens": 0, "outputs": [completion]}
        unfinished.append(SimpleNamespace(request_id=identifier, **output))

    inner = SimpleNamespace(add_request=add_request, step=lambda: [unfinished.pop()])
    return SimpleNamespace(llm_engine=inner, reset_prefix_cache=lambda: None)


def by_seed(seed: int) -> tuple[str, str]:
    """A completion by chance: one in four is no example at all, the others come of 2 * 8 * 10."""
    rng = random.Random(seed)
    if rng.random() < 0.25:
        return "I would rather not.", "stop"
    return f" {rng.choice(['the', 'a'])} {rng.choice(PLACES)}\nSecond: {rng.choice(SUMMER + WINTER)}", "stop"


@pytest.fixture
def command(home, models, tmp_path, monkeypatch):
    """generate.py by its command line: 6 examples, 4 for validation."""

    def command(*args, folder="iter-00", answer=by_seed, llm=None):
        monkeypatch.setattr(engine, "start_llm", lambda *args, **options: llm or scripted(answer))
        monkeypatch.setattr(runs, "git_state", lambda: {"git_commit": "x"})  # two processes less
        gc.collect()  # the lock of a run that was killed
        return call(
            "generate.py", "--task-file", home / "pairs.toml", "--model", models["llama"],
            "--output-dir", tmp_path / folder, "--num-examples", 6, "--num-validation", 4, *args,
        )  # fmt: skip

    return command
