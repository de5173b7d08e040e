"""A teacher behind a server: a real `vllm serve`, and before it a proxy that lets requests fail as networks and servers do."""

import gc
import http.client
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from conftest import ROOT, call, read_lines

from gold import server as gold_server
from gold import teacher
from gold.engine import Engine
from gold.remote_labels import read_label
from gold.stopping import STOPPED, StopSignals
from gold.task import load_task

pytestmark = pytest.mark.engine
KEY = "a-key-of-the-tests"
TASK = ROOT / "prompts/reviews.toml"
TEMPLATE = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}

{% endfor %}"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def model(small_teacher, tmp_path_factory):
    """The small teacher with a chat template that has no system turn."""
    folder = tmp_path_factory.mktemp("served") / "teacher"
    shutil.copytree(small_teacher, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def served(model):
    """The port of `python -m gold.serve`; setpriv ends it where the tests are killed."""
    port = free_port()
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "gold.serve", str(model), "--port", str(port)]
    command += ["--api-key", KEY, "--max-model-len", "640"]
    log = (model.parent / "serve.log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    while True:
        with socket.socket() as one:
            if not one.connect_ex(("127.0.0.1", port)):
                break
        assert process.poll() is None, (model.parent / "serve.log").read_text()[-3000:]
        time.sleep(0.2)
    yield port
    process.send_signal(signal.SIGTERM)
    process.wait(60)


class Proxy(ThreadingHTTPServer):
    """Hands requests on to the server. fault: called with a request's number and body: None, or (status, headers, text);
    status 0 cuts the connection.
    """

    daemon_threads, request_queue_size = True, 128

    def __init__(self, to: int):
        super().__init__(("127.0.0.1", 0), Handler)
        self.to, self.bodies, self.lock = to, [], threading.Lock()
        self.fault: Callable[[int, dict], tuple[int, dict, str] | None] = lambda number, body: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body, fault = json.loads(sent or b"{}"), None
        if sent:
            with self.server.lock:
                number = len(self.server.bodies)
                self.server.bodies.append(body)
            fault = self.server.fault(number, body)
        if fault and not fault[0]:
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault:
            status, headers = fault[:2]
            data = (fault[2] if status == 200 else json.dumps({"error": {"message": fault[2]}})).encode()
        else:
            to = http.client.HTTPConnection("127.0.0.1", self.server.to)
            keep = {k: v for k, v in self.headers.items() if k.lower() in ("authorization", "content-type")}
            to.request(self.command, self.path, sent or None, keep)
            answer = to.getresponse()
            status, headers, data = answer.status, {}, answer.read()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = handle_one

    def log_message(self, *args):
        pass


@pytest.fixture
def proxy(served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Proxy(served) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture
def generated(model, tmp_path):
    """generate.py with this teacher: (what it printed, accepted, rejected, its run record if it has ended well)."""

    def generated(name, *args, form="completion"):
        gc.collect()  # the lock of a run that ended by an error
        done = call(
            "generate.py", "--task-file", TASK, "--model", model, "--output-dir", tmp_path / name, "--num-examples", 30,
            "--num-validation", 6, "--max-tokens", 48, "--prompt-form", form, *args,
        )  # fmt: skip
        path = tmp_path / name / "train.jsonl"
        if done.returncode:
            return done, None, None, None
        record = json.loads(path.with_name("train.jsonl.run.json").read_text())
        return done, read_lines(path), read_lines(path.with_suffix(".rejected.jsonl")), record

    return generated


@pytest.fixture(scope="module")
def engine(model):
    return Engine(str(model), 640, StopSignals())


@pytest.fixture
def in_process(engine, generated, tmp_path, monkeypatch):
    """The folder of what generate.py makes with the engine in this process."""

    def in_process(form="completion", *args):
        with monkeypatch.context() as patch:
            patch.setattr(teacher, "Engine", lambda *of, **how: engine)
            done, *_ = generated(f"{form}-in-process", *args, form=form)
        assert done.returncode == 0, done.stderr
        return tmp_path / f"{form}-in-process"

    return in_process


def texts_of(folder) -> list[str]:
    return [(folder / f"{name}.jsonl").read_text() for name in ("train", "train.rejected", "validation")]


@pytest.mark.parametrize("form", ["completion", "chat"])
def test_a_server_gives_the_records_of_the_engine_in_the_process(form, proxy, generated, in_process, tmp_path):
    done, _, _, record = generated(form, "--server-url", proxy.url, "--teacher-nll", form=form)
    assert done.returncode == 0, done.stderr
    for name in ("train", "train.rejected", "validation"):
        asked, own = (read_lines(at / f"{name}.jsonl") for at in (tmp_path / form, in_process(form, "--teacher-nll")))
        nll, other = ([r.pop("teacher_nll") for r in rows] for rows in (asked, own))
        assert asked == own and nll == pytest.approx(other, abs=1e-3)
    assert record["options"]["server_url"] == proxy.url and KEY not in json.dumps(record)
    assert record["counts"]["computed_tokens"] > 0
    # generate.py asks by text or by messages; the template without a system turn gets it in the user's
    asked = proxy.bodies[-1]
    assert (
        isinstance(asked["prompt"], str) if form == "completion" else [m["role"] for m in asked["messages"]] == ["user"]
    )


def test_what_fails_on_the_way_is_tried_again(proxy, generated, in_process, tmp_path):
    """A 429 that says when, a 500, a 503, a cut connection and a slow client: the same records, nothing twice."""

    def fault(number, body):
        if number == 8:
            time.sleep(3)
        faults = {3: (429, {"Retry-After": "1"}, "slowly"), 4: (500, {}, "oh"), 5: (0, {}, ""), 7: (503, {}, "full")}
        return faults.get(number)

    proxy.fault = fault
    done, *_ = generated("faults", "--server-url", proxy.url)
    assert done.returncode == 0, done.stderr
    assert texts_of(tmp_path / "faults") == texts_of(in_process())


def test_a_server_that_is_gone_ends_the_stage_and_the_next_run_goes_on(
    proxy, generated, in_process, tmp_path, monkeypatch
):
    monkeypatch.setattr(gold_server, "RETRIES", 0)
    monkeypatch.setattr("generate.CHUNK", 8)
    proxy.fault = lambda number, body: (0, {}, "") if number >= 20 else None
    done, *_ = generated("gone", "--server-url", proxy.url)
    assert done.returncode == STOPPED
    assert re.search(
        r"error: --server-url .*: .*; what is saved stays: run it again once the server is well\n", done.stderr
    )
    kept = read_lines(tmp_path / "gone/train.jsonl.partial")
    assert kept and "Traceback" not in done.stderr and "pending" not in done.stderr
    proxy.fault, answered = lambda number, body: None, seeds_of(proxy.bodies[:20])
    proxy.bodies.clear()
    done, accepted, _, _ = generated("gone", "--server-url", proxy.url)
    assert done.returncode == 0 and accepted[: len(kept)] == kept
    assert len(answered) > 15 and not answered & seeds_of(proxy.bodies)
    assert texts_of(tmp_path / "gone") == texts_of(in_process())


def seeds_of(bodies: list[dict]) -> set[int]:
    return {body["seed"] for body in bodies if "Hello" not in body["prompt"]}


@pytest.mark.parametrize("status, text", [
    (500, "cannot do it"), (400, "too long for me"), (200, "<html>hello</html>"), (200, "null"),
    (200, '{"choices": [{}], "usage": {}}'),
])  # fmt: skip
def test_a_request_that_fails_or_has_an_answer_in_another_form_is_a_reject(status, text, proxy, generated, monkeypatch):
    monkeypatch.setattr(gold_server, "RETRIES", 0)
    proxy.fault = lambda number, body: (status, {}, text) if number in (7, 9) else None
    done, accepted, rejected, record = generated("bad", "--server-url", proxy.url)
    assert done.returncode == 0 and "a request failed, and is rejected" in done.stderr, done.stderr
    failed = {r["sampling_seed"] for r in rejected if r["reason"] == "engine_error"}
    assert failed == {proxy.bodies[number]["seed"] for number in (7, 9)} and len(accepted) == 30
    assert record["counts"]["rejected"]["engine_error"] == 2


def test_half_a_text_of_a_server_that_shuts_down_is_not_kept(proxy, generated, tmp_path, monkeypatch):
    """By its code vLLM 0.32 may end what is under way with 200 and finish_reason "abort"; here a proxy says so."""
    half = {"choices": [{"index": 0, "text": " Half a", "finish_reason": "abort"}], "id": "x", "object": "text_completion",
            "created": 0, "model": "m"}  # fmt: skip
    proxy.fault = lambda number, body: (200, {}, json.dumps(half)) if number >= 9 else None
    done, *_ = generated("gone", "--server-url", proxy.url)
    assert done.returncode == STOPPED and "has given up its requests" in done.stderr, done.stderr
    kept = read_lines(tmp_path / "gone/train.jsonl.journal")
    assert kept and all(line["finish_reason"] == "stop" for line in kept)


def test_a_first_prompt_that_is_refused_is_a_reject_like_any_other(proxy, labelled):
    def fault(number, body):
        return (400, {}, "too long") if "Hello" not in body["prompt"] and len(proxy.bodies) <= 3 else None

    proxy.fault = fault
    done, records = labelled("long", "--server-url", proxy.url)
    assert 0 < len(records) < 12 and "engine_error) = " in done.stderr


def test_a_server_that_fails_at_everything_is_no_heap_of_rejects(proxy, generated, tmp_path, monkeypatch):
    monkeypatch.setattr(gold_server, "RETRIES", 0)
    proxy.fault = lambda number, body: (500, {}, "broken") if number >= 5 else None
    done, *_ = generated("broken", "--num-examples", 80, "--server-url", proxy.url)
    assert done.returncode == STOPPED and "broken" in done.stderr
    assert not read_lines(tmp_path / "broken/train.rejected.jsonl.partial")
    journal = read_lines(tmp_path / "broken/train.jsonl.journal")
    # So that a job that gets no further is not queued again
    assert all(line["finish_reason"] != "error" for line in journal)


def test_what_a_server_does_not_take_is_said_once_and_recorded(proxy, generated):
    """As OpenAI's own: no min_p, no seed for this model, and max_completion_tokens in the place of max_tokens."""

    def fault(number, body):
        if refused := [name for name in ("min_p", "seed", "max_tokens") if name in body]:
            return 400, {}, f"Unsupported parameter: '{refused[0]}'"
        body["max_tokens"] = body["max_completion_tokens"]

    proxy.fault = fault
    done, _, _, record = generated("poor", "--server-url", proxy.url, form="chat")
    assert done.returncode == 0, done.stderr
    assert all(done.stderr.count(f"does not take {name}: left out") == 1 for name in ("seed", "min_p"))
    assert record["notes"]["not_taken"] == ["min_p", "seed"]


@pytest.mark.parametrize("change, code, message", [
    ({"key": "wrong"}, 1, "set OPENAI_API_KEY to a key that this server takes"),
    ({"model": "llama3.1:8b"}, 1, r"--model llama3.1:8b: .* has no such model; it has .*teacher"),  # no name of the hub
    ({"path": "/v2"}, 1, "check the address, which mostly ends in /v1"),
    ({"url": "http://me:secret@127.0.0.1/v1"}, 2, "without a key or password"),
    ({"url": "127.0.0.1:8000"}, 2, "is http://host:port/v1"),
    ({"url": "http://127.0.0.1/v1?key=secret"}, 2, "without a key or password"),
    ({"url": "http://host:port/v1"}, 2, "is http://host:port/v1"),
    ({"options": ["--tensor-parallel-size", "2"]}, 2, "is the server's own affair: leave it out"),
    ({"options": ["--structured", "--reasoning-parser", "qwen3"]}, 2, "leave it out"),
])  # fmt: skip
def test_wrong_options_are_told_before_any_work(change, code, message, proxy, model, tmp_path, monkeypatch):
    monkeypatch.setattr(gold_server, "RETRIES", 0)
    monkeypatch.setenv("OPENAI_API_KEY", change.get("key", KEY))
    url = change.get("url", proxy.url.replace("/v1", change.get("path", "/v1")))
    done = call(
        "generate.py", "--task-file", TASK, "--model", change.get("model", model), "--output-dir", tmp_path / "x",
        "--num-examples", 4, "--num-validation", 0, "--server-url", url, *change.get("options", []),
    )  # fmt: skip
    assert done.returncode == code and re.search(message, " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split())), (
        done.stderr
    )
    assert "Traceback" not in done.stderr and KEY not in done.stderr


@pytest.fixture
def labelled(model, tmp_path):
    """label.py on 12 records: (what it printed, the records)."""

    def labelled(name, *args, form="completion"):
        done = call(
            "label.py", "--task-file", TASK, "--model", model, "--input-file", ROOT / "data/reviews/test.jsonl", "--limit", 12,
            "--output-file", tmp_path / f"{name}.jsonl", "--prompt-form", form, *args,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done, read_lines(tmp_path / f"{name}.jsonl")

    return labelled


def test_labels_of_a_server_are_those_of_the_engine(proxy, engine, labelled, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "Engine", lambda *of, **how: engine)
        _, here = labelled("here")
    _, there = labelled("there", "--server-url", proxy.url)
    for a, b in zip(here, there, strict=True):
        assert a["teacher_label"] == b["teacher_label"]
        assert b["label_probs"] == pytest.approx(a["label_probs"], abs=1e-4)


@pytest.mark.parametrize("text, first, found", [  # by hand: .6 and .2 of .8
    ("positive", {" positive": 0.6, "Neg": 0.2, "the": 0.2}, {"positive": 0.75, "negative": 0.25}),
    ("**Negative**", {"**": 0.99, "pos": 0.01}, "negative"),  # the mark tells nothing
    ("<think> so </think> positive", {"<think>": 1.0}, "positive"),
    ("I cannot say.", {"I": 1.0}, ""),
])  # fmt: skip
def test_the_first_token_of_a_chat_answer(text, first, found):
    """The shares of the labels, or where the token tells none apart the label that is written."""
    tokens = [SimpleNamespace(token=token, logprob=math.log(p)) for token, p in first.items()]
    logprobs = SimpleNamespace(content=[SimpleNamespace(top_logprobs=tokens)])
    output = SimpleNamespace(text=text, finish_reason="stop", logprobs=logprobs)
    answer = read_label(load_task(TASK), {"review": "x"}, output)
    if isinstance(found, str):
        assert answer == {"teacher_label": found}
    else:
        assert answer == {"teacher_label": max(found, key=found.get), "label_probs": pytest.approx(found)}


@pytest.mark.parametrize("form", ["completion", "chat"])
def test_a_server_without_log_probabilities_gives_its_greedy_answer(form, proxy, labelled):
    proxy.fault = lambda number, body: (400, {}, "no logprobs") if "logprobs" in body else None
    done, records = labelled("greedy", "--server-url", proxy.url, form=form)
    assert done.stderr.count("gives no log-probabilities") == 1
    assert {r["teacher_label"] for r in records} <= {"positive", "negative", ""}
    assert not any("label_probs" in r for r in records)
