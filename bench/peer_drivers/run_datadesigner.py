"""NeMo Data Designer: one text column of a seed data set that holds the prompts, by the server. No seed a prompt."""

from pathlib import Path

import data_designer.config as dd
import pandas
from common import mark_up, read_job, write_texts
from data_designer.engine.storage.artifact_storage import ResumeMode
from data_designer.interface import DataDesigner


def main() -> None:
    job = read_job()
    seeds = Path(job["work"]) / "seeds.parquet"
    if not seeds.exists():  # the same file after a restart: its name is part of what is compared
        rows = [{"number": i, "instruction": p["text"]} for i, p in enumerate(job["prompts"])]
        pandas.DataFrame(rows).to_parquet(seeds)
    parameters = dd.ChatCompletionInferenceParams(
        temperature=job["sampling"]["temperature"], top_p=1.0, max_tokens=job["sampling"]["max_tokens"],
        max_parallel_requests=job["concurrency"], extra_body={"stop": job["sampling"]["stop"]},
    )  # fmt: skip
    model = dd.ModelConfig(
        alias="teacher", model=job["served"], provider="served", inference_parameters=parameters, skip_health_check=True
    )
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=str(seeds)), sampling_strategy=dd.SamplingStrategy.ORDERED)
    builder.add_column(dd.LLMTextColumnConfig(name="text", model_alias="teacher", prompt="{{ instruction }}"))
    provider = dd.ModelProvider(name="served", endpoint=job["url"], provider_type="openai", api_key="none")
    designer = DataDesigner(artifact_path=Path(job["work"]) / "artifacts", model_providers=[provider])
    designer.set_run_config(dd.RunConfig(buffer_size=job["batch"], disable_early_shutdown=True))
    mark_up(job)
    found = designer.create(
        builder, num_records=len(job["prompts"]), dataset_name="peers", resume=ResumeMode.IF_POSSIBLE
    ).load_dataset()
    write_texts(job, [(job["prompts"][n]["id"], text) for n, text in zip(found["number"], found["text"], strict=True)])


if __name__ == "__main__":
    main()
