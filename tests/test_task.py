"""Task files: every rule refuses a file that breaks it, by file and key. Prompts, and completions read back.

Every mutation starts from the two task files of conftest, which load; so it is the mutation that is refused.
"""

import re
import string
from pathlib import Path

import pytest
from conftest import FED_PAIRS, FLIP, PAIRS, ROOT, VARIED, flipped, pair, refusal
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gold.equations import evaluate_equation, states_value
from gold.examples import example_key
from gold.parsing import REASONS, copies_shot, overlap, parse_completion
from gold.prompts import render_label_prompt, render_prompt, split_example, structured_pattern
from gold.task import Task, load_task
from gold.templates import render


def load(text: str, folder: Path) -> Task:
    path = folder / "mutated.toml"
    path.write_text(text, encoding="utf-8")
    return load_task(path)


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{text.count(old)} times in the file: {old}"
    return text.replace(old, new)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


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
ANSWER_LAST = "Second: $second\nKind: $label'''\n[parse]"
MUTATIONS = [  # task file, what in it, by what it is replaced, key and problem that are named
    *((PAIRS, what, by, told) for what, by, told in [
        ('metric = "accuracy"', "", "metric: missing; add it; docs/tasks.md lists the keys"),
        ('name = "pairs"', 'name = "pairs"\nmodel = "t5"', "model: unknown key; docs/tasks.md lists"),
        ("train = '''\n$labels", "trian = '''\n$labels", "prompt.trian: unknown key"),  # and not: train is missing
        ('name = "pairs"', 'name = "Two Pairs"', "name: String should match pattern '^[a-z0-9_]+$'; found 'Two Pairs'"),
        ('"Do both things belong to summer?"', '" "', "description: "),
        ("version = 1", "version = true", "version: Input should be a valid integer; found True"),
        ('"classification"', '"regression"', "kind: Input should be 'classification' or 'text2text'"),
        ('"classification"', '"text2text"', "metric: must be one of exact_match, equation_value, squad, rouge_l, "
         "optimum, chrf for text2text"),
        ('"accuracy"', '"f1"', "metric: must be one of accuracy"),
        ('["first", "second"]', '["first", "second", "labels"]', "fields: ['first', 'second', 'labels'] and 'label' must di"),
        ('["first", "second"]', "[]", "fields: List should have at least 1 item"),
        ('"not warm" = "one or both belong to winter"\n', "", "labels: a classification task has two or more"),
        ('"one or both belong to winter"', '" "', "labels.not warm: "),
        ('"not warm" =', '"" =', "labels: names must differ"),  # a label that no student could write
        ('"not warm" =', '"warm" =', "labels: names must differ"),  # answers are compared in lower case
        ("train = '''\n", "train = '''$topic\n", "prompt.train: unknown variable $topic; known here: definition, label"),
        ("Another that is", "Another for $5 that is", "prompt.train: a lone $"),
        ("($definition):\n$start", "($definition):", "prompt.train: the variable $start is missing"),
        ("[parse]\n", "feedback = '$shots $start'\n[parse]\n", "prompt.feedback: the variable $feedback is missing"),
        ("[parse]\n", "unlabelled = '$label: $shots $start'\n[parse]\n", "prompt.unlabelled: unknown variable $label"),
        ("[parse]\n", "unlabelled = 'Go: $start'\n[parse]\n", "prompt.unlabelled: the variable $shots is missing"),
        ("Second: $second'''", "Second: $second, $first'''", "prompt.example: $first must occur once"),
        ("pair: $first with $second", "pair", "student.source: shows the student nothing"),
        ('target = "$label"', 'target = "yes"', "student.target: the variable $label is missing"),
        ('stop = ["\\n\\n"]', 'stop = [""]', "parse.stop.0: String should have at least 1 character"),
        ("{first = 2}", "{first = 0}", "parse.min_words.first: Input should be greater than 0"),
        ("{second = 6}", "{third = 6}", "parse.max_words: no field that the teacher writes: third"),
        ("[prompt]\n", "[[prompt]]\n", "prompt: Input should be a valid dictionary"),
        ("version = 1", "version = ", "not a readable TOML file"),
        ("version = 1", "version = " + "[" * 5000, "not a readable TOML file"),
        # A field of a name that a stage gives to a field of its own would be overwritten, or would overwrite it
        *(('["first", "second"]', f'["first", "second", "{name}"]', f"fields: the name '{name}' is one")
          for name in ("id", "energy_sum")),
    ]),
    *((VARIED, what, by, told) for what, by, told in [
        ("size =", '"First " =', "prompt.attributes.First : must have a name, and not that of a field"),
        ("size =", "Where =", "prompt.attributes.Where: must have a name, and not that of a field or of another attribute"),
        ("size =", '"" =', "prompt.attributes.: must have a name"),
        ('["two words", "three words"]', "[]", "prompt.attributes.size: has an empty list; give it values"),
        ('["two words", "three words"]', "{}", "prompt.attributes.size: must have a list for each of Warm, not warm; "
         "found nothing"),
        ('["two words", "three words"]', '"two words"', "prompt.attributes.size.list: Input should be a valid list; found"),
        ('"three words"', '" "', "prompt.attributes.size.list.1: String should match"),
        ('"on a hill"', "7", "prompt.attributes.where.table.not warm.0: Input should be a valid string; found 7"),
        ('["on a hill"]', "[]", "prompt.attributes.where: has an empty list"),
        ('where."not warm"', "where.warm", "prompt.attributes.where: must have a list for each of Warm, not warm; "
         "found Warm, warm"),
        ('where."not warm" = ["on a hill"]\n', "", "prompt.attributes.where: must have a list for each of"),
        ("It has $attributes.\n\n$start", "It has $attributes: $start", "prompt.train: $start would go with the lines of "
         "$passages or $attributes; give it a line of its own"),
        ('["first", "second"]', '["first", "second", "attributes"]', "fields: the name 'attributes' is one that the stages"),
        ("[parse]", f"[completion]{PAIRS.split('[prompt]')[1].split('[parse]')[0]}attributes.a = ['b']\n[parse]",
         "completion.attributes: belongs into [prompt.attributes]"),
    ]),
    (PAIRS, "($definition):", "($definition), $attributes:", "prompt.train: unknown variable $attributes"),
    (FLIP, "[student]", "[prompt.attributes]\na.b = ['c']\n[student]", "prompt.attributes.a: must have one list: it has "
     "no labels; found b"),
    (FLIP, "[prompt]\n", '[labels]\na = "x"\nb = "y"\n[prompt]\n', "labels: a classification task has two or more, a text2t"),
    (FLIP, "[student]", '[parse]\ngives = {answer = "total"}\n[student]', "parse.gives: no field that the teacher writes"),
    (LABELLED, ANSWER_LAST, ANSWER_LAST.replace("l'", "l.'"), "prompt.label_example: must end with $label"),
    (LABELLED, "\nlabel_example = '''\nFirst: $first\nSecond: $second\nKind: $label'''", "",
     "prompt.label_example: must end with $label"),
    (LABELLED, "$shots\n\n$start'''\nlabel_e", "$start'''\nlabel_e", "prompt.label: the variable $shots is missing"),
    (LABELLED, "\n\n$start'''\nlabel_example", "\n\n$start now'''\nlabel_example", "prompt.label: must end with $start"),
]  # fmt: skip


