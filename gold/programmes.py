"""Linear programmes in words, by their optimum. What a model wrote is read by a small grammar and never evaluated.

    maximize 50 rickshaws + 30 ox carts; 10 rickshaws + 8 ox carts at most 200; rickshaws at most ox carts

optimum("maximize 3 x + 2 y; x + y at most 4")                              12.0
optimum("maximize x; x at least 1")                                         None: no finite optimum
optima_agree("minimize x; x at least 2.5", "minimize 2 boats; boats at least 1.25")     True

The first clause is maximize or minimize and a linear expression. Each further one is `expression relation expression`; the
relation is at most, at least or equals (T5's vocabulary has no sign for "less"). A term is a number, a name, or both, perhaps
with a minus. A name begins with a letter: words of letters, digits and hyphens, with single blanks between them; capitals do
not count. A minus between terms has a blank before it: a hyphen within a word belongs to the name. Variables are continuous
and not negative, unless a constraint of one variable alone (x at least -5, or x equals -5) allows less.
"""

import math
import re
from collections import Counter

MAX_LENGTH = 2000  # characters; it bounds variables and constraints too
# Sizes of a number. HiGHS calls feasible programmes with larger ones infeasible (status 2, from 1e15 on) and drops smaller
# coefficients silently (up to 1e-9)
SMALLEST, LARGEST = 1e-6, 1e9
ROUNDING = 1e-9  # 0.3 x - 0.1 x - 0.2 x leaves 5e-17 x
WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
TERM = re.compile(
    rf" ?([+-]?) ?(-?) ?(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?![a-z0-9.-]))?(?: ?((?=[a-z]){WORD}(?: {WORD})*))?"
)


def read_expression(text: str) -> Counter | None:
    """{name: coefficient} of a linear expression, its constant under the name ""; None where it is none."""
    coefficients, place, text = Counter(), 0, text.strip()
    while place < len(text):
        match = TERM.match(text, place)
        sign, minus, number, name = match.groups()
        # Signs between the terms are needed; before the first one a plus is not written
        if not (number or name) or (sign == "+" if place == 0 else not sign):
            return None
        value = float(number or 1)
        if value and not SMALLEST <= value <= LARGEST:
            return None
        coefficients[name or ""] += -value if (sign == "-") != (minus == "-") else value
        place = match.end()
    return coefficients or None


def optimum(text: str) -> float | None:
    """The optimum of a formulation; None where there is none, or none is found. Never an exception.

    None: it cannot be read, has numbers beyond SMALLEST and LARGEST, is infeasible or unbounded, or HiGHS gives up; HiGHS's
    status does not reliably tell which. The whole-number optimum often differs (in 55 of 90 of NL4OPT's dev set).
    """
    first, *clauses = " ".join(text.lower().split()).rstrip("; ").split(";") if len(text) <= MAX_LENGTH else [""]
    aim = re.fullmatch(r"(maximize|minimize) (.+)", first.strip())
    objective = read_expression(aim[2]) if aim else None
    # Without a variable the number alone would be correct; without a constraint nothing is formulated
    if not objective or set(objective) == {""} or not clauses:
        return None
    least = dict.fromkeys(filter(None, objective), 0.0)
    rows, low, high = [], [], []
    for clause in clauses:
        left, *rest = re.split(r"(?<= )(at most|at least|equals)(?= )", f"{clause} ")
        sides = [read_expression(side) for side in (left, *rest[1::2])]
        if len(sides) != 2 or None in sides:
            return None
        sides[0].subtract(sides[1])  # low <= all variables on the left <= high
        row = Counter({name: 0.0 if abs(value) < ROUNDING else value for name, value in sides[0].items()})
        limit = -row.pop("", 0.0)
        rows.append(row)
        low.append(-math.inf if rest[0] == "at most" else limit)
        high.append(math.inf if rest[0] == "at least" else limit)
        least = dict.fromkeys(row, 0.0) | least
        if len(alone := [name for name in row if row[name]]) == 1:
            bound = (low if row[alone[0]] > 0 else high)[-1] / row[alone[0]]
            least[alone[0]] = min(least[alone[0]], bound if math.isfinite(bound) else 0.0)

    from scipy.optimize import Bounds, LinearConstraint, milp  # here, so that no stage's --help waits for it

    sign = -1 if aim[1] == "maximize" else 1
    try:  # HiGHS, without whole-number variables
        found = milp(
            [sign * objective[name] for name in least],
            constraints=LinearConstraint([[row[name] for name in least] for row in rows], low, high),
            bounds=Bounds(list(least.values()), math.inf),
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
