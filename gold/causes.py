"""Why a library's error came about, in one line.

except Exception as error:
    fail(f"--model {model}: vLLM cannot start: {cause_of(error)}")
"""

import re
import textwrap

LONGEST = 400  # characters of a cause
SAYS_NOTHING = r"validation errors? for|look at .{0,40}above report|see root cause above|^None$|^$"


def chain_of(error: BaseException) -> list[BaseException]:
    """The error and those that it came from, as a traceback shows them: the outermost first."""
    chain = [error]
    while (before := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)) and (
        before not in chain
    ):
        chain.append(before)
    return chain


def cause_of(error: BaseException) -> str:
    """The words of the outermost error of the chain that says something, in one line of at most LONGEST characters."""
    said = [words_of(one) for one in chain_of(error)]
    telling = [words for words in said if not re.search(SAYS_NOTHING, words, re.IGNORECASE)]
    words = [*telling, *filter(None, said), repr(error)][0]
    return textwrap.shorten(words, LONGEST, placeholder=" ...")


def words_of(error: BaseException) -> str:
    """What an error says, in one line: of pydantic's the messages of its fields; of a text of several lines the first, with
    the rest where it ends in a colon or a comma and so announces it."""
    if callable(getattr(error, "errors", None)) and hasattr(error, "error_count"):  # pydantic.ValidationError
        return "; ".join(map(field_error, error.errors(include_url=False, include_input=False, include_context=False)))
    if isinstance(error, KeyError) and error.args:  # its text is the bare name
        return f"KeyError: {error.args[0]!r}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines) if lines[0].endswith((":", ",")) else lines[0]) if lines else ""


def field_error(detail: dict) -> str:
    """One field's error of pydantic: "max_model_len: Input should be greater than 0"."""
    message = re.sub(r"^(Value error|Assertion failed), ", "", detail["msg"])
    where = ".".join(map(str, detail["loc"]))
    return " ".join(f"{where}: {message}".removeprefix(": ").split())
