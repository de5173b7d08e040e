"""train_student.py: the losses by hand, the held-out tenth, and small real trainings of every kind of student."""

import gc
import hashlib
import json
import math
import shutil

import pytest
from conftest import TRAINING, call, fitted, loaded, pair, read_lines, scores_of, still, write_lines

from gold.encoding import encode_targets
from gold.examples import read_examples
from gold.losses import token_losses
from gold.student import positions_of
from train_student import is_held_out

# ---------------------------------------------------------------------------------------------------------------------
# Losses


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
    assert token_losses(logits, torch.full((3,), -100), "sce").tolist() == []
    losses = token_losses(torch.full((1, 1000), 8.0, dtype=torch.bfloat16), torch.tensor([3]), "ce")
    assert losses.dtype == torch.float32 and float(losses[0]) == pytest.approx(3 * math.log(10), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Held-out tenth, features


def test_held_out_is_a_tenth_and_stays_the_same():
    names = [f"reviews-{i:02d}-train-{a:06d}" for i in range(5) for a in range(4000)]
    share = sum(map(is_held_out, names)) / len(names)
    assert abs(share - 26 / 256) < 5 * math.sqrt(0.1 * 0.9 / len(names))  # five standard errors
    names = [f"pairs-00-train-{n:06d}" for n in range(60)]
    held_out = [n for n in names if int(hashlib.sha256(n.encode()).hexdigest()[:2], 16) < 26]
    assert list(filter(is_held_out, names)) == held_out and len(held_out) == 5


@pytest.mark.parametrize("name", ["t5", "bert", "llama", "bos"])
def test_features(name, models, home, pairs, capsys):
    """Of a decoder: the source as the tokenizer frames it but for an EOS, a newline, the target, EOS; tokenised apart."""
    student = loaded(models[name], pairs)
    tokens = student.tokenizer.convert_ids_to_tokens
    examples = read_examples(home / "train.jsonl", pairs)[:4]
    features = student.encode(examples)
    words = ["pair", ":", *examples[1]["source"].removeprefix("pair:").split()]
    before, after = {"bert": (["[CLS]"], ["[SEP]"]), "t5": ([], ["</s>"]), "bos": (["<s>"], ["\n"])}.get(name, ([], []))
    assert tokens(features[1]["input_ids"]) == before + words + after
    assert features[1]["attention_mask"] == [1] * len(features[1]["input_ids"])
    if name == "bert":
        assert [f["labels"] for f in features] == [0, 1, 0, 1]  # the order of the task file's labels
    else:
        assert tokens(features[1]["labels"]) == ["not", "warm", "</s>"]
        assert encode_targets(["Warm"], student.tokenizer, student.family) == [features[0]["labels"]]
    assert capsys.readouterr().err == ""
    student.lengths = {"max_source_length": 4, "max_target_length": 1}
    short = student.encode(examples)
    beginning = (words[:4] if name == "llama" else [*before, *words][: 3 + (name == "bos")]) + after
    assert tokens(short[1]["input_ids"]) == beginning
    assert name == "bert" or all(len(f["labels"]) == 1 for f in short)
    said = capsys.readouterr().err
    assert "4 of 4 sources are longer than --max-source-length 4: cut" in said
    assert ("4 of 4 targets are longer than --max-target-length 1: cut" in said) is (name != "bert")
    if name in ("llama", "bos"):
        nothing = tokens(student.encode([examples[0] | {"source": ""}])[0]["input_ids"])
        assert nothing == (["</s>"] if name == "llama" else ["<s>", "\n"])


# ---------------------------------------------------------------------------------------------------------------------
# Trainings

CLASSES = {"t5": "T5ForConditionalGeneration", "t5v11": "T5ForConditionalGeneration", "flip": "T5ForConditionalGeneration",
           "bert": "BertForSequenceClassification", "modernbert": "ModernBertForSequenceClassification",
           "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "flip_bos": "LlamaForCausalLM"}  # fmt: skip
FAMILIES = {"bert": "encoder", "modernbert": "encoder", "llama": "decoder", "qwen2": "decoder", "flip_bos": "decoder"}


@pytest.mark.parametrize("name", CLASSES)
def test_trained_student(name, trained, home, pairs, flip):
    import transformers

    folder = trained[name]
    files = {p.name for p in folder.iterdir()}
    assert files - {"generation_config.json"} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training_log.jsonl", "held_out.jsonl",
        "gold.json",
    }  # fmt: skip
    assert ("generation_config.json" in files) is ("bert" not in name)
    config = json.loads((folder / "config.json").read_text())
    # Trainer would leave a use_cache that decodes in quadratic time; a forward pass with labels its own kind of loss
    assert config.get("use_cache") is not False and "problem_type" not in config
    assert not [*folder.parent.glob("*partial*"), *folder.parent.glob("*.lock")]
    task, data = (flip, "flip_train.jsonl") if "flip" in name else (pairs, "train.jsonl")
    examples = read_examples(home / data, task)
    assert read_lines(folder / "held_out.jsonl") == [e for e in examples if is_held_out(e["id"])]
    record = json.loads((folder.parent / f"{name}.run.json").read_text())
    counts, number = record["counts"], sum(not is_held_out(e["id"]) for e in examples)
    assert (counts["train_examples"], counts["held_out_examples"]) == (number, len(examples) - number)
    assert counts["steps"] == 30 * math.ceil(number / 20) and counts["dtype"] == "float32"
    assert counts["family"] == FAMILIES.get(name, "encoder-decoder")
    digest = hashlib.sha256((home / data).read_bytes()).hexdigest()
    assert record["inputs"]["train_file"] == [f"sha256:{digest}"] and record["options"]["loss"] == "ce"
    log = read_lines(folder / "training_log.jsonl")
    losses = [r["loss"] for r in log if "loss" in r]
    assert len(losses) == 1 + counts["steps"] // 20 and losses[-1] < losses[0] / 4
    best = max(r["eval_accuracy"] for r in log if "eval_accuracy" in r)
    assert counts["held_out_accuracy"] == pytest.approx(best, abs=1e-4)
    model = getattr(transformers, CLASSES[name]).from_pretrained(folder)
    assert model.num_parameters() == counts["parameters"]
    if "bert" in name:
        assert model.config.id2label == {0: "Warm", 1: "not warm"}
        assert model.config.label2id == {"Warm": 0, "not warm": 1}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    if counts["family"] == "decoder":
        assert (tokenizer.pad_token == tokenizer.eos_token) is (name != "llama")
        kept = model.generation_config
        assert (kept.eos_token_id, kept.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert not kept.do_sample and kept.repetition_penalty in (None, 1.0) and not kept.min_new_tokens
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied is (name == "qwen2")


@pytest.fixture
def steps():
    """The learning rate and the gradients of every optimiser step of this test."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    found = []

    def keep(optimizer, *_):
        groups = optimizer.param_groups
        values = [p.grad.flatten() for group in groups for p in group["params"] if p.grad is not None]
        found.append((groups[0]["lr"], [x for v in values for x in v.tolist()]))

    handle = register_optimizer_step_pre_hook(keep)
    yield found
    handle.remove()


@pytest.mark.parametrize("ratio, rising", [(1.0, 6), (0.5, 3), (0.0, 0)])
def test_the_warm_up_is_a_share_of_all_steps(ratio, rising, models, home, pairs, tmp_path, steps):
    """One step an epoch. transformers takes warmup_steps=1.0 for one step."""
    rows = read_examples(home / "train.jsonl", pairs)[:8]
    fitted(models["bert"], pairs, rows, [], tmp_path / "s", num_train_epochs=6, warmup_ratio=ratio)
    assert [rate for rate, _ in steps] == pytest.approx(
        [1e-2 * min(1, step / rising if rising else 1) for step in range(6)]
    )


def test_an_untied_t5_stays_untied(models, home, pairs, tmp_path):
    """As FLAN-T5: two matrices, no scaling of what goes into the second. What is saved is what was trained."""
    import torch
    from safetensors.torch import load_file

    rows = read_examples(home / "train.jsonl", pairs)
    how = {"num_train_epochs": 3, "per_device_train_batch_size": 30}
    student, counts, _ = fitted(models["t5v11"], pairs, rows, rows[:4], tmp_path / "s", **how)
    again, trained = loaded(tmp_path / "s", pairs).network, student.network.eval()
    weights, base = load_file(tmp_path / "s" / "model.safetensors"), load_file(models["t5v11"] / "model.safetensors")
    assert counts["steps"] == 6 and again.config.scale_decoder_outputs is False
    assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    for name in ("lm_head.weight", "shared.weight"):
        assert not torch.equal(weights[name], base[name])
    ids, start = torch.tensor([student.encode(rows[:1])[0]["input_ids"]]), torch.tensor([[0, 5, 6]])
    with torch.inference_mode():
        found, expected = (m(input_ids=ids, decoder_input_ids=start).logits for m in (again, trained))
        states = trained.decoder(start, encoder_hidden_states=trained.encoder(ids).last_hidden_state).last_hidden_state
    assert torch.equal(found, expected)
    assert torch.allclose(found, states @ weights["lm_head.weight"].T, atol=1e-5)


def test_a_bfloat16_base_is_trained_in_float32(models, home, pairs, tmp_path):
    """Steps of 1e-5 are lost in bfloat16 weights; from_pretrained takes the dtype of the file unless it is told."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(models["bos"], dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(models["bos"]).save_pretrained(tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["dtype"] == "bfloat16"
    rows = read_examples(home / "train.jsonl", pairs)[:8]
    fitted(tmp_path / "base", pairs, rows, [], tmp_path / "s", learning_rate=1e-5, dtype="bfloat16")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "s"))
    assert {v.dtype for v in after.values()} == {torch.float32}
    assert all(not torch.equal(before[k].float(), v) for k, v in after.items() if "proj" in k)


