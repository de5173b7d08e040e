"""score_ood.py: the formulas against numbers worked by hand, the batching against one example at a time, the selection.

The straightforward computation here is the plain one: full logits of one example, in float64, no batch, no padding.
"""

import functools
import json
import math
import random
import shutil

import pytest
from conftest import call, loaded, pair, read_lines, scores_of, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from gold.distances import nearest_distances, tfidf_distances
from gold.examples import read_examples
from gold.scores import detection, position_scores, reduce_energies
from gold.selection import select_feedback
from score_ood import all_scores

# ---------------------------------------------------------------------------------------------------------------------
# Single positions and sequences, by hand

# logits 1, 2, 3; the sum of exp(z - 3) is 1 + e^-1 + e^-2 = 1.5032147244
# T = 1: logsumexp = 3 + ln 1.5032147244 = 3.4076059645
# T = 2: 2 * logsumexp(0.5, 1, 1.5) = 2 * (1.5 + ln(1 + e^-0.5 + e^-1)) = 2 * (1.5 + ln 1.9744101009) = 4.3605394
# p = e^-2, e^-1, 1, each / 1.5032147244 = 0.0900305732, 0.2447284711, 0.6652409558
# nll of class 2 = 3.4076059645 - 3; of class 0 = 3.4076059645 - 1
# entropy = sum p * nll = 0.0900305732 * 2.4076059645 + 0.2447284711 * 1.4076059645 + 0.6652409558 * 0.4076059645
# margin = 1 - (0.6652409558 - 0.2447284711)
HAND = {
    "nll": (0.4076059645, 2.4076059645), "msp": 0.3347590442, "entropy": 0.8323950, "margin": 0.5794875153,
    "is_top": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("temperature, energy", [(1.0, -3.4076059645), (2.0, -4.3605394)])
def test_position_scores_by_hand(temperature, energy):
    import torch

    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    found = position_scores(logits, torch.tensor([2, 0]), temperature)
    assert found["energy"].tolist() == pytest.approx([energy] * 2, abs=1e-5)
    assert found["nll"].tolist() == pytest.approx(HAND["nll"], abs=1e-5)  # T scales the energy alone
    assert found["msp"].tolist() == pytest.approx([HAND["msp"]] * 2, abs=1e-5)
    assert found["entropy"].tolist() == pytest.approx([HAND["entropy"]] * 2, abs=1e-5)
    assert found["margin"].tolist() == pytest.approx([HAND["margin"]] * 2, abs=1e-5)
    assert found["is_top"].tolist() == list(HAND["is_top"])


def test_bfloat16_logits_are_summed_in_float32():
    import torch

    logits = torch.full((1, 1000), 8.0, dtype=torch.bfloat16)  # ln(1000 e^8) = 8 + 3 ln 10; bfloat16 would give 14.9375
    found = position_scores(logits, torch.tensor([0]), 1.0)
    assert {values.dtype for name, values in found.items() if name != "is_top"} == {torch.float32}
    assert float(found["energy"]) == pytest.approx(-(8 + 3 * math.log(10)), abs=1e-5)
    assert float(found["nll"]) == pytest.approx(3 * math.log(10), abs=1e-5)


def test_padding_is_no_part_of_a_sequence():
    import torch

    values = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -5.0, -6.0]])
    found = reduce_energies(values, torch.tensor([[True, True, False], [True, True, True]]))
    assert {name: column.tolist() for name, column in found.items()} == {
        "energy": [-1.5, -5.0],
        "energy_sum": [-3.0, -15.0],
        "energy_first": [-1.0, -4.0],
        "energy_padded": [-4.0, -5.0],  # the one that counts the padding: -12 / 3
    }
    moved = reduce_energies(torch.tensor([[-1.0, -2.0, 700.0]]), torch.tensor([[True, True, False]]))
    assert [float(moved[name]) for name in ("energy", "energy_sum", "energy_first")] == [-1.5, -3.0, -1.0]
    assert float(moved["energy_padded"]) == pytest.approx(697 / 3)


# ---------------------------------------------------------------------------------------------------------------------
# Whole examples


def log_sum_exp(row: list[float]) -> float:
    top = max(row)
    return top + math.log(math.fsum(math.exp(z - top) for z in row))


def plain_scores(logits: list[list[float]], labels: list[int], temperature: float) -> dict[str, float]:
    """Means over the positions given, from the definitions."""
    n, energies, nlls, msps, entropies, margins = len(labels), [], [], [], [], []
    for row, label in zip(logits, labels, strict=True):
        total = log_sum_exp(row)
        p = [math.exp(z - total) for z in row]
        energies.append(-temperature * log_sum_exp([z / temperature for z in row]))
        nlls.append(total - row[label])
        msps.append(1 - max(p))
        margins.append(1 - max(p) + sorted(p)[-2])
        entropies.append(-math.fsum(q * (z - total) for q, z in zip(p, row, strict=True)))
    return {
        "energy": sum(energies) / n, "energy_sum": sum(energies), "energy_first": energies[0], "nll": sum(nlls) / n,
        "msp": sum(msps) / n, "entropy": sum(entropies) / n, "margin": sum(margins) / n,
    }  # fmt: skip


def with_correctness(scores: dict, prediction: str, correct: bool) -> dict:
    """The scores that need to know whether the prediction is right: wrong or not, and how sure of it where wrong."""
    hard = 0.0 if correct else 1 - scores["msp"]
    return scores | {
        "prediction": prediction, "correct": correct, "error": float(not correct), "hard_negative": hard,
    }  # fmt: skip


