"""The teacher: a causal LLM in vLLM's offline engine.

encoder = load_encoder(model, "auto", {}, False)              its tokenizer: prompts -> token ids
engine = Engine(model, 1024, StopSignals())
engine.send([Request("a-0", ids, params)]); outputs = engine.wait(["a-0"])       others stay under way
"""

import contextlib
import gc
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import typer

from gold.causes import cause_of
from gold.command import fail, files, say
from gold.control_tokens import broken_up, told_of_prompts
from gold.model_folder import explain_model_folder, refuse_model
from gold.prompts import Prompt
from gold.reasoning import reasoning_parser
from gold.stopping import StopSignals
from gold.task import Task

MAX_CACHED = 8192  # encoded prompts: without feedback the same ones come again

# Read when torch is imported: vLLM's NUMA binding warns at every start
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


# ---------------------------------------------------------------------------------------------------------------------
# Options that generate.py and label.py share

PANEL = "Engine (changes no example: not compared when a run is gone on with)"
ENGINE_OPTIONS = ["dtype", "max_model_len", "gpu_memory_utilization", "tensor_parallel_size"]
engine = partial(typer.Option, rich_help_panel=PANEL)
prompting = partial(typer.Option, rich_help_panel="Sampling")
TrustRemoteCode = Annotated[bool, files(help="Run Python code that comes with the teacher: read it first.")]
PromptForm = Annotated[
    Literal["auto", "chat", "completion"],
    prompting(
        help="chat = the chat template; completion = plain text, for base models; auto = chat where there is a template."
    ),
]
ChatTemplateKwargs = Annotated[str, prompting(help="""JSON, such as '{"enable_thinking": false}'.""")]
EngineDtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"], engine(help="auto = float32 on a CPU, else the model's own.")
]
MaxModelLen = Annotated[int | None, engine(min=1, help="Context in tokens (the longest prompt and what it asks for).")]
GpuMemoryUtilization = Annotated[float, engine(min=0.05, max=1, help="Share of the GPU's memory to take.")]
TensorParallelSize = Annotated[int, engine(min=1, help="GPUs that hold one model together.")]


def read_template_kwargs(text: str, prompt_form: str) -> dict:
    """The value of --chat-template-kwargs; a bad one is a bad option (exit code 2)."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--chat-template-kwargs") from None
    if not isinstance(value, dict) or (value and prompt_form == "completion"):
        problem = "is for the chat form; leave it out" if isinstance(value, dict) else "must be a JSON object"
        raise typer.BadParameter(problem, param_hint="--chat-template-kwargs")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Prompts -> token ids


@dataclass
class Encoder:
    """A teacher's tokenizer with the form in which it gets prompts. context: tokens that the model holds, None = not
    told."""

    tokenizer: Any
    form: str  # chat: by the tokenizer's chat template. completion: system text, blank line, user text
    chat_template_kwargs: dict
    context: int | None
    parser: Any = None  # vLLM's parser of the teacher's thoughts, where one is asked for
    cache: dict[Prompt, list[int]] = field(default_factory=dict)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts, in one call of the tokenizer: one by one is most of our own time."""
        if len(self.cache) > MAX_CACHED:
            self.cache.clear()
        unseen = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]
        if unseen:
            self.cache.update(zip(unseen, self.token_ids(self.frame(unseen)), strict=True))
        return [self.cache[prompt] for prompt in prompts]

    def frame(self, prompts: Sequence[Prompt]) -> list[str]:
        """Prompts as the teacher gets them. Control tokens that texts spell out are broken up: only the frame has real
        ones."""
        plain = [Prompt(*(broken_up(self.tokenizer, text) for text in prompt)) for prompt in prompts]
        if self.form == "chat":
            return [self.in_chat(prompt) for prompt in plain]
        return ["\n\n".join(filter(None, prompt)) for prompt in plain]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of framed texts. A chat template writes its own BOS; a plain text gets the tokenizer's, but no EOS at its
        end."""
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
        for messages in ([both] if system else []) + [alone]:
            try:
                text = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
                )
            except TemplateError:
                continue
            if system.strip() in text:  # some templates drop a system turn without a word
                return text
        fail(
            "--model: its chat template takes neither a system turn nor a user turn alone; give --prompt-form completion"
        )

    def fitting(self, max_model_len: int | None, need: int) -> int:
        """The context for the engine: as asked, else what is needed, as far as the model has it."""
        if max_model_len and self.context and max_model_len > self.context:
            fail(f"--max-model-len {max_model_len:,}: the model's context holds {self.context:,} tokens; lower it")
        return max_model_len or min(need, self.context or need)


def load_encoder(
    model: str, prompt_form: str, chat_template_kwargs: dict, trust_remote_code: bool, parser: str | None = None
) -> Encoder:  # fmt: skip
    """The teacher's tokenizer. Refuses what writes no text by itself; which of the others run, vLLM tells when it
    starts."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto import modeling_auto as auto

    if problem := explain_model_folder(model):
        fail(f"--model {model}: {problem}")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # broken files make transformers raise many kinds
        refuse_model(model, "no model there", error, "read that code, and allow it by --trust-remote-code")
    names, silent = config.architectures or [], set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
    silent |= set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    if config.is_encoder_decoder or (names and silent.issuperset(names)):
        fail(f"--model {model}: is a {config.model_type} ({', '.join(names)}); a teacher is a causal language model")
    if prompt_form == "chat" and not tokenizer.chat_template:
        fail("--prompt-form chat: the tokenizer of --model has no chat template; give --prompt-form completion")
    if prompt_form == "auto":
        prompt_form = "chat" if tokenizer.chat_template else "completion"
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    thoughts = reasoning_parser(parser, tokenizer, chat_template_kwargs) if parser else None
    return Encoder(tokenizer, prompt_form, chat_template_kwargs, context, thoughts)


