"""The teacher: a causal LLM in vLLM's offline engine, or behind a server (gold/server.py).

encoder = open_encoder(options, task)                             prompts -> token ids; for a server texts
engine = open_engine(options, encoder, 1024, StopSignals())       see gold/engine.py
"""

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gold.command import Dtype, fail, files, option_name, say
from gold.control_tokens import broken_up
from gold.engine import Engine
from gold.engines import Engines
from gold.model_folder import check_model_folder, refuse_model
from gold.prompts import Prompt
from gold.reasoning import reasoning_parser
from gold.runs import Run
from gold.server import Server
from gold.stopping import StopSignals
from gold.task import Task

# Parameters: below it a list of examples does better than instructions (SmolLM2-135M; larger ones: unmeasured)
SMALL = 10**9
MAX_CACHED = 8192  # encoded prompts: without feedback the same ones come again

# Options of generate.py and label.py

OF_ENGINE = {  # options that a server has its own values of, and their defaults
    "max_model_len": None, "gpu_memory_utilization": 0.9, "tensor_parallel_size": 1, "data_parallel_size": 1, "dtype": "auto",
    "engine_args": "{}", "lora": None, "trust_remote_code": False, "reasoning_parser": None,
}  # fmt: skip
ENGINE_OPTIONS = ["max_model_len", "gpu_memory_utilization", "tensor_parallel_size", "data_parallel_size", "server_url"]
ENGINE_OPTIONS += ["num_concurrent"]
engine = partial(typer.Option, rich_help_panel="Engine (not compared on resume)")
prompting = partial(typer.Option, rich_help_panel="Sampling")
TrustRemoteCode = Annotated[bool, files(help="Run Python code that comes with the teacher: read it first.")]
Form = Literal["auto", "chat", "completion"]
PromptForm = Annotated[
    Form,
    prompting(help="chat = by the chat template; completion = the list form, for base models and small ones."),
]
Calibrate = Annotated[
    bool | None, prompting(help="Labels: divide out what the prompt makes likely without a text (in a list form).")
]
ChatTemplateKwargs = Annotated[str, prompting(help="""JSON, such as '{"enable_thinking": false}'.""")]
EngineDtype = Annotated[Dtype, prompting(help="auto = float32 on a CPU, else the model's own.")]
MaxModelLen = Annotated[int | None, engine(min=1, help="Context in tokens (the longest prompt and what it asks for).")]
GpuMemoryUtilization = Annotated[float, engine(min=0.05, max=1, help="Share of the GPU's memory to take.")]
TensorParallelSize = Annotated[int, engine(min=1, help="GPUs that hold one model together.")]
DataParallelSize = Annotated[int, engine(min=1, help="Engines side by side, each with its own GPUs or cores.")]
EngineArgs = Annotated[str, prompting(help="""More of vLLM's engine, as JSON: '{"quantization": "fp8"}'.""")]
Lora = Annotated[Path | None, files(help="LoRA adapter of the teacher, a folder.")]
ServerUrl = Annotated[str | None, engine(help="Ask --model there: http://host:port/v1; key in OPENAI_API_KEY.")]
NumConcurrent = Annotated[int, engine(min=1, help="Requests under way to the server.")]


def check_teacher(options: dict) -> None:
    """Refuse teacher options that are wrong by themselves or do not go together (exit code 2, or 1 for a file)."""
    read_template_kwargs(options["chat_template_kwargs"], options["prompt_form"])
    given = json_object(options["engine_args"], "--engine-args", "is a JSON object of arguments of vLLM's engine")
    if own := [name for name in ("model", *OF_ENGINE) if name in given]:
        raise typer.BadParameter(f"{own[0]} has an option of its own", param_hint="--engine-args")
    if options["lora"] and not (options["lora"] / "adapter_config.json").exists():
        fail(f"--lora {options['lora']}: no adapter_config.json in it; give the folder that peft saved")
    if not (url := options["server_url"]):
        return
    good = re.fullmatch(r"https?://(?:\[[\da-fA-F:]+\]|[^\s/@?#:]+)(?::(\d{1,5}))?(?:/[^\s@?#]*)?", url)
    if not good or not 0 < int(good[1] or 80) < 2**16:
        raise typer.BadParameter("is http://host:port/v1, without a key or password", param_hint="--server-url")
    for name, default in OF_ENGINE.items():
        if options.get(name, default) != default:
            raise typer.BadParameter("is the server's own affair: leave it out", param_hint=option_name(name))


