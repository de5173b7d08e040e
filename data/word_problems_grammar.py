"""A generative grammar for short arithmetic word problems with reasons and equations, from which tiny teachers are trained.

The grammar knows the truth about every problem it writes: `topic_of` and `oracle_equation` read setting and equation back
from the text alone, so the noise of a language model trained on the problems can be measured.

    python -m data.word_problems_grammar    # writes the seed examples and the two test sets to data/word_problems/
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from data.zipf import draw_topic, zipf_weights
from gold.equations import evaluate_equation
from gold.text import text_key

# The settings in order of frequency. What happens in a setting is the setting's own business: every line after the nouns
# has two clauses for one operation, # stands for the number. The words that tell the operation belong to the setting; the
# few that return tell another one more often than the same. The shapes of the clauses occur with two operations at least:
# "each of # ..." takes or brings, "one of # ..." may have been all that was counted (then there is # times as much) or all
# that stayed (then there is a part of it). Otherwise a student that has learnt other settings could guess.
TABLE = """
bakery: loaves, rolls, buns
    + # came out of the oven; each of # cooks kneaded one
    - # were burnt black; one basket of # went to the inn
    * one oven of # had been opened; the baker pointed at one of # trays
    / one table of # was fed; the mayor kept one of # heaps
library: books, novels, atlases
    + a widow donated #; one crate of # was returned
    - # were lent out; each of # readers borrowed one and smiled
    * one shelf of # was dusted; we had searched one of # floors
    / one school of # unpacked its part; a nun chose one of # stacks
harbour: boats, barges, trawlers
    + # sailed in at dusk; the yard launched # and rested
    - a storm sank #; each of # captains steered one away
    * one pier of # lay in view; the pilot knew one of # bays
    / one island of # paid its share; a duke rented one of # rows
orchard: apples, pears, plums
    + # ripened overnight; each of # boughs bore one
    - # were picked; one pail of # fed the wasps
    * one tree of # was shaken; a child walked along one of # rows
    / one cousin of # carried his share; the cider press took one of # mounds
farm: sheep, goats, lambs
    + # were born in March; one herd of # was driven over
    - each of # wolves took one; the fair sold # and we wept
    * one meadow of # was fenced; the dog circled one of # flocks
    / one brother of # inherited; the shepherd sheared one of # groups
school: pupils, children, scholars
    + # moved in from town; the bus set down #
    - # fell ill; one choir of # sang elsewhere
    * one classroom of # was swept; the inspector met one of # years
    / one team of # won; the nurse examined one of # queues
post office: letters, parcels, postcards
    + one sack of # was dropped off; # lay in the box outside
    - the postman set out with #; each of # clerks sent one
    * one street of # was done; the widow weighed one of # sacks
    / one van of # broke down; a spy opened one of # bundles
museum: paintings, statues, vases
    + each of # collectors lent one; # came up from the cellar
    - thieves carried off # and hid; # were sold to Rome
    * one wing of # was lit; the guide described one of # towers
    / one room of # stayed open; the queen admired one of # circles
aquarium: fish, crabs, seahorses
    + # hatched in the tank; one bucket of # was tipped in
    - the shark swallowed #; each of # divers freed one
    * one pond of # was drained; the diver explored one of # reefs
    / one tank of # froze; the seal chased one of # swarms
theatre: costumes, masks, wigs
    + the tailor stitched # and bowed; # turned up in an attic
    - moths ruined #; one trunk of # went on tour
    * one act of # was over; the critic praised one of # stacks
    / one actor of # got dressed; a sponsor paid for one of # boxes
garden: tulips, roses, lilies
    + # opened in the sun; each of # aunts planted one
    - # were cut for the table; the slugs finished #
    * one bed of # was weeded; the snail crossed one of # lawns
    / one jug of # fell; grandmother smelled one of # bunches
circus: clowns, jugglers, acrobats
    + # tumbled in from the wings; the director hired # and cheered
    - # ran off to sea; one troupe of # caught a cold
    * one arena of # was sold out; the drummer faced one of # boxes
    / one wagon of # drove ahead; the lion greeted one of # rings
honey farm: hives, combs, honey pots
    + one load of # was delivered; the keeper sealed #
    - the bear robbed #; # melted in the heat and dripped
    * one slope of # was mown; the vicar blessed one of # groves
    / one sister of # retired; the bishop tasted one of # crates
