"""train_student.py: the losses by hand, the held-out tenth, and small real trainings of every kind of student."""

import gc
import hashlib
import json
import math
import shutil

import pytest
from conftest import TRAINING, call, pair, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from records import read_examples
from train_student import encode, is_held_out, load_student, positions_of, target_ids, token_losses, train_on

# ---------------------------------------------------------------------------------------------------------------------
# Losses


def test_losses_by_hand():
    """logits 0 and ln 3: p = 1/4 and 3/4. ce of class 0 = ln 4, of class 1 = ln 4/3.

    Reverse cross-entropy, -sum p_k log q_k with log q = 0 at the label and -9.21 elsewhere: 9.21 * 3/4 and 9.21 * 1/4.
    """
    import torch

    logits = torch.tensor([[0.0, math.log(3)], [7.0, -7.0], [0.0, math.log(3)]], dtype=torch.float64)
    labels = torch.tensor([0, -100, 1])  # what has no label has no loss
    ce = token_losses(logits, labels, "ce", 1.0, 0.0)
    assert ce.tolist() == pytest.approx([1.3862943611, 0.2876820724], abs=1e-5)
    sce = token_losses(logits, labels, "sce", 0.5, 0.2)
    expected = [0.5 * 1.3862943611 + 0.2 * 6.9075, 0.5 * 0.2876820724 + 0.2 * 2.3025]
    assert sce.tolist() == pytest.approx(expected, abs=1e-5)
    assert token_losses(logits, torch.full((3,), -100), "sce", 1.0, 1.0).tolist() == []
    # gce, (1 - p^q) / q: with q = 1/2 that is 2 (1 - sqrt p), with q = 1 it is 1 - p
    for q, expected in (
        (1.0, [0.75, 0.25]),
        (0.7, [0.8872440834, 0.2605660455]),
        (0.5, [1.0, 0.2679491924]),
        (1e-4, [1.3861982750, 0.2876779344]),
        (1e-6, [1.3862934002, 0.2876820310]),  # all but ce, the limit
    ):
        gce = token_losses(logits, labels, "gce", gce_q=q)
        assert gce.dtype == torch.float32 and gce.tolist() == pytest.approx(
            expected, rel=2e-6
        )  # 1 - p^q has no such digits
    # A fifth of the target over both classes, of which each -log p has a mean of .8369882168
    smooth = token_losses(logits, labels, "ce", label_smoothing_factor=0.2)
    expected = [0.8 * 1.3862943611 + 0.2 * 0.8369882168, 0.8 * 0.2876820724 + 0.2 * 0.8369882168]
    assert smooth.tolist() == pytest.approx(expected, abs=1e-6)
    sce = token_losses(logits, labels, "sce", 0.5, 0.2, label_smoothing_factor=0.2)
    expected = [0.5 * expected[0] + 0.2 * 6.9075, 0.5 * expected[1] + 0.2 * 2.3025]  # the reverse part stays as it is
    assert sce.tolist() == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    logits=st.integers(2, 6).flatmap(
        lambda k: st.lists(st.lists(st.floats(-20, 20, width=32), min_size=k, max_size=k), min_size=1, max_size=5)
    ),
    alpha=st.sampled_from([0.01, 1.0]),
    beta=st.sampled_from([0.1, 1.0]),
    q=st.sampled_from([0.01, 0.3, 0.7, 1.0]),
    share=st.sampled_from([0.1, 0.9]),
    data=st.data(),
)
def test_losses_are_their_definitions(logits, alpha, beta, q, share, data):
    import torch

    labels = [data.draw(st.sampled_from([-100, *range(len(row))])) for row in logits]
    ces, sces, gces, smooths = [], [], [], []
    for row, label in zip(logits, labels, strict=True):
        if label != -100:
            total = max(row) + math.log(math.fsum(math.exp(z - max(row)) for z in row))
            one_hot = [float(k == label) for k in range(len(row))]
            ces.append(-math.fsum(q * (z - total) for q, z in zip(one_hot, row, strict=True)))
            logs = [0.0 if q == 1 else -9.21 for q in one_hot]  # log 0 := -9.21
            rce = -math.fsum(math.exp(z - total) * log for z, log in zip(row, logs, strict=True))
            sces.append(alpha * ces[-1] + beta * rce)
            gces.append((1 - math.exp(-ces[-1]) ** q) / q)
            target = [(1 - share) * hot + share / len(row) for hot in one_hot]
            smooths.append(-math.fsum(t * (z - total) for t, z in zip(target, row, strict=True)))
    shape = (len(labels), 1)  # (batch, positions) is reduced as (positions) is
    grid, tags = torch.tensor(logits).reshape(*shape, -1), torch.tensor(labels).reshape(shape)
    assert token_losses(grid, tags, "ce", alpha, beta).tolist() == pytest.approx(ces, abs=1e-4)
    assert token_losses(grid, tags, "sce", alpha, beta).tolist() == pytest.approx(sces, abs=1e-4)
    assert token_losses(grid, tags, "gce", gce_q=q).tolist() == pytest.approx(gces, abs=1e-4)
    smooth = token_losses(grid, tags, "ce", label_smoothing_factor=share)
    assert smooth.tolist() == pytest.approx(smooths, abs=1e-4)