@pytest.mark.parametrize("text, old, new, told", MUTATIONS, ids=lambda value: value[-40:].replace("\n", " ").strip())
def test_mutated_file_is_refused(text, old, new, told, tmp_path):
    message = refusal(load, changed(text, old, new), tmp_path)
    assert message.startswith(f"error: {tmp_path / 'mutated.toml'}: {told}"), message


def test_unreadable_task_file(tmp_path):
    (tmp_path / "latin.toml").write_bytes('name = "größe"'.encode("latin-1"))
    for name, told in (("none.toml", "no such task file"), ("", "is a folder"), ("latin.toml", "not a readable")):
        assert f": {told}" in refusal(load_task, tmp_path / name)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts

SHOTS = [
    {"id": "s0", "label": "Warm", "first": "the lake", "second": "sun", "source": "no variable", "extra": 1},
    {"id": "f0", "label": "not warm", "first": "the roof", "second": "$5 of snow"},
]


@pytest.mark.parametrize(
    "template, given, without",  # as it stands in the file; with the attributes of below, and without any
    [
        ("A.\nIt has $attributes.\n\n", "A.\nIt has $9, on a hill.\n\n", "A.\n\n"),
        ("A.\n${attributes}!\nB.\n", "A.\n$9, on a hill!\nB.\n", "A.\nB.\n"),
        ("A.\n\n$attributes\n\nB.\n", "A.\n\n$9, on a hill\n\nB.\n", "A.\n\nB.\n"),
        ("($attributes)\n\n", "($9, on a hill)\n\n", ""),
    ],
)
def test_prompt_with_attributes(template, given, without, tmp_path):
    text = re.sub(r"(?s)train = '''.*?'''", lambda _: f"train = '''\n{template}$shots\n$start'''", VARIED)
    task, values = load(text, tmp_path), {"size": "$9", "where": "on a hill"}
    first, *rest = (render_prompt(task, "train", SHOTS[:1], "Warm", attributes=a).user for a in (values, {}, None))
    shown = "Kind: Warm\nFirst: the lake\nSecond: sun\nKind: Warm\nFirst:"
    assert first == given + shown and rest == [without + shown] * 2


