"""Cards: the code in a student's README.md gives the answers of evaluate.py, `datasets` reads generated files to the letter.

No text of a task breaks a card.
"""

import json
import re
import tempfile

import pytest
from conftest import PAIRS, VARIED, evaluate, pair, read_lines, record_of, train, write_lines
from huggingface_hub import ModelCard

from gold.cards import write_data_card
from gold.task import load_task

NASTY = "a | b `x` *y* <script>\n---\n```python\n# {{x}} {0} $z$ [l](u) \u0000 \\ é"


def code_of(folder) -> str:
    """The one Python block of a card."""
    [code] = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    return code


def answers_of(folder, sources: list[str]) -> list[str]:
    """What the card's code answers; only its example is replaced."""
    code, found = re.subn(r"^sources = .*$", "", code_of(folder), flags=re.M)
    assert found == 1
    names = {"sources": sources}
    exec(code, names)
    return names["answers"]


def predictions(task_file, folder, test_file, output) -> list[dict]:
    done = evaluate(task_file, test_file, output, "--model", folder)
    assert done.returncode == 0, done.stderr
    return read_lines(output / "predictions.jsonl")


@pytest.mark.parametrize("name", ["bert", "modernbert", "t5", "llama", "qwen2", "flip", "flip_bos"])
def test_the_code_gives_the_answers_of_evaluate(name, trained, home, tmp_path):
    task, folder = "flip" if "flip" in name else "pairs", trained[name]
    test_file = home / "test.jsonl"
    if task == "flip":
        test_file = write_lines(tmp_path / "flip.jsonl", read_lines(home / "flip_train.jsonl")[:20])
    found = predictions(home / f"{task}.toml", folder, test_file, tmp_path / "out")[:20]
    assert len({p["prediction"] for p in found}) > 1
    assert answers_of(folder, [p["source"] for p in found]) == [p["prediction"] for p in found]


@pytest.mark.parametrize("name", ["bert", "t5", "qwen2"])
def test_texts_that_are_cut_and_texts_with_control_tokens(name, models, home, tmp_path):
    """The code cuts the last field's end as evaluate.py does, and reads ".", which BPE joins with a newline, as trained."""
    task, output = home / f"{name}.toml", tmp_path / "student"
    task.write_text(PAIRS.replace('target = "$label"', 'target = "with $label"'))
    how = ("--max-source-length", 12, "--max-target-length", 12, "--num-train-epochs", 8, "--learning-rate", 1e-2)
    done = train(home, models[name], output, *how, task=task)
    assert done.returncode == 0, done.stderr
    ends = [".", "?", " beach" * 40, ". sun."] + [" [SEP] sun", " <|endoftext|> sun"] * (name in ("bert", "qwen2"))
    rows = [pair(n) | {"second": pair(n)["second"] + ends[n % len(ends)]} for n in range(20)]
    found = predictions(task, output, write_lines(tmp_path / "test.jsonl", rows), tmp_path / "out")
    assert answers_of(output, [p["source"] for p in found]) == [p["prediction"] for p in found]
    assert name != "bert" or {p["prediction"] for p in found} == {"with warm", "with not warm"}


def test_what_the_card_says(trained):
    card = ModelCard.load(trained["bert"] / "README.md")
    assert card.data.pipeline_tag == "text-classification" and card.data.library_name == "transformers"
    assert card.data.license is None and "**Licence: not stated yet.**" in card.text
    assert card.data.base_model is None  # a folder: the hub takes names alone
    counts = record_of(trained["bert"])["counts"]
    for told in ("| num\\_train\\_epochs | 30.0 |", "| learning\\_rate | 0.01 |", "| Warm | Warm | both belong to summer |",
                     "/train.jsonl | 60 | not known | none |",
                 f"{counts['held_out_accuracy']:.3f} \\[", "max\\_source\\_length | 512 |"):  # fmt: skip
        assert told in card.text, told


