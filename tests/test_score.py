"""score_ood.py: the formulas against numbers worked by hand, the batching against one example at a time, the selection."""

import functools
import json
import math
import random
import shutil
from collections import Counter

import pytest
from conftest import call, flipped, loaded, pair, read_lines, record_of, refusal, scores_of, write_lines
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gold import nearest, predict
from gold.examples import read_examples
from gold.nearest import embedding_distances, k_center_distances, tfidf_distances
from gold.scores import detection, position_scores, sequence_scores
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
    "nll": [0.4076059645, 2.4076059645], "msp": [0.3347590442] * 2, "entropy": [0.8323950] * 2,
    "margin": [0.5794875153] * 2, "is_top": [True, False],
}  # fmt: skip


@pytest.mark.parametrize("temperature, energy", [(1.0, -3.4076059645), (2.0, -4.3605394)])
def test_position_scores_by_hand(temperature, energy):
    import torch

    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    found = position_scores(logits, torch.tensor([2, 0]), temperature)
    for name, values in (HAND | {"energy": [energy] * 2}).items():  # T scales the energy alone
        assert found[name].tolist() == pytest.approx(values, abs=1e-5), name


def test_bfloat16_logits_are_summed_in_float32():
    import torch

    logits = torch.full((1, 1000), 8.0, dtype=torch.bfloat16)  # ln(1000 e^8) = 8 + 3 ln 10; bfloat16 would give 14.9375
    found = position_scores(logits, torch.tensor([0]), 1.0)
    assert float(found["energy"]) == pytest.approx(-(8 + 3 * math.log(10)), abs=1e-5)
    assert float(found["nll"]) == pytest.approx(3 * math.log(10), abs=1e-5)


def test_padding_is_no_part_of_a_sequence():
    import torch

    values = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -5.0, -6.0]])
    found = sequence_scores({"energy": values, "nll": values}, torch.tensor([[True, True, False], [True, True, True]]))
    assert {name: column.tolist() for name, column in found.items()} == {
        "energy": [-1.5, -5.0], "energy_sum": [-3.0, -15.0], "energy_first": [-1.0, -4.0], "nll": [-1.5, -5.0],
        "energy_padded": [-4.0, -5.0],  # the one that counts the padding: -12 / 3
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Whole examples: full logits of one example, without a batch and padding, in float64; decoded by the library


def plain_scores(logits, labels: list[int], temperature: float) -> dict[str, float]:
    """Means over the positions given, from the definitions."""
    import numpy as np
    from scipy.special import log_softmax, logsumexp

    z, rows = logits.numpy(), range(len(labels))
    log_p, energies = log_softmax(z, axis=1), -temperature * logsumexp(z / temperature, axis=1)
    second, first = np.sort(np.exp(log_p))[:, -2:].T
    means = {"energy": energies, "nll": -log_p[rows, labels], "msp": 1 - first, "margin": 1 - first + second}
    means |= {"entropy": -(np.exp(log_p) * log_p).sum(1)}
    others = {"energy_sum": energies.sum(), "energy_first": energies[0]}
    return {name: float(values.mean()) for name, values in (means | others).items()}


@functools.cache
def library(folder):
    import transformers

    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def by_itself(folder, example, task, temperature=1.0, positions=0, length=1) -> dict:
    """Scores and prediction of one example; positions: of energy_padded; length: tokens that may be written."""
    import torch

    model, tokenizer = library(folder)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    source, newline, target = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (example["source"], "\n", example["target"])
    )
    target.append(end)
    greedy = {
        "max_new_tokens": length, "min_new_tokens": 0, "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0,
        "eos_token_id": end, "pad_token_id": 0,
    }  # fmt: skip
    with torch.inference_mode():
        if not hasattr(model, "lm_head"):
            logits = model(torch.tensor([tokenizer(example["source"])["input_ids"]])).logits
            target, text = [list(task.labels).index(example["label"])], list(task.labels)[logits.argmax()]
        elif model.config.is_encoder_decoder:
            read, asked = torch.tensor([[*source, end]]), target + [pad] * (positions - len(target))
            forced = [model.config.decoder_start_token_id, *asked[:-1]]  # what is read before each position
            logits = model(read, decoder_input_ids=torch.tensor([forced])).logits[0]
            text = tokenizer.decode(model.generate(read, **greedy)[0], skip_special_tokens=True)
        else:
            prompt = [tokenizer.bos_token_id] * (tokenizer.bos_token is not None) + source + newline
            logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            read = torch.tensor([prompt])
            written = model.generate(read, attention_mask=torch.ones_like(read), **greedy)[0, len(prompt) :]
            text = tokenizer.decode(written, skip_special_tokens=True)
    scores = plain_scores(logits.double()[: len(target)], target, temperature)
    if not hasattr(model, "lm_head"):
        scores = {name: value for name, value in scores.items() if name not in ("energy_sum", "energy_first")}
    if positions:
        scores["energy_padded"] = plain_scores(logits.double(), asked, temperature)["energy"]
    text = text.strip().lower()
    correct = text == example["target"].lower()
    hard = 0.0 if correct else 1 - scores["msp"]
    return scores | {"prediction": text, "correct": correct, "error": float(not correct), "hard_negative": hard}