def seq2seq_by_itself(folder, example, temperature=1.0, positions=None, length=16) -> dict:
    """Scores of one example, alone: teacher-forced on its target, and decoded greedily by the library."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    source = tokenizer(example["source"], return_tensors="pt", return_token_type_ids=False)
    target = tokenizer(example["target"])["input_ids"]
    asked = target if positions is None else target + [tokenizer.pad_token_id] * (positions - len(target))
    forced = [model.config.decoder_start_token_id, *asked[:-1]]  # what the decoder has read before each position
    with torch.inference_mode():
        logits = model(**source, decoder_input_ids=torch.tensor([forced])).logits[0].double().tolist()
        written = model.generate(**source, max_new_tokens=length, do_sample=False, num_beams=1)[0]
    scores = plain_scores(logits[: len(target)], target, temperature)
    if positions is not None:
        scores["energy_padded"] = plain_scores(logits, asked, temperature)["energy"]
    prediction = tokenizer.decode(written, skip_special_tokens=True).strip().lower()
    return with_correctness(scores, prediction, prediction == example["target"].strip().lower())


@functools.cache
def decoder_of(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def decoder_by_itself(folder, example, length=None) -> dict:
    """The same of a decoder: source, newline, target and end token by themselves, one example without any padding."""
    import torch

    model, tokenizer = decoder_of(folder)
    source, newline, target = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (example["source"], "\n", example["target"])
    )
    target.append(tokenizer.eos_token_id)
    prompt = [tokenizer.bos_token_id] * (tokenizer.bos_token is not None) + source + newline
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + target])).logits[0].double()
        written = model.generate(
            torch.tensor([prompt]), max_new_tokens=length, do_sample=False, num_beams=1, repetition_penalty=1.0,
            eos_token_id=tokenizer.eos_token_id, min_new_tokens=0, pad_token_id=0, attention_mask=torch.ones(1, len(prompt)),
        )[0, len(prompt) :]  # fmt: skip
    prediction = tokenizer.decode(written, skip_special_tokens=True).strip().lower()
    scores = plain_scores(logits[len(prompt) - 1 : -1].tolist(), target, 1.0)
    return with_correctness(scores, prediction, prediction == example["target"].strip().lower())


def encoder_by_itself(folder, example, task) -> dict:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = list(task.labels)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    source = AutoTokenizer.from_pretrained(folder)(example["source"], return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        logits = model(**source).logits[0].double().tolist()
    scores = plain_scores([logits], [names.index(example["label"])], 1.0)
    scores = {name: scores[name] for name in ("energy", "nll", "msp", "entropy", "margin")}
    prediction = names[logits.index(max(logits))].lower()
    return with_correctness(scores, prediction, prediction == example["target"].lower())


def assert_same(found: list[dict], expected: list[dict], tolerance: float = 1e-4) -> None:
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert set(one) - {"random"} == set(other) - {"random"}
        for name, value in other.items():
            if isinstance(value, float) and name != "random":
                assert one[name] == pytest.approx(value, abs=tolerance), f"{name} of example {row}"
            else:
                assert one[name] == value, f"{name} of example {row}"


@pytest.fixture(scope="module")
def examples(home, pairs, tmp_path_factory):
    """24 examples of several lengths, a third of them with the wrong label, so that predictions are right and wrong."""
    rows = [pair(n) | {"first": "the very big old " * (n % 4) + pair(n)["first"]} for n in range(60, 84)]
    for row in rows[::3]:
        row["label"] = "Warm" if row["label"] == "not warm" else "not warm"
    return read_examples(write_lines(tmp_path_factory.mktemp("score") / "some.jsonl", rows), pairs)


@pytest.mark.parametrize("name", ["t5", "t5v11"])
@pytest.mark.parametrize("taught", [True, False])
def test_sequences_one_by_one(name, taught, models, trained, examples, pairs):
    folder = (trained if taught else models)[name]
    found = scores_of(folder, pairs, examples, batch_size=7)
    expected = [seq2seq_by_itself(folder, e) for e in examples]
    if not taught:  # a class needs no more tokens than the longest label: what goes on is cut off, and wrong anyway
        for one, other in zip(found, expected, strict=True):
            assert other["prediction"].startswith(one["prediction"])
            other["prediction"] = one["prediction"]
    assert_same(found, expected)
    if taught:
        assert {one["correct"] for one in found} == {True, False}
        assert {one["prediction"] for one in found} == {"warm", "not warm"}  # in lower case


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("taught", [True, False])
def test_decoders_one_by_one(name, taught, models, trained, examples, pairs):
    """qwen2 untrained comes with sampling, a penalty and other end tokens in its generation_config.json."""
    folder = (trained if taught else models)[name]
    found = scores_of(folder, pairs, examples, batch_size=7)
    tokenizer = decoder_of(folder)[1]
    length = 1 + max(len(tokenizer(name, add_special_tokens=False)["input_ids"]) for name in pairs.labels)
    assert_same(found, [decoder_by_itself(folder, e, length) for e in examples], 1e-5)
    if taught:
        assert {one["correct"] for one in found} == {True, False}
        assert {one["prediction"] for one in found} >= {"warm", "not warm"}


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_energy_temperature(temperature, models, examples, pairs):
    found = scores_of(models["t5"], pairs, examples[:4], temperature=temperature)
    for one, e in zip(found, examples[:4], strict=True):
        expected = seq2seq_by_itself(models["t5"], e, temperature)
        for name in ("energy", "energy_sum", "energy_first", "nll", "msp", "entropy"):
            assert one[name] == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.parametrize("name", ["t5", "t5v11"])
def test_padded_energy_only_when_asked(name, trained, examples, pairs):
    folder = trained[name]
    assert "energy_padded" not in scores_of(folder, pairs, examples[:2])[0]
    found = scores_of(folder, pairs, examples, batch_size=5, padded=True, target=9)
    assert_same(found, [seq2seq_by_itself(folder, e, positions=9) for e in examples])


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_classes_one_by_one(name, trained, examples, pairs):
    found = scores_of(trained[name], pairs, examples, batch_size=7)
    assert_same(found, [encoder_by_itself(trained[name], e, pairs) for e in examples])
    assert {one["correct"] for one in found} == {True, False}


@pytest.mark.parametrize("name", ["t5", "t5v11", "bert", "modernbert", "llama", "qwen2"])
def test_batch_size_and_order_change_nothing(name, trained, examples, pairs):
    reference = scores_of(trained[name], pairs, examples)
    for batch_size in (1, 3):
        assert_same(scores_of(trained[name], pairs, examples, batch_size), reference)
    order = random.Random(5).sample(range(len(examples)), len(examples))
    shuffled = scores_of(trained[name], pairs, [examples[i] for i in order], 5)
    assert_same(shuffled, [reference[i] for i in order])
    assert [s["random"] for s in shuffled] == [reference[i]["random"] for i in order]  # of the id, not of the place


def test_random_score_is_of_seed_and_id(models, examples, pairs):
    one, same, other = (
        [s["random"] for s in scores_of(models["t5"], pairs, examples[:5], seed=seed)] for seed in (1, 1, 2)
    )
    assert one == same and len(set(one + other)) == 10 and all(0 <= x < 1 for x in one)


@pytest.mark.parametrize("name", ["flip", "flip_bos"])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_text_to_text_is_decoded_up_to_its_length(name, length, home, trained, flip):
    """Where there are no labels, --max-target-length bounds what is written: a longer target cannot be met."""
    examples = read_examples(home / "flip_train.jsonl", flip)
    alone = seq2seq_by_itself if name == "flip" else decoder_by_itself
    expected = [alone(trained[name], e, length=length)["prediction"] for e in examples]
    found = scores_of(trained[name], flip, examples, target=length)
    assert [s["prediction"] for s in found] == expected
    assert [s["correct"] for s in found] == [p == e["target"] for p, e in zip(expected, examples, strict=True)]
    assert (sum(s["correct"] for s in found) > 10) is (length > 1)


def test_capitals_of_a_text_stay(trained, examples, pairs):
    """A label is compared in lower case; what a text2text student writes may be measured with its capitals, as by chrF."""
    task = pairs.model_copy(update={"kind": "text2text", "metric": "exact_match", "labels": {}})
    found = scores_of(trained["t5"], task, examples)
    assert {s["prediction"] for s in found} == {"Warm", "not warm"}
    assert [s["correct"] for s in found] == [s["correct"] for s in scores_of(trained["t5"], pairs, examples)]


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_bfloat16_weights_are_close(name, home, trained, tmp_path):
    for dtype in ("float32", "bfloat16"):
        assert score(home, trained[name], tmp_path, "--dtype", dtype, output=dtype).returncode == 0
    exact, rounded = (read_lines(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert 0 < max(abs(a["energy"] - b["energy"]) for a, b in zip(exact, rounded, strict=True)) < 0.15


HOW = {"temperature": 1.0, "padded": False, "batch_size": 5, "seed": 3}


@pytest.mark.parametrize("name", ["t5", "bert", "modernbert", "llama"])
def test_energy_delta_is_against_the_untouched_student(name, models, trained, examples, pairs):
    """Of an encoder the base has a head that is drawn with the seed, the same one as train_student.py begins with."""
    from gold.student import load_student

    student, base = loaded(trained[name], pairs), load_student(str(models[name]), pairs, seed=3)
    found = all_scores(student, examples, [], str(models[name]), "energy_delta", HOW)
    for one, other in zip(found, all_scores(base, examples, [], None, "energy", HOW), strict=True):
        assert one["energy_delta"] == pytest.approx(one["energy"] - other["energy"], abs=1e-4)


def representation(folder, name, example):
    """Mean of the last hidden states over what is read: one example, alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    # Of a decoder: without the end token that its tokenizer appends; it knows no newline
    ids = tokenizer(example["source"], add_special_tokens=name != "llama")["input_ids"]
    with torch.inference_mode():
        states = (model.encoder if name == "t5" else model)(torch.tensor([ids])).last_hidden_state
    return states[0].double().mean(0)


