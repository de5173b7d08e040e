"""Task files: every rule refuses a file that breaks it, by file and key. Prompts, and completions read back.

Every mutation starts from the two task files of conftest, which load; so it is the mutation that is refused.
"""

import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FED_PAIRS, FLIP, PAIRS, flipped, pair
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import generate
from task import (
    Task,
    copies,
    load_task,
    overlap,
    parse_completion,
    render,
    render_label_prompt,
    render_prompt,
    split_example,
    structured_pattern,
    text_key,
)

ROOT = Path(__file__).parent.parent


def load(text: str, folder: Path) -> Task:
    path = folder / "mutated.toml"
    path.write_text(text, encoding="utf-8")
    return load_task(path)


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{text.count(old)} times in the file: {old}"
    return text.replace(old, new)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def test_both_files_load(pairs, flip, home):
    assert pairs.labels == {"Warm": "both belong to summer", "not warm": "one or both belong to winter"}
    assert list(pairs.labels) == ["Warm", "not warm"]  # the order fixes the class ids
    assert pairs.seed_examples == home / "seed.jsonl"  # relative to the task file
    assert (pairs.written_fields, flip.written_fields) == (["first", "second"], ["text", "answer"])
    assert flip.labels == flip.parse == {} and flip.prompt["system"] == ""
    assert pairs.prompt["example"] == "Kind: $label\nFirst: $first\nSecond: $second"  # no line end at either side


@pytest.mark.parametrize("path", sorted((ROOT / "prompts").glob("*.toml")), ids=lambda path: path.stem)
def test_task_files_of_the_repository_load(path):
    task = load_task(path)
    assert task.name == path.stem and task.seed_examples.exists()