def assert_same(found: list[dict], expected: list[dict], tolerance: float) -> None:
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert set(one) == {*other, "random"}
        for name, value in other.items():
            if isinstance(value, float):
                value = pytest.approx(value, abs=tolerance)
            assert one[name] == value, f"{name} of example {row}"


@pytest.fixture(scope="module")
def examples(pairs, tmp_path_factory):
    """12 examples of several lengths, a third of them with the wrong label, so that predictions are right and wrong."""
    rows = [pair(n) | {"first": "the very big old " * (n % 4) + pair(n)["first"]} for n in range(60, 72)]
    for row in rows[::3]:
        row["label"] = "Warm" if row["label"] == "not warm" else "not warm"
    return read_examples(write_lines(tmp_path_factory.mktemp("score") / "some.jsonl", rows), pairs)


@pytest.mark.parametrize("name, taught, how", [
    ("t5", True, {}), ("t5", False, {"temperature": 0.5, "positions": 9}), ("t5v11", True, {"positions": 9}),
    ("t5v11", False, {}), ("llama", True, {}), ("llama", False, {"temperature": 4.0}), ("qwen2", True, {}),
    ("qwen2", False, {}), ("bert", True, {}), ("modernbert", True, {"temperature": 0.5}),
])  # fmt: skip
def test_examples_one_by_one(name, taught, how, models, trained, examples, pairs):
    """qwen2 untrained comes with sampling, a penalty and other end tokens in its generation_config.json."""
    folder, positions = (trained if taught else models)[name], how.get("positions")
    given = {"padded": bool(positions), "target": positions or 128, "temperature": how.get("temperature", 1.0)}
    found = scores_of(folder, pairs, examples, batch_size=1, **given)
    length = loaded(folder, pairs).max_new_tokens  # of the longest label
    assert_same(found, [by_itself(folder, e, pairs, length=length, **how) for e in examples], 1e-5)
    if taught:
        assert {one["correct"] for one in found} == {True, False}
        assert {one["prediction"] for one in found} >= {"warm", "not warm"}  # in lower case


@pytest.mark.parametrize("name", ["t5", "t5v11", "bert", "modernbert", "llama", "qwen2"])
def test_batch_size_and_order_change_nothing(name, trained, examples, pairs, monkeypatch):
    """Long examples come in small batches, short ones in large ones."""
    student, order = loaded(trained[name], pairs), random.Random(5).sample(range(len(examples)), len(examples))
    reference, _ = predict.score_examples(student, examples, 64)
    monkeypatch.setattr(predict, "EXAMPLE_TOKENS", 20)
    monkeypatch.setattr(predict, "LOGITS_AT_ONCE", 1000)
    shuffled, _ = predict.score_examples(student, [examples[i] for i in order], 2)
    assert_same(shuffled, [reference[i] for i in order], 1e-4)


@pytest.mark.parametrize("name", ["flip", "flip_bos"])
@pytest.mark.parametrize("length", [1, 2, 8])
def test_text_to_text_is_decoded_up_to_its_length(name, length, home, trained, flip):
    """Where there are no labels, --max-target-length bounds what is written: a longer target cannot be met.

    Of every second example the target is wrong: where it is the likeliest its tokens are taken, else the text is decoded.
    """
    examples = read_examples(home / "flip_train.jsonl", flip)[:12]
    for e in examples[::2]:
        e["target"] = "tent sun"
    expected = [by_itself(trained[name], e, flip, length=length)["prediction"] for e in examples]
    found = scores_of(trained[name], flip, examples, target=length)
    assert [s["prediction"] for s in found] == expected
    assert [s["correct"] for s in found] == [p == e["target"] for p, e in zip(expected, examples, strict=True)]
    assert any(s["correct"] for s in found) is (length > 1)


def test_capitals_of_a_text_stay(trained, examples, pairs):
    """A label is compared in lower case; what a text2text student writes may be measured with its capitals, as by chrF."""
    task = pairs.model_copy(update={"kind": "text2text", "metric": "exact_match", "labels": {}})
    found = scores_of(trained["t5"], task, examples)
    assert {s["prediction"] for s in found} == {"Warm", "not warm"}
    assert [s["correct"] for s in found] == [s["correct"] for s in scores_of(trained["t5"], pairs, examples)]


HOW = {"temperature": 1.0, "padded": False, "batch_size": 5, "seed": 3}


def representation(folder, name, example):
    """Mean of the last hidden states over what is read: one example, alone."""
    import torch

    model, tokenizer = library(folder)
    # Of a decoder: without the end token that its tokenizer appends; it knows no newline
    ids = torch.tensor([tokenizer(example["source"], add_special_tokens=name != "llama")["input_ids"]])
    with torch.inference_mode():
        return (model.encoder if name == "t5" else model.base_model)(ids).last_hidden_state[0].double().mean(0)


@pytest.mark.parametrize("name", ["t5", "bert", "modernbert", "llama"])
def test_scores_against_the_base_and_the_training_examples(name, models, trained, examples, pairs):
    """energy_delta: of an encoder the base has a head that is drawn with the seed, as in train_student.py. embedding: the
    distance to the nearest other training example."""
    import torch

    from gold.student import load_student

    known, asked = examples[:5], examples[3:]
    found = all_scores(loaded(trained[name], pairs), asked, known, str(models[name]), HOW)
    base = all_scores(load_student(str(models[name]), pairs, seed=3), asked, [], None, HOW)
    points = torch.stack([representation(trained[name], name, e) for e in known])
    for one, other, e in zip(found, base, asked, strict=True):
        assert one["energy_delta"] == pytest.approx(one["energy"] - other["energy"], abs=1e-4)
        cosines = torch.nn.functional.cosine_similarity(points, representation(trained[name], name, e)[None])
        cosines = cosines[torch.tensor([e["id"] != k["id"] for k in known])]  # two of them were trained on
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