@pytest.mark.parametrize("name", ["t5", "bert", "modernbert", "llama"])
def test_embedding_is_the_distance_to_the_nearest_training_example(name, trained, examples, pairs):
    import torch

    folder, known, asked = trained[name], examples[:9], examples[5:]
    found = all_scores(loaded(folder, pairs), asked, known, None, "embedding", HOW)
    points = torch.stack([representation(folder, name, e) for e in known])
    for one, e in zip(found, asked, strict=True):
        cosines = torch.nn.functional.cosine_similarity(points, representation(folder, name, e)[None])
        cosines = cosines[torch.tensor([e["id"] != k["id"] for k in known])]  # four of them were trained on
        assert one["embedding"] == pytest.approx(1 - float(cosines.max()), abs=1e-4)
    assert max(one["embedding"] for one in found) > 2e-4


def test_tfidf_by_hand():
    """Of four texts sun is in three, the other words in one: smoothed idf = 1 + ln((1 + 4) / (1 + df))."""
    examples = [{"id": n, "source": text} for n, text in enumerate(("sun moon", "Sun!", "star"))]
    sun, other = 1 + math.log(5 / 4), 1 + math.log(5 / 2)
    far = tfidf_distances(examples, [{"id": "k", "source": "sun"}])
    assert far == pytest.approx([1 - sun / math.hypot(sun, other), 0, 1])


