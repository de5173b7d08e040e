"""The teacher behind a server that speaks OpenAI's API (`vllm serve` and others): what gold.teacher.Engine is in the process.

server = Server("http://localhost:8000/v1", "Qwen/Qwen2.5-7B-Instruct", "chat", {}, 64)
server.send([Request("a-0", Prompt("", "Write ..."), {"max_tokens": 64, "seed": 1})]); outputs = server.wait(["a-0"])

The chat form goes as messages, the completion form as text. The key comes from OPENAI_API_KEY. The client (openai) repeats
what may work later (429, 5xx, cut connections) with growing pauses, as Retry-After says. Then: a request that the server
refuses, or fails at, has the finish_reason "error"; a server that is gone or overloaded ends the stage with exit code 75.
Requests are under way only while `wait` waits.
"""

import asyncio
import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from gold.causes import cause_of
from gold.command import fail, say
from gold.prompts import Prompt
from gold.stopping import STOPPED

RETRIES = 8  # about 40 s of pauses: a server may start again meanwhile
TIMEOUT = 600  # seconds of one request
IN_A_ROW = 20  # failed requests without a good one between: the server is broken, not the requests
# What some servers do not take: it is left out then, and said once
DISPENSABLE = ("seed", "top_k", "min_p", "top_p", "temperature", "stop", "logprobs", "top_logprobs", "echo")
BODY = ("top_k", "min_p", "structured_outputs", "chat_template_kwargs")  # not OpenAI's own
NEUTRAL = {"top_k": 0, "min_p": 0, "top_p": 1, "stop": None, "n": 1}  # as good as left out
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
        self.client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT)
        self.loop, self.slots = asyncio.new_event_loop(), asyncio.Semaphore(num_concurrent)
        self.loop.set_exception_handler(lambda *_: None)  # what the end of the stage cancels is no news
        self.tasks: dict[str, asyncio.Task] = {}
        self.tokens: Counter[str] = Counter()
        self.not_taken: set[str] = set()
        self.tried: set[frozenset] = set()
        self.renamed: dict[str, str] = {}
        self.merged, self.failed, self.bar, self.log_probs = False, 0, None, True
        self.trying = asyncio.Lock()
        self.check_model()

    @property
    def sent(self) -> set[str]:
        return set(self.tasks)

    def check_model(self) -> None:
        """End the stage (exit 1) for a wrong address, key or model name, before anything is asked."""
        import openai

        try:
            names = [model.id for model in self.run(self.client.models.list()).data]
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 501):  # a server without a list
                return
            self.give_up(error)
        except openai.OpenAIError as error:
            self.give_up(error)
        if self.model not in names:
            fail(f"--model {self.model}: {self.url} has no such model; it has {', '.join(names) or 'none'}")

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def send(self, requests: Sequence[Any]) -> None:
        """Requests: (id, Prompt, params), the params those of vllm.SamplingParams."""
        for identifier, prompt, params in requests:
            self.tasks[identifier] = self.loop.create_task(self.ask(prompt, params))

    def wait(self, ids: Sequence[str], bar: Any = None) -> list[Any]:
        """Outputs in the order of the ids, in the shape of vLLM's: .outputs[k].text, .finish_reason, .logprobs."""
        import openai

        self.bar, waiting = bar, [self.tasks.pop(identifier) for identifier in ids]
        try:
            return self.run(asyncio.gather(*waiting)) if waiting else []
        except openai.OpenAIError as error:
            self.give_up(error)

    def complete(self, requests: Sequence[Any]) -> list[Any]:
        self.send(requests)
        return self.wait([request[0] for request in requests])

    async def ask(self, prompt: Prompt, params: dict) -> Any:
        """The server's answer to one request."""
        import openai

        async with self.slots:
            body = self.body_of(params)
            try:
                async with self.trying:  # the others wait for what it finds
                    if (kind := frozenset(body)) not in self.tried:
                        await self.try_out(prompt, body)
                        self.tried.add(kind)
                answer = await self.create(prompt, self.allowed(body))
                self.failed = 0
            except openai.APIStatusError as error:
                self.failed += 1
                if error.status_code not in (400, 413, 422, 500) or self.failed >= IN_A_ROW:
                    raise
                if self.failed == 1:
                    say(f"{self.url}: a request failed, and is rejected: {cause_of(error)}")
                return SimpleNamespace(outputs=[SimpleNamespace(text="", finish_reason="error", logprobs=None)])
            finally:
                if self.bar is not None:
                    self.bar.update()
        if usage := answer.usage:
            self.tokens["prompt_tokens"] += usage.prompt_tokens
            self.tokens["completion_tokens"] += usage.completion_tokens
            self.tokens["cached_tokens"] += getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0
        return SimpleNamespace(outputs=list(map(self.output_of, answer.choices)))

    def output_of(self, choice: Any) -> Any:
        text = choice.message.content if self.form == "chat" else choice.text
        return SimpleNamespace(text=text or "", finish_reason=choice.finish_reason, logprobs=choice.logprobs)

    def body_of(self, params: dict) -> dict[str, Any]:
        """Parameters of vLLM's SamplingParams as the API has them, without those that say nothing."""
        body = {name: value for name, value in params.items() if value != NEUTRAL.get(name, math.nan)}
        if "stop" in body:
            body["stop"] = body["stop"][:STOPS]
        if pattern := body.pop("regex", None):
            body["structured_outputs"] = {"regex": pattern}
        if self.template_kwargs:
            body["chat_template_kwargs"] = self.template_kwargs
        return body

    def allowed(self, body: dict) -> dict[str, Any]:
        return {self.renamed.get(name, name): value for name, value in body.items() if name not in self.not_taken}

    async def try_out(self, prompt: Prompt, body: dict) -> None:
        """Find out which parameters the server refuses, with one token each. Ends the stage (exit 1) where it takes none."""
        import openai

        async def takes(body: dict) -> str | None:
            try:
                await self.create(prompt, self.allowed(body | {"max_tokens": 1}))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return cause_of(error)
            return None

        if not await takes(body):
            return
        bare = {name: value for name, value in body.items() if name not in DISPENSABLE}
        ways = itertools.product((False, True), ({}, {"max_tokens": "max_completion_tokens"}))
        for self.merged, self.renamed in ways:  # some have no system role, some another name
            if not (problem := await takes(bare)):
                break
        else:
            fail(f"--server-url {self.url}: refuses all requests: {problem}")
        refused = [name for name in DISPENSABLE if name in body and await takes(bare | {name: body[name]})]
        if new := [name for name in refused if name not in self.not_taken]:
            self.not_taken.update(new)
            say(f"warning: {self.url} does not take {', '.join(new)}: left out")

    async def create(self, prompt: Prompt, body: dict) -> Any:
        extra = {name: body.pop(name) for name in BODY if name in body}
        if self.form == "completion":
            text = "\n\n".join(filter(None, prompt))
            return await self.client.completions.create(model=self.model, prompt=text, **body, extra_body=extra)
        turns = (
            [("user", "\n\n".join(filter(None, prompt)))]
            if self.merged
            else zip(("system", "user"), prompt, strict=True)
        )
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
        say(f"error: {problem}; what is saved stays: run it again once the server is up")
        raise SystemExit(STOPPED)

    def taken_tokens(self) -> dict[str, int]:
        """As Engine.taken_tokens, from what the server reports; 0 where it reports nothing."""
        tokens, self.tokens = self.tokens, Counter()
        computed = tokens["prompt_tokens"] - tokens["cached_tokens"] + tokens["completion_tokens"]
        return {**tokens, "computed_tokens": computed}

    def begin_split(self) -> None:
        """The server's prefix cache is its own."""