@pytest.mark.parametrize("width, many, by_words", [(16, 600_000, 0.97), (96, 50, 0.7)])
def test_of_many_the_nearest_are_found_by_a_part_of_each_vector(width, many, by_words, monkeypatch):
    """As of few, where every pair is compared: all distances but one in a hundred or so, and none smaller."""
    import numpy as np

    rng = random.Random(0)
    vocabulary = [f"w{n}" for n in range(3000)]
    drawn = [rng.choices(vocabulary, weights=[1 / (n + 1) for n in range(3000)], k=20) for _ in range(800)]
    examples = [{"id": n, "source": " ".join(found)} for n, found in enumerate(drawn)]
    places = np.random.default_rng(0)
    points = places.normal(size=(40, 1, width)) + places.normal(size=(40, 20, width)) / 4
    points = points.reshape(800, width).astype("float32")
    few = tfidf_distances(examples, examples), embedding_distances(points, points, examples, examples)
    by_hand = 1 - np.max(cosines(points) - 2 * np.eye(800), axis=1)
    assert few[1] == pytest.approx(by_hand.tolist(), abs=1e-5)
    monkeypatch.setattr(nearest, "EXACT", 50)
    monkeypatch.setattr(nearest, "MANY", many)
    found = tfidf_distances(examples, examples), embedding_distances(points, points, examples, examples)
    for exact, values, share in zip(few, found, (by_words, 0.9), strict=True):
        difference = np.array(values) - exact
        assert difference.min() > -1e-5 and np.mean(difference < 1e-5) > share
    assert all(map(math.isnan, embedding_distances(points * np.nan, points, examples, examples)))


def cosines(points):
    import numpy as np

    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    return units @ units.T


