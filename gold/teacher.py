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
from gold.command import Dtype, fail, files, say
from gold.control_tokens import broken_up, told_of_prompts
from gold.model_folder import check_model_folder, refuse_model
from gold.prompts import Prompt
from gold.reasoning import reasoning_parser
from gold.stopping import StopSignals
from gold.task import Task

SMALL = (
    10**9
)  # parameters: below it a list of examples does better than instructions (SmolLM2-135M; larger ones: unmeasured)
MAX_CACHED = 8192  # encoded prompts: without feedback the same ones come again

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read by `import torch`: vLLM's NUMA binding warns at each start

# Options of generate.py and label.py

ENGINE_OPTIONS = ["max_model_len", "gpu_memory_utilization", "tensor_parallel_size"]
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


def read_template_kwargs(text: str, prompt_form: str) -> dict:
    """The value of --chat-template-kwargs; a bad one is a bad option (exit code 2)."""
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict) and not (value and prompt_form == "completion"):
            return value
    raise typer.BadParameter("is for the chat form, and is a JSON object", param_hint="--chat-template-kwargs")


@dataclass
class Encoder:
    """A teacher's tokenizer, and the form in which it gets prompts."""

    tokenizer: Any
    form: str  # chat: by the tokenizer's chat template. completion: system text, blank line, user text
    chat_template_kwargs: dict
    context: int | None  # tokens that the model holds; None: its config does not say
    parser: Any = None  # vLLM's parser of the teacher's thoughts, where one is asked for
    cache: dict[Prompt, list[int]] = field(default_factory=dict)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts, in one call of the tokenizer: one by one would be most of our own time."""
        if len(self.cache) > MAX_CACHED:
            self.cache.clear()
        if unseen := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]:
            self.cache.update(zip(unseen, self.token_ids(self.frame(unseen)), strict=True))
        return [self.cache[prompt] for prompt in prompts]

    def frame(self, prompts: Sequence[Prompt]) -> list[str]:
        """Prompts as one text each. Control tokens that people's texts spell out are broken up: the frame alone has any."""
        plain = [Prompt(*(broken_up(self.tokenizer, text) for text in prompt)) for prompt in prompts]
        return [self.in_chat(p) if self.form == "chat" else "\n\n".join(filter(None, p)) for p in plain]

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

    def fitting(self, max_model_len: int | None, need: int) -> int:
        """The engine's context: as asked for, else what the prompts need, at most what the model holds."""
        if max_model_len and self.context and max_model_len > self.context:
            fail(f"--max-model-len {max_model_len:,}: the model's context holds {self.context:,} tokens; lower it")
        return max_model_len or min(need, self.context or need)


def load_encoder(
    model: str, task: Task, prompt_form: str, chat_template_kwargs: dict, trust_remote_code: bool, parser: str | None = None
) -> Encoder:  # fmt: skip
    """The teacher's tokenizer. Ends the stage (exit 1) for a model that writes no text by itself.

    prompt_form auto: chat where there is a chat template; but a model below SMALL parameters gets the task's [completion].
    """
    from transformers import AutoConfig, AutoTokenizer

    check_model_folder(model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:  # broken files make transformers raise many kinds
        refuse_model(model, "no model there", error, "read that code, and allow it by --trust-remote-code")
    names = config.architectures or [""]
    if config.is_encoder_decoder or all(name.endswith(("ForMaskedLM", "ForSequenceClassification")) for name in names):
        fail(f"--model {model}: is a {config.model_type} ({', '.join(names)}); a teacher is a causal language model")
    if prompt_form == "chat" and not tokenizer.chat_template:
        fail("--prompt-form chat: the tokenizer of --model has no chat template; give --prompt-form completion")
    if prompt_form == "auto":
        small = task.completion and num_parameters(config, trust_remote_code) < SMALL
        prompt_form = "chat" if tokenizer.chat_template and not small else "completion"
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    thoughts = reasoning_parser(parser, tokenizer, chat_template_kwargs) if parser else None
    return Encoder(tokenizer, prompt_form, chat_template_kwargs, context, thoughts)


def num_parameters(config: Any, trust_remote_code: bool) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # shapes alone
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).num_parameters()


