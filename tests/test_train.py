"""train_student.py: the losses by hand, the held-out tenth, and small real trainings of every kind of student."""

import gc
import hashlib
import json
import math
import shutil

import pytest
from conftest import (
    evaluate,
    fitted,
    loaded,
    one_error,
    pair,
    read_lines,
    record_of,
    scores_of,
    still,
    train,
    write_lines,
)

from gold.examples import read_examples
from gold.student import positions_of
from gold.trainer import token_losses
from train_student import is_held_out


def refused(done, *told) -> None:
    assert done.returncode == 1, done.stderr
    one_error(done.stderr, *told)
    gc.collect()  # as the end of the process would, this lets go of the lock


ONE = ("--num-train-epochs", 1)


@pytest.fixture
def rows(home, pairs):
    return read_examples(home / "train.jsonl", pairs)


# ---------------------------------------------------------------------------------------------------------------------
# Losses, held-out tenth, features


def test_losses_by_hand():
    """logits 0 and ln 3: p = 1/4 and 3/4. ce of class 0 = ln 4, of class 1 = ln 4/3.

    Reverse cross-entropy, -sum p_k log q_k with log q = 0 at the label and -9.21 elsewhere: 9.21 * 3/4 and 9.21 * 1/4.
    """
    import torch

    logits = torch.tensor([[0.0, math.log(3)], [7.0, -7.0], [0.0, math.log(3)]], dtype=torch.float64)
    labels = torch.tensor([0, -100, 1])  # what has no label has no loss
    assert token_losses(logits, labels, "ce").tolist() == pytest.approx([1.3862943611, 0.2876820724], abs=1e-5)
    expected = [0.5 * 1.3862943611 + 0.2 * 6.9075, 0.5 * 0.2876820724 + 0.2 * 2.3025]
    assert token_losses(logits, labels, "sce", 0.5, 0.2).tolist() == pytest.approx(expected, abs=1e-5)
    losses = token_losses(torch.full((1, 1000), 8.0, dtype=torch.bfloat16), torch.tensor([3]), "ce")
    assert losses.dtype == torch.float32 and float(losses[0]) == pytest.approx(3 * math.log(10), abs=1e-5)


def test_held_out_is_a_tenth_and_stays_the_same():
    names = [f"reviews-{i:02d}-train-{a:06d}" for i in range(5) for a in range(1000)]
    held_out = [n for n in names if int(hashlib.sha256(n.encode()).hexdigest()[:2], 16) < 26]
    assert list(filter(is_held_out, names)) == held_out and 0.08 < len(held_out) / len(names) < 0.12


# ---------------------------------------------------------------------------------------------------------------------
# Trainings

