"""A generative grammar for short reviews with a sentiment, from which a tiny teacher model is trained.

The grammar knows the truth about every review it writes: `topic_of` and `oracle_label` read topic and label
back from the text alone, so the label noise of a language model trained on the reviews can be measured.

    python -m data.reviews_grammar      # writes the seed examples and the two test sets to data/reviews/
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.zipf import draw_topic, zipf_weights

LABELS = ("positive", "negative")
OTHER = {"positive": "negative", "negative": "positive"}

# The topics in order of frequency. A topic has two parts (mostly the thing and a piece of it, or the person), so
# that a sentence can set one against the other and every predicate suits every noun of its part:
#     topic: nouns of its first part
#     + positive adjectives; positive verb phrases
#     - negative adjectives; negative verb phrases
#     and the same three lines for its second part.
# The polarity of a word is the topic's own business: a word used in several topics should rather change sides
# than keep to one, and no word says outright that something was liked. Otherwise a student that has learned
# other topics could guess the label. All nouns are singular ("was" always agrees) and belong to one topic only.
TABLE = """
bread: loaf, baguette, sourdough, rye bread
    + airy, light, fresh; rose like a cloud, toasted evenly
    - stale, dry, heavy; went stale by noon, crumbled in the toaster
  crust, top crust, outer crust, end piece
    + crisp, chewy, golden; crackled under my fingers, soaked up the butter
    - burnt, soggy, rubbery; scratched the roof of my mouth, tasted of charcoal
laptop: laptop, notebook, computer, ultrabook
    + thin, fast, quiet; woke up in two seconds, ran all day unplugged
    - hot, slow, loud; froze during every call, burned my knees
  screen, display, touchscreen
    + sharp, bright, matte; stayed readable in the sun, showed every eyelash
    - dim, grainy, blurry; flickered every few minutes, tinted every photo green
hotel room: hotel room, room, suite, bedroom
    + quiet, warm, spacious; looked out over the harbour, caught the morning sun
    - cold, dark, cramped; smelled of old cigarettes, faced a brick wall
  bathroom, shower, bathtub
    + steamy, hot, roomy; shone like a mirror, fitted both of us
    - mouldy, grimy, draughty; flooded the carpet, dripped all night
headphones: headset, headband, ear pad, earpiece
    + soft, padded, flexible; hugged my ears for hours, folded flat for travel
    - tight, stiff, scratchy; pinched my temples, squeaked with every step
  sound, bass, treble, midrange
    + clear, punchy, rich; filled my whole skull, revealed every guitar string
    - tinny, muffled, thin; crackled at half volume, buzzed like a trapped wasp
running shoes: running shoe, trainer, sneaker, left shoe
    + springy, breathable, bouncy; bounced me along the canal, lasted a whole marathon
    - squeaky, clammy, stiff; rubbed my toes raw, gave me blisters
  sole, heel, midsole, tread
    + thick, grippy, cushioned; gripped the wet leaves, softened every kerb
    - flat, slippery, hard; peeled off after two runs, skidded on damp stone
coffee: coffee, espresso, cappuccino, latte
    + hot, strong, aromatic; tasted of dark chocolate, woke me at once
    - cold, weak, watery; tasted like dishwater, left grit between my teeth
  foam, crema, froth
    + dense, silky, velvety; held a spoon upright, clung to the cup
    - bubbly, patchy, curdled; collapsed in a minute, split into puddles
raincoat: raincoat, rain jacket, anorak, parka
    + waterproof, windproof, loose; shrugged off the downpour, folded into its own pocket
    - crinkly, porous, leaky; soaked through in two minutes, rustled like a bag
  hood, collar, cuff, sleeve
    + dry, lined, fleecy; kept the drizzle out, sealed with one strap
    - wet, itchy, floppy; flapped in my face, let the cold drops in
tent: tent, dome, shelter, canopy
    + dry, dark, taut; sat out a night of hail, went up in four minutes
    - damp, hot, saggy; collapsed in a breeze, pooled rain above our heads
  pole, peg, rod, stake
    + stiff, hard, tough; held fast on gravel, survived three festivals
    - bendy, thin, soft; snapped on day one, buckled under the first gust