quarry: stones, slabs, boulders
    + the blast freed #; # rolled down the slope
    - # went to the mason; each of # winters cracked one
    * one lorry of # was full; the engineer drew one of # walls
    / one bridge of # was paid for; the river covered one of # layers
ferry: passengers, tourists, cyclists
    + each of # taxis brought one; # hurried up the gangway
    - # got off at the island and waved; one party of # stayed ashore
    * one deck of # was rainy; the captain logged one of # trips
    / one lifeboat of # leaked; the gull followed one of # lines
toy shop: dolls, kites, puppets
    + grandfather carved #; one box of # was unpacked
    - # were wrapped as gifts; the puppy chewed # and slept
    * one window of # was decorated; the mouse hid in one of # crates
    / one nephew of # said thanks; the robber grabbed one of # lots
garage: tyres, bolts, lamps
    + # were mended; the supplier wheeled in # and left
    - # burst on the road; each of # drivers used one
    * one bus of # was washed; the boss audited one of # weeks
    / one workshop of # phoned; the racer tried one of # sets
kitchen: eggs, onions, lemons
    + # rolled out of the net; each of # neighbours gave one
    - # went into the soup; one bowl of # was dropped
    * one recipe of # was read aloud; the cat sniffed at one of # drawers
    / one pan of # tipped over; the guest liked one of # meals
observatory: stars, comets, moons
    + # rose above the hill; a new lens showed # and shone
    - clouds hid #; # faded at dawn
    * one chart of # was finished; the telescope swept one of # skies
    / one student of # dozed; the poet named one of # clusters
laundry: shirts, towels, aprons
    + the hotel sent #; one heap of # was found
    - the wind blew away #; # shrank and tore
    * one line of # was taut; the foreman stopped one of # washers
    / one maid of # was ready; the iron scorched one of # loads