def test_k_center_by_hand():
    """Unit vectors at 0, 10, 90, 100 and 180 degrees; what is known stands at 0. First the one at 180 (1 - cos = 2); then
    90 and 100 are 1 from it and 1, 1 - cos 80 from it: the one at 90, by 1; then 10 degrees are the farthest from any."""
    import numpy as np

    angles = np.radians([0, 10, 90, 100, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[3.0], [1.0], [2.0], [1.0], [1.0]]
    near = 1 - math.cos(math.radians(10))
    distances = (1 - np.cos(angles)).tolist()
    assert k_center_distances(points, distances, 2) == pytest.approx([0, near, 1, near, 2])
    assert k_center_distances(points, distances, 9) == pytest.approx([0, near, 1, near, 2])
    # One step: the one at 100 degrees is 1 - cos 80 from the one at 180
    assert k_center_distances(points, distances, 1) == pytest.approx([0, near, 1, 1 - math.cos(math.radians(80)), 2])


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def scored(values: list[float], label: str = "Warm", name: str = "x") -> list[dict]:
    return [{"id": f"{name}{i:02d}", "label": label, "energy": value} for i, value in enumerate(values)]


def ids_of(selection: tuple[list[dict], dict], label: str = "") -> list[str]:
    return [r["id"] for r in selection[0] if not label or r["label"] == label]


def test_band_of_ten_by_hand(pairs):
    """Ascending order: .0 .1 .2 ... .9; [.5, .8) of ten keeps the places 5, 6 and 7, ranks 5, 4 and 3 from the top."""
    values = [0.3, 0.9, 0.1, 0.7, 0.0, 0.5, 0.6, 0.2, 0.8, 0.4]
    few = scored(values[:3]) + scored(
        values[:2], "not warm", "y"
    )  # of texts whose labels are the student's any number will do
    found, reasons = select_feedback(few, pairs, "energy", 0, 1, least=0, most=3)
    assert [(r["id"], r["rank"]) for r in found] == [("x01", 1), ("y01", 1), ("x00", 2)]
    assert reasons == {"y00": "surplus", "x02": "surplus"}
    both = scored(values) + scored([v - 50 for v in values], "not warm", "y")
    found, _ = select_feedback(both, pairs, "energy", 0.5, 0.8)
    assert [(r["id"], r["score"], r["rank"]) for r in found] == [
        ("x03", 0.7, 3), ("y03", pytest.approx(-49.3), 3),  # within each label: other labels' energies do not matter
        ("x06", 0.6, 4), ("y06", pytest.approx(-49.4), 4),
        ("x05", 0.5, 5), ("y05", pytest.approx(-49.5), 5),
    ]  # fmt: skip
    ties = scored([1.0] * 10) + scored([2.0] * 10, "not warm", "y")  # go by id
    assert ids_of(select_feedback(ties[::-1], pairs, "energy", 0.5, 0.8)) == ["x07", "y07", "x06", "y06", "x05", "y05"]


def test_what_cannot_be_selected_from(pairs):
    """Fewer than ten of a label, a score that is no number or not there, a band that holds nothing."""
    for n in (0, 9):
        records = scored([float(i) for i in range(30)]) + scored([float(i) for i in range(n)], "not warm", "y")
        told = refusal(select_feedback, records, pairs, "energy", 0.5, 0.8)
        assert told.startswith(f"error: --input-file: only {n} examples of the label 'not warm', a band needs 10")
    for value in (math.nan, math.inf, -math.inf):
        told = refusal(select_feedback, scored([1.0, 2.0, 3.0, value] + [4.0] * 10), pairs, "energy", 0.5, 0.8)
        assert told.startswith(f"error: --score energy: is {value} for x03")
    told = refusal(select_feedback, scored([1.0] * 10), pairs, "energy_sum", 0.5, 0.8)
    assert told.startswith("error: --score energy_sum: x00 has none")
    records = scored([float(i) for i in range(10)]) + scored([float(i) for i in range(10)], "not warm", "y")
    told = refusal(select_feedback, records, pairs, "energy", 0.5, 0.51)
    assert told.startswith("error: --low 0.5 --high 0.51: holds none of 20 examples")


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.tuples(st.integers(-4, 4).map(float), st.booleans()), max_size=60),
    band=st.tuples(st.integers(0, 100), st.integers(0, 100)).filter(lambda b: b[0] + 10 <= b[1]),  # holds one of ten
    seed=st.integers(0, 99),
)
@example(values=[(float(i), True) for i in range(90)], band=(29, 58), seed=0)  # 0.29 * 100 = 28.999999999999996
def test_selection(values, band, seed, pairs):
    low, high = band[0] / 100, band[1] / 100
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
        places = range(band[0] * n // 100, band[1] * n // 100)  # floor(low n) .. floor(high n), in whole numbers
        expected = {group[i]["id"]: (group[i]["energy"], n - i) for i in places}
        assert {r["id"]: (r["score"], r["rank"]) for r in found if r["label"] == label} == expected


def test_band_within_groups_of_successive_examples(pairs):
    """The authors' code: of every eight the two at the places 4 and 5 in ascending order, whatever their labels."""
    values = [0.3, 0.9, 0.1, 0.7, 0.0, 0.5, 0.6, 0.2, 5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 7.0, 9.0, 1.0, 2.0]
    records = [r | {"label": ("Warm", "not warm")[i > 3]} for i, r in enumerate(scored(values))]
    found, _ = select_feedback(records, pairs, "energy", 0.5, 0.8, group_size=8)
    # sorted: .0 .1 .2 .3 [.5 .6] .7 .9; 1 2 3 4 [5 6] 7 8; of the three that are left the one in the middle
    assert {(r["id"], r["rank"]) for r in found} == {("x05", 4), ("x06", 3), ("x08", 4), ("x13", 3), ("x18", 2)}


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
        reasons = Counter(found[1].values())
        assert ids_of(found, "Warm") == kept and reasons["near_duplicate"] == 3 - len(kept)
        assert reasons.total() + len(found[0]) == 20 and set(reasons) <= {"near_duplicate", "outside_band"}


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


def without_weights(folder, tmp_path):
    """A student whose weights cannot be read: what is refused before."""
    return shutil.copytree(folder, tmp_path / "student", ignore=shutil.ignore_patterns("model.safetensors"))


def told_by(done, code=1) -> str:
    assert done.returncode == code, done.stderr
    return " ".join(done.stderr.split())


def test_command_scores_and_selects(home, models, trained, pairs, tmp_path):
    band = ("--feedback-file", tmp_path / "feedback.jsonl", "--low", 0.5, "--high", 1)
    done = score(home, trained["t5"], tmp_path, *band)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"scored.jsonl", "feedback.jsonl", "scored.jsonl.run.json"}
    examples, records = read_examples(home / "validation.jsonl", pairs), read_lines(tmp_path / "scored.jsonl")
    assert [r["id"] for r in records] == [e["id"] for e in examples]  # in the order of the input
    assert all(e.items() <= r.items() for e, r in zip(examples, records, strict=True))
    assert all(s.items() <= r.items() for s, r in zip(scores_of(trained["t5"], pairs, examples), records, strict=True))
    feedback = read_lines(tmp_path / "feedback.jsonl")
    assert feedback == select_feedback(records, pairs, "energy", 0.5, 1.0)[0] and len(feedback) == 12
    assert list(feedback[0])[:6] == ["id", "first", "second", "label", "score", "rank"]
    run = record_of(tmp_path / "scored.jsonl")
    correct = sum(r["correct"] for r in records)
    assert run["counts"] == {"scored": 24, "correct": correct, "selected": 12, "not_selected": {"outside_band": 12}}
    assert run["means"]["energy"] == pytest.approx(sum(r["energy"] for r in records) / 24, abs=1e-3)
    assert "prediction" not in run["means"] and run["options"]["low"] == 0.5
    again = score(home, trained["t5"], tmp_path, *band, "--per-device-eval-batch-size", 3)
    assert again.returncode == 0 and "up to date" in again.stderr  # the batch size is not compared
    # A file that is there is not the feedback of this output for that; without the option it is not asked about
    other = write_lines(tmp_path / "other.jsonl", feedback[:3])
    told = told_by(score(home, trained["t5"], tmp_path, *band, "--feedback-file", other))
    assert f"{other}: was not made with {tmp_path / 'scored.jsonl'}" in told and len(read_lines(other)) == 3
    assert "up to date" in told_by(score(home, trained["t5"], tmp_path, *band[2:]), 0)
    # Scores of another student do not stay
    path, output = tmp_path / "scored.jsonl", ("--output-file", tmp_path / "again.jsonl")
    assert select(home, path, "--model", models["t5"], *output).returncode == 0
    assert score(home, models["t5"], tmp_path, output="direct.jsonl").returncode == 0
    assert read_lines(tmp_path / "again.jsonl") == read_lines(tmp_path / "direct.jsonl")
    # bfloat16 is close
    assert score(home, trained["t5"], tmp_path, "--dtype", "bfloat16", output="rounded.jsonl").returncode == 0
    rounded = read_lines(tmp_path / "rounded.jsonl")
    assert 0 < max(abs(a["energy"] - b["energy"]) for a, b in zip(records, rounded, strict=True)) < 0.15