REQUIRED = (
    'name = "pairs"', "version = 1", 'description = "Do both things belong to summer?"', 'kind = "classification"',
    'metric = "accuracy"', 'fields = ["first", "second"]', 'answer_field = "label"', 'seed_examples = "seed.jsonl"',
    'source = "pair: $first with $second"', 'target = "$label"',
)  # fmt: skip
MUTATIONS = [(line, "", line.split(" =")[0]) for line in REQUIRED] + [  # (what, by what, key that is named)
    ('name = "pairs"', 'name = "pairs"\nmodel = "t5"', "model: unknown key"),
    ("[prompt]\n", '[prompt]\nshots = "x"\n', "prompt.shots: unknown key"),
    ("[parse]\n", "[parse]\nregex = 'x'\n", "parse.regex: unknown key"),
    ("[student]\n", "[student]\nprefix = 'x'\n", "student.prefix: unknown key"),
    ('name = "pairs"', 'name = "Two Pairs"', "name: must be lower-case"),
    ('name = "pairs"', 'name = ""', "name: must be a text"),
    ('name = "pairs"', "name = 3", "name: must be a text"),
    ("version = 1", 'version = "1"', "version: must be a whole number"),
    ("version = 1", "version = true", "version: must be a whole number"),
    ('"classification"', '"regression"', "kind: must be one of classification, text2text"),
    ('"classification"', '"text2text"', "metric: must be one of exact_match, equation_value, squad, rouge_l, "
     "optimum, chrf for text2text"),
    ('"accuracy"', '"f1"', "metric: must be one of accuracy"),
    ('["first", "second"]', "[]", "fields: must be a list of names"),
    ('["first", "second"]', '"first"', "fields: must be a list of names"),
    ('["first", "second"]', '["first", "my second"]', "fields: must be a list of names"),
    ('["first", "second"]', '["first", 2]', "fields: must be a list of names"),
    ('["first", "second"]', '["first", "second", "first"]', "each once"),
    ('answer_field = "label"', 'answer_field = "second"', "answer_field: must be a name of its own"),
    ('answer_field = "label"', 'answer_field = "the label"', "answer_field: must be a name of its own"),
    ('"not warm" = "one or both belong to winter"\n', "", "labels: a classification task needs two"),
    ('"one or both belong to winter"', '" "', "labels.not warm: a label needs a definition"),
    ('"one or both belong to winter"', "3", "labels.not warm: a label needs a definition"),
    ('"not warm" =', '"" =', "labels"),  # a label that no student could write
    ('"not warm" =', '"warm" =', "labels"),  # answers are compared in lower case: two labels would be one
    ("train = '''\n", "train = '''$topic\n", "prompt.train: unknown variable $topic"),
    ("validation = '''\n", "validation = '''$first\n", "prompt.validation: unknown variable $first"),
    ("You write pairs", "You write $label", "prompt.system: unknown variable $label"),
    ("Another that is", "Another for $5 that is", "prompt.train: a lone $"),
    ("($definition):\n$start", "($definition):", "prompt.train: the variable $start is missing"),
    ("$labels\n\n$shots", "$labels", "prompt.train: the variable $shots is missing"),
    ("$shots\n\nAnother, sig", "Another, sig", "prompt.validation: the variable $shots is missing"),
    ("train = '''\n", "train = '''$feedback\n", "prompt.train: unknown variable $feedback"),
    ("[parse]\n", "feedback = '$shots $start'\n[parse]\n", "prompt.feedback: the variable $feedback is missing"),
    ("[parse]\n", "feedback = '$feedback $start'\n[parse]\n", "prompt.feedback: the variable $shots is missing"),
    ("[parse]\n", "feedback = '$shots $feedback'\n[parse]\n", "prompt.feedback: the variable $start is missing"),
    ("[parse]\n", "feedback = '$shots $feedback $first $start'\n[parse]\n", "prompt.feedback: unknown variable $first"),
    ("[parse]\n", "feedback = 3\n[parse]\n", "prompt.feedback: must be a text"),
    ("Second: $second'''", "Second:'''", "prompt.example: the variable $second is missing"),
    ("Second: $second'''", "Second: $second, $first'''", "prompt.example: $first must occur once"),
    ("Second: $second'''", "Second: $second $id'''", "prompt.example: unknown variable $id"),
    ("pair: $first with $second", "pair: $label", "student.source: unknown variable $label"),
    ("pair: $first with $second", "pair", "student.source: shows the student nothing"),
    ('target = "$label"', 'target = "yes"', "student.target: the variable $label is missing"),
    ('target = "$label"', 'target = "$label $first"', "student.target: unknown variable $first"),
    ('target = "$label"', "target = 1", "student.target: must be a text"),
    ('"You write pairs of things."', '["You write"]', "prompt.system: must be a text"),
    ('stop = ["\\n\\n"]', 'stop = "x"', "parse.stop: must be a list of texts"),
    ('stop = ["\\n\\n"]', 'stop = [""]', "parse.stop: must be a list of texts"),
    ("{first = 2}", "{first = 0}", "parse.min_words: must be whole numbers above 0"),
    ("{first = 2}", "{first = true}", "parse.min_words: must be whole numbers above 0"),
    ("{first = 2}", "3", "parse.min_words: must be whole numbers above 0"),
    ("{second = 6}", "{third = 6}", "parse.max_words: no such field: third"),
    ("{second = 6}", "{first = 1}", "parse.max_words"),  # below min_words: no example could ever pass
    ("[parse]\n", '[parse]\nevaluates = "second"\n', "parse.evaluates: must be a list of fields"),
    ("[parse]\n", "[parse]\nevaluates = [2]\n", "parse.evaluates: must be a list of fields"),
    ("[parse]\n", '[parse]\nevaluates = ["third"]\n', "parse.evaluates: no field that the teacher writes: third"),
    ("[parse]\n", '[parse]\nevaluates = ["label"]\n', "parse.evaluates: no field that the teacher writes: label"),
    ("[prompt]\n", "[[prompt]]\n", "prompt: must be a table"),
    ("[parse]\n", "[[parse]]\n", "parse: must be a table"),
    ("[labels]\n", "[[labels]]\n", "labels: must be a table"),
    ("version = 1", "version = ", "not a readable TOML file"),
    ("version = 1", "version = 1\nversion = 2", "not a readable TOML file"),
    ("version = 1", "version = " + "[" * 5000, "not a readable TOML file"),
] + [  # a field of a name that a stage gives to a field of its own would be overwritten, or would overwrite it
    ('["first", "second"]', f'["first", "second", "{name}"]', f"fields: {name}")
    for name in ("id", "source", "feedback", "temperature", "completion", "energy")
]  # fmt: skip