def test_a_line_of_attributes_before_the_last_item_of_a_list_leaves_it_a_list(tmp_path):
    task = load(
        VARIED.replace(
            "$shots\n\nAnother that is $label ($definition).\nIt has $attributes.\n\n", "$shots\n$attributes\n"
        ),
        tmp_path,
    )
    assert "$shots\n$attributes\n$start" in task.prompt.train and task.prompt.between == "\n"


def test_training_prompt(pairs):
    assert render_prompt(pairs, "train", SHOTS, "not warm") == (
        "You write pairs of things.",
        "Warm: both belong to summer\nnot warm: one or both belong to winter\n\n"
        "Kind: Warm\nFirst: the lake\nSecond: sun\n\n"
        "Kind: not warm\nFirst: the roof\nSecond: $5 of snow\n\n"  # in their order: the last is nearest to the answer
        "Another that is not warm (one or both belong to winter):\nKind: not warm\nFirst:",
    )
    # Without its template feedback is shown as the last shots
    fed = render_prompt(pairs, "train", SHOTS[:1], "Warm", SHOTS[1:], "x")
    assert fed == render_prompt(pairs, "train", SHOTS, "Warm")


FED_PROMPT = (  # by hand
    "Warm: both belong to summer\nnot warm: one or both belong to winter\n\n"
    "Kind: Warm\nFirst: the lake\nSecond: sun\n\nUnsure of:\n\n"
    "Kind: not warm\nFirst: the roof\nSecond: $5 of snow\n\n{}"
    "Another that is Warm (both belong to summer):\nKind: Warm\nFirst:"
)


@pytest.mark.parametrize(
    "variable, shown",  # as the template has it; what stands there with the report "100 $", and without one
    [
        ("$report\n\n", ("100 $\n\n", "")),
        ("${report}\n\n", ("100 $\n\n", "")),
        ("", ("", "")),
        ("So far: $report.\n\n", ("So far: 100 $.\n\n", "So far: .\n\n")),
    ],
)
def test_prompt_with_feedback(variable, shown, tmp_path):
    """An empty report leaves no empty lines."""
    task = load(FED_PAIRS.replace("$report\n\n", variable), tmp_path)
    for report, text in zip(("100 $", ""), shown, strict=True):
        found = render_prompt(task, "train", SHOTS[:1], "Warm", SHOTS[1:], report)
        assert found == ("You write pairs of things.", FED_PROMPT.format(text))
        plain = render_prompt(task, "train", SHOTS[:1], "Warm", [], report).user
        assert plain == render_prompt(task, "train", SHOTS[:1], "Warm").user and "Unsure" not in plain


UNLABELLED = PAIRS.replace("[parse]", "unlabelled = '''$shots\n\nAnother:\n$start'''\n[parse]")