def test_texts_of_a_task_stay_text(models, home, tmp_path):
    """A description, a label and a definition made of Markdown, YAML, HTML and braces: one heading more would show."""
    text = PAIRS.replace('"Do both things belong to summer?"', json.dumps(NASTY))
    text = text.replace("Warm = ", f"{json.dumps('W|`#')} = ").replace('"both belong to summer"', json.dumps(NASTY))
    (tmp_path / "nasty.toml").write_text(text.replace('"seed.jsonl"', '"nasty.jsonl"'), encoding="utf-8")
    rows = [pair(n) | ({"label": "W|`#"} if n % 2 == 0 else {}) | {"first": f"```\n# {n}\n{{x}}"} for n in range(40)]
    file = write_lines(tmp_path / "nasty.jsonl", rows)
    how = {"task": tmp_path / "nasty.toml", "data": file}
    done = train(home, models["bert"], tmp_path / "student", "--num-train-epochs", 1, **how)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "student/README.md").read_text(encoding="utf-8")
    assert ModelCard(card).data.pipeline_tag == "text-classification"
    assert re.findall(r"^#+ .*", card, re.M) == [
        "# A student of the task pairs", "## Use", "## Training data", "## Training", "## Results"
    ]  # fmt: skip
    assert len(re.findall(r"^```", card, re.M)) == 4 and len(re.findall(r"^---$", card, re.M)) == 2
    assert "<script" not in card.replace("\\<", "") and "\0" not in card
    [row] = re.findall(r"^\| W.*", card, re.M)
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    found = predictions(tmp_path / "nasty.toml", tmp_path / "student", file, tmp_path / "out")[:20]
    assert answers_of(tmp_path / "student", [p["source"] for p in found]) == [p["prediction"] for p in found]


# ---------------------------------------------------------------------------------------------------------------------
# Generated data

HOSTILE = ["007", "2024-01-01", '{"a": 1}', "null", "true", "1e400", "[]", '"', "\u2028", " 5", "plain"]


def load(folder) -> dict[str, list[dict]]:
    """The data set as a user loads it, and a hub would."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:  # one for all would give the files of the last call
        return {name: list(split) for name, split in load_dataset(str(folder), cache_dir=cache).items()}


def test_generated_files_load_to_the_letter(command, tmp_path):
    """Every field of both splits, whatever its texts look like; rejects, run records and students beside them are no data."""
    done = command("--num-examples", 2 * len(HOSTILE))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "iter-00"
    files = {name: folder / f"{name}.jsonl" for name in ("train", "validation")}
    assert load(folder) == {name: read_lines(file) for name, file in files.items()}
    rows = read_lines(files["train"])
    for row, text in zip(rows, HOSTILE, strict=False):
        row |= {"first": text, "second": text, "completion": text, "source": text, "shots": [text]}
    write_lines(files["train"], rows)
    (folder / "student").mkdir()
    write_lines(folder / "student" / "train.jsonl", [{"no": "data"}])
    assert load(folder)["train"] == rows
    # A README.md of the user's own stays
    (folder / "README.md").write_text("mine")
    assert command("--num-examples", 30).returncode == 0 and (folder / "README.md").read_text() == "mine"


def test_shards_attributes_and_label_probs_load(home, tmp_path):
    text = VARIED.replace("Warm = ", f"{json.dumps('null')} = ").replace('"Do both', '"--- {x} # |\\n---\\nDo both')
    (home / "null.toml").write_text(text)
    task = load_task(home / "null.toml")
    options = {"verify": True, "attributes": True, "shard": "0/2", "num_validation": 0, "model": "a: b #\n---"}
    write_data_card(tmp_path, task, options | {"corpus_file": "c.jsonl", "unlabelled": False, "teacher_nll": True})
    rest = {
        "source": "s", "target": "t", "task": "pairs", "iteration": 1, "split": "train", "feedback": True, "shots": ["a"],
        "passages": ["b"], "attributes": {"size": "two words", "where": "on a hill"},
        "sampling_seed": 2**31, "finish_reason": "stop", "completion": "c", "teacher_label": "null",
        "teacher_nll": 2.5,
    }  # fmt: skip
    rows = [{"id": f"{n}", "first": "007" * n, "second": "x", "label": "null", **rest,
             "label_probs": {"null": 0.1, "not warm": 1e-9}} for n in (1, 2)]  # fmt: skip
    for n, row in enumerate(rows):
        write_lines(tmp_path / f"train-0000{n}-of-00002.jsonl", [row])
        write_lines(tmp_path / f"train-0000{n}-of-00002.rejected.jsonl", [{"id": "r", "reason": "empty_field"}])
    assert load(tmp_path) == {"train": rows}