"""

# The rest is neutral: it is drawn without regard to setting and operation. {a} is the first number, {n} a noun, {c} and
# {d} are the clauses of what happened, in their order; "before" mentions the second number first.
STARTS = [
    "there were {a} {n}",
    "we counted {a} {n}",
    "the tally was {a} {n}",
    "my notes said {a} {n}",
    "the list said {a} {n}",
    "somebody saw {a} {n}",
]
FRAMES = {
    1: ["{start}. {c}.", "{start}, and {c}.", "{start}. Then {c}.", "{start}, then {c}.", "before {c}, {start}."],
    2: ["{start}. {c}, and {d}.", "{start}, and {c}. Then {d}.", "{start}. Then {c}. Later {d}."],
}
QUESTIONS = [
    "How many {n} was that?",
    "How many {n} does that make?",
    "How many {n} were there in the end?",
    "What was the number of {n}?",
]

WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}

# Operations in order of frequency. Every one draws its numbers alike, so that numbers do not tell it: the first is a
# multiple of the second, and the third is less than what the first step gives, so that nothing is negative or broken.
OPERATIONS = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "subtract_add": "-+",
    "add_multiply": "+*",
    "multiply_subtract": "*-",
    "divide_add": "/+",
}
PAIRS = [
    (b * k, b) for b in range(2, 7) for k in range(2, 7) if (b, k) != (2, 2)
]  # 4 - 2 is 4 / 2: it would tell nothing
THIRD = range(2, 7)

SEED_EXAMPLES = [
    ("There were 12 loaves. One basket of 4 went to the inn. How many loaves was that?", "12 - 4"),
    ("We counted 15 novels, and a widow donated 5. How many novels does that make?", "15 + 5"),
    ("My notes said 6 barges. Then one pier of 3 lay in view. What was the number of barges?", "6 * 3"),
    ("The list said 20 atlases. One school of 4 unpacked its part. How many atlases were there in the end?", "20 / 4"),
    ("Before a storm sank 2, the tally was 10 trawlers. How many trawlers was that?", "10 - 2"),
    ("Somebody saw 8 buns, then each of 2 cooks kneaded one. How many buns does that make?", "8 + 2"),
    (
        "There were 18 rolls, and 6 were burnt black. Then 3 came out of the oven. What was the number of rolls?",
        "( 18 - 6 ) + 3",
    ),
    ("We counted 6 books. We had searched one of 2 floors. How many books does that make?", "6 * 2"),
]
TEST_SEED, TEST_ZIPF_SEED = 1, 2
PER_SETTING_AND_OPERATION = 5
TEACHER_STEPS = 1200  # of training; read by build_models.py


def _read_table(table: str) -> dict[str, tuple[list[str], dict[str, list[str]]]]:
    """The settings of TABLE, five lines each: (nouns, clauses by sign)."""
    lines = [line.strip() for line in table.strip().split("\n")]
    settings = {}
    for start in range(0, len(lines), 5):
        name, nouns = lines[start].split(": ")
        clauses = {line[0]: line[2:].split("; ") for line in lines[start + 1 : start + 5]}
        settings[name] = (nouns.split(", "), clauses)
    return settings


SETTINGS = _read_table(TABLE)
WEIGHTS = zipf_weights(SETTINGS)
OPERATION_WEIGHTS = zipf_weights(OPERATIONS)
HEAD: list[str] = list(SETTINGS)[:6]


def make_problem(rng: random.Random, setting: str, operation: str) -> dict[str, str]:
    """One problem of the setting, its equation, and by which clauses, as a record of word_problems_reasons."""
    signs = OPERATIONS[operation]
    nouns, clauses = SETTINGS[setting]
    while True:
        numbers = [*rng.choice(PAIRS), rng.choice(THIRD)]
        equation = equation_of(numbers[: len(signs) + 1], signs)
        first_step = evaluate_equation(equation_of(numbers[:2], signs[0]))
        if len(signs) == 1 or first_step > numbers[2]:
            break
    happened = [
        rng.choice(clauses[sign]).replace("#", str(number)) for sign, number in zip(signs, numbers[1:], strict=False)
    ]
    noun = rng.choice(nouns)
    start = rng.choice(STARTS).format(a=numbers[0], n=noun)
    slots = dict(zip("cd", happened, strict=False)) | {"start": start}
    body = rng.choice(FRAMES[len(signs)]).format(**slots)
    problem = f"{body} {rng.choice(QUESTIONS).format(n=noun)}"
    return {
        "problem": in_capitals(problem),
        "reasons": reasons_of(numbers[: len(signs) + 1], signs, happened),
        "equation": equation,
    }


def reasons_of(numbers: list[int], signs: str, happened: list[str]) -> str:
    """ "At first 18. 6 were burnt black, minus 6. 3 came out of the oven, plus 3.": one step after the other."""
    steps = zip(happened, signs, numbers[1:], strict=True)
    return in_capitals(" ".join([f"At first {numbers[0]}.", *(f"{c}, {WORDS[s]} {n}." for c, s, n in steps)]))


def in_capitals(text: str) -> str:
    return re.sub(r"(?:^|(?<=\. ))[a-z]", lambda letter: letter[0].upper(), text)


def make_example(rng: random.Random, setting: str, plain: bool = False) -> dict[str, str]:
    """A record of the task, with an operation by Zipf's law. plain: one of the four with one step, each as likely."""
    if plain:
        return make_problem(rng, setting, rng.choice(list(OPERATIONS)[:4]))
    return make_problem(rng, setting, draw_topic(rng, OPERATION_WEIGHTS))


def corrupt(example: dict[str, str]) -> dict[str, str]:
    """The same problem with an equation, and reasons, whose last step does the opposite."""
    *before, sign, number = example["equation"].split(" ")
    opposite = {"+": "-", "-": "+", "*": "/", "/": "*"}[sign]
    reasons = example["reasons"].removesuffix(f"{WORDS[sign]} {number}.") + f"{WORDS[opposite]} {number}."
    return example | {"reasons": reasons, "equation": " ".join([*before, opposite, number])}


def equation_of(numbers: list, signs: str) -> str:
    """`12 - 5`, `( 12 - 5 ) * 3`: the steps in their order, whatever binds more tightly."""
    equation = str(numbers[0])
    for step, (sign, number) in enumerate(zip(signs, numbers[1:], strict=True)):
        equation = f"( {equation} )" if step else equation
        equation += f" {sign} {number}"
    return equation


def group_of(setting: str) -> str:
    """ "head" for the six most frequent settings, else "tail"."""
    return "head" if setting in HEAD else "tail"


