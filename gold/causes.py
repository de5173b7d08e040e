"""The cause of a library's error in one line: fail(f"--model {model}: vLLM cannot start: {cause_of(error)}")."""

import re
import textwrap

LONGEST = 400  # characters of a cause
SAYS_NOTHING = r"validation errors? for|look at .{0,40}above report|see root cause above|^None$"


def chain_of(error: BaseException | None) -> list[BaseException]:
    """The error and its causes, as a traceback shows them: the outermost first."""
    chain = []
    while error:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


def cause_of(error: BaseException) -> str:
    """The text of the outermost error of the chain that says something, in one line of at most LONGEST characters."""
    texts = list(filter(None, map(text_of, chain_of(error))))
    telling = [text for text in texts if not re.search(SAYS_NOTHING, text, re.IGNORECASE)]
    return textwrap.shorten([*telling, *texts, repr(error)][0], LONGEST, placeholder=" ...")


def text_of(error: BaseException) -> str:
    """An error's first line, with the others where it ends in a colon or comma; of pydantic's the fields' messages."""
    if callable(getattr(error, "errors", None)) and hasattr(error, "error_count"):  # pydantic.ValidationError
        return "; ".join(map(field_error, error.errors(include_url=False, include_input=False, include_context=False)))
    if isinstance(error, KeyError) and error.args:  # its text is the bare name
        return f"KeyError: {error.args[0]!r}"
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return " ".join([first, *others]) if first.endswith((":", ",")) else first


def field_error(detail: dict) -> str:
    """One field's error of pydantic: "max_model_len: Input should be greater than 0"."""
    message = re.sub(r"^(Value error|Assertion failed), ", "", detail["msg"])
    where = ".".join(map(str, detail["loc"]))
    return " ".join(f"{where}: {message}".removeprefix(": ").split())