@pytest.mark.parametrize("old, new, told", MUTATIONS, ids=lambda value: value[:40].replace("\n", " ").strip())
def test_mutated_file_is_refused(old, new, told, tmp_path):
    text = changed(PAIRS, old, new)
    if told.startswith("fields: ") and "must" not in told:  # all else is as such a field needs it
        name = told.split()[1]
        text = text.replace("$second", f"${name} $second", 1).replace("with $second", f"with $second ${name}")
    with pytest.raises(SystemExit) as caught:
        load(text, tmp_path)
    message = caught.value.code
    assert message.startswith(f"error: {tmp_path / 'mutated.toml'}: ") and "\n" not in message
    assert told.split(": ")[0] in message and told.split(": ")[-1] in message, message


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("[prompt]\n", '[labels]\na = "x"\nb = "y"\n[prompt]\n', "labels: a text2text task has none"),
        ("$shots\\n\\n$start", "$labels $shots $start", "prompt.train: unknown variable $labels"),
        ("[prompt]\n", "labels = 3\n[prompt]\n", "labels: must be a table"),
    ],
)
def test_mutated_text2text_file_is_refused(old, new, told, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*mutated.toml: {told.replace('$', '.')}"):
        load(FLIP.replace(old, new, 1), tmp_path)


@pytest.mark.parametrize("name, told", [("none.toml", "no such task file"), (".", "not a readable TOML file")])
def test_unreadable_task_file(name, told, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*: {told}"):
        load_task(tmp_path / name)
    (tmp_path / "latin.toml").write_bytes('name = "größe"'.encode("latin-1"))
    with pytest.raises(SystemExit, match="not a readable TOML file"):
        load_task(tmp_path / "latin.toml")


# ---------------------------------------------------------------------------------------------------------------------
# Prompts

SHOTS = [
    {"id": "s0", "label": "Warm", "first": "the lake", "second": "sun", "source": "no variable", "extra": 1},
    {"id": "f0", "label": "not warm", "first": "the roof", "second": "$5 of snow"},
]


def test_training_prompt(pairs):
    assert render_prompt(pairs, "train", SHOTS, "not warm") == (
        "You write pairs of things.",
        "Warm: both belong to summer\nnot warm: one or both belong to winter\n\n"
        "Kind: Warm\nFirst: the lake\nSecond: sun\n\n"
        "Kind: not warm\nFirst: the roof\nSecond: $5 of snow\n\n"  # in their order: the last is nearest to the answer
        "Another that is not warm (one or both belong to winter):\nKind: not warm\nFirst:",
    )


FED_PROMPT = (  # by hand
    "Warm: both belong to summer\nnot warm: one or both belong to winter\n\n"
    "Kind: Warm\nFirst: the lake\nSecond: sun\n\nUnsure of:\n\n"
    "Kind: not warm\nFirst: the roof\nSecond: $5 of snow\n\n{}"
    "Another that is Warm (both belong to summer):\nKind: Warm\nFirst:"
)


@pytest.mark.parametrize("variable", ["$report", "${report}"])
@pytest.mark.parametrize("report", ["", "accuracy 0.5\nWarm: $label", "100 $"])
def test_prompt_with_feedback(variable, report, tmp_path):
    """An empty report leaves no empty lines."""
    task = load(FED_PAIRS.replace("$report", variable), tmp_path)
    found = render_prompt(task, "train", SHOTS[:1], "Warm", SHOTS[1:], report)
    assert found == ("You write pairs of things.", FED_PROMPT.format(report and f"{report}\n\n"))
    plain = render_prompt(task, "train", SHOTS[:1], "Warm", [], report)[1]
    assert plain == render_prompt(task, "train", SHOTS[:1], "Warm")[1] and "Unsure" not in plain


def test_a_feedback_prompt_may_have_no_report_or_have_it_within_a_line(tmp_path):
    task = load(FED_PAIRS.replace("$report\n\n", ""), tmp_path)
    assert render_prompt(task, "train", SHOTS[:1], "Warm", SHOTS[1:], "x")[1] == FED_PROMPT.format("")
    task = load(FED_PAIRS.replace("$report\n\n", "So far: $report.\n\n"), tmp_path)
    for report in ("", "0.5"):
        found = render_prompt(task, "train", SHOTS[:1], "Warm", SHOTS[1:], report)[1]
        assert found == FED_PROMPT.format(f"So far: {report}.\n\n")


def test_without_its_template_feedback_is_shown_as_the_last_shots(pairs):
    assert render_prompt(pairs, "train", SHOTS[:1], "Warm", SHOTS[1:], "x") == render_prompt(
        pairs, "train", SHOTS, "Warm"
    )


def test_text2text_prompt(flip):
    shots = [{"text": "a b", "answer": "b a"}]
    assert render_prompt(flip, "validation", shots, None) == (
        "",
        "Something different:\n\nText: a b\nAnswer: b a\n\nText:",
    )


def test_dollar_signs(tmp_path):
    text = changed(PAIRS, "First: $first\nSecond", "Cost: $$9\nFirst: ${first}\nSecond")
    task = load(changed(text, "Another that is", "For $$5 another that is"), tmp_path)
    _, user = render_prompt(task, "train", SHOTS[:1], "Warm")
    assert "For $5 another that is Warm" in user and user.endswith("Kind: Warm\nCost: $9\nFirst:")
    assert "Kind: Warm\nCost: $9\nFirst: the lake\nSecond: sun" in user
    assert parse_completion(task, " the sea\nSecond: sun", "Warm") == ({"first": "the sea", "second": "sun"}, None)


# ---------------------------------------------------------------------------------------------------------------------
# Completions

GOOD = {"first": "the sea", "second": "a boat"}


@pytest.mark.parametrize(
    "completion, fields, reason",
    [
        (" the sea\nSecond: a boat", GOOD, None),
        ("the sea  \n Second:a boat\n\n", GOOD, None),
        ("Sure, here it is:\n\nKind: Warm\nFirst: the sea\nSecond: a boat", GOOD, None),  # a chat repeats the start
        ("First: the sea\nSecond: a boat", GOOD, None),  # or its last line
        ("\nFirst:\nthe sea\nSecond:\na boat", GOOD, None),
        (" the sea\nSecond: a boat\n\nKind: not warm\nFirst: the roof\nSecond: snow", GOOD, None),  # one too many
        (" the sea\nSecond: a boat\n\nKind: Warm\nFirst: the roof\nSecond: sun", GOOD, None),
        (" the sea\nSecond: a boat\n\nKind: Warm\nFirst: the ro", GOOD, None),
        ("I cannot do that.", {}, "no_match"),
        ("", {}, "no_match"),
        (" the sea\nThird: a boat", {}, "no_match"),
        ("\nSecond: a boat", {"first": "", "second": "a boat"}, "empty_field"),
        (" the sea\nSecond: \n", {"first": "the sea", "second": ""}, "empty_field"),
        (" sea\nSecond: a boat", {"first": "sea", "second": "a boat"}, "too_short"),
        (" the sea\nSecond: one two three four five six", GOOD | {"second": "one two three four five six"}, None),
        (" the sea\nSecond: a b c d e f g", GOOD | {"second": "a b c d e f g"}, "too_long"),
    ],
)  # fmt: skip
def test_parse_classification(completion, fields, reason, pairs):
    assert parse_completion(pairs, completion, "Warm") == (fields, reason)


@pytest.mark.parametrize(
    "completion, fields, reason",
    [
        (" sun lake\nAnswer: lake sun", {"text": "sun lake", "answer": "lake sun"}, None),
        ("Text: sun lake\nAnswer: lake sun", {"text": "sun lake", "answer": "lake sun"}, None),
        (" sun lake\nAnswer: lake sun\n\nText: a b\nAnswer: b a", {"text": "sun lake", "answer": "lake sun"}, None),
        (" sun lake\nAnswer: lake sun\nText: a b\nAns", {"text": "sun lake", "answer": "lake sun"}, None),
        (" sun lake", {}, "no_match"),
        (" sun lake\nAnswer:", {"text": "sun lake", "answer": ""}, "empty_field"),
    ],
)
def test_parse_text2text(completion, fields, reason, flip):
    assert parse_completion(flip, completion, None) == (fields, reason)


LAST = "First: $first\nSecond: $second\nKind: $label"


@pytest.mark.parametrize(
    "completion, second",
    [
        (" the sea\nSecond: a boat\nKind: Warm", "a boat"),
        (" the sea\nSecond: a boat", "a boat"),  # cut off by a stop string, say
        (" the sea\nSecond: a boat\nKind: Warm\n\nFirst: the roof\nSecond: snow\nKind: not warm", "a boat"),
        (" the sea\nSecond: a boat\nKind: not warm", None),  # not the label that was asked
        (" the sea\nSecond: a boat\nKind: Warmest", None),
    ],
)
def test_label_at_the_end(completion, second, tmp_path):
    """What the teacher says of the label is read too: never part of a field, and never another label than asked."""
    task = load(changed(PAIRS, "Kind: $label\nFirst: $first\nSecond: $second", LAST), tmp_path)
    fields, reason = parse_completion(task, completion, "Warm")
    if second is None:
        assert reason is not None and reason in generate.REASONS
    else:
        assert (fields, reason) == ({"first": "the sea", "second": second}, None)


TEMPLATES = (
    "Kind: $label\nFirst: $first\nSecond: $second",
    "First: $first\nKind: $label\nSecond: $second",
    LAST,
    "$first | $second ($label)",
    "<$label><first>$first</first><second>${second}</second>",
    "In $$: $second\n$first\n--\n$label",
)
TEXT = st.lists(st.text("abcdefghijklmnopqrstuvwxyzäöü,.!'", min_size=1, max_size=8), min_size=2, max_size=6)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=TEXT, second=TEXT, label=st.sampled_from(["Warm", "not warm"]), chat=st.booleans(), tail=st.booleans())
def test_rendered_example_is_read_back(template, first, second, label, chat, tail, tmp_path):
    task = load(changed(PAIRS, TEMPLATES[0], template), tmp_path)
    example = {"first": " ".join(first), "second": " ".join(second), "label": label}
    text = string.Template(task.prompt["example"]).substitute(example)
    start, parts = split_example(task, {"label": label})
    assert text.startswith(start) and {name for name, _ in parts} == {"first", "second"}
    assume(not start or start not in text[len(start) :])
    completion = text if chat and start else text[len(start) :]
    fields, reason = parse_completion(task, completion + ("\n" if tail else ""), label)
    assert (fields, reason) == ({"first": example["first"], "second": example["second"]}, None)


@settings(deadline=None, max_examples=200)
@given(
    parts=st.lists(
        st.text(max_size=12)
        | st.sampled_from(["Kind: Warm", "First:", "Second:", "\n", "\n\n", "Text:", "Answer:", " a b", "$first"]),
        max_size=10,
    )
)
def test_any_text_is_parsed_or_rejected_with_a_known_reason(parts, pairs, flip):
    for task, label in ((pairs, "Warm"), (flip, None)):
        fields, reason = parse_completion(task, "".join(parts), label)
        assert reason is None or reason in generate.REASONS
        if reason is None:
            assert list(fields) == task.written_fields and all(v == v.strip() != "" for v in fields.values())


def test_text_key_is_of_the_fields_alone(pairs):
    one = {"first": "The  Lake!", "second": "sun", "label": "Warm", "id": "1"}
    assert text_key(pairs, one) == text_key(pairs, {"first": "the lake", "second": "Sun.", "label": "not warm"})
    assert text_key(pairs, {"first": "a", "second": "b c"}) != text_key(pairs, {"first": "a b", "second": "c"})
    assert text_key(pairs, {"first": "a |", "second": "b"}) != text_key(pairs, {"first": "a", "second": "| b"})


@pytest.mark.parametrize("label", ["Warm", "not warm"])
def test_the_structured_pattern_fits_what_the_example_renders(pairs, label):
    pattern = structured_pattern(pairs, label)
    for number in range(20):
        shot = pair(number) | {"label": label}
        completion = string.Template(pairs.prompt["example"]).substitute(shot).split("First:")[1]
        assert re.fullmatch(pattern, completion) and re.fullmatch(pattern, completion + "\n\n")
        assert parse_completion(pairs, completion, label)[1] is None
    for completion in (
        " sea\nSecond: sun",
        " the sea\nFirst: sun",
        " the sea\nSecond: a b c d e f g",
        " the  sea\nSecond: b",
    ):
        assert not re.fullmatch(pattern, completion)  # min_words of first is 2, max_words of second 6


def test_the_structured_pattern_of_a_text2text_task_and_its_special_characters(flip):
    assert re.fullmatch(structured_pattern(flip, None), " lake sun\nAnswer: sun lake")
    odd = replace(flip, prompt={**flip.prompt, "example": "Q (easy?) $text [A] $answer."}, parse={"stop": ["##", "|"]})
    pattern = structured_pattern(odd, None)
    assert re.fullmatch(pattern, " a b [A] c.|") and not re.fullmatch(pattern, " a b A c.")


def test_the_structured_pattern_of_an_equation_has_its_characters_alone():
    pattern = structured_pattern(load_task(ROOT / "prompts/word_problems.toml"), None)
    begin = " There were 12 loaves. One basket of 4 went. How many?\nEquation: "
    assert re.fullmatch(pattern, begin + "( 12 - 4 ) * 2\n\n") and re.fullmatch(pattern, begin + "12-4")
    assert not re.fullmatch(pattern, begin + "12 minus 4") and not re.fullmatch(pattern, begin + "x = 12 - 4")


def test_what_a_thinking_model_says_to_itself_is_left_out(flip):
    said = "<think>\nText: no\nAnswer: no\n</think>\n\nlake sun\nAnswer: sun lake"
    assert parse_completion(flip, said, None) == ({"text": "lake sun", "answer": "sun lake"}, None)


# ---------------------------------------------------------------------------------------------------------------------
# What [parse] can ask for, debris, copies


@pytest.mark.parametrize(
    "text",
    [
        "<|eot_id|><|start_header_id|>user", "A fine day [/INST]", "<<SYS>> x", "the end</s>", "You are a helpful assistant.",
        "a review of <C> that I liked",
        "[Insert topic] is warm", "{{review}}", "As an AI, I like melons",
        "I'm sorry, but I cannot assist with that.",
        "I cannot fulfill this request", "Sure! Here it comes",
        "Here are three sentences about summer: a",
    ],
)  # fmt: skip
def test_debris(pairs, text):
    assert parse_completion(pairs, f"the beach\nSecond: {text}", "Warm")[1] == "debris"


@pytest.mark.parametrize(
    "text",
    [
        "a <br /> melon <br> cut",
        "he is here",
        "sure is warm",
        "an aide of mine",
        "1.5 melons",
        "-5 melons",
        "sorry",
        "1. a melon",
        "I can't create a card here",
        "I'm sorry but I know",
        "okay, here it lies",
        "a text: read it",
        "a problem: it leaks",
        "- a melon",
    ],
)
def test_no_debris(pairs, text):
    assert parse_completion(pairs, f"the beach\nSecond: {text}", "Warm")[1] is None


CHECKED = FLIP.replace(
    '[student]', '[parse]\ngives = {answer = "sum"}\nspan_of = {sum = "text"}\nmax_overlap = 0.7\n[student]'
).replace('["text"]', '["text", "sum"]').replace("Answer: $answer", "Sum: $sum\nAnswer: $answer")  # fmt: skip


@pytest.mark.parametrize(
    "completion, reason",
    [
        ("I have 51 apples\nSum: 51 apples\nAnswer: 50 + 1", None),
        ("I have 51 apples\nSum: 51 apples\nAnswer: 50 + 2", "check_failed"),  # another value
        ("I have 51 apples\nSum: 51 pears\nAnswer: 50 + 1", "check_failed"),  # not in the text
        ("I have 51 apples\nSum: apples\nAnswer: 50 + 1", "check_failed"),  # no number
        ("I have 51 or 52 apples\nSum: 51 or 52\nAnswer: 50 + 1", "check_failed"),  # two numbers
        ("I have $1,200 here\nSum: $1,200\nAnswer: 600 * 2", None),
        ("It is -3 here\nSum: -3\nAnswer: 2 - 5", None),
    ],
)
def test_gives_and_span_of(completion, reason, tmp_path):
    assert parse_completion(load(CHECKED, tmp_path), completion, None)[1] == reason


@pytest.mark.parametrize(
    "line, told",
    [
        ('gives = ["answer"]', "parse.gives: must be fields by field"),
        ('gives = {answer = "total"}', "parse.gives: no field that the teacher writes: total"),
        ('span_of = {answer = "answer"}', "parse.span_of: a field is compared with itself"),
        ('solves = "answer"', "parse.solves: must be a list of fields"),
        ('solves = ["total"]', "parse.solves: no field that the teacher writes: total"),
        ("max_overlap = 0", "parse.max_overlap: must be a share"),
        ("max_overlap = true", "parse.max_overlap: must be a share"),
    ],
)
def test_mutated_checks_are_refused(line, told, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*mutated.toml: {told}"):
        load(FLIP.replace("[student]", f"[parse]\n{line}\n[student]"), tmp_path)


def test_overlap_is_rouge_l():
    assert overlap("The cat, sat!", "the cat sat") == 1
    # LCS of a b c d and a c e d is a c d: 2 * 3 / 8
    assert overlap("a b c d", "A C E D") == pytest.approx(0.75)
    assert overlap("a b", "c d") == 0


def test_overlap_in_any_script():
    assert overlap("", "") == 1 and overlap("", "a") == 0
    assert overlap("Caf\u00e9 noir", "cafe\u0301 noir") == 1
    assert overlap("2 + 3", "2 - 3") == pytest.approx(2 / 3)
    assert overlap("我喜欢手机。", "我喜欢这个手机") == pytest.approx(2 * 5 / 12)  # by characters
    assert overlap("कमल की", "कमल का") == 0.5 and overlap(":)", ":(") == 0


def test_copies_in_a_script_without_blanks(tmp_path, flip):
    strict = load(FLIP.replace("[student]", "[parse]\nmax_overlap = 0.8\n[student]"), tmp_path)
    shot = {"text": "我非常喜欢这个手机", "answer": "x"}
    assert copies(strict, {"text": "我非常喜欢那个手机", "answer": "x"}, [shot])  # 8 of 9 characters
    assert not copies(flip, {"text": "我非常喜欢那个手机", "answer": "x"}, [shot])
    assert copies(flip, shot | {"text": "我非常喜欢这个手机。"}, [shot])
    assert not copies(flip, shot | {"text": "3 + 4"}, [shot | {"text": "3 - 4"}])


@pytest.mark.parametrize(
    "first, reason",
    [("北京", None), ("京", "too_short"), ("我喜欢", None), ("नमस्ते", "too_short"), ("नमस्ते दुनिया", None)],
)
def test_words_are_counted_in_any_script(first, reason, pairs):
    """min_words of first is 2, max_words of second 6."""
    assert parse_completion(pairs, f" {first}\nSecond: 屏幕很好。", "Warm")[1] == reason
    assert parse_completion(pairs, " 北京\nSecond: 屏幕非常非常好", "Warm")[1] == "too_long"


def test_copies(tmp_path, flip):
    shot = {"text": "the red fox jumps over it", "answer": "x"}
    near = {"text": "the red fox hops over it", "answer": "y"}  # 2 * 5 / 12
    assert copies(flip, shot | {"text": "The RED fox jumps over it!"}, [shot])
    assert not copies(flip, near, [shot])  # without max_overlap only what is equal
    strict = load(FLIP.replace("[student]", "[parse]\nmax_overlap = 0.8\n[student]"), tmp_path)
    assert copies(strict, near, [{"text": "else", "answer": "z"}, shot])
    assert not copies(strict, {"text": "the red fox runs off now", "answer": "y"}, [shot])
    assert not copies(
        strict, {"text": "the red ox", "answer": "y"}, [{"text": "the red fox", "answer": "x"}]
    )  # too short


# ---------------------------------------------------------------------------------------------------------------------
# Labelling prompts

LABELLED = PAIRS.replace(
    "[parse]",
    """label = '''
$labels

$shots

$start'''
label_example = '''
First: $first
Second: $second
Kind: $label'''
[parse]""",
)


def test_label_prompt(tmp_path):
    task = load(LABELLED, tmp_path)
    prompt = render_label_prompt(task, {"first": "a $5 lake", "second": "a swim"}, [pair(0), pair(1)])
    assert prompt == (
        "Warm: both belong to summer\nnot warm: one or both belong to winter\n\n"
        "First: the beach\nSecond: sun\nKind: Warm\n\nFirst: the beach\nSecond: a big snow\nKind: not warm\n\n"
        "First: a $5 lake\nSecond: a swim\nKind:"
    )


def test_label_prompt_of_a_text2text_task_needs_no_second_example(tmp_path):
    label = "[prompt]\nlabel = '''\n$shots\n\n$start'''"
    task = load(FLIP.replace("[prompt]", label), tmp_path)
    assert render_label_prompt(task, {"text": "lake sun"}, [flipped(0)]).endswith("\n\nText: lake sun\nAnswer:")


def test_no_label_prompt(pairs):
    with pytest.raises(SystemExit, match=r"prompt\.label: missing"):
        render_label_prompt(pairs, pair(0), [])


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("Kind: $label'''\n[parse]", "Kind: $label.'''\n[parse]", "prompt.label_example: must show a field and end"),
        (
            "Second: $second\nKind: $label'''\n[parse]",
            "Second: $second'''\n[parse]",
            "prompt.label_example: the variable .label is",
        ),
        (
            "First: $first\nSecond: $second\nKind: $label'''\n[parse]",
            "Kind: $label'''\n[parse]",
            "prompt.label_example: must show",
        ),
        (
            "$shots\n\n$start'''\nlabel_example",
            "$start'''\nlabel_example",
            "prompt.label: the variable .shots is missing",
        ),
        ("label = '''\n$labels", "label = '''\n$label", "prompt.label: unknown variable .label"),
    ],
)
def test_mutated_label_prompt_is_refused(old, new, told, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*mutated.toml: {told}"):
        load(changed(LABELLED, old, new), tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# A chat model is not stopped: its blank lines and what it says afterwards are dealt with here


@pytest.mark.parametrize(
    "completion",
    [
        "the beach\n\nSecond: a melon\n\nI hope that this helps!",
        "First: the beach\n\nSecond: a melon\n\nKind: Warm\nFirst: the lake\nSecond: a swim",
        "\n\nthe beach\nSecond:\n\na melon\n\n",
    ],
)
def test_what_follows_a_stop_string_is_cut_off_the_last_field(pairs, completion):
    assert parse_completion(pairs, completion, "Warm") == ({"first": "the beach", "second": "a melon"}, None)


@pytest.mark.parametrize(
    "answer, reason", [("eight", "check_failed"), ("weight", None), ("the weight", None), ("wei", "check_failed")]
)
def test_a_span_is_whole_words(answer, reason, tmp_path):
    task = load(FLIP.replace("[student]", '[parse]\nspan_of = {answer = "text"}\n[student]'), tmp_path)
    assert parse_completion(task, f"it is the weight of it\nAnswer: {answer}", None)[1] == reason


def test_what_the_student_does_not_read_makes_no_other_example():
    task = load_task(ROOT / "prompts" / "svamp.toml")
    record = {"body": "Ann has 3.", "question": "How many?", "answer": "7", "equation": "10 - 3"}
    assert (
        text_key(task, record)
        == text_key(task, record | {"answer": "30"})
        != text_key(task, record | {"body": "Bo has 3."})
    )


@pytest.mark.parametrize("said, told", [("3.33", True), ("3.3", True), ("3.34", False), ("3", False), ("51", False)])
def test_a_stated_answer_may_be_rounded(said, told):
    from equations import states_value

    assert states_value(said, "10 / 3") is told
    assert states_value("\u22127 degrees", "3 - 10") and not states_value("1001", "1000")
    assert states_value("12 m\u00b2", "12") and states_value("1,200", "1200")


@pytest.mark.parametrize("said", ["\u0663", "\uff13 apples", "\u0967", "3 or \u0663", "", "three"])
def test_a_stated_answer_is_in_ascii_digits(said):
    from equations import evaluate_equation, states_value

    assert not states_value(said, "1 + 2") and evaluate_equation(said) is None


@given(
    st.lists(
        st.sampled_from(["$label", "${label}s", "$$", "$label_x", "${second}", "\u00e9", "'s", " 5%", "%s"]), max_size=6
    ),
    st.sampled_from(["warm", "$second", "100%", "%(x)s", "\\1"]),
)
@settings(deadline=None, max_examples=100)
def test_templates_are_those_of_the_standard_library(pieces, label):
    values = {"label": label, "label_x": "x", "second": "$label"}
    template = " ".join(pieces) + "$label\u00e9"
    assert render(template, values) == string.Template(template).substitute(values)


def test_a_label_prompt_ends_with_start(tmp_path):
    with pytest.raises(SystemExit, match=r"prompt\.label: must end with \$start"):
        load(
            changed(LABELLED, "$shots\n\n$start'''\nlabel_example", "$shots\n\n$start now'''\nlabel_example"), tmp_path
        )