def test_a_task_without_its_answers(pairs, flip, tmp_path):
    """The answer's line is left out wherever it stands, and so is what [parse] asks of the answer."""
    task = load(UNLABELLED, tmp_path).without_answers()
    assert task.names == [None] and not task.is_list and task.prompt.example == "First: $first\nSecond: $second"
    user = render_prompt(task, "train", [pair(0), pair(1)], None, [pair(2)]).user  # feedback: the last of the shots
    shown = "\n\n".join(f"First: {p['first']}\nSecond: {p['second']}" for p in map(pair, range(3)))
    assert user == f"{shown}\n\nAnother:\nFirst:"
    assert parse_completion(task, " the sea\nSecond: sun", None) == ({"first": "the sea", "second": "sun"}, None)
    assert parse_completion(task, " sea\nSecond: sun", None)[1] == "too_short"
    checks = '[parse]\nevaluates = ["answer"]\ngives = {answer = "text"}\nspan_of = {text = "answer"}\nmin_words = {text = 2}\n'
    text = FLIP.replace("[student]", checks + "[student]").replace("[prompt]", "[prompt]\nunlabelled = '$shots $start'")
    task = load(text, tmp_path).without_answers()
    assert parse_completion(task, " sun lake", None) == ({"text": "sun lake"}, None)
    assert parse_completion(task, " sun", None)[1] == "too_short"
    told = refusal(pairs.without_answers)
    assert told.startswith(f"error: {pairs.path}: prompt.unlabelled: missing: --unlabelled asks with it; add it")
    one_line = changed(UNLABELLED, "Kind: $label\nFirst: $first", "Of kind $label: $first")
    told = refusal(load(one_line, tmp_path).without_answers)
    assert "prompt.example: $label stands on one line with another field; give $label a line of its own" in told
    form = "[completion]\nexample = '- $first, $second'\n" + "".join(
        f"{split} = '''$label:\n$shots\n$start'''\n" for split in ("train", "validation")
    )
    listed = changed(UNLABELLED, "[parse]", form + "[parse]")
    assert "completion.unlabelled: missing" in refusal(load(listed, tmp_path).without_answers)


def test_dollar_signs(tmp_path):
    text = changed(PAIRS, "First: $first\nSecond", "Cost: $$9\nFirst: ${first}\nSecond")
    task = load(changed(text, "Another that is", "For $$5 another that is"), tmp_path)
    user = render_prompt(task, "train", SHOTS[:1], "Warm").user
    assert "For $5 another that is Warm" in user and user.endswith("Kind: Warm\nCost: $9\nFirst:")
    assert "Kind: Warm\nCost: $9\nFirst: the lake\nSecond: sun" in user
    assert parse_completion(task, " the sea\nSecond: sun", "Warm") == ({"first": "the sea", "second": "sun"}, None)


@given(
    st.lists(st.sampled_from(["$label", "${label}s", "$$", "$label_x", "${second}", "\u00e9", "'s", " 5%", "%s"])),
    st.sampled_from(["warm", "$second", "100%", "%(x)s", "\\1"]),
)
@settings(deadline=None, max_examples=100)
def test_templates_are_those_of_the_standard_library(pieces, label):
    values = {"label": label, "label_x": "x", "second": "$label"}
    template = " ".join(pieces) + "$label\u00e9"
    assert render(template, values) == string.Template(template).substitute(values)


def test_label_prompt(tmp_path, pairs):
    task = load(LABELLED, tmp_path)
    prompt = render_label_prompt(task, {"first": "a $5 lake", "second": "a swim"}, [pair(0), pair(1)])
    assert prompt == (
        "",
        "Warm: both belong to summer\nnot warm: one or both belong to winter\n\n"
        "First: the beach\nSecond: sun\nKind: Warm\n\nFirst: the beach\nSecond: a big snow\nKind: not warm\n\n"
        "First: a $5 lake\nSecond: a swim\nKind:",
    )
    # A text2text task needs no second example
    task = load(FLIP.replace("[prompt]", "[prompt]\nlabel = '''\n$shots\n\n$start'''"), tmp_path)
    assert render_label_prompt(task, {"text": "lake sun"}, [flipped(0)]).user.endswith("\n\nText: lake sun\nAnswer:")
    with pytest.raises(SystemExit, match=r"prompt\.label: missing"):
        render_label_prompt(pairs, pair(0), [])


# ---------------------------------------------------------------------------------------------------------------------
# Completions

GOOD = {"first": "the sea", "second": "a boat"}