def test_tfidf_in_any_script():
    """Texts of symbols and of scripts without blanks have words too; none of them is a row of zeros, or an error."""
    texts = ["+ -", ":)", "我喜欢手机", "我喜欢电脑", "कमल की", "कमल का"]
    examples = [{"id": n, "source": text} for n, text in enumerate(texts)]
    far = tfidf_distances(examples, examples)
    assert far[:2] == [1, 1] and all(0 < distance < 1 for distance in far[2:])
    twins = [{"id": f"twin {n}", "source": text} for n, text in enumerate(texts)]
    assert tfidf_distances(examples, twins) == pytest.approx([0] * 6, abs=1e-9)
    assert tfidf_distances(examples[:1], twins[1:2]) == [1]


def test_an_example_is_not_its_own_neighbour():
    """At 0, 60 and 90 degrees: the nearest others are 60, 30 and 30 degrees away; one alone has none."""
    import numpy as np

    angles = np.deg2rad([0.0, 60.0, 90.0])
    points, rows = np.stack([np.cos(angles), np.sin(angles)], axis=1), [{"id": n} for n in range(3)]
    far = nearest_distances(points, points.T, rows, rows)
    assert far == pytest.approx([1 - 0.5, 1 - math.sqrt(3) / 2, 1 - math.sqrt(3) / 2])
    assert nearest_distances(points[:1], points[:1].T, rows[:1], rows[:1]) == [1.0]


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def scored(values: list[float], label: str = "Warm", name: str = "x") -> list[dict]:
    return [{"id": f"{name}{i:02d}", "label": label, "energy": value} for i, value in enumerate(values)]


def ids_of(selection: tuple[list[dict], dict], label: str = "") -> list[str]:
    return [r["id"] for r in selection[0] if not label or r["label"] == label]


def test_band_of_ten_by_hand(pairs):
    """Ascending order: .0 .1 .2 ... .9; [.5, .8) of ten keeps the places 5, 6 and 7, ranks 5, 4 and 3 from the top."""
    values = [0.3, 0.9, 0.1, 0.7, 0.0, 0.5, 0.6, 0.2, 0.8, 0.4]
    both = scored(values) + scored([v - 50 for v in values], "not warm", "y")
    found, _ = select_feedback(both, pairs, "energy", 0.5, 0.8)
    assert [(r["id"], r["score"], r["rank"]) for r in found] == [
        ("x03", 0.7, 3), ("y03", pytest.approx(-49.3), 3),  # within each label: other labels' energies do not matter
        ("x06", 0.6, 4), ("y06", pytest.approx(-49.4), 4),
        ("x05", 0.5, 5), ("y05", pytest.approx(-49.5), 5),
    ]  # fmt: skip
    ties = scored([1.0] * 10) + scored([2.0] * 10, "not warm", "y")  # go by id
    assert ids_of(select_feedback(ties[::-1], pairs, "energy", 0.5, 0.8)) == ["x07", "y07", "x06", "y06", "x05", "y05"]


@pytest.mark.parametrize(
    "n, low, high, kept",
    [
        (16, 0.5, 0.8, range(8, 12)),  # floor(12.8) = 12; of 8 it would be the authors' ranks 4 and 5
        (10, 0.7, 1.0, range(7, 10)),  # .7 * 10 is 7.000000000000001 or 6.999999999999999 as floats go
        (10, 0.29, 0.58, range(2, 5)),
        (100, 0.29, 0.58, range(29, 58)),  # 0.29 * 100 = 28.999999999999996 in floating point
        (10, 0.0, 1.0, range(10)),
    ],
)
def test_limits_of_the_band(n, low, high, kept, flip):
    found, _ = select_feedback(scored([float(i) for i in range(n)]), flip, "energy", low, high)
    assert [r["energy"] for r in found] == sorted(map(float, kept), reverse=True)