@pytest.mark.parametrize("q", [0.05, 0.7, 1.0])
def test_gradient_of_gce_is_that_of_its_formula(q):
    """Against autograd of (1 - p^q) / q in float64, which is p^q times the gradient of ce: none where p is near 0."""
    import torch

    torch.manual_seed(0)
    logits = torch.randn(40, 7, dtype=torch.float64) * 3
    logits[0], logits[1, :3] = 0.0, torch.tensor([90.0, 0.0, -90.0])
    labels = torch.randint(7, (40,))
    labels[1], labels[2] = 2, -100  # p is e^-180, of which float32 knows nothing; no label
    ours, naive = (logits.clone().to(kind).requires_grad_() for kind in (torch.float32, torch.float64))
    token_losses(ours, labels, "gce", gce_q=q).sum().backward()
    keep = labels != -100
    p = naive.softmax(-1)[keep].gather(-1, labels[keep][:, None])[:, 0]
    ((1 - p**q) / q).sum().backward()
    assert naive.grad.abs().max() > 0.1 and float((ours.grad - naive.grad).abs().max()) < 1e-5
    assert float(ours.grad[1].abs().max()) == pytest.approx(math.exp(-180 * q), abs=1e-6)


@pytest.mark.parametrize("shape", [(30,), (6, 5)])
def test_smoothed_losses_are_those_of_torch_and_transformers(shape):
    import torch
    import torch.nn.functional as F
    from transformers.trainer_pt_utils import LabelSmoother

    torch.manual_seed(0)
    logits, labels = torch.randn(*shape, 9) * 3, torch.randint(9, shape)
    labels.flatten()[[2, 3, 29]] = -100
    ours = token_losses(logits, labels, "ce", label_smoothing_factor=0.3)
    # torch wants the classes second, and gives 0 where there is no label
    theirs = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none", label_smoothing=0.3)[labels != -100]
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-6) and len(ours) == 27
    mean = LabelSmoother(epsilon=0.3)({"logits": logits}, labels.clone())
    assert float(ours.mean()) == pytest.approx(float(mean), abs=1e-6)


