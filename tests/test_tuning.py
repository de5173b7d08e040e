"""train_student.py --as-teacher: a teacher learns in the very tokens of generate.py, and its folder is a teacher's."""

import json
import shutil

import pytest
from conftest import (
    ROOT,
    by_seed,
    call,
    encoder_of,
    fitted,
    loaded,
    one_error,
    pair,
    read_lines,
    record_of,
    refusal,
    scripted,
    write_lines,
)

from gold.examples import read_examples
from gold.task import load_task
from gold.teacher import Encoder, load_encoder
from gold.trainer import collate_decoder
from gold.tuning import teacher_rows

TURNS = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<|endoftext|>{% endfor %}"
WRITTEN = [" the beach\nSecond: sun", " the beach\nSecond: a big snow", " the beach\nSecond: a big melon"]


@pytest.fixture
def seeds(pairs):
    return read_examples(pairs.seed_examples, pairs)


@pytest.fixture(params=["bos", "chat"])
def teacher(request, models, tmp_path):
    """bos: a BOS before every prompt. chat: a template that ends a turn with <|endoftext|>."""
    if request.param != "chat":
        return models[request.param]
    from transformers import AutoTokenizer

    folder = shutil.copytree(models["qwen2"], tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TURNS + "{% if add_generation_prompt %}<assistant>\n{% endif %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_prompts_are_token_for_token_those_of_generate(teacher, pairs, seeds, home, command, tmp_path):
    """generate.py, of whose seed examples one is taken away, sends the prompt that the teacher learns to write it after."""
    rows = teacher_rows(pairs, load_encoder(str(teacher), pairs, "auto", {}, False), seeds, seeds, seed=3)
    for i in (3,) if teacher.name == "chat" else (0,):  # labels 1 and 0: attempts 7 and 0
        sent, llm, folder = {}, scripted(by_seed), tmp_path / f"without-{i}"
        add = llm.llm_engine.add_request
        llm.llm_engine.add_request = lambda name, prompt, params, sent=sent, add=add: (
            sent.update({name: prompt["prompt_token_ids"]}),
            add(name, prompt, params),
        )
        folder.mkdir()
        shutil.copy(home / "pairs.toml", folder)
        write_lines(folder / "seed.jsonl", [e for e in seeds if e != seeds[i]])
        how = ("--task-file", folder / "pairs.toml", "--model", teacher, "--num-examples", 8, "--num-validation", 0)
        done = command(*how, "--seed", 3, folder=f"out-{i}", llm=llm)
        assert done.returncode == 0, done.stderr
        assert sent[f"pairs-00-train-{2 * i + i % 2:06d}"] == rows[i]["input_ids"]


def test_completions_are_what_is_missing_of_an_example_and_its_end(teacher, pairs, seeds):
    encoder = load_encoder(str(teacher), pairs, "auto", {}, False)
    rows = teacher_rows(pairs, encoder, seeds[:3], seeds, seed=0)
    chat, tokenizer = encoder.form == "chat", encoder.tokenizer
    for row, text in zip(rows, WRITTEN, strict=True):
        end = "<|endoftext|>" if chat else "\n\n"
        assert row["target"] == (text.strip() if chat else text) + end
        whole = tokenizer(row["source"] + row["target"], add_special_tokens=not chat)["input_ids"]
        assert row["input_ids"] + row["labels"] == whole and 4 < len(row["labels"]) < len(row["input_ids"])
        assert not chat or row["labels"][-1] == tokenizer.eos_token_id != row["labels"][-2]
        assert text.strip() not in row["source"] and row["source"].count("\nSecond: ") == 3
    # Without a stop string a text ends in the end token
    endless = pairs.model_copy(update={"parse": pairs.parse.model_copy(update={"stop": []})})
    assert teacher_rows(endless, encoder, seeds[:1], seeds, 0)[0]["labels"][-1] == tokenizer.eos_token_id


def test_a_list_shows_other_examples_of_the_label(models):
    """ag_news has three of each: the two others stand under the heading, and a line's end ends the third."""
    from transformers import AutoTokenizer

    task = load_task(ROOT / "prompts/ag_news.toml").in_form("completion")
    seeds = read_examples(task.seed_examples, task)
    rows = teacher_rows(task, encoder_of(AutoTokenizer.from_pretrained(models["qwen2"])), seeds, seeds, seed=0)
    for e, row in zip(seeds, rows, strict=True):
        heading, _, *shots, start = row["source"].split("\n")
        assert heading == f"News agency reports, {e['label']} desk:" and start == "-"
        others = [f"- {other['text']}" for other in seeds if other["label"] == e["label"] and other != e]
        assert sorted(shots) == sorted(others) and row["target"] == f" {e['text']}\n"


def test_a_token_that_joins_prompt_and_text_is_not_learnt(pairs, seeds):
    """ "First:the" is one word of a tokenizer that splits at blanks alone; generate.py sends "First:"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "First:", "First:the", "the", "beach"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = encoder_of(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>"))
    prompt = pairs.prompt.model_copy(update={"example": pairs.prompt.example.replace(": $first", ":$first")})
    [row] = teacher_rows(pairs.model_copy(update={"prompt": prompt}), encoder, seeds[:1], seeds, 0)
    assert row["input_ids"][-1] == 2 and row["labels"][:2] == [4, 5] and 3 in row["input_ids"]


def test_the_loss_is_that_of_the_completion_alone(models, pairs, seeds, tmp_path):
    """The first step's loss against all logits in float64; and where the labels of a batch stand."""
    import torch

    rows = teacher_rows(pairs, load_encoder(str(models["bos"]), pairs, "auto", {}, False), seeds, seeds, 0)
    losses, network = [], loaded(models["bos"], pairs).network
    for row in rows:
        with torch.inference_mode():
            log_p = network(torch.tensor([row["input_ids"] + row["labels"]])).logits[0].double().log_softmax(-1)
        losses += [-float(log_p[len(row["input_ids"]) + j - 1, token]) for j, token in enumerate(row["labels"])]
    log = fitted(models["bos"], pairs, rows, [], tmp_path / "s", as_teacher="auto")[2]
    assert log[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    batch = collate_decoder(0, rows)
    for row, ids, labels in zip(rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        size = len(row["labels"])
        assert labels[-size:] == ids[-size:] == row["labels"] and set(labels[:-size]) == {-100}


def tune(home, model, output, *args):
    return call("train_student.py", "--task-file", home / "pairs.toml", "--model", model, "--output-dir", output, *args)


@pytest.mark.parametrize("teacher", ["chat"], indirect=True)
def test_the_folder_is_a_teachers(teacher, home, pairs, seeds, command, tmp_path):
    """All seed examples are trained on; tokenizer, template and generation settings are the base's; generate.py takes it."""
    output, args = tmp_path / "tuned", ("--as-teacher", "auto", "--num-train-epochs", 40, "--learning-rate", 1e-2)
    done = tune(home, teacher, output, *args)
    assert done.returncode == 0, done.stderr
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    files |= {"training_log.jsonl", "tuned_on.jsonl", "README.md", "chat_template.jinja"}
    assert {p.name for p in output.iterdir()} == files
    assert read_lines(output / "tuned_on.jsonl") == [pair(n) for n in range(4)]
    record, encoders = record_of(output), [load_encoder(str(m), pairs, "auto", {}, False) for m in (teacher, output)]
    counts = {name: record["counts"][name] for name in ("train_examples", "held_out_examples", "steps", "prompt_form")}
    assert counts == {"train_examples": 4, "held_out_examples": 0, "steps": 40, "prompt_form": "chat"}
    before, after = (teacher_rows(pairs, encoder, seeds, seeds, 0) for encoder in encoders)
    assert before == after and encoders[1].form == "chat"
    kept = json.loads((output / "generation_config.json").read_text())
    assert (kept["eos_token_id"], kept["temperature"]) == ([3, 4, 5], 3.0)  # what ends a turn, and the base's sampling
    losses = [line["loss"] for line in read_lines(output / "training_log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] / 2
    card = (output / "README.md").read_text()
    assert (
        "# A teacher of the task pairs" in card
        and "| num\\_train\\_epochs | 40.0 |" in card
        and "seed.jsonl | 4 |" in card
    )
    assert "up to date" in tune(home, teacher, output, *args).stderr
    # A seed example that it knows by heart is none of its texts
    known = [f" {e['first']}\nSecond: {e['second']}" for e in seeds]
    how = ("--model", output, "--num-validation", 0, "--exclude-file", output / "tuned_on.jsonl", "--num-fewshot", 1)
    done = command(*how, answer=lambda seed: (known[seed % 4], "stop"))
    assert done.returncode == 1 and "duplicate" in done.stderr and "gave 0 of 6" in done.stderr


def test_what_is_no_teacher_or_has_too_little_is_refused(models, home, pairs, seeds, tmp_path):
    for name in ("t5", "bert"):
        done = tune(home, models[name], tmp_path / "out", "--as-teacher", "auto")
        assert done.returncode == 1
        one_error(done.stderr, f"--model {models[name]}: is a {name}", "a teacher is a causal language model")
    for args, told in (((), "--train-file"), (("--as-teacher", "chat", "--loss", "sce"), "--loss")):
        done = tune(home, models["bos"], tmp_path / "out", *args)
        assert done.returncode == 2 and told in done.stderr
    encoder = load_encoder(str(models["bos"]), pairs, "auto", {}, False)
    told = refusal(teacher_rows, pairs, encoder, seeds[:1], seeds[:1], 0)
    assert f"{seeds[0]['id']}: {pairs.seed_examples} has no other example to show before it" in told
    short = Encoder(encoder.tokenizer, "completion", {}, 40)
    told = refusal(teacher_rows, pairs, short, seeds, seeds, 0)
    assert (
        f"{seeds[0]['id']}: its prompt and its text have" in told and "the context of --model 40; leave it out" in told
    )
    assert not list(tmp_path.iterdir())
