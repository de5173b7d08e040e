"""Linear programmes in words, by their optimum: what a model wrote is read by a small grammar and never evaluated.

    maximize 50 rickshaws + 30 ox carts; 10 rickshaws + 8 ox carts at most 200; rickshaws at most ox carts

optimum("maximize 3 x + 2 y; x + y at most 4")                              12.0
optimum("maximize x; x at least 1")                                         None: no finite optimum
optima_agree("minimize x; x at least 2.5", "minimize 2 boats; boats at least 1.25")     True

The first clause is maximize or minimize and a linear expression, each further one `expression relation expression`, where
the relation is at most, at least or equals: words, since the vocabulary of T5 has no sign for "less". A term is a number, a
name, or a number and a name, perhaps with a minus. A name is words of letters, digits and hyphens with single blanks between
them and begins with a letter; capitals do not count. A minus between terms has a blank before it, since a hyphen within a
word belongs to the name. Variables are continuous and not negative; one that a constraint of its own bounds from below
(x at least -5, or x equals -5) may go down to there.
"""

import math
import re

MAX_LENGTH = 2000  # characters; it bounds variables and constraints too
# Sizes of a number: beyond them HiGHS loses digits, takes a number for infinite and calls a feasible programme infeasible
# (status 2, from 1e15 on), or drops a coefficient without a word (up to 1e-9)
SMALLEST, LARGEST = 1e-6, 1e9
ROUNDING = 1e-9  # 0.3 x - 0.1 x - 0.2 x leaves 5e-17 x
WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
TERM = re.compile(
    rf" ?([+-]?) ?(-?) ?(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?![a-z0-9.-]))?(?: ?((?=[a-z]){WORD}(?: {WORD})*))?"
)


def read_expression(text: str) -> dict[str, float] | None:
    """{name: coefficient} of a linear expression, its constant under the name ""; None where it is none."""
    coefficients, place, sizes = {"": 0.0}, 0, [0.0]
    text = text.strip()
    while place < len(text):
        match = TERM.match(text, place)
        sign, minus, number, name = match.groups()
        # Signs between the terms are needed; before the first one a plus is not written
        if (number is None and name is None) or (sign == "+" if place == 0 else not sign):
            return None
        value = float(number or 1) * (-1 if sign == "-" else 1) * (-1 if minus else 1)
        coefficients[name or ""] = coefficients.get(name or "", 0.0) + value
        sizes.append(abs(value))
        place = match.end()
    return (
        coefficients if text and max(sizes) <= LARGEST and min(filter(None, sizes), default=1.0) >= SMALLEST else None
    )


def optimum(text: str) -> float | None:
    """The optimum of a formulation; None where there is none, or none is found. Never an exception.

    None: it cannot be read, has numbers beyond SMALLEST and LARGEST, is infeasible or unbounded, or HiGHS gives up (status 4
    comes for unbounded ones too). It does not say which: HiGHS's status 2 is no proof that a programme is infeasible.
    Variables are continuous: the whole-number optimum of the same words often differs (in 55 of 90 of NL4OPT's dev set).
    """
    if len(text) > MAX_LENGTH:
        return None
    first, *clauses = " ".join(text.lower().split()).rstrip("; ").split(";")
    aim = re.fullmatch(r"(maximize|minimize) (.+)", first.strip())
    objective = read_expression(aim[2]) if aim else None
    # Without a variable the number alone would be right; without a constraint nothing is formulated
    if objective is None or len(objective) == 1 or not clauses:
        return None
    rows = []  # ({name: coefficient}, relation), all on the left: expression relation 0
    for clause in clauses:
        left, *rest = re.split(r"(?<= )(at most|at least|equals)(?= )", f"{clause} ")
        sides = [read_expression(side) for side in (left, *rest[1::2])]
        if len(sides) != 2 or None in sides:
            return None
        names = dict.fromkeys([*sides[0], *sides[1]])
        row = {name: sides[0].get(name, 0.0) - sides[1].get(name, 0.0) for name in names}
        rows.append(({name: 0.0 if abs(value) < ROUNDING else value for name, value in row.items()}, rest[0]))

    names = [
        name for name in dict.fromkeys(name for row in [objective, *(row for row, _ in rows)] for name in row) if name
    ]
    least = dict.fromkeys(names, 0.0)
    table = {"at most": ([], []), "equals": ([], [])}  # relation: (coefficients, right-hand sides)
    for row, relation in rows:
        sign = -1 if relation == "at least" else 1
        coefficients, limits = table["equals" if relation == "equals" else "at most"]
        coefficients.append([sign * row.get(name, 0.0) for name in names])
        limits.append(-sign * row[""])
        alone = [name for name in row if name and row[name]]
        if len(alone) == 1 and (relation == "equals" or sign * row[alone[0]] < 0):
            least[alone[0]] = min(least[alone[0]], -row[""] / row[alone[0]])

    from scipy.optimize import linprog  # here, so that no stage's --help waits for it

    sign = -1 if aim[1] == "maximize" else 1
    try:
        found = linprog(
            [sign * objective.get(name, 0.0) for name in names],
            *(part or None for relation in ("at most", "equals") for part in table[relation]),
            bounds=[(least[name], None) for name in names],
            method="highs",
            options={"time_limit": 1.0},
        )
    except Exception:  # HiGHS may give up in ways of its own on numbers of very different size
        return None
    value = sign * found.fun + objective[""] if found.status == 0 else math.nan
    return float(value) if math.isfinite(value) else None


def optima_agree(prediction: str, target: str) -> bool:
    """Equal optima, to a relative difference of 1e-4. What has no optimum agrees with nothing, not even with itself."""
    values = optimum(prediction), optimum(target)
    return None not in values and math.isclose(*values, rel_tol=1e-4, abs_tol=1e-6)