def test_losses_of_bfloat16_logits_are_float32():
    import torch

    losses = token_losses(torch.full((1, 1000), 8.0, dtype=torch.bfloat16), torch.tensor([3]), "ce", 1, 0)
    assert losses.dtype == torch.float32 and float(losses[0]) == pytest.approx(3 * math.log(10), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Held-out tenth, features


def test_held_out_is_a_tenth_and_stays_the_same():
    names = [f"reviews-{i:02d}-train-{a:06d}" for i in range(5) for a in range(4000)]
    share = sum(map(is_held_out, names)) / len(names)
    assert abs(share - 26 / 256) < 5 * math.sqrt(0.1 * 0.9 / len(names))  # five standard errors
    held_out = [n for n in range(60) if is_held_out(f"pairs-00-train-{n:06d}")]
    assert held_out == [
        n for n in range(60) if int(hashlib.sha256(b"pairs-00-train-%06d" % n).hexdigest()[:2], 16) < 26
    ]
    assert len(held_out) == 5 and is_held_out("pairs-00-train-000000") is (0 in held_out)


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_features(name, models, home, pairs, capsys):
    _, tokenizer, family = load_student(str(models[name]), pairs)
    examples = read_examples(home / "train.jsonl", pairs)[:4]
    features = encode(examples, tokenizer, family, pairs, 512, 128)
    text = tokenizer.decode(features[1]["input_ids"], skip_special_tokens=False)
    frame = "[CLS] {} [SEP]" if name == "bert" else "{} </s>"
    assert text == frame.format(examples[1]["source"].replace("pair:", "pair :"))
    assert features[1]["attention_mask"] == [1] * len(features[1]["input_ids"])
    if name == "bert":
        assert [f["labels"] for f in features] == [0, 1, 0, 1]  # the order of the task file's labels
    else:
        assert tokenizer.batch_decode([f["labels"] for f in features[:2]]) == ["Warm </s>", "not warm </s>"]
    assert capsys.readouterr().err == ""
    short = encode(examples, tokenizer, family, pairs, 4, 1)
    last = "[SEP]" if name == "bert" else "</s>"
    assert all(len(f["input_ids"]) == 4 and tokenizer.convert_ids_to_tokens(f["input_ids"])[3] == last for f in short)
    assert name == "bert" or all(len(f["labels"]) == 1 for f in short)
    said = capsys.readouterr().err
    assert "4 of 4 sources are longer than --max-source-length 4" in said
    assert ("4 of 4 targets are longer than --max-target-length 1" in said) is (name == "t5")


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
    files = {p.name for p in folder.iterdir()} - {"training_args.bin"}
    assert files - {"generation_config.json"} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training_log.jsonl", "held_out.jsonl",
        "gold.json",
    }  # fmt: skip
    assert ("generation_config.json" in files) is ("bert" not in name)
    config = json.loads((folder / "config.json").read_text())
    # Trainer would leave a use_cache that decodes in quadratic time; a forward pass with labels its own kind of loss
    assert config.get("use_cache") is not False and "problem_type" not in config
    assert not list(folder.parent.glob("*partial*"))
    task, data = (flip, "flip_train.jsonl") if "flip" in name else (pairs, "train.jsonl")
    examples = read_examples(home / data, task)
    held_out = sum(is_held_out(e["id"]) for e in examples)
    assert read_lines(folder / "held_out.jsonl") == [e for e in examples if is_held_out(e["id"])]
    record = json.loads((folder.parent / f"{name}.run.json").read_text())
    counts = record["counts"]
    assert counts["held_out_examples"] == held_out and counts["train_examples"] == len(examples) - held_out
    assert counts["steps"] == 30 * math.ceil(counts["train_examples"] / 20)
    assert counts["family"] == FAMILIES.get(name, "encoder-decoder") and counts["dtype"] == "float32"
    assert record["inputs"]["train_file"] == [
        "sha256:" + hashlib.sha256((home / data).read_bytes()).hexdigest()
    ] and record["options"]["loss"] == "ce"  # fmt: skip
    log = read_lines(folder / "training_log.jsonl")
    losses = [r["loss"] for r in log if "loss" in r]
    assert len(losses) == 30 and losses[-1] < losses[0] / 4
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


OPTIONS = {
    "loss": "ce", "learning_rate": 1e-2, "num_train_epochs": 12, "per_device_train_batch_size": 20,
    "gradient_accumulation_steps": 1, "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
    "max_source_length": 64, "max_target_length": 16, "seed": 0, "dtype": "float32", "limit": None,
}  # fmt: skip


@pytest.mark.parametrize("ratio, rising", [(1.0, 6), (0.5, 3), (0.0, 0)])
def test_the_warm_up_is_a_share_of_all_steps(ratio, rising, models, home, pairs, tmp_path):
    """One step an epoch: the rate of each is in the log. transformers takes warmup_steps=1.0 for one step."""
    rows = read_examples(home / "train.jsonl", pairs)[:8]
    how = {"num_train_epochs": 6, "warmup_ratio": ratio, "gradient_accumulation_steps": 1}
    _, log = train_on(pairs, str(models["bert"]), rows, [], tmp_path / "s", OPTIONS | how)
    rates = [r["learning_rate"] for r in log if "learning_rate" in r]
    assert rates == pytest.approx([1e-2 * min(1, step / rising if rising else 1) for step in range(6)])