def teacher_files(options: dict) -> list[str]:
    """The options of the teacher whose files' content is compared; a server's model is a name."""
    return ["lora"] if options["server_url"] else ["model", "lora"]


def read_template_kwargs(text: str, prompt_form: str) -> dict:
    """The value of --chat-template-kwargs; a bad one is a bad option (exit code 2)."""
    hint, told = "--chat-template-kwargs", "is for the chat form, and is a JSON object"
    value = json_object(text, hint, told)
    if value and prompt_form == "completion":
        raise typer.BadParameter(told, param_hint=hint)
    return value


def json_object(text: str, option: str, told: str) -> dict:
    """The JSON object in an option; another value is a bad option (exit code 2), which is told so."""
    with contextlib.suppress(ValueError):
        if isinstance(value := json.loads(text), dict):
            return value
    raise typer.BadParameter(told, param_hint=option)


@dataclass
class Encoder:
    """A teacher's tokenizer, and the form in which it gets prompts."""

    tokenizer: Any
    form: str  # chat: by the tokenizer's chat template. completion: system text, blank line, user text
    chat_template_kwargs: dict
    context: int | None  # tokens that the model holds; None: its config does not say
    parser: Any = None  # vLLM's parser of the teacher's thoughts, where one is asked for
    remote: bool = False  # behind a server; tokenizer is None then where the model is not on this machine
    cache: dict[Prompt, list[int]] = field(default_factory=dict)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts, in one call of the tokenizer: one by one would be most of our own time. Remote: texts."""
        if self.remote:
            return [Prompt(*map(self.plain, prompt)) for prompt in prompts]
        if len(self.cache) > MAX_CACHED:
            self.cache.clear()
        if unseen := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]:
            self.cache.update(zip(unseen, self.token_ids(self.frame(unseen)), strict=True))
        return [self.cache[prompt] for prompt in prompts]

    def frame(self, prompts: Sequence[Prompt]) -> list[str]:
        """Prompts as one text each. Control tokens that people's texts spell out are broken up: the frame alone has any."""
        plain = [Prompt(*map(self.plain, prompt)) for prompt in prompts]
        return [self.in_chat(p) if self.form == "chat" else "\n\n".join(filter(None, p)) for p in plain]

    def plain(self, text: str) -> str:
        return broken_up(self.tokenizer, text) if self.tokenizer else text

    def shown(self, prompt: Prompt) -> str:
        """The prompt as the teacher gets it, for --dry-run; with its length where that is known."""
        [ids] = self.encode([prompt])
        if self.remote:
            return "as text\n" + "\n\n".join(filter(None, ids))
        return f"{len(ids)} tokens\n{self.tokenizer.decode(ids)}"

    @property
    def no_answer(self) -> str:
        """The reason where a record gets no answer."""
        return "engine_error" if self.remote else "prompt_too_long"

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of framed texts. A chat template writes its own BOS; a plain text gets the tokenizer's, but no EOS at its end."""
        chat = self.form == "chat"
        ids = self.tokenizer(list(texts), add_special_tokens=not chat)["input_ids"] if texts else []
        if chat or self.tokenizer("a")["input_ids"][-1:] != [self.tokenizer.eos_token_id]:
            return ids
        return [row[:-1] for row in ids]

    def in_chat(self, prompt: Prompt) -> str:
        """The prompt in the chat template; where that has no system role, the system text begins the user turn."""
        from jinja2 import TemplateError

        system, user = prompt
        both = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        alone = [{"role": "user", "content": f"{system}\n\n{user}" if system else user}]
        how = {"tokenize": False, "add_generation_prompt": True, **self.chat_template_kwargs}
        for messages in (both, alone) if system else (alone,):
            with contextlib.suppress(TemplateError):
                text = self.tokenizer.apply_chat_template(messages, **how)
                if system.strip() in text:  # some templates silently drop a system turn
                    return text
        fail("--model: its chat template takes neither a system turn nor a user turn; give --prompt-form completion")