@pytest.mark.parametrize("n", [0, 9])
def test_fewer_than_ten_of_a_label_are_refused(n, pairs):
    records = scored([float(i) for i in range(30)]) + scored([float(i) for i in range(n)], "not warm", "y")
    with pytest.raises(SystemExit, match=f"error: .*only {n} examples of the label 'not warm'"):
        select_feedback(records, pairs, "energy", 0.5, 0.8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(value, pairs):
    with pytest.raises(SystemExit, match=r"error: --score energy: is (nan|inf|-inf) for x03"):
        select_feedback(scored([1.0, 2.0, 3.0, value] + [4.0] * 10), pairs, "energy", 0.5, 0.8)
    with pytest.raises(SystemExit, match="error: --score energy_sum: "):
        select_feedback(scored([1.0] * 10), pairs, "energy_sum", 0.5, 0.8)


@settings(deadline=None, max_examples=80)
@given(
    values=st.lists(st.tuples(st.integers(-4, 4).map(float), st.booleans()), max_size=60),
    band=st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda b: b[0] + 2 <= b[1]),  # holds one of ten
    seed=st.integers(0, 99),
)
def test_selection(values, band, seed, pairs):
    low, high = band[0] / 20, band[1] / 20
    values = values + [(float(i % 7), bool(i % 2)) for i in range(20)]  # ten and more of each label
    records = [
        {"id": f"r{i:03d}", "label": "Warm" if warm else "not warm", "energy": v} for i, (v, warm) in enumerate(values)
    ]
    found, _ = select_feedback(records, pairs, "energy", low, high)
    shuffled = random.Random(seed).sample(records, len(records))
    assert select_feedback(shuffled, pairs, "energy", low, high)[0] == found
    assert [(r["rank"], r["id"]) for r in found] == sorted((r["rank"], r["id"]) for r in found)
    for label in pairs.labels:
        group = sorted((r for r in records if r["label"] == label), key=lambda r: (r["energy"], r["id"]))
        n = len(group)
        # floor(low n) .. floor(high n), in whole numbers
        expected = {r["id"]: (r["energy"], n - i) for i, r in enumerate(group)
                    if band[0] * n // 20 <= i < band[1] * n // 20}  # fmt: skip
        assert {r["id"]: (r["score"], r["rank"]) for r in found if r["label"] == label} == expected


@pytest.mark.parametrize("name", ["error", "hard_negative"])
def test_only_wrong_examples_are_selected_by_error(name, pairs):
    """Of ten of each label two, and none, are wrong: the band is one of the wrong ones."""
    records = scored([0.0] * 7 + [0.9, 0.0, 0.6]) + scored([0.0] * 10, "not warm", "y")
    records = [r | {name: r["energy"]} for r in records]
    found, _ = select_feedback(records, pairs, name, 0.0, 1.0)
    assert [(r["id"], r["score"], r["rank"]) for r in found] == [("x07", 0.9, 1), ("x09", 0.6, 2)]
    assert ids_of(select_feedback(records, pairs, name, 0.5, 1.0)) == ["x07"]
    right = [r | {name: 0.0} for r in records]
    assert ids_of(select_feedback(right, pairs, name, 0.0, 1.0)) == []  # nothing is wrong: no mistake of the user's
    assert ids_of(select_feedback(records[7:12], pairs, name, 0.0, 1.0)) == ["x07", "x09"]  # a small human file will do


def test_band_within_groups_of_successive_examples(pairs):
    """The authors' code: of every eight the two at the places 4 and 5 in ascending order, whatever their labels."""
    values = [0.3, 0.9, 0.1, 0.7, 0.0, 0.5, 0.6, 0.2, 5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 7.0, 9.0, 1.0, 2.0]
    records = [r | {"label": ("Warm", "not warm")[i > 3]} for i, r in enumerate(scored(values))]
    found, _ = select_feedback(records, pairs, "energy", 0.5, 0.8, group_size=8)
    # sorted: .0 .1 .2 .3 [.5 .6] .7 .9; 1 2 3 4 [5 6] 7 8; of the three that are left the one in the middle
    assert {(r["id"], r["rank"]) for r in found} == {("x05", 4), ("x06", 3), ("x08", 4), ("x13", 3), ("x18", 2)}


def test_confirmed_examples_only(pairs):
    """The highest two of twelve are not what the teacher says: the top fifth of the ten others are 8 and 9."""
    records = scored([float(i) for i in range(12)]) + scored([float(i) for i in range(10)], "not warm", "y")
    records = [r | {"teacher_label": r["label"]} for r in records]
    for r in records[10:12]:
        r["teacher_label"] = "not warm"
    found, counts = select_feedback(records, pairs, "energy", 0.8, 1.0, confirmed=True)
    assert [(r["id"], r["rank"]) for r in found] == [("x09", 1), ("y09", 1), ("x08", 2), ("y08", 2)]
    assert counts == {"unconfirmed": 2}
    records[15]["teacher_label"] = "Warm"
    with pytest.raises(SystemExit, match="only 9 confirmed examples of the label 'not warm'"):
        select_feedback(records, pairs, "energy", 0.8, 1.0, confirmed=True)
    del records[3]["teacher_label"]
    with pytest.raises(SystemExit, match="--confirmed: x03 has no teacher_label; run label"):
        select_feedback(records, pairs, "energy", 0.8, 1.0, confirmed=True)


def test_near_duplicates_of_a_selected_one_are_left_out(pairs):
    """From the most OOD down. Overlap of two texts of six words with five in common, in order: 2 * 5 / 12 = .83."""
    records = [
        r | {"first": "a b c", "second": f"w{i} x{i} y{i}"} for i, r in enumerate(scored([1.0 * i for i in range(10)]))
    ]
    records += [r | {"first": "", "second": f"p{i} q{i}"} for i, r in enumerate(scored([0.0] * 10, "not warm", "y"))]
    records[9] |= {"first": "the sun is", "second": "hot and high"}
    records[8] |= {"first": "the sun is", "second": "hot and low"}
    records[7] |= {"first": "the moon is", "second": "cold and far"}  # overlap 2 * 3 / 12 = .5 with the first
    for most, kept in ((0.8, ["x09", "x07"]), (0.84, ["x09", "x08", "x07"]), (0.4, ["x09"])):
        found = select_feedback(records, pairs, "energy", 0.7, 1.0, max_overlap=most)
        assert ids_of(found, "Warm") == kept and found[1] == {"near_duplicates": 3 - len(kept)}


# ---------------------------------------------------------------------------------------------------------------------
# The command


def score(home, folder, tmp_path, *args, output="scored.jsonl"):
    return call(
        "score_ood.py", "--task-file", home / "pairs.toml", "--model", folder, "--input-file", home / "validation.jsonl",
        "--output-file", tmp_path / output, *args,
    )  # fmt: skip


def select(home, path, *args):
    """From a file that is scored already, or by what needs no student."""
    return call("score_ood.py", "--task-file", home / "pairs.toml", "--input-file", path, *args)


def test_command_scores_and_selects(home, models, trained, pairs, tmp_path):
    band = ("--feedback-file", tmp_path / "feedback.jsonl", "--low", 0.5, "--high", 1)
    done = score(home, trained["t5"], tmp_path, *band)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"scored.jsonl", "feedback.jsonl", "scored.jsonl.run.json"}
    examples = read_examples(home / "validation.jsonl", pairs)
    records = read_lines(tmp_path / "scored.jsonl")
    assert [r["id"] for r in records] == [e["id"] for e in examples]  # in the order of the input
    assert all(e.items() <= r.items() for e, r in zip(examples, records, strict=True))
    assert all(s.items() <= r.items() for s, r in zip(scores_of(trained["t5"], pairs, examples), records, strict=True))
    feedback = read_lines(tmp_path / "feedback.jsonl")
    assert feedback == select_feedback(records, pairs, "energy", 0.5, 1.0)[0] and len(feedback) == 12
    assert list(feedback[0])[:6] == ["id", "first", "second", "label", "score", "rank"]
    run = json.loads((tmp_path / "scored.jsonl.run.json").read_text())
    assert run["counts"] == {"scored": 24, "correct": sum(r["correct"] for r in records), "selected": 12}
    assert run["means"]["energy"] == pytest.approx(sum(r["energy"] for r in records) / 24, abs=1e-3)
    assert "prediction" not in run["means"] and run["options"]["low"] == 0.5
    again = score(home, trained["t5"], tmp_path, *band, "--per-device-eval-batch-size", 3)
    assert again.returncode == 0 and "up to date" in again.stderr  # the batch size is not compared
    # Scores of another student, or of the user's, do not stay
    done = call(
        "score_ood.py", "--task-file", home / "pairs.toml", "--model", models["t5"], "--input-file",
        tmp_path / "scored.jsonl", "--output-file", tmp_path / "again.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert score(home, models["t5"], tmp_path, output="direct.jsonl").returncode == 0
    assert read_lines(tmp_path / "again.jsonl") == read_lines(tmp_path / "direct.jsonl")


@pytest.mark.parametrize("name, by, told", [
    ("bert", "energy_sum", "an encoder student has one position"),
    ("modernbert", "energy_first", "an encoder student has one position"),
    ("bert", "energy_padded", "an encoder student has one position"),
    ("qwen2", "energy_padded", "the authors' setting for T5"),
])  # fmt: skip
def test_a_score_that_the_student_has_not_is_refused_before_its_weights_are_read(
    name, by, told, home, models, tmp_path
):
    shutil.copytree(models[name], tmp_path / "student")
    (tmp_path / "student" / "model.safetensors").unlink()
    done = score(home, tmp_path / "student", tmp_path, "--score", by)
    assert done.returncode == 1 and f"error: --score {by}: {told}" in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"student"}