def test_an_untied_t5_stays_untied(models, home, pairs, tmp_path, monkeypatch):
    """As FLAN-T5: two matrices, no scaling of what goes into the second. What is saved is what was trained."""
    import torch
    from safetensors.torch import load_file

    import train_student

    made = []
    monkeypatch.setattr(train_student, "load_student", lambda *args: made.append(load_student(*args)) or made[-1])
    rows = read_examples(home / "train.jsonl", pairs)
    how = OPTIONS | {"num_train_epochs": 1, "per_device_train_batch_size": 30}
    counts, _ = train_on(pairs, str(models["t5v11"]), rows, rows[:4], tmp_path / "s", how)
    trained = made[0][0].eval()
    again, tokenizer, family = load_student(str(tmp_path / "s"), pairs)
    weights, base = load_file(tmp_path / "s" / "model.safetensors"), load_file(models["t5v11"] / "model.safetensors")
    assert counts["steps"] == 2 and again.config.scale_decoder_outputs is False
    assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    for name in ("lm_head.weight", "shared.weight"):
        assert not torch.equal(weights[name], base[name])
    ids = torch.tensor([encode(rows[:1], tokenizer, family, pairs, 64, 8)[0]["input_ids"]])
    start = torch.tensor([[0, 5, 6]])
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
    how = OPTIONS | {"num_train_epochs": 1, "learning_rate": 1e-5, "dtype": "bfloat16"}
    train_on(pairs, str(tmp_path / "base"), rows, [], tmp_path / "s", how)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "s"))
    assert {v.dtype for v in after.values()} == {torch.float32}
    assert all(not torch.equal(before[k].float(), v) for k, v in after.items() if "proj" in k)


@pytest.mark.parametrize("name", ["t5", "bert", "qwen2"])
def test_saved_weights_are_those_of_the_best_epoch(name, models, home, pairs, tmp_path):
    """Held-out examples of the opposite label: the longer it trains, the worse. The best epoch, not the last, is saved."""
    from score_ood import score_examples

    rows = read_examples(home / "train.jsonl", pairs)
    other = {"Warm": "not warm", "not warm": "Warm"}
    held_out = [e | {"label": other[e["label"]], "target": other[e["label"]]} for e in rows[:20]]
    counts, log = train_on(pairs, str(models[name]), rows, held_out, tmp_path / "student", OPTIONS)
    accuracy = {r["epoch"]: r["eval_accuracy"] for r in log if "eval_accuracy" in r}
    assert list(accuracy) == list(range(1, 13)) and accuracy[12] < max(accuracy.values())
    assert counts["best_epoch"] == max(
        e for e in accuracy if accuracy[e] == max(accuracy.values())
    )  # of ties the latest
    assert counts["held_out_accuracy"] == pytest.approx(max(accuracy.values()), abs=1e-4)
    correct = [s["correct"] for s in score_examples(held_out, pairs, str(tmp_path / "student"))]
    assert sum(correct) / len(correct) == pytest.approx(counts["held_out_accuracy"], abs=1e-4)


def train(home, model, output, *args, task="pairs.toml", data="train.jsonl"):
    return call(
        "train_student.py", "--task-file", home / task, "--model", model, "--train-file", home / data,
        "--output-dir", output, *args,
    )  # fmt: skip