@pytest.mark.parametrize("name, by, told", [
    ("bert", "energy_sum", "an encoder student has one position"),
    ("modernbert", "energy_padded", "an encoder student has one position"),
    ("qwen2", "energy_padded", "the authors' setting for T5"),
])  # fmt: skip
def test_a_score_that_the_student_has_not(name, by, told, home, models, tmp_path):
    done = score(home, without_weights(models[name], tmp_path), tmp_path, "--score", by)
    assert f"error: --score {by}: {told}" in told_by(done)
    assert {p.name for p in tmp_path.iterdir()} == {"student"}


@pytest.mark.parametrize("name, student, needs", [
    ("energy_sum", "llama", None), ("energy_delta", "bert", "--base-model"), ("embedding", "bert", "--train-file"),
])  # fmt: skip
def test_scores_that_need_more(name, student, needs, home, models, trained, tmp_path):
    more, feedback = (), tmp_path / "feedback.jsonl"
    if needs:
        more = (needs, {"--base-model": models[student], "--train-file": home / "train.jsonl"}[needs])
        assert f"{name} needs {needs}" in told_by(score(home, trained[student], tmp_path, "--score", name), 2)
        assert "give the --model too" in told_by(select(home, tmp_path, "--feedback-file", feedback, *more), 2)
    done = score(home, trained[student], tmp_path, "--score", name, *more, "--feedback-file", feedback)
    assert f"selected by {name}" in told_by(done, 0)
    assert all(r["score"] == r[name] for r in read_lines(feedback))
    assert len({r[name] for r in read_lines(tmp_path / "scored.jsonl")}) > 5
    other = score(home, trained[student], tmp_path, "--base-model", models["t5"])
    assert f"--base-model {models['t5']}: its kind is encoder-decoder, that of --model" in told_by(other)


def test_scores_that_need_no_student(home, pairs, trained, tmp_path):
    """The same numbers as with one, and the same selection; there is no prediction then."""
    train = ("--train-file", home / "train.jsonl")
    assert score(home, trained["bert"], tmp_path, "--seed", 3, *train).returncode == 0
    for name, more in (("tfidf", train), ("random", ())):
        files = ("--output-file", tmp_path / name, "--feedback-file", tmp_path / f"{name}.fb")
        done = select(home, home / "validation.jsonl", "--seed", 3, "--score", name, *more, *files)
        assert "predicted right" not in told_by(done, 0)
        records = read_lines(tmp_path / name)
        assert [r[name] for r in records] == pytest.approx([r[name] for r in read_lines(tmp_path / "scored.jsonl")])
        assert not any("prediction" in r or "energy" in r for r in records)
        assert read_lines(tmp_path / f"{name}.fb") == select_feedback(records, pairs, name, 0.5, 0.8)[0]
    again = select(home, home / "validation.jsonl", "--seed", 4, "--score", "random", *files)
    assert "was made with --seed 3, now 4" in told_by(again)


def test_another_band_of_scored_examples(home, pairs, tmp_path):
    """What is written is whole, and selected as by the function."""
    more = {"source": "imdb", "group": {"n": 1}}
    rows = [pair(n) | {"id": f"x{n}", "energy": (n * 7 % 40) / 3, "msp": n / 40} | more for n in range(40)]
    path, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "fb.jsonl"
    done = select(home, path, "--feedback-file", output, "--limit", 36)
    assert done.returncode == 0 and "'source' is a column of yours" in done.stderr, done.stderr
    whole = read_examples(path, pairs, use=["energy"])[:36]
    found = read_lines(output)
    assert found == select_feedback(whole, pairs, "energy", 0.5, 0.8)[0] and len(found) > 8 and "group" in found[0]
    record = record_of(tmp_path / "fb.jsonl")
    left = {"outside_band": 36 - len(found)}
    assert record["counts"] == {"scored": 36, "selected": len(found), "not_selected": left}
    assert record["means"] == {"energy": round(sum(r["energy"] for r in whole) / 36, 4)}
    none = ("--feedback-file", tmp_path / "none")
    assert "--score nll: x0 has none; score it with --model" in told_by(select(home, path, "--score", "nll", *none))
    assert "energy must stand in" in told_by(select(home, path, "--output-file", tmp_path / "out", *none), 2)
    assert "--feedback-file" in told_by(select(home, path), 2)
    del rows[-1]["energy"]
    assert "x39 has none" in told_by(select(home, write_lines(path, rows), *none))
    assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "fb.jsonl", "fb.jsonl.run.json"}
    # Ids that are made of file and line depend on the other files
    (tmp_path / "other").mkdir()
    train = ("--train-file", write_lines(tmp_path / "other/in.jsonl", [pair(1)]))
    write_lines(path, [pair(n) | {"tfidf": n / 40} | more for n in range(40)])
    assert "selected by tfidf" in told_by(select(home, path, "--score", "tfidf", *train, *none), 0)
    assert all("group" in r for r in read_lines(tmp_path / "none"))