def say_control_tokens(encoder: Encoder, task: Task, records: Sequence[dict]) -> None:
    """Say once what Encoder.frame breaks up in the task file's prompts and in the records that prompts will show."""
    prompts = [text for text in task.prompt.model_dump().values() if text]
    texts = ["\n".join(str(record.get(name, "")) for name in [*task.fields, task.answer_field]) for record in records]
    for what, shown in (("prompts of the task file", prompts), ("records", texts)):
        for line in told_of_prompts(what, encoder.tokenizer, shown):
            say(line)


# ---------------------------------------------------------------------------------------------------------------------
# Engine


class Request(NamedTuple):
    id: str
    prompt_ids: list[int]
    params: Any  # vllm.SamplingParams


class Engine:
    """vLLM's offline engine with requests under way, each with an id of ours; it counts the tokens that it computes.

    signals: what vLLM raises after a signal to the whole job is no error of it.
    """

    def __init__(
        self, model: str, max_model_len: int, signals: StopSignals, dtype: str = "auto", **engine_options: Any
    ):
        began = time.perf_counter()
        self.model, self.signals, self.max_model_len, self.tokens = model, signals, max_model_len, Counter()
        self.sent: set[str] = set()  # ids of the requests whose outputs nobody has taken yet
        self.done: dict[str, Any] = {}
        with signals.blocked(), self.errors("cannot start"):  # its own processes must outlive a signal to the whole job
            self.llm = start_llm(model, max_model_len, dtype, **engine_options)
        say(f"engine up in {time.perf_counter() - began:.1f} s, context {max_model_len:,} tokens")

    @contextlib.contextmanager
    def errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # too little memory, a shape that no kernel knows, ...: many kinds
            self.signals.stop_if_any()
            more = "what was made is kept: run again to go on (VLLM_LOGGING_LEVEL=INFO tells more)"
            fail(f"--model {self.model}: vLLM {what}: {cause_of(error)}; {more}")

    def send(self, requests: Sequence[Request]) -> None:
        with self.errors("takes a request not"):
            for identifier, ids, params in requests:
                self.llm.llm_engine.add_request(identifier, {"prompt_token_ids": ids}, params)
                self.sent.add(identifier)

    def has(self, identifier: str) -> bool:
        return identifier in self.sent

    def wait(self, ids: Sequence[str], bar: Any = None) -> list[Any]:
        """vLLM's outputs of these requests, in this order; those of others stay until they are asked for."""
        missing = set(ids) - self.done.keys()
        with self.errors("stopped"):
            while missing:
                for output in self.llm.llm_engine.step():
                    if any(one.finish_reason == "abort" for one in output.outputs):  # half a text
                        raise RuntimeError("the engine has given up its requests")
                    self.done[output.request_id] = output
                    missing.discard(output.request_id)
                    if bar is not None:
                        bar.update()
        outputs = [self.done.pop(identifier) for identifier in ids]
        self.sent -= set(ids)
        for output in outputs:
            self.tokens["prompt_tokens"] += len(output.prompt_token_ids)
            self.tokens["cached_tokens"] += output.num_cached_tokens or 0
            self.tokens["completion_tokens"] += sum(len(one.token_ids) for one in output.outputs)
        return outputs

    def complete(self, requests: Sequence[Request]) -> list[Any]:
        self.send(requests)
        return self.wait([request.id for request in requests])

    def taken_tokens(self) -> dict[str, int]:
        """Tokens since the last call; computed: those of prompts that the prefix cache did not hold, and new ones."""
        tokens, self.tokens = self.tokens, Counter()
        computed = tokens["prompt_tokens"] - tokens["cached_tokens"] + tokens["completion_tokens"]
        return {**tokens, "computed_tokens": computed}


def start_llm(model: str, max_model_len: int, dtype: str = "auto", **engine_options: Any) -> Any:
    """A vllm.LLM. Settings that only the CPU build needs are chosen here, and never over the user's own."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM logs to stdout
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    import torch

    if not torch.cuda.is_available():
        import torch._dynamo

        torch._dynamo.config.disable = True  # vLLM compiles the ranks of log-probabilities, in 10 s, for a stage of 1 s
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # start in 2.5 s instead of 15 to 20 s
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if dtype == "auto":
            dtype = "float32"  # vLLM's own choice is bfloat16, where the text depends on the batch
        engine_options |= {
            "enforce_eager": True,  # torch.compile takes 15 to 35 s at every start, and gains a tenth of the rest
            "block_size": 32,  # the default of 128 tokens keeps shorter prompts out of the prefix cache
            "enable_chunked_prefill": False,  # a seeded request whose prompt is split over two steps kills the engine
            "max_num_batched_tokens": max(4096, max_model_len),
            "max_num_seqs": 1024,  # with the default of 256 a tiny model writes the same text at 0.6 of the speed
        }
    from vllm import LLM

    llm = LLM(
        model=model, runner="generate", max_model_len=max_model_len, dtype=dtype, enable_prefix_caching=True, seed=0,
        # "auto" lets the first request choose, and the dialect of regular expressions with it; the second kind then
        # ends in errors
        structured_outputs_config={"backend": "xgrammar"}, **engine_options,
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # what all the modules hold is not looked through again; vLLM does so in a process of its own
    gc.set_threshold(
        20_000, 10, 10
    )  # thousands of requests under way, looked through time and again: a tenth of all time
    return llm
