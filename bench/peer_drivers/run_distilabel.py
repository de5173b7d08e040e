"""distilabel: a Pipeline of LoadDataFromDicts and TextGeneration with its vLLM class. One engine seed, none a prompt."""

import os
from pathlib import Path
from typing import Any

from common import count_finished, mark_up, read_job, write_texts

job = read_job()
os.environ.update(job["engine_env"])  # in the step's own process too, which imports this file

from distilabel.models.llms import vLLM  # noqa: E402
from distilabel.pipeline import Pipeline  # noqa: E402
from distilabel.steps import LoadDataFromDicts  # noqa: E402
from distilabel.steps.tasks import TextGeneration  # noqa: E402


class NewerVLLM(vLLM):
    """distilabel's own, with three changes that vLLM 0.32 needs.

    SamplingParams has no logits_processors any more, the engine no model_executor that could be deleted at the end, and the
    chat template that is set on the engine's tokenizer is not used.
    """

    def load(self) -> None:
        import vllm
        import vllm.entrypoints.llm  # it reads the class, so before that is replaced

        sampling = vllm.SamplingParams

        def without_processors(*args: Any, logits_processors: Any = None, **kwargs: Any) -> Any:
            return sampling(*args, **kwargs)

        vllm.SamplingParams = without_processors
        super().load()
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(job["model"])
        self._tokenizer.chat_template = job["chat_template"]
        count_finished(job, self._model)
        mark_up(job)

    def _cleanup_vllm_model(self) -> None:
        self._model = None


def main() -> None:
    engine = {name: value for name, value in job["engine"].items() if name not in ("dtype", "seed")}
    how = {"max_new_tokens": job["sampling"]["max_tokens"], "temperature": job["sampling"]["temperature"]}
    if job["sampling"]["stop"]:
        how["stop"] = job["sampling"]["stop"]
    with Pipeline(name="peers", cache_dir=Path(job["work"]) / "cache") as pipeline:
        rows = [{"number": i, "instruction": p["text"]} for i, p in enumerate(job["prompts"])]
        load = LoadDataFromDicts(data=rows, batch_size=job["batch"])
        llm = NewerVLLM(
            model=job["model"], dtype=job["engine"].get("dtype", "auto"), seed=0, extra_kwargs=engine, generation_kwargs=how,
            chat_template=job["chat_template"], disable_cuda_device_placement="CUDA_VISIBLE_DEVICES" not in os.environ,
        )  # fmt: skip
        write = TextGeneration(llm=llm, input_batch_size=job["batch"], output_mappings={"generation": "text"})
        load >> write
    found = pipeline.run(use_cache=True)["default"]["train"]
    write_texts(job, [(job["prompts"][row["number"]]["id"], row["text"]) for row in found])


if __name__ == "__main__":
    main()