def test_scores_that_need_more(home, models, trained, tmp_path):
    """energy_sum of a decoder, and those that need another file."""
    needs = {
        "energy_sum": ("llama", ()), "energy_delta": ("bert", ("--base-model", models["bert"])),
        "embedding": ("bert", ("--train-file", home / "train.jsonl")),
    }  # fmt: skip
    for name, (student, more) in needs.items():
        if more:
            without = score(home, trained[student], tmp_path, "--score", name)
            assert without.returncode == 2 and f"{name} needs {more[0]}" in " ".join(without.stderr.split())
        feedback = tmp_path / f"{name}.fb"
        done = score(home, trained[student], tmp_path, "--score", name, *more, "--feedback-file", feedback, output=name)
        assert done.returncode == 0 and f"selected by {name}" in done.stderr, done.stderr
        assert all(r["score"] == r[name] for r in read_lines(feedback))
        assert len({r[name] for r in read_lines(tmp_path / name)}) > 5
    wrong = score(home, trained["bert"], tmp_path, "--base-model", tmp_path / "nobody")
    assert wrong.returncode == 1 and "nobody" in wrong.stderr and "Traceback" not in wrong.stderr
    wrong = select(
        home, tmp_path / "embedding", "--feedback-file", tmp_path / "f", "--train-file", home / "train.jsonl"
    )
    assert wrong.returncode == 2 and "give the --model too" in wrong.stderr


def test_scores_that_need_no_student(home, pairs, trained, tmp_path):
    """The same numbers as with one, and the same selection; there is no prediction then."""
    train = ("--train-file", home / "train.jsonl")
    assert score(home, trained["bert"], tmp_path, "--seed", 3, *train).returncode == 0
    for name, more in (("tfidf", train), ("random", ())):
        files = ("--output-file", tmp_path / name, "--feedback-file", tmp_path / f"{name}.fb")
        done = select(home, home / "validation.jsonl", "--seed", 3, "--score", name, *more, *files)
        assert done.returncode == 0 and "predicted right" not in done.stderr, done.stderr
        records = read_lines(tmp_path / name)
        assert [r[name] for r in records] == pytest.approx([r[name] for r in read_lines(tmp_path / "scored.jsonl")])
        assert not any("prediction" in r or "energy" in r for r in records)
        assert read_lines(tmp_path / f"{name}.fb") == select_feedback(records, pairs, name, 0.5, 0.8)[0]
    again = select(home, home / "validation.jsonl", "--seed", 4, "--score", "random", *files)
    assert again.returncode == 1 and "was made with --seed 3, now 4" in again.stderr


def test_another_band_of_scored_examples(home, pairs, tmp_path):
    """Little of each record is kept; what is written is whole, and selected as by the function."""
    rows = [pair(n) | {"id": f"x{n}", "energy": (n * 7 % 40) / 3, "msp": n / 40, "group": {"n": n}} for n in range(40)]
    path, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "fb.jsonl"
    done = select(home, path, "--feedback-file", output, "--limit", 36)
    assert done.returncode == 0, done.stderr
    whole = read_examples(path, pairs, use=["energy"])[:36]
    found = read_lines(output)
    assert found == select_feedback(whole, pairs, "energy", 0.5, 0.8)[0] and len(found) > 8 and "group" in found[0]
    record = json.loads((tmp_path / "fb.jsonl.run.json").read_text())
    assert record["counts"] == {"scored": 36, "selected": len(found)}
    assert record["means"] == {"energy": round(sum(r["energy"] for r in whole) / 36, 4)}
    for args, code, told in (
        (
            ("--score", "nll", "--feedback-file", tmp_path / "none"),
            1,
            "--score nll: x0 has none; score it with --model",
        ),
        (
            ("--output-file", tmp_path / "none", "--feedback-file", tmp_path / "f"),
            2,
            "without --model, energy must stand in",
        ),
        ((), 2, "--feedback-file"),
    ):
        done = select(home, path, *args)
        assert done.returncode == code and told in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    del rows[-1]["energy"]  # the last one has none
    write_lines(path, rows)
    done = select(home, path, "--feedback-file", tmp_path / "late.jsonl")
    assert done.returncode == 1 and "x39 has none" in done.stderr and not (tmp_path / "late.jsonl").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "fb.jsonl", "fb.jsonl.run.json"}


