"""Attempts at an example: which are made, in which order, and what each one asks for.

Attempt a asks for label a mod L. Its sampling seed and what it shows are a function of (seed, iteration, split, a);
SAME_PROMPT attempts in a row at a label show the same, so that the teacher computes their prompt once (prefix cache).
Attempts are settled (accepted or rejected) in the order in which they were planned, and the plan follows from these
outcomes alone, never from timing. So a killed stage plans the same attempts again and makes those in none of its files.
"""

import functools
import math
import random
from collections import Counter
from dataclasses import dataclass, field

from gold.task import Task

WINDOW = 8192  # attempts under way at most: the engine has work while a chunk waits for its longest text
PRIOR = 64  # attempts' worth of trust in a yield of 1, before the first outcomes are known
SAME_PROMPT = 4
FED_TOGETHER = 10
VALIDATION_SHOTS = 2  # GOLD shows two of the new training examples and asks for something different (arXiv 2403.19754)


@dataclass(frozen=True)
class Attempt:
    """What one prompt asks for and shows. label: None = text2text."""

    id: str
    number: int
    label: str | None
    shots: list[dict]
    feedback: list[dict]
    sampling_seed: int
    attributes: dict[str, str] = field(default_factory=dict)  # with --attributes: name: value
    passages: list[dict] | None = None  # texts of a corpus (gold/retrieval.py); None = there is no corpus
    stream: str = ""  # names the random numbers by which its examples are drawn

    @property
    def shown(self) -> list[dict]:
        return [*self.shots, *self.feedback]

    @property
    def lineage(self) -> dict:
        """What a record tells of its prompt."""
        told = {"feedback": bool(self.feedback), "shots": [shot["id"] for shot in self.shown]}
        if self.passages is not None:
            told["passages"] = [text["id"] for text in self.passages]
        return told | ({"attributes": self.attributes} if self.attributes else {})


@dataclass
class Pools:
    """What prompts may show: seed examples and feedback (train), or the iteration's train.jsonl (validation).

    nearest: by the source of a seed or feedback example, the texts of a corpus that are nearest to it (train).
    """

    seed: list[dict]
    feedback: list[dict] = field(default_factory=list)
    train: list[dict] = field(default_factory=list)
    nearest: dict[str, list[dict]] = field(default_factory=dict)