@pytest.mark.parametrize("completion, fields, reason", [
    (" the sea\nSecond: a boat", GOOD, None),
    ("the sea  \n Second:a boat\n\n", GOOD, None),
    ("Sure, here it is:\n\nKind: Warm\nFirst: the sea\nSecond: a boat", GOOD, None),  # a chat repeats the start
    ("\nFirst:\nthe sea\nSecond:\na boat", GOOD, None),
    # A chat model is not stopped: what follows a stop string is cut off
    ("the sea\n\nSecond: a boat\n\nI hope that this helps!", GOOD, None),
    (" the sea\nSecond: a boat\n\nKind: not warm\nFirst: the roof\nSecond: snow", GOOD, None),  # one too many
    ("First: the sea\n\nSecond: a boat\n\nKind: Warm\nFirst: the roof\nSecond: sun", GOOD, None),
    ("I cannot do that.", {}, "no_match"),
    (" the sea\nThird: a boat", {}, "no_match"),
    ("\nSecond: a boat", {"first": "", "second": "a boat"}, "empty_field"),
    (" the sea\nSecond: \n", {"first": "the sea", "second": ""}, "empty_field"),
    (" sea\nSecond: a boat", {"first": "sea", "second": "a boat"}, "too_short"),
    (" the sea\nSecond: one two three four five six", GOOD | {"second": "one two three four five six"}, None),
    (" the sea\nSecond: a b c d e f g", GOOD | {"second": "a b c d e f g"}, "too_long"),
    # Words of any script: min_words of first is 2, max_words of second 6
    (" 京\nSecond: a boat", GOOD | {"first": "京"}, "too_short"),
    (" 北京\nSecond: 屏幕非常非常好", {"first": "北京", "second": "屏幕非常非常好"}, "too_long"),
    (" नमस्ते\nSecond: a boat", GOOD | {"first": "नमस्ते"}, "too_short"),
])  # fmt: skip
def test_parse_classification(completion, fields, reason, pairs):
    assert parse_completion(pairs, completion, "Warm") == (fields, reason)


LAST = "First: $first\nSecond: $second\nKind: $label"


@pytest.mark.parametrize("completion, right", [
    (" the sea\nSecond: a boat\nKind: Warm", True),
    (" the sea\nSecond: a boat", True),  # cut off by a stop string, say
    (" the sea\nSecond: a boat\nKind: Warm\n\nFirst: the roof\nSecond: snow\nKind: not warm", True),
    (" the sea\nSecond: a boat\nKind: not warm", False),  # not the label that was asked
    (" the sea\nSecond: a boat\nKind: Warmest", False),
])  # fmt: skip
def test_label_at_the_end(completion, right, tmp_path):
    """What the teacher says of the label is read too: never part of a field, and never another label than asked."""
    task = load(changed(PAIRS, "Kind: $label\nFirst: $first\nSecond: $second", LAST), tmp_path)
    fields, reason = parse_completion(task, completion, "Warm")
    assert (fields, reason) == (GOOD, None) if right else reason in REASONS


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
    example = {"first": " ".join(first), "second": " ".join(second)}
    text = render(task.prompt.example, example | {"label": label})
    start, parts = split_example(task.prompt.example, {"label": label})
    assert text.startswith(start) and {name for name, _ in parts} == {"first", "second"}
    assume(not start or start not in text[len(start) :])
    completion = text if chat and start else text[len(start) :]
    assert parse_completion(task, completion + ("\n" if tail else ""), label) == (example, None)


PIECES = ["Kind: Warm", "First:", "Second:", "\n", "\n\n", "Text:", "Answer:", " a b", "$first"]


@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.text(max_size=12) | st.sampled_from(PIECES), max_size=10))
def test_any_text_is_parsed_or_rejected_with_a_known_reason(parts, pairs, flip):
    for task, label in ((pairs, "Warm"), (flip, None)):
        fields, reason = parse_completion(task, "".join(parts), label)
        assert reason is None or reason in REASONS
        if reason is None:
            assert list(fields) == task.written_fields and all(v == v.strip() != "" for v in fields.values())


def test_the_structured_pattern_fits_what_the_example_renders(pairs, flip):
    for number in range(6):
        pattern = structured_pattern(pairs, pair(number)["label"])
        completion = render(pairs.prompt.example, pair(number)).split("First:")[1]
        assert re.fullmatch(pattern, completion) and re.fullmatch(pattern, completion + "\n\n")
        assert parse_completion(pairs, completion, pair(number)["label"])[1] is None
    for wrong in ("sea\nSecond: sun", "the sea\nFirst: sun", "the sea\nSecond: a b c d e f g", "the  sea\nSecond: b"):
        assert not re.fullmatch(structured_pattern(pairs, "Warm"), f" {wrong}")
    assert re.fullmatch(structured_pattern(flip, None), " lake sun\nAnswer: sun lake")


