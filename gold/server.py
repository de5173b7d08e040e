"""The teacher behind a server that speaks OpenAI's API (`vllm serve` and others): what gold.teacher.Engine is in the process.

The chat form goes as messages, the completion form as text. The key comes from OPENAI_API_KEY. The client (openai) repeats
what may work later (429, 5xx, cut connections) with growing pauses, or as Retry-After says, up to two minutes. Then a
request that the server refuses or fails at has the finish_reason "error", and a server that is gone or broken ends the stage
with exit code 75. Requests are under way only while `wait` waits.
"""

import asyncio
import math
import os
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from gold.causes import cause_of
from gold.command import fail, say
from gold.engine import Output, Seen
from gold.prompts import Prompt
from gold.stopping import STOPPED

RETRIES = 8  # about 40 s of pauses: a server may start again meanwhile
TIMEOUT, CONNECT = 600, 10  # seconds of one request, and until the server takes it
IN_A_ROW = 20  # failures of the server without a good answer between: it is broken, not the requests
# What some servers do not take: it is left out then, and said once. Together where one needs the other
DISPENSABLE = (
    ("seed",), ("top_k",), ("min_p",), ("repetition_penalty",), ("top_p",), ("temperature",), ("stop",),
    ("logprobs", "top_logprobs", "echo"),
)  # fmt: skip
BODY = ("top_k", "min_p", "repetition_penalty", "structured_outputs", "chat_template_kwargs")  # not OpenAI's own
# Sent all the same: vLLM's server takes what is left out from the model's generation_config.json
NEUTRAL = {"top_k": 0, "min_p": 0, "top_p": 1, "repetition_penalty": 1}
# (no system turn, other names): some chat templates have no system role, some servers another name
WAYS = {
    "completion": [(False, {})],
    "chat": [(m, names) for m in (False, True) for names in ({}, {"max_tokens": "max_completion_tokens"})],
}
NO_ANSWER = (AttributeError, TypeError, LookupError, ValueError)  # an answer in another form raises any of these
STOPS = 4  # OpenAI's limit on stop strings; the parser cuts at the others