def test_same_command_again_is_up_to_date_and_a_changed_option_is_named(trained, models, home):
    folder = trained["bert"]
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = train(home, models["bert"], folder, *TRAINING)
    assert again.returncode == 0 and again.stderr == f"up to date: {folder}\n"
    changed = train(home, models["bert"], folder, *TRAINING, "--weight-decay", 0.5)
    assert changed.returncode == 1 and "was made with --weight-decay 0.01, now 0.5" in changed.stderr
    assert changed.stderr.rstrip().endswith("--weight-decay 0.5 --overwrite")
    other = train(home, models["modernbert"], folder, *TRAINING)
    assert other.returncode == 1 and f"--model has changed since this was made ({models['modernbert']})" in (
        other.stderr.replace(": model has", ": --model has")
    )
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_same_seed_same_student_other_seed_another(models, home, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = train(home, models["bert"], tmp_path / name, "--num-train-epochs", 1, "--seed", seed)
        assert done.returncode == 0, done.stderr
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_robust_loss_by_command(models, home, tmp_path):
    args = ("--num-train-epochs", 2, "--loss", "sce", "--sce-beta", 0.5)
    done = train(home, models["t5"], tmp_path / "student", *args)
    assert done.returncode == 0, done.stderr
    options = json.loads((tmp_path / "student.run.json").read_text())["options"]
    assert (options["loss"], options["sce_alpha"], options["sce_beta"]) == ("sce", 1.0, 0.5)
    assert train(home, models["t5"], tmp_path / "ce", "--num-train-epochs", 2).returncode == 0
    sce, ce = (read_lines(tmp_path / name / "training_log.jsonl")[0]["loss"] for name in ("student", "ce"))
    assert ce < sce < ce + 0.5 * 9.21  # ce + 0.5 * 9.21 * (1 - p)


def test_epochs_of_ce_start_a_student_that_the_robust_loss_does_not(models, home, pairs, tmp_path):
    """From random weights, the reverse cross-entropy alone ends with one label for all; after four epochs of ce it learns."""
    rows = [e for e in read_examples(home / "train.jsonl", pairs) if not is_held_out(e["id"])]
    robust = OPTIONS | {"loss": "sce", "sce_alpha": 0.0, "sce_beta": 1.0}
    logs = {}
    for name, how in (("ce", OPTIONS), ("alone", robust), ("after", robust | {"ce_epochs": 4.0})):
        _, log = train_on(pairs, str(models["t5"]), rows, rows, tmp_path / name, how)
        logs[name] = {key: [r[key] for r in log if key in r] for key in ("loss", "eval_loss", "eval_accuracy")}
    assert max(logs["alone"]["eval_accuracy"]) < 0.6 and max(logs["after"]["eval_accuracy"]) > 0.8
    # The first four epochs are those of ce to the last digit, and what they are measured by is not
    assert logs["after"]["loss"][:4] == logs["ce"]["loss"][:4] and logs["after"]["loss"][4] != logs["ce"]["loss"][4]
    assert logs["after"]["eval_accuracy"][:4] == logs["ce"]["eval_accuracy"][:4]
    # -A (1 - p), at most 9.21
    assert all(
        9.21 >= sce > ce for sce, ce in zip(logs["after"]["eval_loss"][:4], logs["ce"]["eval_loss"], strict=False)
    )


def test_losses_that_the_batches_get(models, home, pairs, tmp_path, monkeypatch):
    """1.5 of 2 epochs of 4 steps, each of two batches: twelve batches of ce, then four of gce; held-out ones of gce alone."""
    import torch

    import train_student

    got = {"training": [], "held out": []}

    def watched(logits, labels, loss, **how):
        got["training" if torch.is_grad_enabled() else "held out"].append((loss, how["gce_q"], how["soft"]))
        return token_losses(logits, labels, loss, **how)

    monkeypatch.setattr(train_student, "token_losses", watched)
    rows = read_examples(home / "train.jsonl", pairs)[:8]
    how = {"loss": "gce", "gce_q": 0.4, "ce_epochs": 1.5, "num_train_epochs": 2}
    how |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    train_on(pairs, str(models["bert"]), rows, rows, tmp_path / "student", OPTIONS | how)
    assert got == {
        "training": [("ce", 0.4, None)] * 12 + [("gce", 0.4, None)] * 4,
        "held out": [("gce", 0.4, None)] * 4,
    }


def test_generalised_cross_entropy_by_command(models, home, tmp_path):
    """What only some losses take stands in the run record where it was used, so that older students stay up to date."""
    args = ("--num-train-epochs", 1, "--loss", "gce", "--ce-epochs", 0.5)
    more = ("--label-smoothing-factor", 0.1)
    for name, added in (("ce", ("--loss", "ce", "--ce-epochs", 0)), ("smooth", ("--loss", "ce", "--ce-epochs", 0, *more)),
                        ("gce", ())):  # fmt: skip
        done = train(home, models["bert"], tmp_path / name, *args, *added)
        assert done.returncode == 0, done.stderr
    options = {n: json.loads((tmp_path / f"{n}.run.json").read_text())["options"] for n in ("ce", "smooth", "gce")}
    assert options["ce"].keys() == OPTIONS.keys()
    assert options["smooth"] == options["ce"] | {"label_smoothing_factor": 0.1}
    assert options["gce"] == options["ce"] | {"loss": "gce", "gce_q": 0.7, "ce_epochs": 0.5}
    plain, smooth, robust = (read_lines(tmp_path / n / "training_log.jsonl") for n in ("ce", "smooth", "gce"))
    # Two classes: (1 - p^.7) / .7 < -log p. Half of the epoch is of ce; the held-out tenth is measured by gce alone
    assert plain[0]["loss"] != smooth[0]["loss"] and robust[0]["loss"] < plain[0]["loss"] < 1
    assert robust[0]["loss"] > next(r["eval_loss"] for r in robust if "eval_loss" in r)
    again = train(home, models["bert"], tmp_path / "gce", *args)
    assert again.returncode == 0 and "up to date" in again.stderr
    for name, added, told in (
        ("gce", ("--gce-q", 0.5), "was made with --gce-q 0.7, now 0.5"),
        ("gce", ("--loss", "ce", "--ce-epochs", 0), "was made with --loss gce, now ce"),
        ("ce", (), "was made with --loss ce, now gce"),
    ):
        refused(train(home, models["bert"], tmp_path / name, *args, *added), told)


@pytest.mark.parametrize(
    "args, told",
    [
        (("--loss", "gce", "--gce-q", 0), "'--gce-q': Input should be greater than or equal to"),
        (("--loss", "gce", "--gce-q", 1.01), "'--gce-q': Input should be less than or equal to 1"),
        (("--loss", "gce", "--gce-q", "nan"), "--gce-q"),
        (("--label-smoothing-factor", -0.1), "--label-smoothing-factor"),
        (("--label-smoothing-factor", 1), "--label-smoothing-factor: at 1 nothing of the label is left; give less"),
        (
            ("--loss", "kl", "--label-smoothing-factor", 0.1),
            "smooths the labels of ce and sce, --loss kl has none to smooth",
        ),
        (("--loss", "gce", "--label-smoothing-factor", 0.1), "--loss gce has none to smooth; leave it out"),
        (("--loss", "sce", "--ce-epochs", -1), "--ce-epochs"),
        (("--ce-epochs", 1), "--ce-epochs: epochs of ce before those of sce or gce, found --loss ce; leave it out"),
        (("--loss", "kl", "--ce-epochs", 1), "found --loss kl"),
        (
            ("--loss", "sce", "--ce-epochs", 10),
            "10 of 10 epochs leave none to sce; lower it, or raise --num-train-epochs",
        ),
    ],
)
def test_options_that_do_not_go_with_the_loss(args, told, home, models, tmp_path):
    done = train(home, models["t5"], tmp_path / "student", *args)
    assert done.returncode == 2 and told in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_held_out(models, home, tmp_path):
    rows = [pair(n) | {"id": f"own-{n}"} for n in range(40) if not is_held_out(f"own-{n}")][:6]
    write_lines(tmp_path / "few.jsonl", rows)
    done = train(home, models["t5"], tmp_path / "student", "--num-train-epochs", 1, data=tmp_path / "few.jsonl")
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "student.run.json").read_text())["counts"]
    assert (counts["train_examples"], counts["held_out_examples"], counts["held_out_accuracy"]) == (6, 0, None)
    assert (tmp_path / "student" / "model.safetensors").exists()


