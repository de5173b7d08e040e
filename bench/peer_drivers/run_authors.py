"""One prompt a call through a transformers text-generation pipeline, without stop strings, as GOLD's released code."""

from common import mark_up, read_job, write_texts

if __name__ == "__main__":
    job = read_job()
    import torch
    from transformers import logging, pipeline

    logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu else torch.float32
    write = pipeline("text-generation", model=job["model"], device=0 if gpu else -1, dtype=dtype)
    how = {"do_sample": True, "temperature": job["sampling"]["temperature"], "return_full_text": False}
    how |= {"max_new_tokens": job["sampling"]["max_tokens"], "top_k": 0}
    mark_up(job)
    rows = []
    for prompt in job["prompts"]:
        torch.manual_seed(prompt["seed"])
        rows.append((prompt["id"], write(prompt["text"], **how)[0]["generated_text"]))
    write_texts(job, rows)