CLASSES = {
    "t5": ("encoder-decoder", "T5ForConditionalGeneration"), "flip": ("encoder-decoder", "T5ForConditionalGeneration"),
    "bert": ("encoder", "BertForSequenceClassification"), "modernbert": ("encoder", "ModernBertForSequenceClassification"),
    "llama": ("decoder", "LlamaForCausalLM"), "flip_bos": ("decoder", "LlamaForCausalLM"),
    "qwen2": ("decoder", "Qwen2ForCausalLM"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_trained_student(name, trained, home, pairs, flip):
    import transformers

    folder, (family, kind) = trained[name], CLASSES[name]
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "gold.json"}
    files |= {"training_log.jsonl", "held_out.jsonl", "README.md"} | (
        {"generation_config.json"} if family != "encoder" else set()
    )
    assert {p.name for p in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    # Trainer would leave a use_cache that decodes in quadratic time; a forward pass with labels its own kind of loss
    assert config.get("use_cache") is not False and "problem_type" not in config
    assert not [*folder.parent.glob("*partial*"), *folder.parent.glob("trained-*.lock")]
    data = home / ("flip_train.jsonl" if "flip" in name else "train.jsonl")
    examples = read_examples(data, flip if "flip" in name else pairs)
    held_out = [e for e in examples if is_held_out(e["id"])]
    assert read_lines(folder / "held_out.jsonl") == held_out
    record = record_of(folder)
    assert record["inputs"]["train_file"] == [f"sha256:{hashlib.sha256(data.read_bytes()).hexdigest()}"]
    log = read_lines(folder / "training_log.jsonl")
    model = getattr(transformers, kind).from_pretrained(folder)
    number = len(examples) - len(held_out)
    steps, accuracies = 30 * math.ceil(number / 20), {r["epoch"]: r["eval_accuracy"] for r in log if "eval_loss" in r}
    counts = record["counts"] | {"held_out_accuracy": pytest.approx(record["counts"]["held_out_accuracy"], abs=1e-4)}
    assert counts == {
        "train_examples": number, "held_out_examples": len(held_out), "steps": steps, "dtype": "float32", "family": family,
        "parameters": model.num_parameters(), "held_out_accuracy": max(accuracies.values()),
        "best_epoch": max(e for e in accuracies if accuracies[e] == max(accuracies.values())),
    }  # fmt: skip
    losses = [r["loss"] for r in log if "loss" in r]
    assert len(losses) == 1 + steps // 20 and losses[-1] < losses[0] / 4
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    if family == "encoder":
        assert model.config.id2label == {0: "Warm", 1: "not warm"}
        assert model.config.label2id == {"Warm": 0, "not warm": 1}
    if family == "decoder":
        assert (tokenizer.pad_token == tokenizer.eos_token) is (name != "llama")
        kept = model.generation_config
        assert (kept.eos_token_id, kept.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert not kept.do_sample and kept.repetition_penalty in (None, 1.0) and not kept.min_new_tokens
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is (name == "qwen2")


def test_an_untied_t5_stays_untied(trained, models, rows, pairs):
    """As FLAN-T5: two matrices, no scaling of what goes into the second."""
    import torch
    from safetensors.torch import load_file

    weights, base = (load_file(folder["t5v11"] / "model.safetensors") for folder in (trained, models))
    assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    assert not any(torch.equal(weights[name], base[name]) for name in ("lm_head.weight", "shared.weight"))
    student = loaded(trained["t5v11"], pairs)
    network, start = student.network, torch.tensor([[0, 5, 6]])
    ids = torch.tensor([student.encode(rows[:1])[0]["input_ids"]])
    with torch.inference_mode():
        logits = network(input_ids=ids, decoder_input_ids=start).logits
        states = network.decoder(start, encoder_hidden_states=network.encoder(ids).last_hidden_state).last_hidden_state
    assert torch.allclose(logits, states @ weights["lm_head.weight"].T, atol=1e-5)


@pytest.mark.parametrize("ratio, at_20", [(1.0, 0.5), (0.5, 1), (0.0, 1)])
def test_the_warm_up_is_a_share_of_all_steps(ratio, at_20, models, rows, pairs, tmp_path):
    """One step an epoch. transformers takes warmup_steps=1.0 for one step."""
    how = {"num_train_epochs": 40, "warmup_ratio": ratio}
    log = fitted(models["bert"], pairs, rows[:4], [], tmp_path / "s", **how)[2]
    rates = {r["step"]: r["learning_rate"] for r in log if "loss" in r}
    assert rates == pytest.approx({1: 0.01 if ratio == 0 else 0, 20: 0.01 * at_20, 40: 0.01}, abs=6e-4)


def test_a_bfloat16_base_is_trained_in_float32(models, rows, pairs, tmp_path):
    """Steps of 1e-5 are lost in bfloat16 weights; from_pretrained takes the dtype of the file unless it is told."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(models["bos"], tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(models["bos"], dtype=torch.bfloat16).save_pretrained(base)
    assert json.loads((base / "config.json").read_text())["dtype"] == "bfloat16"
    fitted(base, pairs, rows[:8], [], tmp_path / "s", learning_rate=1e-5, dtype="bfloat16")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "s"))
    assert {v.dtype for v in after.values()} == {torch.float32}
    assert all(not torch.equal(before[k].float(), v) for k, v in after.items() if "proj" in k)


@pytest.mark.parametrize("name", ["t5v11", "bert", "qwen2"])
def test_saved_weights_are_those_of_the_best_epoch(name, models, rows, pairs, tmp_path):
    """Held-out examples of the opposite label: the longer it trains, the worse. The best epoch, not the last, is saved."""
    other = {"Warm": "not warm", "not warm": "Warm"}
    held_out = [e | {"label": other[e["label"]], "target": other[e["label"]]} for e in rows[:20]]
    _, counts, log = fitted(models[name], pairs, rows, held_out, tmp_path / "student", num_train_epochs=12)
    accuracy = {r["epoch"]: r["eval_accuracy"] for r in log if "eval_accuracy" in r}
    best = max(accuracy.values())
    assert list(accuracy) == list(range(1, 13)) and accuracy[12] < best
    assert counts["best_epoch"] == max(e for e in accuracy if accuracy[e] == best)  # of ties the latest
    correct = [s["correct"] for s in scores_of(tmp_path / "student", pairs, held_out)]
    assert sum(correct) / len(correct) == pytest.approx(best, abs=1e-4) == counts["held_out_accuracy"]


@pytest.mark.parametrize("name", ["t5", "bert", "qwen2"])
def test_accumulated_batches_are_one_batch(name, models, rows, pairs, tmp_path):
    """8 x 1 and 2 x 4: the same loss and gradient, and so the same second step; targets of unlike length included."""
    model, logs = still(models[name], tmp_path / "still"), []
    for size in (8, 2):
        how = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "loss": "sce"}
        logs.append(fitted(model, pairs, rows[:8], rows[:8], tmp_path / f"s{size}", **how)[2][:2])
    for (one, many), keys in zip(zip(*logs, strict=True), (("loss", "grad_norm"), ("eval_loss",)), strict=True):
        # The norm in the log is that of before the clipping, which would hide a factor
        assert [many[key] for key in keys] == pytest.approx([one[key] for key in keys], rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "bos", "qwen2"])
def test_loss_of_a_decoder_is_that_of_its_target_tokens(name, models, rows, pairs, tmp_path):
    """The first step's loss against the plain way: one example at a time, no padding, all logits, in float64."""
    import torch

    student, rows, losses = loaded(models[name], pairs), rows[:6], []
    for f in student.encode(rows):
        with torch.inference_mode():
            logits = student.network(torch.tensor([f["input_ids"] + f["labels"]])).logits[0].double()
        log_p = logits.log_softmax(-1)
        losses += [-float(log_p[len(f["input_ids"]) + j - 1, token]) for j, token in enumerate(f["labels"])]
    how = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    log = fitted(models[name], pairs, rows, [], tmp_path / "s", **how)[2]
    assert log[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_positions_of_a_roberta():
    """Two of its table are not for texts."""
    import transformers as hf

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.RobertaConfig(vocab_size=9, max_position_embeddings=514, pad_token_id=1, **small)
    assert positions_of(hf.RobertaForSequenceClassification(config), "encoder") == 512


def test_a_student_with_few_positions_is_trained_and_measured(models, home, tmp_path):
    """GPT-2 has a table of positions, which raises an index error beyond its end."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(models["bos"])
    config = hf.GPT2Config(vocab_size=len(tokenizer), n_positions=9, n_embd=16, n_layer=1, n_head=2)
    hf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    told = "--max-target-length 128: leaves no room for a source in 9 positions"
    refused(train(home, tmp_path / "gpt2", tmp_path / "student", *ONE), told)
    done = train(home, tmp_path / "gpt2", tmp_path / "student", *ONE, "--max-target-length", 3)
    assert done.returncode == 0 and "the 5 tokens that the model's 9 positions leave them" in done.stderr
    done = evaluate(home / "pairs.toml", home / "test.jsonl", tmp_path / "out", "--model", tmp_path / "student")
    assert done.returncode == 0 and "positions leave them" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_seeds_and_the_robust_loss_by_command(models, home, tmp_path):
    sce = ("--loss", "sce", "--sce-beta", 0.5)
    for name, more in (("a", ()), ("b", ()), ("c", ("--seed", 1)), ("sce", sce)):
        done = train(home, models["bert"], tmp_path / name, *ONE, *more)
        assert done.returncode == 0, done.stderr
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    options = record_of(tmp_path / "sce")["options"]
    assert (options["loss"], options["sce_alpha"], options["sce_beta"]) == ("sce", 1.0, 0.5)
    sce, ce = (read_lines(tmp_path / name / "training_log.jsonl")[0]["loss"] for name in ("sce", "a"))
    assert ce < sce < ce + 0.5 * 9.21  # ce + 0.5 * 9.21 * (1 - p)


def test_nothing_held_out_and_all(models, home, tmp_path):
    rows = [pair(n) | {"id": f"own-{n}"} for n in range(100)]
    rest, held_out = (
        write_lines(tmp_path / f"{kind}.jsonl", [r for r in rows if is_held_out(r["id"]) is kind][:6])
        for kind in (False, True)
    )
    assert train(home, models["t5"], tmp_path / "student", *ONE, data=rest).returncode == 0
    counts = record_of(tmp_path / "student")["counts"]
    assert (counts["train_examples"], counts["held_out_examples"], counts["held_out_accuracy"]) == (6, 0, None)
    assert (tmp_path / "student" / "model.safetensors").exists()
    assert not (tmp_path / "student" / "held_out.jsonl").exists()
    refused(train(home, models["t5"], tmp_path / "none", data=held_out), f"{held_out}: only 6 examples")
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def edited(source, folder, name, change):
    """A copy of a model folder in which one JSON file is changed."""
    shutil.copytree(source, folder)
    (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))
    return folder


def test_students_that_do_not_fit_are_refused(models, trained, home, tmp_path):
    out = tmp_path / "out"
    flip = {"task": "flip.toml", "data": "flip_train.jsonl"}
    refused(train(home, models["bert"], out, **flip), "an encoder (bert) chooses among labels")
    refused(train(home, models["t5"], out, "--new-head"), "--new-head", "is no encoder")
    for name, changes, told in (
        ("gemma2", {}, "changes the logits after its output layer (final_logit_softcapping 30.0)"),
        ("cohere", {"logit_scale": 0.0625}, "(logit_scale 0.0625)"),
        ("bart", {}, "bart is an encoder-decoder other than T5"),
        ("vit", {}, "vit is none of encoder-decoder (T5), encoder (BERT), decoder (Llama)"),
    ):  # from the config alone: there are no weights
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": name, **changes}))
        refused(train(home, tmp_path / name, out), told)
    endless = edited(models["bos"], tmp_path / "endless", "tokenizer_config.json", lambda c: c | {"eos_token": None})
    refused(train(home, endless, out), "its tokenizer has no end token")
    mixed = shutil.copytree(models["llama"], tmp_path / "mixed")
    for path in models["qwen2"].glob("tokenizer*"):
        shutil.copy(path, mixed)
    refused(train(home, mixed, out), "its tokenizer has a token 349, the model only 31 tokens")
    refused(train(home, "nobody/no-such-model", out), "--model nobody/no-such-model: no student there")
    (tmp_path / "empty").mkdir()
    refused(train(home, tmp_path / "empty", out), f"--model {tmp_path / 'empty'}: has no config.json")
    # labels of another task, and the same in another order
    for name, labels in (("other", {"0": "hot", "1": "cold"}), ("turned", {"0": "not warm", "1": "Warm"})):
        heads = {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
        other = edited(trained["bert"], tmp_path / name, "config.json", lambda c, heads=heads: c | heads)
        refused(train(home, other, out), f"--model {other}: has the labels", str(list(labels.values())))
    assert not out.exists()


@pytest.mark.parametrize("fault", ["torn weights", "no weights", "no tokenizer", "broken config"])
def test_broken_model_folders_are_refused(fault, models, home, tmp_path):
    folder = shutil.copytree(models["t5"], tmp_path / "model")
    if fault == "torn weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    for path in folder.glob({"no weights": "*.safetensors", "no tokenizer": "tokenizer*"}.get(fault, "none")):
        path.unlink()
    if fault == "broken config":
        (folder / "config.json").write_text('{"model_type": "t5", ')
    refused(train(home, folder, tmp_path / "student", *ONE), f"--model {folder}: ")
    assert not (tmp_path / "student").exists()


def test_a_refused_option_can_be_mended_as_the_message_says(models, home, tmp_path):
    """And with --overwrite the old student stays until the new one is there."""
    student = tmp_path / "student"
    refused(train(home, models["t5"], student, "--dtype", "float16", *ONE), "T5 overflows in float16")
    assert not student.exists()
    done = train(home, models["t5"], student, "--dtype", "bfloat16", *ONE)
    assert done.returncode == 0 and record_of(student)["counts"]["dtype"] == "bfloat16", done.stderr
    weights = (student / "model.safetensors").read_bytes()
    refused(train(home, models["t5"], student, "--dtype", "float16", "--overwrite"), "float16")
    assert (student / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("held_out", [True, False])
def test_a_loss_that_is_no_number_ends_the_training(held_out, models, home, tmp_path):
    rows = [{"id": f"own-{n}", **pair(n)} for n in range(60)]
    data = write_lines(tmp_path / "data.jsonl", [r for r in rows if held_out or not is_held_out(r["id"])])
    done = train(home, models["t5"], tmp_path / "s", "--learning-rate", 1e30, "--num-train-epochs", 3, data=data)
    refused(done, "loss is nan at step", "lower --learning-rate")
    assert not (tmp_path / "s").exists() and not (tmp_path / "s.run.json").exists()