def test_the_structured_pattern_of_special_characters_and_of_an_equation(tmp_path):
    odd = FLIP.replace("Text: $text\nAnswer: $answer", "Q (easy?) $text [A] $answer.")
    task = load(odd.replace("[student]", '[parse]\nstop = ["##", "|"]\n[student]'), tmp_path)
    pattern = structured_pattern(task, None)
    assert re.fullmatch(pattern, " a b [A] c.|") and not re.fullmatch(pattern, " a b A c.")
    pattern = structured_pattern(load_task(ROOT / "prompts/word_problems.toml"), None)
    begin = " There were 12 loaves. One basket of 4 went. How many?\nEquation: "
    assert re.fullmatch(pattern, begin + "( 12 - 4 ) * 2\n\n") and re.fullmatch(pattern, begin + "12-4")
    assert not re.fullmatch(pattern, begin + "12 minus 4") and not re.fullmatch(pattern, begin + "x = 12 - 4")


# ---------------------------------------------------------------------------------------------------------------------
# What [parse] can ask for, debris, copies

DEBRIS = (
    "<|eot_id|><|start_header_id|>user", "A fine day [/INST]", "<<SYS>> x", "the end</s>", "{{review}}",
    "You are a helpful assistant.", "a review of <C> that I liked", "[Insert topic] is warm",
    "As an AI, I like melons", "I'm sorry, but I cannot assist with that.", "I cannot fulfill this request",
    "Sure! Here it comes", "Here are three sentences about summer: a",
    # The kinds that llm_kinit_* and SmolLM2 in its chat form were seen to write
    "Cutting knowledge date: December", "five new texts that fit the 'warm' class", "I'll generate three new texts",
    "I'd be happy to help with that.", "I'm ready to assist. What now?",
)  # fmt: skip
NO_DEBRIS = (
    "a <br /> melon <br> cut", "he is here", "sure is warm", "an aide of mine", "1.5 melons", "-5 melons", "sorry",
    "1. a melon", "I can't create a card here", "I'm sorry but I know", "okay, here it lies", "a text: read it",
    "a problem: it leaks", "- a melon", "he will generate heat", "I'd be happy to see it", "the date: a fruit",
    "a text that fits well", "it can generate new texts", "I'm here to help my mother",
)  # fmt: skip


@pytest.mark.parametrize("text, reason", [(t, "debris") for t in DEBRIS] + [(t, None) for t in NO_DEBRIS])
def test_debris(text, reason, pairs):
    assert parse_completion(pairs, f"the beach\nSecond: {text}", "Warm")[1] == reason


@pytest.mark.parametrize("text, reason", [
    ("One or both belong to: winter", "echo"),  # the definition of a label
    ("one or both belong", None), ("both belong to summer", None), ("you write pairs of things", "echo"),
    ("one or both belong to", None), ("you write pairs of", None),
    ("another that is $label ($definition) $start", None),  # a variable ends a run
    ("warm: the sand", "echo"), ("Labels: warm", "echo"), ("warm sand: the beach", None),  # as the list of labels begins
])  # fmt: skip
def test_an_echo_of_the_instruction_is_no_example(text, reason, pairs):
    assert parse_completion(pairs, f"the beach\nSecond: {text}", "Warm")[1] == reason


CHECKED = FLIP.replace(
    '[student]', '[parse]\ngives = {answer = "sum"}\nspan_of = {sum = "text"}\nmax_overlap = 0.7\n[student]'
).replace('["text"]', '["text", "sum"]').replace("Answer: $answer", "Sum: $sum\nAnswer: $answer")  # fmt: skip