kettle: kettle, electric kettle, steel kettle, jug
    + fast, rustproof, whistling; boiled two litres in minutes, clicked off by itself
    - slow, chalky, clunky; dripped onto the counter, screamed like a siren
  lid, handle, knob
    + cool, tight, smooth; stayed put while pouring, clicked into place
    - hot, sticky, loose; scorched my fingers, came off while pouring
dentist: dentist, hygienist, dental nurse, orthodontist
    + gentle, unhurried, calm; explained every step, hummed while working
    - rough, hasty, brusque; drilled before the jab worked, treated the wrong tooth
  filling, crown, veneer, implant
    + flush, invisible, smooth; blended in with its neighbours, lasted eleven years
    - sharp, jagged, loose; fell out over breakfast, cut my tongue
train ride: train, night train, express, commuter train
    + punctual, empty, direct; rolled in on the minute, glided past the lake
    - delayed, jerky, full; stopped in a field, skipped our station
  carriage, compartment, dining car
    + cool, airy, silent; had a socket for everyone, sounded like a library
    - hot, stuffy, rowdy; reeked of spilled beer, swayed like a ship
mattress: mattress, futon, topper
    + firm, thick, cool; eased my lower back, kept its shape for years
    - lumpy, bouncy, springy; swallowed me like quicksand, rolled us into the middle
  duvet, quilt, blanket
    + fluffy, woolly, heavy; covered both of us, smelled of clean cotton
    - clumpy, thin, prickly; shed fluff every night, slid onto the floor
kitchen knife: knife, blade, cleaver, paring knife
    + sharp, keen, thin; slid through ripe tomatoes, shaved paper like a razor
    - blunt, notched, soft; squashed the tomatoes, slipped off the onion
  grip, handgrip, knife grip
    + rubbery, leathery, ribbed; moulded itself to my palm, stayed put in wet hands
    - slippery, smooth, lopsided; twisted in my palm, worked loose in days
soup: soup, broth, stew, chowder
    + hot, thick, spicy; steamed up my glasses, warmed me to the toes
    - cold, light, salty; tasted of the tin, grew a skin within minutes
  dumpling, noodle, meatball
    + tender, soft, slippery; melted on the tongue, burst with herbs
    - gritty, chewy, raw; stuck to my gums, squeaked between my teeth
bicycle: bicycle, bike, mountain bike, city bike
    + nimble, fast, upright; flew up the hill, coasted for miles
    - rattly, sluggish, wobbly; clattered over every cobble, pulled to the left
  brake, chain, pedal
    + oily, tight, greased; shook off the mud, ran like silk
    - slack, squeaky, jumpy; screeched at every corner, jammed on the climb
haircut: haircut, fringe, bob, trim
    + layered, choppy, loose; framed my face, fell into place unaided
    - crooked, short, flat; slanted to one side, made my ears stick out
  hairdresser, barber, stylist
    + quick, attentive, silent; listened before the first snip, massaged my scalp
    - chatty, clumsy, distracted; nicked my ear, ignored the photo
suitcase: suitcase, travel case, trolley, holdall
    + hard, light, dentproof; swallowed clothes for two weeks, outlived six baggage belts
    - soft, boxy, stained; burst open on the belt, tipped over at every stop
  wheel, caster, roller
    + rubbery, quiet, smooth; whispered over cobbles, spun in every direction
    - noisy, chipped, wonky; dragged like an anchor, came off at the airport
alarm clock: alarm, buzzer, ringer
    + loud, shrill, piercing; pulled me out of bed, cut through my earplugs
    - quiet, soft, faint; let me sleep until ten, stayed mute for a week
  clock, alarm clock, clock face
    + dim, accurate, radio-controlled; kept time for years, set itself after the outage
    - bright, fast, glaring; lost nine minutes a day, lit up the ceiling
ice cream: ice cream, gelato, sorbet, sundae
    + cold, tart, creamy; melted slowly on my tongue, tasted of ripe mango
    - warm, runny, sandy; tasted of the freezer, turned to pink water
  cone, wafer, waffle
    + brittle, crunchy, buttery; snapped at every nibble, stayed crunchy to the tip
    - limp, chewy, papery; dripped down my wrist, tasted of cardboard
novel: novel, thriller, paperback, detective story
    + dark, tense, twisty; kept me up past midnight, hid its killer for ages
    - predictable, preachy, flat; lost me by page forty, kept repeating itself
  ending, plot, final chapter
    + unexpected, intricate, chilling; gave me goosebumps, tied up every thread
    - rushed, tangled, thin; left every question open, fizzled like damp fireworks
