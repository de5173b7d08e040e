"""Bespoke Curator: curator.LLM with its OpenAI backend, by the server. No seed a prompt; its cache is what it resumes from."""

import os
from pathlib import Path

from common import mark_up, read_job, write_texts

job = read_job()
os.environ["CURATOR_CACHE_DIR"] = str(Path(job["work"]) / "cache")
os.environ["OPENAI_API_KEY"] = "none"

from bespokelabs import curator  # noqa: E402
from datasets import Dataset  # noqa: E402


class Writer(curator.LLM):
    def prompt(self, row: dict) -> str:
        return row["instruction"]

    def parse(self, row: dict, response: str) -> dict:
        return {"number": row["number"], "text": response}


def main() -> None:
    sampling = {name: value for name, value in job["sampling"].items() if value}
    without_limits = {"max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10}
    writer = Writer(
        model_name=job["served"], backend="openai", generation_params=sampling,
        backend_params={
            "base_url": job["url"], "max_concurrent_requests": job["concurrency"], "require_all_responses": False,
            **without_limits,
        },
    )  # fmt: skip
    rows = [{"number": i, "instruction": p["text"]} for i, p in enumerate(job["prompts"])]
    mark_up(job)
    found = writer(Dataset.from_list(rows)).dataset
    write_texts(job, [(job["prompts"][row["number"]]["id"], row["text"]) for row in found])


if __name__ == "__main__":
    main()