@pytest.mark.parametrize("name", ["t5", "t5v11", "bert", "qwen2"])
def test_saved_weights_are_those_of_the_best_epoch(name, models, home, pairs, tmp_path):
    """Held-out examples of the opposite label: the longer it trains, the worse. The best epoch, not the last, is saved."""
    rows = read_examples(home / "train.jsonl", pairs)
    other = {"Warm": "not warm", "not warm": "Warm"}
    held_out = [e | {"label": other[e["label"]], "target": other[e["label"]]} for e in rows[:20]]
    _, counts, log = fitted(models[name], pairs, rows, held_out, tmp_path / "student", num_train_epochs=12)
    accuracy = {r["epoch"]: r["eval_accuracy"] for r in log if "eval_accuracy" in r}
    assert list(accuracy) == list(range(1, 13)) and accuracy[12] < max(accuracy.values())
    # of ties the latest
    assert counts["best_epoch"] == max(e for e in accuracy if accuracy[e] == max(accuracy.values()))
    assert counts["held_out_accuracy"] == pytest.approx(max(accuracy.values()), abs=1e-4)
    correct = [s["correct"] for s in scores_of(tmp_path / "student", pairs, held_out)]
    assert sum(correct) / len(correct) == pytest.approx(counts["held_out_accuracy"], abs=1e-4)


