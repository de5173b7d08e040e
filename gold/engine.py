"""vLLM's offline engine, in this process.

engine = Engine(model, 1024, StopSignals())
engine.send([Request("a-0", ids, {"max_tokens": 64})]); outputs = engine.wait(["a-0"])       others stay under way
"""

import contextlib
import gc
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gold.causes import cause_of
from gold.command import fail
from gold.stopping import StopSignals

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read by `import torch`: vLLM's NUMA binding warns at each start


class Request(NamedTuple):
    id: str
    prompt: Any  # token ids; for a server a Prompt
    params: dict  # of vllm.SamplingParams; regex: a form that the completion is forced into
    place: Any = None  # requests of one place share a prefix: of several engines one gets them all


class Output(NamedTuple):
    outputs: list[Any]  # vLLM's: .text, .finish_reason, .logprobs
    tokens: dict[str, int]


Seen = Callable[[dict[str, Output]], Any] | None


class Engine:
    """vLLM's offline engine with requests under way, each with an id of ours; it counts the tokens that it computes.

    log_probs: whether it gives them; not_taken: parameters that it refuses (a server may). seen: told of every output
    when it is finished. lora: the folder of an adapter, which all requests then have.
    signals: an error that vLLM raises after a signal to the whole job is not reported as one.
    """

    log_probs, not_taken = True, frozenset()

    def __init__(
        self, model: str, max_model_len: int, signals: StopSignals, dtype: str = "auto", lora: Path | None = None,
        **engine_options: Any,
    ):  # fmt: skip
        self.model, self.signals, self.max_model_len, self.tokens = model, signals, max_model_len, Counter()
        self.sent: set[str] = set()  # ids of the requests whose outputs nobody has taken yet
        self.done: dict[str, Output] = {}
        self.seen: Seen = None
        with signals.blocked(), self.errors("cannot start"):  # its own processes must outlive a signal to the whole job
            self.how: dict[str, Any] = {}
            if lora:
                from vllm.lora.request import LoRARequest

                # All requests have it: on a CPU vLLM 0.32 mixes them up in a batch where only some have one
                self.how["lora_request"] = LoRARequest("teacher", 1, str(lora.resolve()))
                rank = json.loads((lora / "adapter_config.json").read_text())["r"]
                rank = max(8, 1 << (rank - 1).bit_length())  # vLLM takes powers of two alone
                engine_options |= {"enable_lora": True, "max_lora_rank": rank}
            self.llm = start_llm(model, max_model_len, dtype, **engine_options)

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
            for identifier, ids, params, _ in requests:
                prompt, params = {"prompt_token_ids": ids}, sampling_params(params)
                self.llm.llm_engine.add_request(identifier, prompt, params, **self.how)
                self.sent.add(identifier)

    def step(self) -> list[str]:
        """Go on by one step; the ids of the requests that are finished by it."""
        finished: dict[str, Output] = {}
        with self.errors("stopped"):
            for output in self.llm.llm_engine.step():
                if any(one.finish_reason == "abort" for one in output.outputs):  # half a text
                    raise RuntimeError("the engine has given up its requests")
                finished[output.request_id] = Output(output.outputs, tokens_of(output))
        self.finish(finished)
        return [*finished]

    def finish(self, outputs: dict[str, Output]) -> None:
        """Hold them until they are taken, and tell of them."""
        self.done |= outputs
        if self.seen and outputs:
            self.seen(outputs)

    def take(self, identifier: str) -> Output:
        self.sent.discard(identifier)
        return self.done.pop(identifier)

    def wait(self, ids: Sequence[str]) -> list[Output]:
        """The outputs of these requests, in this order; those of others stay until they are asked for."""
        missing = {identifier for identifier in ids if identifier not in self.done}
        while missing:
            missing.difference_update(self.step())
        outputs = [self.take(identifier) for identifier in ids]
        for output in outputs:
            self.tokens.update(output.tokens)
        return outputs

    def complete(self, requests: Sequence[Request]) -> list[Output]:
        self.send(requests)
        return self.wait([request.id for request in requests])

    def begin_split(self, seen: Seen = None) -> None:
        self.seen = seen
        self.llm.reset_prefix_cache()

    def held_tokens(self) -> int:
        """Tokens that the prefix cache can hold; 0: unknown."""
        cache = self.llm.llm_engine.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) * cache.block_size

    def taken_tokens(self) -> dict[str, int]:
        """Tokens since the last call; computed: those of prompts that the prefix cache did not hold, and new ones."""
        tokens, self.tokens = self.tokens, Counter()
        computed = tokens["prompt_tokens"] - tokens["cached_tokens"] + tokens["completion_tokens"]
        return {**tokens, "computed_tokens": computed}


def tokens_of(output: Any) -> dict[str, int]:
    return {
        "prompt_tokens": len(output.prompt_token_ids), "cached_tokens": output.num_cached_tokens or 0,
        "completion_tokens": sum(len(one.token_ids) for one in output.outputs),
    }  # fmt: skip


def sampling_params(params: dict) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    params = params | {"output_kind": RequestOutputKind.FINAL_ONLY, "skip_clone": True}  # no two requests share them
    if pattern := params.pop("regex", None):
        params["structured_outputs"] = StructuredOutputsParams(regex=pattern)
    return SamplingParams(**params)


def start_llm(model: str, max_model_len: int, dtype: str = "auto", **engine_options: Any) -> Any:
    """A vllm.LLM. Settings that only the CPU build needs are chosen here, and never over the user's environment."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM logs to stdout
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    import torch

    ours: dict[str, Any] = {"runner": "generate", "enable_prefix_caching": True, "seed": 0}
    # By default the first request chooses the backend, and a pattern in the dialect of another one ends in an error
    ours |= {"structured_outputs_config": {"backend": "xgrammar"}}
    if not torch.cuda.is_available():
        import torch._dynamo

        torch._dynamo.config.disable = True  # vLLM compiles the ranks of log-probabilities, in 10 s, for a stage of 1 s
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # start in 2.5 s instead of 15 to 20 s
        dtype = "float32" if dtype == "auto" else dtype  # vLLM takes bfloat16, where a text depends on the batch
        ours |= on_cpu(max_model_len)
    from vllm import LLM

    llm = LLM(**{"model": model, "max_model_len": max_model_len, "dtype": dtype, **ours, **engine_options})
    # Garbage collection would take a tenth of all time: it looks through all modules and the requests under way
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    return llm


def on_cpu(max_model_len: int) -> dict[str, Any]:
    """Arguments of vLLM's engine on a CPU; the environment is set where the user has not."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return {
        "enforce_eager": True,  # torch.compile takes 15 to 35 s at every start, and gains a tenth of the rest
        "block_size": 32,  # the default of 128 tokens keeps shorter prompts out of the prefix cache
        "enable_chunked_prefill": False,  # a seeded request whose prompt is split over two steps kills the engine
        "max_num_batched_tokens": max(4096, max_model_len),
        "max_num_seqs": 1024,  # with the default of 256 a tiny model writes the same text at 0.6 of the speed
    }