def test_all_held_out_is_refused(models, home, tmp_path):
    rows = [pair(n) | {"id": f"own-{n}"} for n in range(200) if is_held_out(f"own-{n}")][:3]
    write_lines(tmp_path / "few.jsonl", rows)
    done = train(home, models["t5"], tmp_path / "student", data=tmp_path / "few.jsonl")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'few.jsonl'}: only 3 examples")
    assert not (tmp_path / "student").exists()


LOSSES = {
    "sce": {"loss": "sce", "sce_alpha": 1.0, "sce_beta": 0.3}, "gce": {"loss": "gce", "gce_q": 0.7},
    "smoothed": {"loss": "ce", "label_smoothing_factor": 0.2},
}  # fmt: skip
ACCUMULATED = [(name, "sce") for name in ("t5", "t5v11", "bert", "modernbert", "llama", "bos", "qwen2")]
ACCUMULATED += [(name, loss) for name in ("t5", "bert", "llama") for loss in ("gce", "smoothed")]


@pytest.mark.parametrize("name, loss", ACCUMULATED)
def test_accumulated_batches_are_one_batch(name, loss, models, home, pairs, tmp_path):
    """8 x 1, 4 x 2, 2 x 4 and 1 x 8: the first step has the same loss and gradients, targets of unlike length included."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    shutil.copytree(models[name], tmp_path / "still")
    config = json.loads((tmp_path / "still" / "config.json").read_text())
    config |= {"dropout_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "still" / "config.json").write_text(json.dumps(config))
    rows = [e for e in read_examples(home / "train.jsonl", pairs) if not is_held_out(e["id"])][:8]
    assert len({len(e["target"]) for e in rows}) == 2
    options = OPTIONS | LOSSES[loss] | {"num_train_epochs": 1}
    firsts, gradients = [], []

    def keep(optimizer, *_):
        values = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients.append([x for v in values for x in v.tolist()])

    handle = register_optimizer_step_pre_hook(keep)
    for size, steps in ((8, 1), (4, 2), (2, 4), (1, 8)):
        how = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        _, log = train_on(pairs, str(tmp_path / "still"), rows, rows[:1], tmp_path / f"s{size}", options | how)
        firsts.append((log[0]["step"], log[0]["loss"], log[0]["grad_norm"]))
    handle.remove()
    assert firsts[0][0] == 1 and firsts[0][2] > 1e-4 and len(gradients) == 4
    # The norm in the log is that of before the clipping, which would hide a factor
    for other in firsts[1:]:
        assert other == pytest.approx(firsts[0], rel=1e-4)
    largest = max(map(abs, gradients[0]))
    for other in gradients[1:]:
        assert max(abs(a - b) for a, b in zip(gradients[0], other, strict=True)) < 1e-4 * largest


# ---------------------------------------------------------------------------------------------------------------------
# Decoders


@pytest.mark.parametrize("name", ["llama", "bos"])
def test_features_of_a_decoder(name, models, home, pairs, capsys):
    """The source as the tokenizer frames it but for an EOS, a newline, the target, EOS; tokenised apart."""
    _, tokenizer, family = load_student(str(models[name]), pairs)
    examples = read_examples(home / "train.jsonl", pairs)[:4]
    features = encode(examples, tokenizer, family, pairs, 512, 128)
    words = ["pair", ":", *examples[1]["source"].removeprefix("pair:").split()]
    prompt = words if name == "llama" else ["<s>", *words, "\n"]
    assert family == "decoder" and tokenizer.convert_ids_to_tokens(features[1]["input_ids"]) == prompt
    assert tokenizer.convert_ids_to_tokens(features[1]["labels"]) == ["not", "warm", "</s>"]
    assert target_ids(["Warm"], tokenizer, family) == [features[0]["labels"]]
    assert capsys.readouterr().err == ""
    short = encode(examples, tokenizer, family, pairs, 4, 1)
    beginning = prompt[:4] + ["\n"] * (name == "bos")
    assert tokenizer.convert_ids_to_tokens(short[1]["input_ids"]) == beginning
    assert [len(f["labels"]) for f in short] == [1] * 4
    said = capsys.readouterr().err
    assert "4 of 4 sources are longer than --max-source-length 4: cut" in said
    assert "4 of 4 targets are longer than --max-target-length 1: cut" in said
    exact = encode(examples[1:2], tokenizer, family, pairs, len(words) + (name == "bos"), 3)
    assert exact[0]["input_ids"] == features[1]["input_ids"] and capsys.readouterr().err == ""
    nothing = encode([examples[0] | {"source": ""}], tokenizer, family, pairs, 512, 128)[0]["input_ids"]
    assert tokenizer.convert_ids_to_tokens(nothing) == (["</s>"] if name == "llama" else ["<s>", "\n"])


@pytest.mark.parametrize("name", ["llama", "bos", "qwen2"])
def test_loss_of_a_decoder_is_that_of_its_target_tokens(name, models, home, pairs, tmp_path):
    """The first step's loss against the plain way: one example at a time, no padding, all logits, in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    rows = [e for e in read_examples(home / "train.jsonl", pairs) if not is_held_out(e["id"])][:6]
    _, tokenizer, family = load_student(str(models[name]), pairs)
    model = AutoModelForCausalLM.from_pretrained(models[name]).eval()
    losses = []
    for f in encode(rows, tokenizer, family, pairs, 64, 16):
        with torch.inference_mode():
            logits = model(torch.tensor([f["input_ids"] + f["labels"]])).logits[0].double()
        log_p = logits.log_softmax(-1)
        losses += [-float(log_p[len(f["input_ids"]) + j - 1, token]) for j, token in enumerate(f["labels"])]
    for size in (6, 2):
        how = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 6 // size, "num_train_epochs": 1}
        _, log = train_on(pairs, str(models[name]), rows, [], tmp_path / f"s{size}", OPTIONS | how)
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
    t5 = load_student(str(models["t5"]), pairs)[0]
    found = [positions_of(roberta, "encoder"), positions_of(bert, "encoder"), positions_of(gpt2, "decoder")]
    assert found == [512, 6, 8] and positions_of(t5, "encoder-decoder") is None
    with torch.inference_mode():
        roberta(torch.zeros((1, 512), dtype=torch.long))
    examples = read_examples(home / "train.jsonl", pairs)[:3]
    tokenizer = load_student(str(models["bert"]), pairs)[1]
    features = encode(examples, tokenizer, "encoder", pairs, 512, 128, positions=6)
    assert {len(f["input_ids"]) for f in features} == {6}
    assert (
        "3 of 3 sources are longer than the 6 tokens that the model's 6 positions leave them" in capsys.readouterr().err
    )
    tokenizer = load_student(str(models["bos"]), pairs)[1]
    features = encode(examples, tokenizer, "decoder", pairs, 512, 3, positions=8)
    assert {len(f["input_ids"]) for f in features} == {5} and max(len(f["labels"]) for f in features) == 3
    assert "the 4 tokens that the model's 8 positions leave them: cut" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--max-target-length 7: leaves no room for a source in 8 positions"):
        encode(examples, tokenizer, "decoder", pairs, 512, 7, positions=8)