def load_encoder(
    model: str, task: Task, prompt_form: str, chat_template_kwargs: dict, trust_remote_code: bool, parser: str | None = None
) -> Encoder:  # fmt: skip
    """The teacher's tokenizer. Ends the stage (exit 1) for a model that writes no text by itself.

    prompt_form auto: chat where there is a chat template; but a model below SMALL parameters gets the task's [completion].
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    check_model_folder(model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # broken files make transformers raise many kinds
        refuse_model(model, "no model there", error, "read that code, and allow it by --trust-remote-code")
    names = config.architectures or [""]
    heads = ["ForMaskedLM", "ForSequenceClassification"] + ["Model"] * (
        config.model_type in MASKED
    )  # a body has no head
    if config.is_encoder_decoder or all(
        name.endswith(tuple(heads)) and not name.endswith("LMHeadModel") for name in names
    ):
        fail(f"--model {model}: is a {config.model_type} ({', '.join(names)}); a teacher is a causal language model")
    if prompt_form == "chat" and not tokenizer.chat_template:
        fail("--prompt-form chat: the tokenizer of --model has no chat template; give --prompt-form completion")
    if prompt_form == "auto":
        prompt_form = fitting_form(task, config, tokenizer, trust_remote_code)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    thoughts = reasoning_parser(parser, tokenizer, chat_template_kwargs) if parser else None
    return Encoder(tokenizer, prompt_form, chat_template_kwargs, context, thoughts)


def open_encoder(options: dict, task: Task) -> Encoder:
    """The encoder that a stage's options ask for. A server's form is chat, but with auto that of load_encoder where the
    model lies on this machine too.
    """
    template_kwargs = read_template_kwargs(options["chat_template_kwargs"], options["prompt_form"])
    model, form = options["model"], options["prompt_form"]
    if not options["server_url"]:
        parser = options.get("reasoning_parser")
        return load_encoder(model, task, form, template_kwargs, options["trust_remote_code"], parser)
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = None
    with contextlib.suppress(Exception):  # it need not be here; the server alone has to have it
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        if form == "auto":
            form = fitting_form(task, AutoConfig.from_pretrained(model, local_files_only=True), tokenizer)
    return Encoder(tokenizer, "chat" if form == "auto" else form, template_kwargs, None, remote=True)


def open_engine(options: dict, encoder: Encoder, need: int, signals: StopSignals) -> "Engine | Server":
    """The engine, or the server, of a stage's options. need: tokens of the longest prompt and its answer."""
    if options["server_url"]:
        how = (encoder.form, encoder.chat_template_kwargs, options["num_concurrent"])
        return Server(options["server_url"], options["model"], *how)
    names = ("trust_remote_code", "gpu_memory_utilization", "tensor_parallel_size")
    engine_options = {name: options[name] for name in names} | json.loads(options["engine_args"])
    length, context = options["max_model_len"], encoder.context
    if length and context and length > context:
        fail(f"--max-model-len {length:,}: the model's context holds {context:,} tokens; lower it")
    length = length or min(need, context or need)
    how, started = engine_options | {name: options[name] for name in ("dtype", "lora")}, time.perf_counter()
    start = partial(Engines, count) if (count := options["data_parallel_size"]) > 1 else Engine
    running = start(options["model"], length, signals, **how)
    which = f"{count} engines" if count > 1 else "engine"
    say(f"{which} up in {time.perf_counter() - started:.1f} s, context {length:,} tokens")
    return running


def fitting_form(task: Task, config: Any, tokenizer: Any, trust_remote_code: bool = False) -> str:
    small = task.completion and num_parameters(config, trust_remote_code) < SMALL
    return "chat" if tokenizer.chat_template and not small else "completion"


def num_parameters(config: Any, trust_remote_code: bool) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # shapes alone
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).num_parameters()


def keep_form(run: Run, form: str) -> None:
    """The form that a run began with; ends the stage (exit 1) where auto means another one now, as a server's may."""
    if (before := run.notes.setdefault("prompt_form", form)) != form:
        fail(f"{run.output}: was started with the {before} form, now {form}; give --prompt-form {before}")