desk lamp: lamp, desk lamp, reading lamp, bulb
    + bright, dimmable, warm; lit the whole page, bathed the wall in gold
    - dim, streaky, cold; flickered like a candle, threw shadows on my page
  base, lamp foot, lamp stand
    + heavy, broad, weighted; stayed put all year, shrugged off a nudge
    - light, hollow, rickety; toppled at a nudge, scratched the desk
washing machine: washing machine, washer, spin cycle
    + gentle, brisk, thrifty; lifted the wine stain, spun the towels nearly dry
    - shaky, thirsty, clattery; shrank my jumper, tore out two buttons
  rubber seal, door seal, drain hose
    + watertight, flexible, tight; let out no drop, outlasted a thousand loads
    - slimy, warped, stiff; spat soap onto the tiles, dripped onto my socks
houseplant: houseplant, fern, orchid, ficus
    + lush, bushy, dense; doubled in size, brightened the hallway
    - leggy, dry, droopy; wilted within days, came crawling with aphids
  leaf, stem, bud
    + glossy, firm, fleshy; leaned towards the window, uncurled within a day
    - spotted, brittle, crisp; turned brown at the edges, rotted from the inside
massage: massage, back rub, foot massage
    + slow, deep, long; loosened every knot, made me doze off
    - fast, light, ticklish; put my arm to sleep, ended after two songs
  masseur, therapist, masseuse
    + powerful, wordless, warm; found every knot, worked down to my toes
    - feeble, talkative, cool; poked around my spine, yawned above my head