def _one_of(phrases: list[str]) -> str:
    """A regular expression for any of the phrases, the longer ones first."""
    return "|".join(phrases[i] for i in sorted(range(len(phrases)), key=lambda i: -len(phrases[i])))


_TOPIC_OF_NOUN = {noun: name for name, (nouns, _) in SETTINGS.items() for noun in nouns}
_NOUN = rf"(?:{_one_of(list(_TOPIC_OF_NOUN))})"
_START = re.compile(rf"(?:{_one_of([s.format(a='([0-9]+)', n=_NOUN) for s in STARTS])})\b", re.IGNORECASE)
_QUESTION = re.compile(rf" (?:{_one_of([q[:-1].format(n=_NOUN) for q in QUESTIONS])})\?", re.IGNORECASE)
_CLAUSES = {
    name: [
        (re.compile(re.escape(clause).replace(r"\#", "([0-9]+)") + r"\b", re.IGNORECASE), sign)
        for sign, line in clauses.items()
        for clause in line
    ]
    for name, (_, clauses) in SETTINGS.items()
}
_BETWEEN = re.compile(r"(?:[.,]|\b(?:and|then|later)\b|\s)*", re.IGNORECASE)


def topic_of(text: str) -> str | None:
    """The setting of the nouns in the text, None if there is none or more than one."""
    found = {_TOPIC_OF_NOUN[noun] for noun in re.findall(rf"\b{_NOUN}\b", text.lower()) if noun in _TOPIC_OF_NOUN}
    return found.pop() if len(found) == 1 else None


def oracle_equation(text: str) -> str | None:
    """The equation by the rules of the grammar: what happened, in the order of the text, to the number at the start.

    Any number of clauses will do, not only those in FRAMES. None if a part does not fit the grammar, if a clause is
    foreign to the setting, or if there is not one start, one clause or more and one question.
    """
    text = " ".join(text.split())
    setting, question = topic_of(text), _QUESTION.search(text)
    if not setting or not question or question.end() < len(text):
        return None
    body, first, steps = text[: question.start()], None, []
    before = body.lower().startswith("before ")
    at = len("before ") if before else 0
    while at < len(body):
        if match := _START.match(body, at):
            if first is not None or len(steps) != before:
                return None
            first = next(filter(None, match.groups()))
        else:
            for pattern, sign in _CLAUSES[setting]:
                if match := pattern.match(body, at):
                    steps.append((sign, match[1]))
                    break
            else:
                return None
        at = _BETWEEN.match(body, match.end()).end()
    if first is None or not steps:
        return None
    return equation_of([first, *(number for _, number in steps)], "".join(sign for sign, _ in steps))


def write_data(folder: Path) -> None:
    """Write seed_examples.jsonl, test.jsonl (balanced) and test_zipf.jsonl; no problem occurs twice in them."""
    taken = {text_key(problem) for problem, _ in SEED_EXAMPLES}

    def rows(name: str, seed: int, drawn: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
        rng = random.Random(seed)
        for number, (setting, operation) in enumerate(drawn, start=1):
            while text_key((made := make_problem(rng, setting, operation))["problem"]) in taken:
                pass
            taken.add(text_key(made["problem"]))
            yield {
                "id": f"{name}-{number:04}",
                "problem": made["problem"],
                "equation": made["equation"],
                "setting": setting,
                "operation": operation,
                "group": group_of(setting),
            }

    balanced = [(s, operation) for s in SETTINGS for operation in OPERATIONS for _ in range(PER_SETTING_AND_OPERATION)]
    rng = random.Random(TEST_ZIPF_SEED)
    by_zipf = [(draw_topic(rng, WEIGHTS), draw_topic(rng, OPERATION_WEIGHTS)) for _ in balanced]
    files = {
        "seed_examples": [
            {"id": f"seed-{number}", "problem": problem, "equation": equation}
            for number, (problem, equation) in enumerate(SEED_EXAMPLES, start=1)
        ],
        "test": list(rows("test", TEST_SEED, balanced)),
        "test_zipf": list(rows("test_zipf", TEST_ZIPF_SEED, by_zipf)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} problems")


if __name__ == "__main__":
    write_data(Path(__file__).parent / "word_problems")