def train(home, model, output, *args, task="pairs.toml", data="train.jsonl"):
    return call(
        "train_student.py", "--task-file", home / task, "--model", model, "--train-file", home / data,
        "--output-dir", output, *args,
    )  # fmt: skip


ONE = ("--num-train-epochs", 1)


def test_same_command_again_is_up_to_date_and_a_changed_option_is_named(trained, models, home):
    folder = trained["bert"]
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = train(home, models["bert"], folder, *TRAINING)
    assert again.returncode == 0 and again.stderr.splitlines()[-1] == f"up to date: {folder}"
    changed = train(home, models["bert"], folder, *TRAINING, "--weight-decay", 0.5)
    assert changed.returncode == 1 and "was made with --weight-decay 0.01, now 0.5" in changed.stderr
    assert changed.stderr.rstrip().endswith("--weight-decay 0.5 --overwrite")
    other = train(home, models["modernbert"], folder, *TRAINING)
    assert other.returncode == 1
    assert f"--model has changed since this was made ({models['modernbert']})" in other.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_same_seed_same_student_other_seed_another(models, home, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = train(home, models["bert"], tmp_path / name, *ONE, "--seed", seed)
        assert done.returncode == 0, done.stderr
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_robust_loss_by_command(models, home, tmp_path):
    done = train(home, models["t5"], tmp_path / "sce", *ONE, "--loss", "sce", "--sce-beta", 0.5)
    assert done.returncode == 0, done.stderr
    options = json.loads((tmp_path / "sce.run.json").read_text())["options"]
    assert (options["loss"], options["sce_alpha"], options["sce_beta"]) == ("sce", 1.0, 0.5)
    assert train(home, models["t5"], tmp_path / "ce", *ONE).returncode == 0
    sce, ce = (read_lines(tmp_path / name / "training_log.jsonl")[0]["loss"] for name in ("sce", "ce"))
    assert ce < sce < ce + 0.5 * 9.21  # ce + 0.5 * 9.21 * (1 - p)


def test_nothing_held_out_and_all(models, home, tmp_path):
    names = {False: [], True: []}
    for n in range(200):
        names[is_held_out(f"own-{n}")].append(pair(n) | {"id": f"own-{n}"})
    rest, held_out = (write_lines(tmp_path / f"{kind}.jsonl", rows[:6]) for kind, rows in names.items())
    assert train(home, models["t5"], tmp_path / "student", *ONE, data=rest).returncode == 0
    counts = json.loads((tmp_path / "student.run.json").read_text())["counts"]
    assert (counts["train_examples"], counts["held_out_examples"], counts["held_out_accuracy"]) == (6, 0, None)
    assert (tmp_path / "student" / "model.safetensors").exists()
    assert not (tmp_path / "student" / "held_out.jsonl").exists()
    refused(train(home, models["t5"], tmp_path / "none", data=held_out), f"{held_out}: only 6 examples")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["t5", "t5v11", "bert", "modernbert", "llama", "bos", "qwen2"])