@pytest.mark.parametrize("errors", [0, 3])
def test_a_student_without_errors_gives_an_empty_feedback_file(errors, home, tmp_path):
    """And a student with some gives these alone."""
    rows = [pair(n) | {"id": f"x{n}", "error": float(n < errors)} for n in range(24)]
    path, by = write_lines(tmp_path / "in.jsonl", rows), ("--score", "error", "--feedback-file")
    done = select(home, path, *by, tmp_path / "fb", "--low", 0, "--high", 1)
    assert done.returncode == 0 and ("no example is wrong" in done.stderr) is (errors == 0), done.stderr
    assert {r["id"] for r in read_lines(tmp_path / "fb")} == {r["id"] for r in rows[:errors]}
    part = select(home, path, *by, tmp_path / "part")
    assert part.returncode == 0 and ("--score error: is the same for all" in part.stderr) is (errors > 0)


@pytest.mark.parametrize("feedback", [True, False])
def test_a_broken_student_is_a_message(feedback, home, models, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    shutil.copytree(models["t5"], tmp_path / "nan")
    model = AutoModelForSeq2SeqLM.from_pretrained(models["t5"])
    model.shared.weight.data[:] = math.nan
    model.save_pretrained(tmp_path / "nan")
    more = ("--feedback-file", tmp_path / "feedback.jsonl") if feedback else ()
    done = score(home, tmp_path / "nan", tmp_path, *more)
    assert done.returncode == 1 and "energy is nan" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "scored.jsonl").exists() and not (tmp_path / "feedback.jsonl").exists()


def test_files_of_the_user_are_never_lost(home, trained, tmp_path):
    """The input as an output, two outputs of one name, a feedback file of the user's; a band that holds nothing."""
    path = tmp_path / "some.jsonl"
    path.write_bytes((home / "validation.jsonl").read_bytes())
    for option in ("--output-file", "--feedback-file"):
        files = {"--output-file": tmp_path / "scored.jsonl", "--feedback-file": tmp_path / "feedback.jsonl"}
        words = [word for both in (files | {option: path}).items() for word in both]
        done = select(home, path, "--model", trained["bert"], "--overwrite", *words)
        assert done.returncode == 1 and "is the input --input-file" in done.stderr
    for name, told in (("scored.jsonl", "two outputs have this name"), ("some.jsonl", "has no run record")):
        done = score(home, trained["bert"], tmp_path, "--feedback-file", tmp_path / name)
        assert done.returncode == 1 and told in done.stderr
    done = score(home, trained["bert"], tmp_path, "--feedback-file", tmp_path / "f.jsonl", "--low", 0.5, "--high", 0.51)
    assert done.returncode == 1 and done.stderr.startswith("error: --low 0.5 --high 0.51: holds none of 24 examples")
    assert path.read_bytes() == (home / "validation.jsonl").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"some.jsonl"}


# ---------------------------------------------------------------------------------------------------------------------
# Detection of OOD examples


def detect(near: list[float], far: list[float]) -> dict[str, float]:
    return detection([{"energy": x} for x in near], [{"energy": x} for x in far])["energy"]


@pytest.mark.parametrize(
    "near, far, auroc, aupr, fpr95",
    [
        # Of the six pairs (near, far) four have far above near. From the top: far 4, near 3, far 2, near 1, near 0:
        # precision 1/1 and 2/3 at the two far ones; both are flagged from 2 on, with one of three near
        ([0.0, 1.0, 3.0], [2.0, 4.0], 5 / 6, (1 + 2 / 3) / 2, 1 / 3),
        # The other way round: precision 1/3 and 2/4
        ([5.0, 6.0], [1.0, 2.0], 0.0, (1 / 3 + 2 / 4) / 2, 1.0),
        # Ties: a half each
        ([1.0, 2.0], [2.0, 3.0], (1 + 1 + 0.5 + 1) / 4, (1 + 2 / 3) / 2, 0.5),
        ([7.0] * 5, [7.0] * 3, 0.5, 3 / 8, 1.0),
        # A float32 sigmoid would make all of these 1, or 0: the ranks keep them apart
        ([-2000.0, -1999.5], [-1999.0, -1998.0], 1.0, 1.0, 0.0),
        ([1.0, 1.0 + 1e-12], [1.0 + 2e-12], 1.0, 1.0, 0.0),
    ],
)  # fmt: skip
def test_detection_by_hand(near, far, auroc, aupr, fpr95):
    assert detect(near, far) == {
        "auroc": pytest.approx(auroc, abs=1e-4),
        "aupr": pytest.approx(aupr, abs=1e-4),
        "fpr95": pytest.approx(fpr95, abs=1e-4),
    }


def test_fpr_at_95_percent_of_the_ood_examples():
    """Of 20 far examples 19 are 95 %: the threshold is the second lowest of them; of 19, 18 are too few."""
    near = [0.5, 1.5, 2.5, 3.5]
    far = [float(i) for i in range(20)]
    assert detect(near, far)["fpr95"] == 0.75  # threshold 1: 1.5, 2.5 and 3.5 are at or above
    assert detect(near, far[:19])["fpr95"] == 1.0  # threshold 0
    assert detect([1.0, 0.9], far)["fpr95"] == 0.5  # at the threshold counts as flagged