def test_texts_that_the_teacher_finds_likely_are_kept(home, trained, tmp_path):
    """SuperGen's selection: of each label the four fifths with the lowest teacher_nll, where every record has one."""
    rows = [pair(n) | {"id": f"x{n:02d}", "teacher_nll": n * 7 % 40 / 10, "sampling_seed": n} for n in range(40)]
    path, kept = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "kept.jsonl"
    how = ("--score", "teacher_nll", "--low", 0, "--high", 0.8, "--feedback-file", kept)
    assert "32 selected by teacher_nll" in told_by(select(home, path, *how), 0)
    for label in ("Warm", "not warm"):
        ranked = sorted((r for r in rows if r["label"] == label), key=lambda r: r["teacher_nll"])
        assert {r["id"] for r in read_lines(kept) if r["label"] == label} == {r["id"] for r in ranked[:16]}
    told = told_by(select(home, path, *how, "--model", trained["bert"], "--output-file", tmp_path / "out"), 2)
    assert "teacher_nll stands in" in told
    # A student's scores stand beside it
    done = select(home, path, "--model", trained["bert"], "--output-file", tmp_path / "scored.jsonl")
    assert done.returncode == 0 and all(
        "energy" in r and "teacher_nll" in r for r in read_lines(tmp_path / "scored.jsonl")
    )
    rows[3]["teacher_nll"] = None  # of a server without log-probabilities
    told = told_by(select(home, write_lines(path, rows), *how, "--overwrite"))
    assert "x03 has none; make it with generate.py --teacher-nll" in told


def test_confirmed_examples_only(home, tmp_path):
    """The highest two of twelve are not what the teacher says: the top fifth of the ten others are 8 and 9."""
    rows = scored([float(i) for i in range(12)]) + scored([float(i) for i in range(10)], "not warm", "y")
    rows = [pair(0) | r | {"teacher_label": r["label"]} for r in rows]
    for row in rows[10:12]:
        row["teacher_label"] = "not warm"

    def selected():
        how = ("--low", 0.8, "--high", 1, "--confirmed", "--feedback-file", tmp_path / "fb.jsonl")
        return select(home, write_lines(tmp_path / "in.jsonl", rows), *how)

    assert "selected by energy" in told_by(selected(), 0)
    found = [(r["id"], r["rank"]) for r in read_lines(tmp_path / "fb.jsonl")]
    assert found == [("x09", 1), ("y09", 1), ("x08", 2), ("y08", 2)]
    assert record_of(tmp_path / "fb.jsonl")["counts"]["not_selected"]["unconfirmed"] == 2
    (tmp_path / "fb.jsonl").unlink()
    rows[15]["teacher_label"] = "Warm"
    assert "only 9 confirmed examples of the label 'not warm'" in told_by(selected())
    del rows[3]["teacher_label"]
    assert "--confirmed: x03 has no teacher_label; run label" in told_by(selected())


def test_any_right_answer_of_a_scored_example_confirms_it(home, tmp_path):
    rows = [flipped(n) | {"answers": [flipped(n)["answer"], "b"], "teacher_label": "b", "energy": n} for n in range(12)]
    rows[3]["teacher_label"] = "c"
    path, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "fb.jsonl"
    how = ("--task-file", home / "flip.toml", "--input-file", path, "--feedback-file", output, "--confirmed")
    assert "selected by energy" in told_by(call("score_ood.py", *how), 0)
    assert record_of(output)["counts"]["not_selected"]["unconfirmed"] == 1


def test_a_filter_keeps_what_there_is_of_a_label(home, tmp_path):
    """With --rejected-file: a label's only example, and of three the lower two: ceil(.6 * 3)."""
    rows = [pair(0) | r for r in scored([3.0]) + scored([3.0, 1.0, 2.0], "not warm", "y")]
    files = ("--feedback-file", tmp_path / "kept", "--rejected-file", tmp_path / "dropped", "--low", 0, "--high", 0.6)
    assert select(home, write_lines(tmp_path / "in.jsonl", rows), *files).returncode == 0
    assert [r["id"] for r in read_lines(tmp_path / "kept")] == ["x00", "y02", "y01"]
    assert [r["id"] for r in read_lines(tmp_path / "dropped")] == ["y00"]


def test_what_is_not_selected_is_kept_with_its_reason(home, tmp_path):
    """As a filter of training examples: the lower four fifths of each label stay, the rest has a reason each."""
    rows = [pair(0) | r for r in scored([float(i) for i in range(10)]) + scored([1.0] * 10, "not warm", "y")]
    files = ("--feedback-file", tmp_path / "kept", "--rejected-file", tmp_path / "dropped")
    path = write_lines(tmp_path / "in.jsonl", rows)
    assert select(home, path, "--low", 0, "--high", 0.8, *files).returncode == 0
    assert sorted(r["id"] for r in read_lines(tmp_path / "kept")) == sorted(r["id"] for r in rows if r["id"][1:] < "08")
    dropped = read_lines(tmp_path / "dropped")
    assert [(r["id"], r["reason"]) for r in dropped] == [(f"{n}{i:02d}", "outside_band") for n in "xy" for i in (8, 9)]
    assert list(dropped[0])[:2] == ["id", "reason"] and dropped[0]["energy"] == 8.0
    told = told_by(
        select(home, path, "--rejected-file", tmp_path / "other", "--output-file", "x", "--score", "random"), 2
    )
    assert "is what --feedback-file leaves" in told