def test_accumulated_batches_are_one_batch(name, models, home, pairs, tmp_path, steps):
    """8 x 1, 4 x 2, 2 x 4 and 1 x 8: the first step has the same loss and gradients, targets of unlike length included."""
    model = still(models[name], tmp_path / "still")
    rows = [e for e in read_examples(home / "train.jsonl", pairs) if not is_held_out(e["id"])][:8]
    assert len({len(e["target"]) for e in rows}) == 2
    firsts = []
    for size in (8, 4, 2, 1):
        how = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "loss": "sce"}
        log = fitted(model, pairs, rows, rows[:1], tmp_path / f"s{size}", **how)[2]
        firsts.append((log[0]["step"], log[0]["loss"], log[0]["grad_norm"]))
    assert firsts[0][0] == 1 and firsts[0][2] > 1e-4 and len(steps) == 4
    # The norm in the log is that of before the clipping, which would hide a factor
    for other in firsts[1:]:
        assert other == pytest.approx(firsts[0], rel=1e-4)
    first, *others = (gradients for _, gradients in steps)
    largest = max(map(abs, first))
    for other in others:
        assert max(abs(a - b) for a, b in zip(first, other, strict=True)) < 1e-4 * largest


@pytest.mark.parametrize("name", ["llama", "bos", "qwen2"])
def test_loss_of_a_decoder_is_that_of_its_target_tokens(name, models, home, pairs, tmp_path):
    """The first step's loss against the plain way: one example at a time, no padding, all logits, in float64."""
    import torch

    rows = [e for e in read_examples(home / "train.jsonl", pairs) if not is_held_out(e["id"])][:6]
    student, losses = loaded(models[name], pairs), []
    for f in student.encode(rows):
        with torch.inference_mode():
            logits = student.network(torch.tensor([f["input_ids"] + f["labels"]])).logits[0].double()
        log_p = logits.log_softmax(-1)
        losses += [-float(log_p[len(f["input_ids"]) + j - 1, token]) for j, token in enumerate(f["labels"])]
    for size in (6, 2):
        how = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 6 // size}
        log = fitted(models[name], pairs, rows, [], tmp_path / f"s{size}", **how)[2]
        assert log[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_positions_bound_the_source(models, home, pairs, capsys):
    """What does not fit into the model's positions is cut and said, or refused: no index error in the middle of a run."""
    import torch
    import transformers as hf

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    roberta = hf.RobertaForSequenceClassification(
        hf.RobertaConfig(vocab_size=100, max_position_embeddings=514, pad_token_id=1, **small)
    )
    bert = hf.BertForSequenceClassification(hf.BertConfig(vocab_size=100, max_position_embeddings=6, **small))
    gpt2 = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=100, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    found = [positions_of(roberta, "encoder"), positions_of(bert, "encoder"), positions_of(gpt2, "decoder")]
    assert found == [512, 6, 8] and loaded(models["t5"], pairs).positions is None
    with torch.inference_mode():
        roberta(torch.zeros((1, 512), dtype=torch.long))
    examples = read_examples(home / "train.jsonl", pairs)[:3]
    student = loaded(models["bert"], pairs)
    student.positions = 6
    assert {len(f["input_ids"]) for f in student.encode(examples)} == {6}
    told = "3 of 3 sources are longer than the 6 tokens that the model's 6 positions leave them"
    assert told in capsys.readouterr().err
    student = loaded(models["bos"], pairs, target=3)
    student.positions = 8
    features = student.encode(examples)
    assert {len(f["input_ids"]) for f in features} == {5} and max(len(f["labels"]) for f in features) == 3
    assert "the 4 tokens that the model's 8 positions leave them: cut" in capsys.readouterr().err
    student.lengths["max_target_length"] = 7
    with pytest.raises(SystemExit, match="--max-target-length 7: leaves no room for a source in 8 positions"):
        student.encode(examples)


def test_a_student_with_few_positions_is_trained_and_measured(models, home, tmp_path):
    """GPT-2 has a table of positions, which raises an index error beyond its end."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(models["bos"])
    config = hf.GPT2Config(vocab_size=len(tokenizer), n_positions=9, n_embd=16, n_layer=1, n_head=2)
    hf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    args = ("--max-target-length", 3)
    done = train(home, tmp_path / "gpt2", tmp_path / "student", *ONE, *args)
    assert done.returncode == 0 and "the 5 tokens that the model's 9 positions leave them" in done.stderr
    done = call(
        "evaluate.py", "--task-file", home / "pairs.toml", "--model", tmp_path / "student", "--test-file",
        home / "test.jsonl", "--output-dir", tmp_path / "out", *args,
    )  # fmt: skip
    assert done.returncode == 0 and "positions leave them" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def refused(done, *told) -> None:
    assert done.returncode == 1, done.stderr
    gc.collect()  # as the end of the process would, this lets go of the lock
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and all(text in last for text in told), done.stderr


def edited(source, folder, name, change):
    """A copy of a model folder in which one JSON file is changed."""
    shutil.copytree(source, folder)
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def test_students_that_do_not_fit_are_refused(models, trained, home, tmp_path):
    def attempt(name, *args, **options):
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        done = train(home, name, output, *args, **options)
        assert not output.exists()
        return done

    told = "an encoder (bert) chooses among labels"
    refused(attempt(models["bert"], task="flip.toml", data="flip_train.jsonl"), told)
    for name, changes, told in (
        ("gemma2", {}, "changes the logits after its output layer (final_logit_softcapping 30.0)"),
        ("cohere", {"logit_scale": 0.0625}, "(logit_scale 0.0625)"),
        ("bart", {}, "bart is an encoder-decoder other than T5"),
        ("vit", {}, "vit is none of encoder-decoder (T5), encoder (BERT) and decoder-only model (Llama, Qwen2)"),
    ):  # from the config alone: there are no weights
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": name, **changes}))
        refused(attempt(tmp_path / name), told)
    endless = edited(models["bos"], tmp_path / "endless", "tokenizer_config.json", lambda c: c.pop("eos_token"))
    refused(attempt(endless), "its tokenizer has no end token")
    shutil.copytree(models["llama"], tmp_path / "mixed")
    for path in models["qwen2"].glob("tokenizer*"):
        shutil.copy(path, tmp_path / "mixed")
    refused(attempt(tmp_path / "mixed"), "its tokenizer has a token 349, the model only 31 tokens")
    refused(attempt(tmp_path / "none"), f"model {tmp_path / 'none'}: no such file or folder")
    refused(attempt("nobody/no-such-model"), "--model nobody/no-such-model: no student there")
    (tmp_path / "empty").mkdir()
    refused(attempt(tmp_path / "empty"), f"--model {tmp_path / 'empty'}: no student there")
    # labels of another task, and the same in another order
    for name, labels in (("other", {"0": "hot", "1": "cold"}), ("turned", {"0": "not warm", "1": "Warm"})):
        heads = {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
        other = edited(trained["bert"], tmp_path / name, "config.json", lambda c, heads=heads: c.update(heads))
        refused(attempt(other), f"--model {other}: has the labels", str(list(labels.values())))


@pytest.mark.parametrize(
    "fault", ["torn weights", "no weights", "other shapes", "no tokenizer", "broken config", "code"]
)
def test_broken_model_folders_are_refused(fault, models, home, tmp_path):
    folder, told = tmp_path / "model", ""
    shutil.copytree(models["t5"], folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "torn weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif fault == "no weights":
        weights.unlink()
    elif fault == "other shapes":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"d_model": 48}))
        told = "its weights are not those of its config.json"
    elif fault == "no tokenizer":  # the library makes one up that knows no word
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif fault == "code":
        config.write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
        told = "needs Python code of its own"
    else:
        config.write_text('{"model_type": "t5", ')
    refused(train(home, folder, tmp_path / "student", *ONE), f"--model {folder}: ", told)
    assert not (tmp_path / "student").exists()


def test_a_refused_option_can_be_mended_as_the_message_says(models, home, tmp_path):
    """And with --overwrite the old student stays until the new one is there."""
    refused(train(home, models["t5"], tmp_path / "student", "--dtype", "float16", *ONE), "T5 overflows in float16")
    assert not (tmp_path / "student").exists()
    done = train(home, models["t5"], tmp_path / "student", "--dtype", "bfloat16", *ONE)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "student.run.json").read_text())["counts"]["dtype"] == "bfloat16"
    weights = (tmp_path / "student" / "model.safetensors").read_bytes()
    refused(train(home, models["t5"], tmp_path / "student", "--dtype", "float16", "--overwrite"), "float16")
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == weights
    done = train(home, tmp_path / "student", tmp_path / "student", *ONE, "--overwrite")  # its own base
    assert done.returncode in (0, 1, 2) and (tmp_path / "student" / "model.safetensors").exists()


@pytest.mark.parametrize("held_out", [True, False])
def test_a_loss_that_is_no_number_ends_the_training(held_out, models, home, tmp_path):
    rows = [{"id": f"own-{n}", **pair(n)} for n in range(60)]
    data = write_lines(tmp_path / "data.jsonl", [r for r in rows if held_out or not is_held_out(r["id"])])
    how = ("--learning-rate", 1e30, "--num-train-epochs", 3)
    refused(
        train(home, models["t5"], tmp_path / "student", *how, data=data), "loss is nan at step", "lower --learning-rate"
    )
    assert not (tmp_path / "student").exists() and not (tmp_path / "student.run.json").exists()