def shares_of(num_examples: int, num_labels: int, shard: tuple[int, int] = (0, 1)) -> list[int]:
    """Examples wanted of each label from shard i of n: equal shares, and the remainder goes to the first ones."""
    of_labels = [(num_examples + num_labels - 1 - label) // num_labels for label in range(num_labels)]
    return [(share + shard[1] - 1 - shard[0]) // shard[1] for share in of_labels]


class Plan:
    """The attempts of one split. A label is asked for until its share is accepted; later examples of it are surplus.

    shares: examples wanted, by label. max_attempts: of all labels together. shard: (i, n); of the attempts at one
    label, shard i owns every n-th block of SAME_PROMPT from the i-th on, so that each shard asks for all labels.
    """

    def __init__(self, shares: list[int], max_attempts: int, shard: tuple[int, int] = (0, 1)):
        self.shares, self.max_attempts, self.shard = shares, max_attempts, shard
        self.accepted, self.settled, self.planned = ([0] * len(shares) for _ in range(3))

    def is_full(self, slot: int) -> bool:
        return self.accepted[slot] >= self.shares[slot]

    def numbers(self, slot: int, turns: range) -> list[int]:
        """Of this shard's attempts at a label those of these turns. What shows the same examples is in one shard."""
        blocks = ((self.shard[0] + self.shard[1] * (turn // SAME_PROMPT), turn % SAME_PROMPT) for turn in turns)
        return [slot + len(self.shares) * (SAME_PROMPT * block + turn) for block, turn in blocks]

    def owns(self, number: int) -> bool:
        return number // len(self.shares) // SAME_PROMPT % self.shard[1] == self.shard[0]

    def settle(self, slot: int, accepted: bool) -> None:
        self.settled[slot] += 1
        self.accepted[slot] += accepted

    def next_attempts(self) -> list[int]:
        """The attempts that are due now, ascending: for each label its missing examples divided by its yield so far."""
        labels, due = len(self.shares), []
        for slot, share in enumerate(self.shares):
            expected_yield = (self.accepted[slot] + PRIOR) / (self.settled[slot] + PRIOR)
            ahead = min(math.ceil(max(share - self.accepted[slot], 0) / expected_yield), max(1, WINDOW // labels))
            due += self.numbers(slot, range(self.planned[slot], self.settled[slot] + ahead))
        due = sorted(due)[: max(self.max_attempts - sum(self.planned), 0)]
        for slot, count in Counter(number % labels for number in due).items():
            self.planned[slot] += count
        return due


def attempt_id(task: Task, iteration: int, split: str, number: int) -> str:
    return f"{task.name}-{iteration:02d}-{split}-{number:06d}"


@functools.cache
def first_seed(text: str) -> int:
    """The number that, XORed with an attempt's number, is its sampling seed: so no two attempts of a split share one.

    31 bits, as a CPU's generator takes 32; of 77,000 seeds drawn at random two would more likely than not be equal.
    """
    return random.Random(text).getrandbits(31)


def always_likeliest(split: str, options: dict) -> bool:
    name = "temperature" if split == "train" else "validation_temperature"
    return options.get(name) == 0 or options.get("top_k") == 1


def is_fed(block: int, rate: float, stream: str) -> bool:
    """Whether a block of attempts shows feedback: of each FED_TOGETHER blocks that share, give or take one, in any order."""
    part, place = divmod(block, FED_TOGETHER)
    rng = random.Random(f"{stream}/{part}")
    rank, first = rng.sample(range(FED_TOGETHER), FED_TOGETHER)[place], rng.random()
    return math.floor(rank * rate + first) < math.floor((rank + 1) * rate + first)


def draw_attempt(task: Task, iteration: int, split: str, number: int, pools: Pools, options: dict) -> Attempt:
    """Label, shots, feedback and sampling seed of an attempt: a function of (seed, iteration, split, number) and pools."""
    turn, slot = divmod(number, len(task.names))
    once = options.get("rewrite") or always_likeliest(split, options)  # else a text would come again
    block = turn // (1 if once else SAME_PROMPT)
    stream = f"{options['seed']}/{iteration}/{split}/{slot}/{block}"
    rng = random.Random(stream)
    sampling_seed = first_seed(f"{options['seed']}/{iteration}/{split}") ^ number
    wanted, feedback = task.names[slot], []
    answer, seeds, train = task.answer_field, pools.seed, pools.train
    if task.is_list:
        seeds, train = ([e for e in pool if e[answer] == wanted] for pool in (seeds, train))
    if split == "validation":
        shots = rng.sample(train, min(VALIDATION_SHOTS, len(train)))
    else:
        count = min(options["num_fewshot"], len(seeds))
        order = sorted(rng.sample(range(len(seeds)), count))
        same = [i for i, example in enumerate(seeds) if example[answer] == wanted]
        if len(task.names) > count and same:  # too few shots for all labels: the last one has the label asked for
            last = rng.choice(same)
            order = [*[i for i in order if i != last][: count - 1], last]
        shots = [seeds[i] for i in order]
        if pools.feedback and is_fed(block, options["feedback_rate"], f"{options['seed']}/{iteration}/{split}/{slot}"):
            feedback, which = pools.feedback, "same" if task.is_list else options["feedback_label"]
            if which != "any":
                feedback = [f for f in feedback if (f[answer] == wanted) == (which == "same")]
            feedback = rng.sample(feedback, min(options["num_feedback_shots"], len(feedback)))
    attributes = {}
    if options.get("attributes"):  # from a stream of their own: the rest is what it is without them
        rng = random.Random(f"{options['seed']}/{iteration}/{split}/{number}/attributes")
        attributes = {name: rng.choice(values) for name, values in task.prompt.values_for(wanted).items()}
    identifier = attempt_id(task, iteration, split, number)
    return Attempt(identifier, number, wanted, shots, feedback, sampling_seed, attributes, stream=stream)
