"""Equations by value. What a model wrote is data, so Python itself never evaluates it.

evaluate_equation("x = ( 12 - 5 ) * 3")  21.0       what stands before the one `=` may only be a letter
evaluate_equation("2 ** 99")             None       as is everything else that is not + - * / over plain numbers
equations_agree("12 - 5", "(12-5)*1")    True
"""

import math
import re

MAX_LENGTH = 200  # characters; with it nesting is bounded too
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
# ASCII alone: float("٣") is 3, and nobody would see it. No power, no floor division
ALLOWED = re.compile(r"(?:[A-Za-z] *= *)?((?:[0-9.+\-() ]|\*(?! ?\*)|/(?! ?/))+)")


def evaluate_equation(text: str) -> float | None:
    """The value of an arithmetic expression, None where there is none; never an exception, never slow.

    Numbers (12, 1.5, .5), + - * / and parentheses, within MAX_LENGTH characters, perhaps after `x =`. Division by zero
    and what overflows have no value.
    """
    match = ALLOWED.fullmatch(" ".join(text.split())) if len(text) <= MAX_LENGTH else None
    if not match:
        return None
    from simpleeval import SimpleEval  # here, so that no stage's --help waits for it

    # As floats: Python refuses 012, and and a product of long integers takes long
    text = NUMBER.sub(lambda number: repr(float(number[0])), match[1])
    try:
        value = SimpleEval(functions={}, names={}).eval(text)
    except Exception:  # the parser and simpleeval raise many kinds, ZeroDivisionError and MemoryError among them
        return None
    return value if isinstance(value, float) and math.isfinite(value) else None


def equations_agree(prediction: str, target: str) -> bool:
    """The same value, to a relative difference of 1e-6. What has no value agrees with nothing, not even with itself."""
    values = evaluate_equation(prediction), evaluate_equation(target)
    return None not in values and math.isclose(*values, rel_tol=1e-6, abs_tol=1e-9)


def states_value(statement: str, equation: str) -> bool:
    """Whether a statement such as "51", "$1,200" or "3.33 apples" names one number, and that is the equation's value,
    rounded to as many decimals as the number has, if any."""
    statement = re.sub(r"(?<=\d),(?=\d{3}\b)", "", statement.replace("\u2212", "-"))
    # \d finds the digits of all scripts, since they state a number too, but only ASCII ones are read
    numbers, value = re.findall(r"-?(?:\d+(?:\.\d+)?|\.\d+)", statement), evaluate_equation(equation)
    if len(numbers) != 1 or value is None or len(numbers[0]) > 30 or not numbers[0].isascii():
        return False
    decimals = len(numbers[0].partition(".")[2])
    return math.isclose(round(value, decimals) if decimals else value, float(numbers[0]), rel_tol=1e-6, abs_tol=1e-9)