@pytest.mark.parametrize("completion, reason", [
    ("I have 51 apples\nSum: 51 apples\nAnswer: 50 + 1", None),
    ("I have 51 apples\nSum: 51 apples\nAnswer: 50 + 2", "check_failed"),  # another value
    ("I have 51 apples\nSum: 51 pears\nAnswer: 50 + 1", "check_failed"),  # not in the text
    ("I have 51 apples\nSum: 1 apples\nAnswer: 0 + 1", "check_failed"),  # not as whole words
    ("I have 51 apples\nSum: apples\nAnswer: 50 + 1", "check_failed"),  # no number
    ("I have 51 or 52 apples\nSum: 51 or 52\nAnswer: 50 + 1", "check_failed"),  # two numbers
    ("I have $1,200 here\nSum: $1,200\nAnswer: 600 * 2", None),
    ("It is -3 here\nSum: -3\nAnswer: 2 - 5", None),
])  # fmt: skip
def test_gives_and_span_of(completion, reason, tmp_path):
    assert parse_completion(load(CHECKED, tmp_path), completion, None)[1] == reason


@pytest.mark.parametrize("said, told", [("3.33", True), ("3.3", True), ("3.34", False), ("3", False), ("51", False)])
def test_a_stated_answer_may_be_rounded(said, told):
    assert states_value(said, "10 / 3") is told
    assert states_value("\u22127 degrees", "3 - 10") and not states_value("1001", "1000")
    assert states_value("12 m\u00b2", "12") and states_value("1,200", "1200")
    for other in ("\u0663", "\uff13 apples", "3 or \u0663", "", "three"):  # digits of ASCII alone
        assert not states_value(other, "1 + 2") and evaluate_equation(other) is None


def test_overlap_in_any_script():
    """ROUGE-L."""
    assert overlap("The cat, sat!", "the cat sat") == 1
    # LCS of a b c d and a c e d is a c d: 2 * 3 / 8
    assert overlap("a b c d", "A C E D") == pytest.approx(0.75) and overlap("a b", "c d") == 0
    assert overlap("", "") == 1 and overlap("", "a") == 0
    assert overlap("Caf\u00e9 noir", "cafe\u0301 noir") == 1
    assert overlap("2 + 3", "2 - 3") == pytest.approx(2 / 3)
    assert overlap("我喜欢手机。", "我喜欢这个手机") == pytest.approx(2 * 5 / 12)  # by characters
    assert overlap("कमल की", "कमल का") == 0.5 and overlap(":)", ":(") == 0


FOX = "the red fox jumps over it"


@pytest.mark.parametrize(
    "shot, text, always, strict",  # whether it is a copy; whether it is one with max_overlap = 0.8
    [
        (FOX, "The RED fox jumps over it!", True, True),
        (FOX, "the red fox hops over it", False, True),  # 2 * 5 / 12
        (FOX, "the red fox runs off now", False, False),
        ("the red fox", "the red ox", False, False),  # too short
        ("我非常喜欢这个手机", "我非常喜欢那个手机", False, True),  # 8 of 9 characters
        ("我非常喜欢这个手机", "我非常喜欢这个手机。", True, True),
        ("3 - 4", "3 + 4", False, False),
    ],
)
def test_copies(shot, text, always, strict, tmp_path, flip):
    shots = [{"text": "else", "answer": "z"}, {"text": shot, "answer": "x"}]
    task = load(FLIP.replace("[student]", "[parse]\nmax_overlap = 0.8\n[student]"), tmp_path)
    assert copies_shot(flip, {"text": text, "answer": "y"}, shots) is always
    assert copies_shot(task, {"text": text, "answer": "y"}, shots) is strict


def test_the_key_is_of_what_the_student_reads(pairs):
    one = {"first": "The  Lake!", "second": "sun", "label": "Warm", "id": "1"}
    assert example_key(pairs, one) == example_key(pairs, {"first": "the lake", "second": "Sun.", "label": "not warm"})
    assert example_key(pairs, {"first": "a", "second": "b c"}) != example_key(pairs, {"first": "a b", "second": "c"})
    assert example_key(pairs, {"first": "a |", "second": "b"}) != example_key(pairs, {"first": "a", "second": "| b"})
    svamp = load_task(ROOT / "prompts" / "svamp.toml")  # its field `answer` is not read
    record = {"body": "Ann has 3.", "question": "How many?", "answer": "7", "equation": "10 - 3"}
    assert example_key(svamp, record) == example_key(svamp, record | {"answer": "30"})
    assert example_key(svamp, record) != example_key(svamp, record | {"body": "Bo has 3."})