class Server:
    """Requests under way to a server, at most num_concurrent at a time; it counts the tokens that the server reports.

    not_taken: names of parameters that it refused, each told once. log_probs: whether it gives any, as far as is known.
    """

    max_model_len = math.inf  # the server knows, and refuses what is too long

    def __init__(self, url: str, model: str, form: str, chat_template_kwargs: dict, num_concurrent: int):
        try:
            import openai
        except ImportError:
            fail("--server-url: needs openai: bash setup.sh requirements-extra.txt, or pip install openai")
        self.url, self.model, self.form, self.template_kwargs = url, model, form, chat_template_kwargs
        key = os.environ.get("OPENAI_API_KEY") or "none"
        timeout = openai.Timeout(TIMEOUT, connect=CONNECT)
        self.client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=timeout)
        self.loop, self.slots = asyncio.new_event_loop(), asyncio.Semaphore(num_concurrent)
        self.loop.set_exception_handler(lambda *_: None)  # what the end of the stage cancels is no news
        self.tasks: dict[str, asyncio.Task] = {}
        self.tokens: Counter[str] = Counter()
        self.not_taken: set[str] = set()
        self.tried: set[frozenset] = set()
        self.renamed: dict[str, str] = {}
        self.merged, self.failed, self.said, self.log_probs = False, 0, False, True
        self.seen: Seen = None
        self.fault: Exception | None = None
        self.trying = asyncio.Lock()
        self.check_model()

    @property
    def sent(self) -> set[str]:
        return set(self.tasks)

    def check_model(self) -> None:
        """End the stage (exit 1) for a wrong address, key or model name, before anything is asked."""
        import openai

        try:
            names = [model.id for model in self.run(self.client.with_options(max_retries=1).models.list()).data]
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 501):  # a server without a list
                return
            self.give_up(error)
        except openai.OpenAIError as error:
            self.give_up(error)
        except NO_ANSWER:
            fail(f"--server-url {self.url}: its list of models is none; check the address, which mostly ends in /v1")
        if self.model not in names:
            fail(f"--model {self.model}: {self.url} has no such model; it has {', '.join(names) or 'none'}")

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def send(self, requests: Sequence[Any]) -> None:
        """Requests as of an engine, but for the Prompt itself."""
        for identifier, prompt, params, _ in requests:
            self.tasks[identifier] = self.loop.create_task(self.ask_all(identifier, prompt, params))

    def wait(self, ids: Sequence[str]) -> list[Output]:
        """Outputs in the order of the ids, in the shape of vLLM's: .outputs[k].text, .finish_reason, .logprobs."""
        import openai

        waiting = [self.tasks.pop(identifier) for identifier in ids]
        try:
            outputs = self.run(asyncio.gather(*waiting)) if waiting else []
        except (openai.OpenAIError, *NO_ANSWER) as error:
            self.give_up(error)
        if self.fault:
            raise self.fault
        for output in outputs:
            self.tokens.update(output.tokens)
        return outputs

    def complete(self, requests: Sequence[Any]) -> list[Any]:
        self.send(requests)
        return self.wait([request[0] for request in requests])

    async def ask_all(self, identifier: str, prompt: Prompt, params: dict) -> Output:
        """The answers to one request; n > 1 as requests of their own, with the seeds that vLLM gives the n samples."""
        several = [params]
        if (n := params.get("n", 1)) > 1:
            several = [params | {"n": None, "seed": params["seed"] + k} for k in range(n)]
        answers = await asyncio.gather(*(self.ask(prompt, one) for one in several))
        output = Output(answers, sum((one.tokens for one in answers), Counter()))
        try:
            if self.seen:
                self.seen({identifier: output})
        except Exception as error:  # a full disk, a fault of ours: no fault of the server
            self.fault = self.fault or error
        return output

    async def ask(self, prompt: Prompt, params: dict) -> Any:
        """The server's answer, with the finish_reason "error" where it refuses the request or fails at it."""
        import openai

        async with self.slots:
            body = self.body_of(params)
            async with self.trying:  # the others wait for what it finds
                if (kind := frozenset(body)) not in self.tried:
                    await self.try_out(body)
                    self.tried.add(kind)
            try:
                answer = self.read(await self.create(prompt, self.allowed(body)))
                self.failed = 0
                return answer
            except openai.APIStatusError as error:
                self.failed += error.status_code == 500
                if error.status_code not in (400, 413, 422, 500) or self.failed >= IN_A_ROW:
                    raise
                problem = cause_of(error)
            except NO_ANSWER as error:  # HTML, a null, another form
                self.failed += 1
                if self.failed >= IN_A_ROW:
                    raise
                problem = f"the answer is none of the API: {cause_of(error)}"
        if not self.said:
            say(f"{self.url}: a request failed, and is rejected (engine_error); said once: {problem}")
            self.said = True
        return SimpleNamespace(text="", finish_reason="error", logprobs=None, tokens=Counter())

    def read(self, answer: Any) -> Any:
        import openai

        choice, usage = answer.choices[0], answer.usage
        text = choice.message.content if self.form == "chat" else choice.text
        if text is None and choice.finish_reason is None:
            raise ValueError("no text and no finish_reason")
        if choice.finish_reason == "abort":  # half a text: vLLM 0.32 has it for what a shutdown cuts off
            raise openai.OpenAIError("the server has given up its requests")
        tokens: Counter[str] = Counter()
        if usage:
            tokens["prompt_tokens"] = usage.prompt_tokens or 0
            tokens["completion_tokens"] = usage.completion_tokens or 0
            tokens["cached_tokens"] = getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0
        how = {"finish_reason": choice.finish_reason, "logprobs": choice.logprobs, "tokens": tokens}
        return SimpleNamespace(text=text or "", **how)

    def body_of(self, params: dict) -> dict[str, Any]:
        """Parameters of vLLM's SamplingParams as the API has them."""
        body = NEUTRAL | {name: value for name, value in params.items() if value is not None}
        if "stop" in body:
            body["stop"] = body["stop"][:STOPS]
        if "logprobs" in body:  # 0 is none to some servers; a chat takes no number
            body["logprobs"] = True if self.form == "chat" else 1
        if pattern := body.pop("regex", None):
            body["structured_outputs"] = {"regex": pattern}
        if self.template_kwargs:
            body["chat_template_kwargs"] = self.template_kwargs
        return body

    def allowed(self, body: dict) -> dict[str, Any]:
        return {self.renamed.get(name, name): value for name, value in body.items() if name not in self.not_taken}

    async def try_out(self, body: dict) -> None:
        """Find out which parameters the server refuses, with one token each. Ends the stage (exit 1) where it takes none."""
        import openai

        async def refused(body: dict) -> str | None:
            try:
                await self.create(Prompt("Answer.", "Hello"), self.allowed(body | {"max_tokens": 1}))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return cause_of(error)
            return None

        if not await refused(body):
            return
        bare = {name: value for name, value in body.items() if name not in sum(DISPENSABLE, ())}
        for merged, renamed in WAYS[self.form]:
            self.merged, self.renamed = merged, renamed
            if not (problem := await refused(bare)):
                break
        else:
            fail(f"--server-url {self.url}: refuses all requests: {problem}")
        for names in DISPENSABLE:
            given = {name: body[name] for name in names if name in body}
            if given and not given.keys() <= self.not_taken and await refused(bare | given):
                self.not_taken |= given.keys()
                if any(value != NEUTRAL.get(name) for name, value in given.items()):
                    say(f"warning: {self.url} does not take {', '.join(given)}: left out")

    async def create(self, prompt: Prompt, body: dict) -> Any:
        extra = {name: body.pop(name) for name in BODY if name in body}
        if self.form == "completion":
            text = "\n\n".join(filter(None, prompt))
            return await self.client.completions.create(model=self.model, prompt=text, **body, extra_body=extra)
        turns = list(zip(("system", "user"), prompt, strict=True))
        if self.merged:
            turns = [("user", "\n\n".join(filter(None, prompt)))]
        messages = [{"role": role, "content": text} for role, text in turns if text]
        return await self.client.chat.completions.create(model=self.model, messages=messages, **body, extra_body=extra)

    def give_up(self, error: Exception) -> None:
        """End the stage: exit code 1 where an option is wrong, else 75: run it again once the server is back."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        code, problem = getattr(error, "status_code", None), f"--server-url {self.url}: {cause_of(error)}"
        if code in (401, 403):
            fail(f"{problem}; set OPENAI_API_KEY to a key that this server takes")
        if code and code < 500 and code not in (408, 409, 429):
            fail(f"{problem}; check the address, which mostly ends in /v1, and --model {self.model}")
        check = "" if code else " check host and port;"
        say(f"error: {problem};{check} what is saved stays: run it again once the server is well")
        raise SystemExit(STOPPED)

    def taken_tokens(self) -> dict[str, int]:
        """As Engine.taken_tokens, from what the server reports; 0 where it reports nothing."""
        tokens, self.tokens = self.tokens, Counter()
        computed = tokens["prompt_tokens"] - tokens["cached_tokens"] + tokens["completion_tokens"]
        return {**tokens, "computed_tokens": computed}

    def begin_split(self, seen: Seen = None) -> None:
        """The server's prefix cache is its own."""
        self.seen = seen