@pytest.mark.parametrize("name", ["bert", "t5", "qwen2"])
def test_texts_without_labels_get_the_students(name, home, trained, pairs, tmp_path):
    """Their labels are its predictions, their scores those of the labels; what it was trained on, and twins, are left out."""
    known, new = (
        [r | {"id": f"{name}{n}"} for n, r in enumerate(read_lines(home / f"{name}.jsonl"))]
        for name in ("train", "validation")
    )
    bare = [{k: r[k] for k in ("id", "first", "second")} for r in [*new[:12], *known[:5]]]
    bare += [new[12] | {"label": "no label of the task", "labels": [3]}, new[0] | {"id": "twin"}]
    path = write_lines(tmp_path / "pool.jsonl", bare)
    files = (
        "--output-file",
        tmp_path / "out",
        "--feedback-file",
        tmp_path / "fb",
        "--num-selected",
        4,
        "--low",
        0,
        "--high",
        1,
    )
    done = select(
        home,
        path,
        "--unlabelled",
        "--model",
        trained[name],
        "--train-file",
        home / "train.jsonl",
        "--score",
        "k_center",
        *files,
    )
    assert done.returncode == 0, done.stderr
    records, found = read_lines(tmp_path / "out"), read_lines(tmp_path / "fb")
    assert [r["id"] for r in records] == [r["id"] for r in new[:13]]
    examples = read_examples(home / "validation.jsonl", pairs)[:13]
    examples = [e | {k: r[k] for k in ("label", "target")} for e, r in zip(examples, records, strict=True)]
    for r, of_label in zip(records, scores_of(trained[name], pairs, examples), strict=True):
        assert r["prediction"] == r["label"].lower() and r["correct"] is True
        assert r["energy"] == pytest.approx(of_label["energy"], abs=1e-4)
    assert records[12]["earlier_label"] == "no label of the task" and records[12]["earlier_labels"] == [3]
    assert not {"labels"} & set(records[12])
    counts = record_of(tmp_path / "out")["counts"]
    assert counts == {"known_texts": 6, "without_label": 0, "scored": 13, "selected": 4, "not_selected": {"surplus": 9}}
    top = {label: max(r["k_center"] for r in records if r["label"] == label) for label in {r["label"] for r in records}}
    assert {r["label"]: r["k_center"] for r in reversed(found)} == top


def test_texts_without_labels_at_first_by_chance(home, models, tmp_path):
    """Without a student there are no labels at all; options that need one are refused."""
    bare = [{k: r[k] for k in ("first", "second")} for r in read_lines(home / "validation.jsonl")]
    path = write_lines(tmp_path / "pool.jsonl", bare)
    files = ("--output-file", tmp_path / "out", "--feedback-file", tmp_path / "fb", "--num-selected", 3)
    by_chance = ("--unlabelled", "--score", "random", "--low", 0, "--high", 1)
    assert select(home, path, *by_chance, *files).returncode == 0
    found = read_lines(tmp_path / "fb")
    chances = sorted((r["random"] for r in read_lines(tmp_path / "out")), reverse=True)
    assert [r["random"] for r in found] == chances[:3] and not any("label" in r for r in found)
    assert "give the --model too" in told_by(select(home, path, "--unlabelled", "--feedback-file", tmp_path / "x"), 2)
    told = told_by(select(home, path, *by_chance, *files[:2], "--feedback-file", tmp_path / "x", "--confirmed"), 2)
    assert "nobody has labelled them yet" in told
    how = ("--task-file", home / "flip.toml", "--input-file", path, "--output-file", tmp_path / "y")
    told = told_by(call("score_ood.py", *how, "--model", models["t5"], "--unlabelled"), 2)
    assert "needs a task with labels" in told


@pytest.mark.parametrize("errors", [0, 3])
def test_a_student_without_errors_gives_an_empty_feedback_file(errors, home, tmp_path):
    """And a student with some gives these alone; the band is one of them, however few."""
    rows = [pair(2 * n) | {"id": f"x{n}", "error": float(n < errors)} for n in range(12)]
    rows = [row | {"hard_negative": (n + 1) * row["error"] / 9} for n, row in enumerate(rows)]
    path, output = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "fb"
    for name, low, expected in (("error", 0, {"x0", "x1", "x2"}), ("hard_negative", 0.5, {"x1", "x2"})):
        how = ("--score", name, "--low", low, "--high", 1, "--overwrite", "--feedback-file", output)
        assert ("no example is wrong" in told_by(select(home, path, *how), 0)) is (errors == 0)
        assert {r["id"] for r in read_lines(output)} == (expected if errors else set())
    part = select(home, path, "--score", "error", "--feedback-file", tmp_path / "part")
    assert ("--score error: is the same for all" in told_by(part, 0)) is (errors > 0)