def say_control_tokens(encoder: Encoder, task: Task, records: Sequence[dict]) -> None:
    """Say once what Encoder.frame breaks up in the task file's prompts and in the records that prompts will show."""
    prompts = [text for text in task.prompt.model_dump().values() if text]
    texts = ["\n".join(str(record.get(name, "")) for name in [*task.fields, task.answer_field]) for record in records]
    for what, shown in (("prompts of the task file", prompts), ("records", texts)):
        for line in told_of_prompts(what, encoder.tokenizer, shown):
            say(line)


class Request(NamedTuple):
    id: str
    prompt_ids: list[int]
    params: Any  # vllm.SamplingParams


class Engine:
    """vLLM's offline engine with requests under way, each with an id of ours; it counts the tokens that it computes.

    signals: an error that vLLM raises after a signal to the whole job is not reported as one.
    """

    def __init__(
        self, model: str, max_model_len: int, signals: StopSignals, dtype: str = "auto", **engine_options: Any
    ):  # fmt: skip
        started = time.perf_counter()
        self.model, self.signals, self.max_model_len, self.tokens = model, signals, max_model_len, Counter()
        self.sent: set[str] = set()  # ids of the requests whose outputs nobody has taken yet
        self.done: dict[str, Any] = {}
        with signals.blocked(), self.errors("cannot start"):  # its own processes must outlive a signal to the whole job
            self.llm = start_llm(model, max_model_len, dtype, **engine_options)
        say(f"engine up in {time.perf_counter() - started:.1f} s, context {max_model_len:,} tokens")

    @contextlib.contextmanager
    def errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # too little memory, a shape that no kernel knows, ...: many kinds
            self.signals.stop_if_any()
            more = "what is saved stays: run again to resume (VLLM_LOGGING_LEVEL=INFO tells more)"
            fail(f"--model {self.model}: vLLM {what}: {cause_of(error)}; {more}")

    def send(self, requests: Sequence[Request]) -> None:
        with self.errors("takes a request not"):
            for identifier, ids, params in requests:
                self.llm.llm_engine.add_request(identifier, {"prompt_token_ids": ids}, params)
                self.sent.add(identifier)

    def wait(self, ids: Sequence[str], bar: Any = None) -> list[Any]:
        """vLLM's outputs of these requests, in this order; those of others stay until they are asked for."""
        missing = {identifier for identifier in ids if identifier not in self.done}
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
    """A vllm.LLM. Settings that only the CPU build needs are chosen here, and never over the user's environment."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM logs to stdout
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    import torch

    if not torch.cuda.is_available():
        import torch._dynamo

        torch._dynamo.config.disable = True  # vLLM compiles the ranks of log-probabilities, in 10 s, for a stage of 1 s
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # start in 2.5 s instead of 15 to 20 s
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        dtype = "float32" if dtype == "auto" else dtype  # vLLM takes bfloat16, where a text depends on the batch
        engine_options |= {
            "enforce_eager": True,  # torch.compile takes 15 to 35 s at every start, and gains a tenth of the rest
            "block_size": 32,  # the default of 128 tokens keeps shorter prompts out of the prefix cache
            "enable_chunked_prefill": False,  # a seeded request whose prompt is split over two steps kills the engine
            "max_num_batched_tokens": max(4096, max_model_len),
            "max_num_seqs": 1024,  # with the default of 256 a tiny model writes the same text at 0.6 of the speed
        }
    from vllm import LLM

    engine_options |= {"runner": "generate", "enable_prefix_caching": True, "seed": 0}
    # By default the first request chooses the backend, and a pattern in the dialect of another one ends in an error
    engine_options |= {"structured_outputs_config": {"backend": "xgrammar"}}
    llm = LLM(model=model, max_model_len=max_model_len, dtype=dtype, **engine_options)
    # Garbage collection would take a tenth of all time: it looks through all modules and the requests under way
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    return llm