def test_a_student_with_few_positions_is_trained_and_measured(models, home, tmp_path):
    """GPT-2 has a table of positions, which raises an index error beyond its end."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(models["bos"])
    config = hf.GPT2Config(vocab_size=len(tokenizer), n_positions=9, n_embd=16, n_layer=1, n_head=2)
    hf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    args = ("--max-target-length", 3)
    done = train(home, tmp_path / "gpt2", tmp_path / "student", "--num-train-epochs", 1, *args)
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


def test_students_that_do_not_fit_are_refused(models, trained, home, tmp_path):
    def attempt(name, *args, **options):
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        done = train(home, name, output, *args, **options)
        assert not output.exists()
        return done

    refused(attempt(models["t5"], "--dtype", "float16"), "--dtype float16: T5 overflows in float16")
    refused(
        attempt(models["bert"], task="flip.toml", data="flip_train.jsonl"), "an encoder (bert) chooses among labels"
    )
    for name, kind, changes, told in (
        ("gemma2", "gemma2", {}, "changes the logits after its output layer (final_logit_softcapping 30.0)"),
        ("cohere", "cohere", {"logit_scale": 0.0625}, "(logit_scale 0.0625)"),
        ("granite", "granite", {"logits_scaling": 8.0}, "(logits_scaling 8.0)"),
        ("bart", "bart", {}, "bart is an encoder-decoder other than T5"),
        ("vit", "vit", {}, "vit is none of encoder-decoder (T5), encoder (BERT) and decoder-only model (Llama, Qwen2)"),
    ):  # from the config alone: there are no weights
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind, **changes}))
        refused(attempt(tmp_path / name), told)
    shutil.copytree(models["bos"], tmp_path / "endless")
    path = tmp_path / "endless" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("eos_token")
    path.write_text(json.dumps(config))
    refused(attempt(tmp_path / "endless"), "its tokenizer has no end token")
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
        shutil.copytree(trained["bert"], tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config |= {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        refused(attempt(tmp_path / name), f"--model {tmp_path / name}: has the labels", str(list(labels.values())))


@pytest.mark.parametrize("fault", ["torn weights", "no weights", "other shapes", "no tokenizer", "broken config"])
def test_broken_model_folders_are_refused(fault, models, home, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models["t5"], folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "torn weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif fault == "no weights":
        weights.unlink()
    elif fault == "other shapes":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"d_model": 48}))
    elif fault == "no tokenizer":  # the library makes one up that knows no word
        for path in folder.glob("tokenizer*"):
            path.unlink()
    else:
        config.write_text('{"model_type": "t5", ')
    refused(train(home, folder, tmp_path / "student", "--num-train-epochs", 1), f"--model {folder}: ")
    assert not (tmp_path / "student").exists()


def test_a_refused_option_can_be_mended_as_the_message_says(models, home, tmp_path):
    refused(train(home, models["t5"], tmp_path / "student", "--dtype", "float16", "--num-train-epochs", 1), "bfloat16")
    done = train(home, models["t5"], tmp_path / "student", "--dtype", "bfloat16", "--num-train-epochs", 1)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "student.run.json").read_text())["counts"]["dtype"] == "bfloat16"


def test_a_loss_that_is_no_number_ends_the_training(models, home, tmp_path):
    done = train(home, models["t5"], tmp_path / "student", "--learning-rate", 1e30, "--num-train-epochs", 3)
    refused(done, "the loss is nan at step", "lower --learning-rate")
    assert not (tmp_path / "student").exists() and not (tmp_path / "student.run.json").exists()


def test_overwriting_loses_nothing_before_the_new_student_is_there(models, home, tmp_path):
    """A wrong option with --overwrite, or the old student as the base of the new one: the old one is still there."""
    folder = tmp_path / "student"
    assert train(home, models["t5"], folder, "--num-train-epochs", 1).returncode == 0
    weights = (folder / "model.safetensors").read_bytes()
    refused(train(home, models["t5"], folder, "--dtype", "float16", "--overwrite"), "float16")
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_student_that_is_trained_on_in_place(models, home, tmp_path):
    folder = tmp_path / "student"
    assert train(home, models["t5"], folder, "--num-train-epochs", 1).returncode == 0
    done = train(home, folder, folder, "--num-train-epochs", 1, "--overwrite")
    assert done.returncode in (0, 1, 2) and (folder / "model.safetensors").exists()
