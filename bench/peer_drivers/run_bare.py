"""One LLM.generate call of all prompts, each with its own seed."""

import os

from common import count_finished, mark_up, read_job, write_texts

if __name__ == "__main__":
    job = read_job()
    os.environ.update(job["engine_env"])
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], **job["engine"])
    count_finished(job, llm)
    mark_up(job)
    params = [SamplingParams(seed=p["seed"], **job["sampling"]) for p in job["prompts"]]
    outputs = llm.generate([{"prompt_token_ids": p["ids"]} for p in job["prompts"]], params, use_tqdm=False)
    write_texts(job, [(p["id"], o.outputs[0].text) for p, o in zip(job["prompts"], outputs, strict=True)])
