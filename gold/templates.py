"""Templates of a task file: string.Template with a record's fields.

render(task.student.source, record)                         the template with the fields in it
render_known(task.prompt.example, record)                   the same without the reasons, where the record has none
mark_before_answer("$reasons So: $equation", "reasons")     what ends the reasons in what a student writes
without("Problem: $problem\nReasons: $reasons", "reasons")  "Problem: $problem"
"""

import functools
import re
import string


def without_passages(template: str) -> str:
    """A template without the line `$passages` and its heading, the lines right above it."""
    return re.sub(r"(?m)(^.+\n)*^\$(passages|\{passages\})\n+", "", template)


@functools.cache
def variables(template: str) -> frozenset[str]:
    """The names of a template's variables."""
    return frozenset(string.Template(template).get_identifiers())


@functools.cache
def without_attributes(template: str) -> str:
    """The template without the lines that hold $attributes. One that begins a paragraph takes the line ends after it along."""
    line = r".*\$(?:attributes\b|\{attributes\}).*"
    return re.sub(rf"(?m)(?:\A|(?<=\n\n)){line}\n+|^{line}(?:\n|\Z)", "", template)


@functools.cache
def percent_form(template: str) -> str:
    return string.Template(template.replace("%", "%%")).substitute({v: f"%({v})s" for v in variables(template)})


def render(template: str, values: dict) -> str:
    """string.Template(template).substitute(values), ten times as fast: it is most of the checking of records."""
    return percent_form(template) % values


def render_known(template: str, record: dict) -> str:
    """render, without what the record has not: people's records have no reasons."""
    for name in variables(template):
        if record.get(name) is None:
            template = without(template, name)
    return render(template, record)


# ---------------------------------------------------------------------------------------------------------------------
# The teacher's reasons: Distilling step-by-step (Hsieh et al. 2023, arXiv 2305.02301)


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
