"""Templates with the teacher's reasons in them: Distilling step-by-step (Hsieh et al. 2023, arXiv 2305.02301).

mark_before_answer("$reasons So: $equation", "reasons")     what ends the reasons in what a student writes
without("Problem: $problem\nReasons: $reasons", "reasons")  "Problem: $problem"
"""

import functools
import re


def variable(name: str | None) -> str:
    """A regular expression for $name and ${name}."""
    return rf"\$(?:{name}\b|\{{{name}\}})"


@functools.cache
def mark_before_answer(target: str, name: str | None) -> re.Pattern | None:
    """What stands between the reasons and the answer, in any spacing and capitals: a student's tokenizer may change these.

    None where a target has no reasons, or nothing to see between the two.
    """
    found = re.search(rf"{variable(name)}([^$]*)\$", target)
    letters = "".join(found[1].split()) if found else ""
    begin = r"(?<!\w)" if letters[:1].isalnum() else ""
    return re.compile(begin + r"\s*".join(map(re.escape, letters)), re.IGNORECASE) if letters else None


@functools.cache
def without(template: str, name: str) -> str:
    """The template without a variable: without its whole line, where no other variable stands in that."""
    shorter = re.sub(rf"(?m)^[^$\n]*{variable(name)}[^$\n]*(?:\n|\Z)", "", template)
    return re.sub(rf"{variable(name)}\s*", "", shorter).strip("\n")