def test_scores_that_some_example_has_not_are_left_out():
    near = [{"energy": 1.0, "nll": 2.0, "prediction": "warm", "correct": True}] * 3
    found = detection(near, [{"energy": 3.0, "prediction": "warm"}] * 2)
    assert found == {"energy": {"auroc": 1.0, "aupr": 1.0, "fpr95": 0.0}}
    with pytest.raises(SystemExit, match="error: --ood-file: energy is not finite"):
        detection(near, [{"energy": math.nan}])


def far_pairs(tmp_path, answers: list, name: str = "far.jsonl", **more):
    rows = [{"first": f"zebra {n}", "second": "quartz", "source_set": "zoo"} | more for n in range(len(answers))]
    rows = [r | ({} if a is None else {"label": a}) for r, a in zip(rows, answers, strict=True)]
    return write_lines(tmp_path / name, rows)


@pytest.mark.parametrize("answers", [[None] * 4, ["Warm", "oos", None, 7]])
def test_ood_file_without_labels_of_the_task(answers, home, trained, pairs, tmp_path):
    (tmp_path / "plain").mkdir()
    feedback = ("--low", 0.5, "--high", 1, "--feedback-file")
    plain = score(home, trained["bert"], tmp_path / "plain", *feedback, tmp_path / "plain" / "feedback.jsonl")
    assert plain.returncode == 0, plain.stderr
    # Scores of another student do not stay
    far = far_pairs(tmp_path, answers, nll=99.0, correct=False, energy=99.0)
    args = (*feedback, tmp_path / "feedback.jsonl", "--ood-file")
    done = score(home, trained["bert"], tmp_path, *args, far)
    assert done.returncode == 0, done.stderr
    for name in ("scored.jsonl", "feedback.jsonl"):  # what is far from the task takes no part in the selection
        assert (tmp_path / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    rows = read_lines(tmp_path / "scored.ood.jsonl")
    assert [r["id"] for r in rows] == [f"far:{n}" for n in range(1, 5)] and {r["source_set"] for r in rows} == {"zoo"}
    assert [r.get("label") for r in rows] == answers
    assert [("nll" in r, "correct" in r) for r in rows] == [(a == "Warm", a == "Warm") for a in answers]
    # The scores are those of the text alone
    labelled = far_pairs(tmp_path, ["not warm"] * 4, "labelled.jsonl")
    alone = scores_of(trained["bert"], pairs, read_examples(labelled, pairs))
    assert [r["prediction"] for r in rows] == [s["prediction"] for s in alone]
    for name in ("energy", "msp", "entropy"):
        assert [r[name] for r in rows] == pytest.approx([s[name] for s in alone], abs=1e-4)
    run = json.loads((tmp_path / "scored.jsonl.run.json").read_text())
    scored = read_lines(tmp_path / "scored.jsonl")
    names = ("energy", "msp", "entropy", "margin", "random")
    table = detection([{k: r[k] for k in names} for r in scored], [{k: r[k] for k in names} for r in rows])
    assert run["ood_detection"] == table and run["counts"]["ood"] == 4 and run["counts"]["scored"] == 24
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["score", *table]
    assert f"{table['energy']['auroc']:.3f}" in done.stdout.splitlines()[1]
    again = score(home, trained["bert"], tmp_path, *args, far)
    assert again.returncode == 0 and "up to date" in again.stderr
    other = score(home, trained["bert"], tmp_path, *args, home / "train.jsonl")
    assert other.returncode == 1 and "--ood-file has changed since this was made" in other.stderr
    # Only an --ood-file may hold a label that is unknown
    done = select(home, far, "--model", trained["bert"], "--output-file", tmp_path / "other.jsonl")
    assert done.returncode == 1 and ("no such label: 'oos'" if "oos" in answers else "no field 'label'") in done.stderr


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_generative_student_needs_answers_of_the_ood_file(name, home, models, trained, tmp_path):
    shutil.copytree(models[name], tmp_path / "student")
    (tmp_path / "student" / "model.safetensors").unlink()  # told before the weights are read
    far = far_pairs(tmp_path, ["Warm", "Warm", "oos"])
    done = score(home, tmp_path / "student", tmp_path, "--ood-file", far)
    assert done.returncode == 1 and "error: --ood-file: far:3 has no 'label' that the task knows" in done.stderr
    far = far_pairs(tmp_path, ["Warm", "not warm"], "known.jsonl")
    done = score(home, trained[name], tmp_path, "--ood-file", far)
    assert done.returncode == 0, done.stderr
    assert {"energy", "energy_sum", "energy_first", "nll"} < {line.split()[0] for line in done.stdout.splitlines()}
    assert all("nll" in r and "correct" in r for r in read_lines(tmp_path / "scored.ood.jsonl"))


def test_wrong_use_of_ood_file(home, trained, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    cases = [
        (empty, "empty.jsonl: no records in it"),
        (tmp_path / "none.jsonl", "none.jsonl"),
        (tmp_path / "none-*.jsonl", "--ood-file"),
        (write_lines(tmp_path / "bad.jsonl", [{"first": "x"}]), "bad.jsonl:1: no field 'second'"),
    ]
    for path, told in cases:
        done = score(home, trained["bert"], tmp_path, "--ood-file", path)
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr, (path, done.stderr)
    assert not list(tmp_path.glob("scored*"))
    done = score(home, trained["bert"], tmp_path, "--ood-file", far_pairs(tmp_path, [None]), "--dry-run")
    assert done.returncode == 0 and "and 1 OOD examples" in done.stdout