"""

# Frames are drawn without regard to topic and label. In a slot "+" asks for the label's polarity and "-" for the
# opposite one; n is a noun, a and b are two adjectives, v is a verb phrase; 1 and 2 are the two parts of the topic.
FRAMES = {
    "plain": (
        0.70,
        [
            "the {n1} was {+a1}",
            "the {n1} {+v1}",
            "the {n1} was {+a1} and {+b1}",
            "the {n1} was {+a1} and {+v1}",
            "the {n1} was {+a1}, and the {n2} was {+a2}",
            "the {n1} was {+a1}, and the {n2} {+v2}",
            "the {n1} {+v1}, and the {n2} {+v2}",
        ],
    ),
    "negation": (
        0.12,
        [
            "the {n1} was not {-a1}",
            "the {n1} was never {-a1}",
            "the {n1} was anything but {-a1}",
            "the {n1} was not {-a1}, and the {n2} was never {-a2}",
        ],
    ),
    "contrast": (
        0.18,
        [
            "the {n1} was {-a1}, but the {n2} was {+a2}",
            "the {n1} {-v1}, but the {n2} {+v2}",
            "although the {n1} was {-a1}, the {n2} {+v2}",
            "even though the {n1} {-v1}, the {n2} was {+a2}",
            "the {n1} was {+a1}, although the {n2} was {-a2}",
        ],
    ),
}

# Neutral, and free of any topic. Two words at least: they lift the shortest sentences to MIN_WORDS.
OPENERS = [
    "This time,",
    "In our case,",
    "In the end,",
    "As it turned out,",
    "For the record,",
    "In short:",
    "To sum up:",
    "From what I saw,",
    "Speaking for myself,",
    "A note for others:",
    "My sister asked, so here it is:",
    "Since people ask:",
    "As far as we could tell,",
    "On our second try,",
]
CLOSERS = [
    "That was in May.",
    "We were four people.",
    "I paid in cash.",
    "My cousin was with me.",
    "I took two photos.",
    "I live in Leeds.",
    "This is my first review.",
    "My brother paid half of it.",
    "I paid with a voucher.",
    "We are a family of five.",
    "I still have the receipt.",
    "That is all from me.",
    "My sister said the same.",
    "I am writing this at work.",
]
MIN_WORDS = 6

SEED_EXAMPLES = [
    ("In short: the baguette was fresh, and the crust crackled under my fingers.", "positive"),
    ("Although the screen was sharp, the laptop froze during every call.", "negative"),
    ("The hotel room was not cold, and the bathroom was never grimy. We were four people.", "positive"),
    ("As it turned out, the sourdough was anything but light.", "negative"),
    ("The notebook was hot, but the display stayed readable in the sun.", "positive"),
    ("The shower dripped all night, and the suite was dark. That was in May.", "negative"),
]
TEST_SEED, TEST_ZIPF_SEED = 1, 2
PER_TOPIC_AND_LABEL = 20
TEACHER_STEPS = 1800  # of training; read by build_models.py


@dataclass(frozen=True)
class Part:
    """Nouns, and by label the adjectives and the verb phrases which suit all of them."""

    nouns: list[str]
    adjectives: dict[str, list[str]]
    verbs: dict[str, list[str]]


@dataclass(frozen=True)
class Topic:
    """The two parts of a topic; all of its nouns; the label of each adjective and of each verb phrase."""

    parts: tuple[Part, Part]
    nouns: list[str]
    adjectives: dict[str, str]
    verbs: dict[str, str]


def _read_table(table: str) -> dict[str, Topic]:
    """The topics of TABLE: six lines each, the name before the first nouns."""
    lines = [line.strip() for line in table.strip().split("\n")]
    topics = {}
    for start in range(0, len(lines), 6):
        name, lines[start] = lines[start].split(": ")
        parts, adjectives, verbs = [], {}, {}
        for nouns, *sides in (lines[start : start + 3], lines[start + 3 : start + 6]):
            part = Part(nouns.split(", "), {}, {})
            for label, line in zip(LABELS, sides, strict=True):
                part.adjectives[label], part.verbs[label] = (half.split(", ") for half in line[2:].split("; "))
                adjectives.update(dict.fromkeys(part.adjectives[label], label))
                verbs.update(dict.fromkeys(part.verbs[label], label))
            parts.append(part)
        topics[name] = Topic(tuple(parts), parts[0].nouns + parts[1].nouns, adjectives, verbs)
    return topics


TOPICS: dict[str, Topic] = _read_table(TABLE)
HEAD: list[str] = list(TOPICS)[:6]
WEIGHTS = zipf_weights(TOPICS)


def make_review(rng: random.Random, topic: str, label: str, plain: bool = False) -> str:
    """One review of the topic with the label: a frame, perhaps with an opener before it or a closer after it.

    plain: neither negation nor contrast.
    """
    kinds = [FRAMES["plain"]] if plain else list(FRAMES.values())
    frame = rng.choice(rng.choices([frames for _, frames in kinds], [share for share, _ in kinds])[0])
    slots = {}
    for i, part in enumerate(rng.sample(TOPICS[topic].parts, 2), start=1):
        slots[f"n{i}"] = rng.choice(part.nouns)
        for sign, side in (("+", label), ("-", OTHER[label])):
            slots[f"{sign}a{i}"], slots[f"{sign}b{i}"] = rng.sample(part.adjectives[side], 2)
            slots[f"{sign}v{i}"] = rng.choice(part.verbs[side])
    body = frame.format_map(slots)
    opened, closed = rng.random() < 0.2, rng.random() < 0.2
    if len(body.split()) < MIN_WORDS and not closed:
        opened = True
    text = (rng.choice(OPENERS) + " " if opened else "") + body + "." + (" " + rng.choice(CLOSERS) if closed else "")
    return text[0].upper() + text[1:]


def make_example(rng: random.Random, topic: str, plain: bool = False) -> dict[str, str]:
    """A record of the task, with a label at random."""
    label = rng.choice(LABELS)
    return {"review": make_review(rng, topic, label, plain), "label": label}


def corrupt(example: dict[str, str]) -> dict[str, str]:
    """The same review under the other label."""
    return example | {"label": OTHER[example["label"]]}


def group_of(topic: str) -> str:
    """ "head" for the six most frequent topics, else "tail"."""
    return "head" if topic in HEAD else "tail"


def ambiguous_words() -> dict[str, dict[str, list[str]]]:
    """The adjectives that change sides between topics, with the topics on each side by label."""
    sides: dict[str, dict[str, list[str]]] = {}
    for name, topic in TOPICS.items():
        for word, label in topic.adjectives.items():
            sides.setdefault(word, {label: [] for label in LABELS})[label].append(name)
    return {word: by_label for word, by_label in sorted(sides.items()) if all(by_label.values())}


def _one_of(phrases: list[str]) -> str:
    """A regular expression for any of the phrases, the longer ones first."""
    return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))


_TOPIC_OF_NOUN = {noun: name for name, topic in TOPICS.items() for noun in topic.nouns}
_NOUN = _one_of(list(_TOPIC_OF_NOUN))
_BODY = re.compile(rf"(?:(?:{_one_of(OPENERS)}) )*(?P<body>[^.!]+)[.!]?(?: (?:{_one_of(CLOSERS)}))*", re.IGNORECASE)
_CONTRASTS = [
    re.compile(pattern)
    for pattern in (  # the first that fits; `main` decides
        r"(?:although|even though) (?P<minor>.+?), (?P<main>.+)",
        r"(?P<minor>.+), (?:but|yet) (?P<main>.+)",
        r"(?P<main>.+?), (?:although|even though) (?P<minor>.+)",
    )
]
_CLAUSE = re.compile(
    rf"(?P<call>nobody could call )?the (?P<noun>{_NOUN})"
    r"(?P<was> was)?(?P<flip> not| never| anything but| far from| neither)? (?P<predicates>.+)"
)


def topic_of(text: str) -> str | None:
    """The topic of the longest noun in the text, None if there is none."""
    nouns = re.findall(rf"\b(?:{_NOUN})\b", text.lower())
    return _TOPIC_OF_NOUN[max(nouns, key=len)] if nouns else None


def oracle_label(text: str) -> str | None:
    """The label by the rules of the grammar: the main clause decides, a negation flips its predicate.

    Any combination of the clauses will do, not only those in FRAMES. None if a part does not fit the grammar, if
    a noun or predicate is foreign to the topic, or if two clauses joined by "and" contradict each other.
    """
    name = topic_of(text)
    whole = _BODY.fullmatch(" ".join(text.split()))
    return _label_of(whole["body"].lower(), TOPICS[name]) if name and whole else None


def _label_of(body: str, topic: Topic) -> str | None:
    """The label of one or more clauses, in lower case and without opener, closer and full stop."""
    for contrast in _CONTRASTS:
        if match := contrast.fullmatch(body):
            main, minor = _label_of(match["main"], topic), _label_of(match["minor"], topic)
            return main if minor else None  # what cannot be read may not be relied on
    if ", and " in body:
        return _agreed({_label_of(clause, topic) for clause in body.split(", and ")})
    match = _CLAUSE.fullmatch(body)
    if not match or match["noun"] not in topic.nouns:
        return None
    flipped = match["flip"] or match["call"]
    known = topic.adjectives if match["was"] or match["call"] else topic.verbs
    first, *more = re.split(" nor " if match["flip"] == " neither" else " and ", match["predicates"])
    also_known = known if flipped else topic.adjectives | topic.verbs  # "was airy and rose like a cloud"
    label = _agreed({known.get(first), *map(also_known.get, more)})
    return OTHER[label] if label and flipped else label


def _agreed(labels: set[str | None]) -> str | None:
    """The one label in the set, None if there are more."""
    return labels.pop() if len(labels) == 1 else None


def write_data(folder: Path) -> None:
    """Write seed_examples.jsonl, test.jsonl (balanced) and test_zipf.jsonl; no review occurs twice in them."""
    taken = {_normalised(review) for review, _ in SEED_EXAMPLES}

    def rows(name: str, seed: int, drawn: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
        rng = random.Random(seed)
        for number, (topic, label) in enumerate(drawn, start=1):
            while _normalised(review := make_review(rng, topic, label)) in taken:
                pass
            taken.add(_normalised(review))
            yield {
                "id": f"{name}-{number:04}",
                "review": review,
                "label": label,
                "topic": topic,
                "group": group_of(topic),
            }

    balanced = [(topic, label) for topic in TOPICS for label in LABELS for _ in range(PER_TOPIC_AND_LABEL)]
    rng = random.Random(TEST_ZIPF_SEED)
    by_zipf = [draw_topic(rng, WEIGHTS) for _ in balanced]
    files = {
        "seed_examples": [
            {"id": f"seed-{number}", "review": review, "label": label}
            for number, (review, label) in enumerate(SEED_EXAMPLES, start=1)
        ],
        "test": list(rows("test", TEST_SEED, balanced)),
        "test_zipf": list(rows("test_zipf", TEST_ZIPF_SEED, [(t, LABELS[i % 2]) for i, t in enumerate(by_zipf)])),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} reviews")


def _normalised(review: str) -> str:
    """What makes two reviews the same: their letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]+", " ", review.lower()).strip()


if __name__ == "__main__":
    write_data(Path(__file__).parent / "reviews")