@pytest.mark.parametrize("name, more", [("t5", "--feedback-file"), ("bert", "--train-file")])
def test_a_broken_student_is_a_message(name, more, home, trained, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(trained[name], tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    broken = {key: tensor.fill_(math.nan) for key, tensor in weights.items()}
    save_file(broken, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    value = {"--feedback-file": tmp_path / "feedback.jsonl", "--train-file": home / "train.jsonl"}[more]
    done = score(home, tmp_path / "nan", tmp_path, more, value)
    assert done.returncode == 1 and "energy is nan" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "scored.jsonl").exists() and not (tmp_path / "feedback.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Detection of OOD examples


def detect(near: list[float], far: list[float]) -> dict[str, float]:
    return detection([{"energy": x} for x in near], [{"energy": x} for x in far])["energy"]


@pytest.mark.parametrize("near, far, auroc, aupr, fpr95", [
    # Of the six pairs (near, far) five have far above near. From the top: far 4, near 3, far 2, near 1, near 0:
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
])  # fmt: skip
def test_detection_by_hand(near, far, auroc, aupr, fpr95):
    assert detect(near, far) == pytest.approx({"auroc": auroc, "aupr": aupr, "fpr95": fpr95}, abs=1e-4)


def test_fpr_at_95_percent_of_the_ood_examples():
    """Of 20 far examples 19 are 95 %: the threshold is the second lowest of them; of 19, 18 are too few."""
    near = [0.5, 1.5, 2.5, 3.5]
    far = [float(i) for i in range(20)]
    assert detect(near, far)["fpr95"] == 0.75  # threshold 1: 1.5, 2.5 and 3.5 are at or above
    assert detect(near, far[:19])["fpr95"] == 1.0  # threshold 0
    assert detect([1.0, 0.9], far)["fpr95"] == 0.5  # at the threshold counts as flagged


def test_scores_that_some_example_has_not_are_left_out():
    near = [{"energy": 1.0, "nll": 2.0, "prediction": "warm", "correct": True}] * 3
    assert list(detection(near, [{"energy": 3.0, "prediction": "warm"}] * 2)) == ["energy"]
    told = refusal(detection, near, [{"energy": math.nan}])
    assert told.startswith("error: --ood-file: energy is not finite")


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
    far = far_pairs(tmp_path, answers, nll=99.0, correct=False, energy=99.0)  # scores of another student do not stay
    args = (*feedback, tmp_path / "feedback.jsonl", "--ood-file")
    done = score(home, trained["bert"], tmp_path, *args, far)
    assert done.returncode == 0, done.stderr
    for name in ("scored.jsonl", "feedback.jsonl"):  # OOD examples take no part in the selection
        assert (tmp_path / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    rows = read_lines(tmp_path / "scored.ood.jsonl")
    assert [r["id"] for r in rows] == [f"far:{n}" for n in range(1, 5)] and {r["source_set"] for r in rows} == {"zoo"}
    assert [r.get("label") for r in rows] == answers
    assert [("nll" in r, "correct" in r) for r in rows] == [(a == "Warm", a == "Warm") for a in answers]
    # The scores are those of the text alone
    alone = scores_of(trained["bert"], pairs, read_examples(far_pairs(tmp_path, ["not warm"] * 4, "own.jsonl"), pairs))
    for name in ("energy", "msp", "entropy"):
        assert [r[name] for r in rows] == pytest.approx([s[name] for s in alone], abs=1e-4)
    run = record_of(tmp_path / "scored.jsonl")
    table = detection(read_lines(tmp_path / "scored.jsonl"), rows)
    assert list(table) == ["energy", "msp", "entropy", "margin", "random"]
    assert run["ood_detection"] == table and run["counts"]["ood"] == 4 and run["counts"]["scored"] == 24
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["score", *table]
    assert f"{table['energy']['auroc']:.3f}" in done.stdout.splitlines()[1]
    assert "up to date" in told_by(score(home, trained["bert"], tmp_path, *args, far), 0)
    other = score(home, trained["bert"], tmp_path, *args, home / "train.jsonl")
    assert "--ood-file has changed since this was made" in told_by(other)
    # Only an --ood-file may hold a label that is unknown
    done = select(home, far, "--model", trained["bert"], "--output-file", tmp_path / "other.jsonl")
    assert ("no such label: 'oos'" if "oos" in answers else "no field 'label'") in told_by(done)


def test_a_generative_student_needs_answers_of_the_ood_file(home, models, trained, tmp_path):
    far, student = far_pairs(tmp_path, ["Warm", "Warm", "oos"]), without_weights(models["t5"], tmp_path)
    done = score(home, student, tmp_path, "--ood-file", far)
    assert "error: --ood-file: far:3 has no 'label' that the task knows" in told_by(done)
    assert "--ood-file" in told_by(score(home, student, tmp_path, "--ood-file", tmp_path / "none-*.jsonl"))
    done = score(home, student, tmp_path, "--ood-file", far, "--dry-run")
    assert done.returncode == 0 and "and 3 OOD examples" in done.stdout
    far = far_pairs(tmp_path, ["Warm", "not warm"], "known.jsonl")
    done = score(home, trained["llama"], tmp_path, "--ood-file", far)
    assert done.returncode == 0, done.stderr
    assert {"energy", "energy_sum", "energy_first", "nll"} < {line.split()[0] for line in done.stdout.splitlines()}
    assert all("nll" in r and "correct" in r for r in read_lines(tmp_path / "scored.ood.jsonl"))
