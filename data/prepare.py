"""Public test sets in the form that the stages read: data/<task>/test.jsonl, with --train also train.jsonl.

Reads the hub (Hugging Face), or --source: files or a folder of the official distribution. One table, TASKS, says for every
task where its sides are, which columns become which fields, and which label an integer stands for. data/README.md says more.

    python -m data.prepare rte                                        # from the hub
    python -m data.prepare rte --source glue_data/RTE                 # the folder that holds dev.tsv
    python -m data.prepare mnli --split validation_mismatched --output-dir data/mnli_mismatched
    python -m data.prepare nl4opt --source generation_data/test.jsonl # this one is not on the hub

No text is corrected: line breaks, `<br />` and runs of blanks become one blank. Rows that cannot be used (no gold label, a
hidden one, no answer) are skipped, and how many and why is said. Nothing is written when anything else is wrong.
"""

import csv
import difflib
import glob
import gzip
import json
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from gold.causes import cause_of
from gold.command import fail, new_app, run_command, say
from gold.disk import beside
from gold.equations import evaluate_equation
from gold.jsonl import read_records, write_file

# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Origin:
    """Where the rows of a task are and what they are called there.

    sides: split -> (splits on the hub, globs of the official files, each also with .gz); the first one is the test side.
    columns: our field -> its names elsewhere, tried in this order; "title description" joins two columns by a blank.
    labels: in the order of the hub's integers. aliases: other names of them. also: what else a record keeps, as columns.
    """

    hub: str | None
    config: str | None
    sides: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    columns: dict[str, tuple[str, ...]]
    licence: str
    labels: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)


GLUE = {"validation": (("validation",), ("dev.tsv",)), "train": (("train",), ("train.tsv",))}
PAIR = {"premise": ("premise", "sentence1", "context"), "hypothesis": ("hypothesis", "sentence2")}
TWO, THREE = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")
SPAN = {"context": ("context",), "question": ("question",)}

TASKS = {
    "rte": Origin("nyu-mll/glue", "rte", GLUE, PAIR, "RTE-1 to 3 and 5 (PASCAL, NIST): for research", TWO),
    "qnli": Origin(
        "nyu-mll/glue", "qnli", GLUE, {"question": ("question",), "sentence": ("sentence",)}, "CC BY-SA 4.0 (SQuAD)", TWO
    ),
    "mnli": Origin(
        "nyu-mll/glue", "mnli",
        {
            "validation_matched": (("validation_matched",), ("dev_matched.tsv",)),
            "validation_mismatched": (("validation_mismatched",), ("dev_mismatched.tsv",)),
            "train": (("train",), ("train.tsv",)),
        },
        PAIR, "by genre: OANC, CC BY 3.0, CC BY-SA 3.0", THREE, also={"genre": ("genre",)},
    ),
    "anli": Origin(
        "facebook/anli", None,
        {
            split: (tuple(f"{split}_r{r}" for r in "123"), (f"R[123]/{split}.jsonl", f"{split}.jsonl"))
            for split in ("test", "dev", "train")
        },
        PAIR, "CC BY-NC 4.0", THREE, aliases=dict(zip("enc", THREE, strict=True)), also={"original_id": ("uid",)},
    ),
    "wnli": Origin("nyu-mll/glue", "wnli", GLUE, PAIR, "CC BY 4.0 (Winograd schemas)", TWO[::-1]),
    "mrpc": Origin(
        "nyu-mll/glue", "mrpc", {**GLUE, "test": (("test",), ("msr_paraphrase_test.txt",))},
        {"sentence1": ("sentence1", "#1 String"), "sentence2": ("sentence2", "#2 String")},
        "Microsoft Research: for research", ("not_equivalent", "equivalent"),
    ),
    "squad": Origin(
        "rajpurkar/squad", None,
        {"validation": (("validation",), ("dev-v1.1.json",)), "train": (("train",), ("train-v1.1.json",))},
        SPAN, "CC BY-SA 4.0", also={"title": ("title",), "original_id": ("id",)},
    ),
    "adversarial_qa": Origin(
        "UCLNLP/adversarial_qa", "adversarialQA",
        {"validation": (("validation",), ("combined/dev.json", "dev.json")),
         "train": (("train",), ("combined/train.json", "train.json"))},
        SPAN, "CC BY-SA 3.0", also={"title": ("title",), "original_id": ("id",)},
    ),
    # All 1,000 problems are one challenge set; its two splits on the hub are an invention of that copy.
    "svamp": Origin(
        "ChilleD/SVAMP", None, {"test": (("train", "test"), ("SVAMP.json",))},
        {"body": ("body", "Body"), "question": ("question", "Question")},
        "MIT", also={"type": ("type", "Type"), "original_id": ("id", "ID")},
    ),
    "nl4opt": Origin(
        None, None,
        {split: ((), (f"generation_data/{split}.jsonl", f"{split}.jsonl")) for split in ("test", "dev", "train")},
        {"problem": ("problem", "document")}, "MIT", also={"original_id": ("id",)},
    ),
    "sst2": Origin(
        "nyu-mll/glue", "sst2", GLUE, {"text": ("text", "sentence")}, "none stated; for research", ("negative", "positive")
    ),
    "imdb": Origin(
        "stanfordnlp/imdb", None,
        {
            side: ((side,), (f"{side}/neg/*.txt", f"{side}/pos/*.txt", "neg/*.txt", "pos/*.txt"))
            for side in ("test", "train")
        },
        {"text": ("text",)}, "none stated; to be cited", ("negative", "positive"),
        aliases={"neg": "negative", "pos": "positive"}, also={"rating": ("rating",)},
    ),
    "ag_news": Origin(
        "fancyzhx/ag_news", None, {side: ((side,), (f"{side}.csv",)) for side in ("test", "train")},
        {"text": ("text", "title description")}, "none stated; non-commercial use", ("World", "Sports", "Business", "Sci/Tech"),
    ),
    "trec": Origin(
        None, None, {"test": ((), ("TREC_10.label",)), "train": ((), ("train_5500.label",))},
        {"text": ("text",)}, "none stated; to be cited",
        ("abbreviation", "description", "entity", "human", "location", "number"),
        aliases={"ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location",
                 "NUM": "number"}, also={"fine": ("fine",)},
    ),
    "banking77": Origin(
        "legacy-datasets/banking77", None,
        {side: ((side,), (f"banking_data/{side}.csv", f"{side}.csv")) for side in ("test", "train")},
        {"text": ("text",)}, "CC BY 4.0",
        tuple("""activate_my_card age_limit apple_pay_or_google_pay atm_support automatic_top_up
            balance_not_updated_after_bank_transfer balance_not_updated_after_cheque_or_cash_deposit beneficiary_not_allowed
            cancel_transfer card_about_to_expire card_acceptance card_arrival card_delivery_estimate card_linking
            card_not_working card_payment_fee_charged card_payment_not_recognised card_payment_wrong_exchange_rate
            card_swallowed cash_withdrawal_charge cash_withdrawal_not_recognised change_pin compromised_card
            contactless_not_working country_support declined_card_payment declined_cash_withdrawal declined_transfer
            direct_debit_payment_not_recognised disposable_card_limits edit_personal_details exchange_charge exchange_rate
            exchange_via_app extra_charge_on_statement failed_transfer fiat_currency_support get_disposable_virtual_card
            get_physical_card getting_spare_card getting_virtual_card lost_or_stolen_card lost_or_stolen_phone
            order_physical_card passcode_forgotten pending_card_payment pending_cash_withdrawal pending_top_up
            pending_transfer pin_blocked receiving_money Refund_not_showing_up request_refund reverted_card_payment?
            supported_cards_and_currencies terminate_account top_up_by_bank_transfer_charge top_up_by_card_charge
            top_up_by_cash_or_cheque top_up_failed top_up_limits top_up_reverted topping_up_by_card
            transaction_charged_twice transfer_fee_charged transfer_into_account transfer_not_received_by_recipient
            transfer_timing unable_to_verify_identity verify_my_identity verify_source_of_funds verify_top_up
            virtual_card_not_working visa_or_mastercard why_verify_identity wrong_amount_of_cash_received
            wrong_exchange_rate_for_cash_withdrawal""".split()),
    ),
}  # fmt: skip


class Skip(Exception):
    """A row that cannot be used, and why: it is counted, not written."""


# ---------------------------------------------------------------------------------------------------------------------
# Rows: (where the row is, the row), whatever it comes from


def hub_rows(name: str, config: str | None, split: str) -> Iterator[tuple[str, dict]]:
    """Rows of a repository of the hub, or of a local folder in its form, with the names of classes for their integers."""
    try:
        from datasets import get_dataset_config_names, load_dataset
    except ImportError:
        fail("datasets is not installed, and the hub and .parquet need it; install requirements.txt, or give --source")
    try:
        if config and Path(name).is_dir() and config not in get_dataset_config_names(name):
            config = None  # a folder of one configuration need not name it
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # of the network, of the repository, of the files in it: the libraries raise many kinds
        cure = "check the folder" if Path(name).is_dir() else "try again, or give the official files with --source"
        fail(f"{name} {config or ''} {split}: cannot be loaded: {cause_of(error)}; {cure}")
    yield from dataset_rows(dataset, f"{name} {split}")


def parquet_rows(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        from datasets import Dataset, logging
    except ImportError:
        fail(f"{path}: datasets is not installed, and .parquet needs it; install requirements.txt")
    logging.set_verbosity(logging.CRITICAL)  # it logs a line of its own about what it raises
    try:
        dataset = Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:
        fail(f"{path}: not a readable parquet file: {cause_of(error)}; fetch it again")
    yield from dataset_rows(dataset, str(path))


def dataset_rows(dataset: Any, where: str) -> Iterator[tuple[str, dict]]:
    names = getattr(dataset.features.get("label"), "names", None)  # of a ClassLabel
    for number, row in enumerate(dataset):
        if names and row["label"] is not None and 0 <= row["label"] < len(names):
            row["label"] = names[row["label"]]
        yield f"{where} row {number}", row


def file_rows(path: Path, task: str) -> Iterator[tuple[str, dict]]:
    """Rows of one local file, by its ending (a .gz after it is taken off)."""
    ending = Path(path.name.removesuffix(".gz")).suffix
    if ending == ".parquet":
        yield from parquet_rows(path)
        return
    readers = {".tsv": tsv_rows, ".txt": tsv_rows, ".csv": csv_rows, ".json": json_rows, ".label": question_rows}
    if task == "imdb":
        readers[".txt"] = review_rows
    if ending not in [*readers, ".jsonl"]:
        known = ", ".join([*readers, ".jsonl", ".parquet"])
        fail(f"--source {path}: cannot be read by its ending {ending!r}; known are {known}")
    try:
        if ending == ".jsonl":
            yield from jsonl_rows(path)
            return
        opener = gzip.open if path.name.endswith(".gz") else open
        encoding = "latin-1" if ending == ".label" else "utf-8-sig"  # MSR's files begin with a byte order mark
        with opener(path, "rt", encoding=encoding, newline="") as file:
            yield from readers[ending](file, path)
    except UnicodeDecodeError as error:
        fail(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it, or fetch it again")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        fail(f"{path}: not a whole .gz file; fetch it again")
    except csv.Error as error:
        fail(f"{path}: not a readable table: {error}; fetch it again")
    except OSError as error:
        fail(f"--source {path}: cannot be read: {error.strerror or error}; check the path")


def tsv_rows(file: IO[str], path: Path) -> Iterator[tuple[str, dict]]:
    """GLUE's and MSR's tables: a header, and quotation marks that mean nothing."""
    reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    for row in reader:
        yield f"{path}:{reader.line_num}", row


def csv_rows(file: IO[str], path: Path) -> Iterator[tuple[str, dict]]:
    """A table with a header, or AG News: class from 1, title, description, without one."""
    start = re.match(r'"?[1-4]"?,', file.readline())
    file.seek(0)
    reader = csv.DictReader(file, ["label", "title", "description"] if start else None, skipinitialspace=True)
    for row in reader:
        if start and str(row["label"]).isdigit():
            row["label"] = str(int(row["label"]) - 1)
        yield f"{path}:{reader.line_num}", row


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict]]:
    for number, row in read_records(path):
        if len(row) == 1 and isinstance(only := next(iter(row.values())), dict):  # NL4Opt: {id: record}
            row = {"id": next(iter(row)), **only}
        yield f"{path}:{number}", row


def json_rows(file: IO[str], path: Path) -> Iterator[tuple[str, dict]]:
    """A list of records (SVAMP), the articles of SQuAD's form, or JSON Lines under another name."""
    try:
        data = json.load(file)
    except (ValueError, RecursionError) as error:
        if not str(error).startswith("Extra data"):
            fail(f"{path}: not JSON: {error}; fetch the file again")
        yield from jsonl_rows(path)
        return
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        try:
            data = [
                {**qa, "title": article.get("title", ""), "context": paragraph["context"]}
                for article in data["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]
            ]  # fmt: skip
        except (KeyError, TypeError, AttributeError):
            fail(f"{path}: has `data`, but not SQuAD's data > paragraphs > qas with a context; check the file")
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        fail(f"{path}: must be a list of records or SQuAD's form, found {str(data)[:60]!r}; check the file")
    for number, row in enumerate(data):
        yield f"{path} record {number}", row


def question_rows(file: IO[str], path: Path) -> Iterator[tuple[str, dict]]:
    """TREC: a question a line, behind its coarse and its fine type: NUM:dist How far is it ... ?"""
    for number, line in enumerate(file, 1):
        fine, _, text = line.strip().replace("\xf0", " ").partition(" ")  # a stray byte of the official training file
        if fine:
            yield f"{path}:{number}", {"text": text, "label": fine.split(":")[0], "fine": fine}


def review_rows(file: IO[str], path: Path) -> Iterator[tuple[str, dict]]:
    """One review of aclImdb: pos/<number>_<rating>.txt."""
    row = {"text": file.read(), "label": path.parent.name}
    if rating := re.search(r"_(\d+)\.txt", path.name):
        row["rating"] = rating[1]
    yield str(path), row


def local_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The official files in a folder: of the first folder of `patterns` that holds any; sorted."""
    found: dict[Path, list[Path]] = {}
    for pattern in patterns:
        names = set(glob.glob(pattern, root_dir=folder))
        names |= {n for n in glob.glob(f"{pattern}.gz", root_dir=folder) if n.removesuffix(".gz") not in names}
        # neg and pos belong together, and so do R1, R2 and R3
        place = Path(pattern).parent.parent if len(Path(pattern).parts) > 1 else Path(pattern).parent
        found.setdefault(place, []).extend(folder / name for name in sorted(names))
    return next((files for files in found.values() if files), [])


def source_rows(task: str, sources: list[Path], split: str) -> Iterator[tuple[str, dict]]:
    """Rows of the files and folders of --source, or of the hub without any."""
    origin = TASKS[task]
    splits, patterns = origin.sides[split]
    for source in sources:
        if not source.is_dir():
            yield from file_rows(source, task)
        elif files := local_files(source, patterns):
            for file in files:
                yield from file_rows(file, task)
        elif splits and (next(source.rglob("*.parquet"), None) or (source / "README.md").exists()):
            for name in splits:
                yield from hub_rows(str(source), origin.config, name)
        else:
            fail(f"--source {source}: holds none of {', '.join(patterns)} ({split}); give the files themselves")
    if not sources:
        for name in splits:
            yield from hub_rows(str(origin.hub), origin.config, name)


# ---------------------------------------------------------------------------------------------------------------------
# A row becomes a record


def clean(value: Any) -> str:
    """A text in one line: line breaks, <br /> and runs of blanks are one blank."""
    return " ".join(re.sub(r"<br\s*/?>", " ", str(value)).split())


def column(row: dict, names: tuple[str, ...], where: str) -> Any:
    """The value of the first of `names` that the row has; a name of two words joins two columns."""
    for name in names:
        parts = [name] if name in row else name.split()
        if all(part in row for part in parts):
            values = [row[part] for part in parts]
            if None in values:  # a line of a table that is too short
                raise Skip(f"nothing in {name!r}")
            return values[0] if len(values) == 1 else " ".join(map(str, values))
    wanted, there = " or ".join(map(repr, names)), ", ".join(map(str, row)) or "nothing"
    fail(f"{where}: no column {wanted}; found {there}; is it of that task, and of a side with public labels?")


def make_record(task: str, row: dict, where: str) -> dict:
    """The record of a row; Skip where it cannot be one. Bad rows end the command with their place."""
    origin = TASKS[task]
    record: dict[str, Any] = {name: column(row, names, where) for name, names in origin.columns.items()}
    if origin.labels:
        record["label"] = label_of(origin, row, where)
    elif task == "svamp":
        record |= equation_of(row, where)
    elif task == "nl4opt":
        record["formulation"] = row.get("formulation") or formulation_of(row, where)
    else:
        answers = answers_of(row, where)
        record |= {"answer": answers[0], "answers": answers}
    for name, value in record.items():
        if name != "answers" and not isinstance(value, str):
            fail(f"{where}: {name!r} must be a text, found {str(value)[:60]!r}; check the file")
        record[name] = clean(value) if isinstance(value, str) else value
        if not record[name]:
            raise Skip(f"nothing in {name!r}")
    if task == "anli" and (rounds := re.findall(r"(?:^|[/_])[rR]([123])(?=[/. _-])", where)):  # R1/dev.jsonl, test_r1
        record["round"] = f"R{rounds[-1]}"
    for name, names in origin.also.items():
        if value := next((row[n] for n in names if row.get(n) not in (None, "")), None):
            record[name] = clean(value)
    return record


def label_of(origin: Origin, row: dict, where: str) -> str:
    value = str(column(row, ("label", "gold_label", "Quality", "category"), where)).strip()
    without = {"-1": "the label is hidden (-1)", "-": "the annotators did not agree (-)", "": "no label"}
    if value in without:
        raise Skip(without[value])
    names = {str(number): label for number, label in enumerate(origin.labels)} | origin.aliases
    label = names.get(value, value)
    if label not in origin.labels:
        shown = ", ".join(origin.labels[:4]) + (", ..." if len(origin.labels) > 4 else "")
        fail(f"{where}: no such label: {value!r}; the labels are {shown}; is this file of that task?")
    return label


def answers_of(row: dict, where: str) -> list[str]:
    """The gold answers, each once, in their order: [{"text": ...}], {"text": [...]} (the hub), texts, or one `answer`."""
    given = row["answers"] if "answers" in row else [column(row, ("answer", "answers"), where)]
    texts = given.get("text") if isinstance(given, dict) else given
    if row.get("is_impossible") or not texts:
        raise Skip("no answer (SQuAD 2.0, or a hidden one)")
    texts = texts if isinstance(texts, list) else [texts]
    texts = [text.get("text") if isinstance(text, dict) else text for text in texts]
    if not all(isinstance(text, str) for text in texts):
        fail(f"{where}: the answers must be texts, found {str(given)[:60]!r}; check the file")
    answers = list(dict.fromkeys(filter(None, map(clean, texts))))
    if not answers:
        raise Skip("nothing in 'answer'")
    return answers


def equation_of(row: dict, where: str) -> dict[str, str]:
    """`answer` and `equation` of a word problem: 76 for 76.0, no parentheses around the whole."""
    equation = re.sub(r"(\d)\.0+(?![\d])", r"\1", clean(column(row, ("equation", "Equation"), where)))
    inner = equation[1:-1]
    depths = [inner[:i].count("(") - inner[:i].count(")") for i in range(len(inner) + 1)]
    if equation[:1] + equation[-1:] == "()" and min(depths) == 0:  # the first parenthesis is closed by the last
        equation = inner.strip()
    answer, value = str(column(row, ("answer", "Answer"), where)).strip(), evaluate_equation(equation)
    if value is None:
        raise Skip("the equation has no value")
    try:
        stated = float(answer.replace(",", ""))
    except ValueError:
        fail(f"{where}: the answer must be a number, found {answer[:60]!r}; check the file")
    if not math.isclose(value, stated, rel_tol=1e-4):
        raise Skip("the equation does not give its answer")
    return {"answer": f"{stated:.10g}", "equation": equation}


# ---------------------------------------------------------------------------------------------------------------------
# NL4Opt: the declarations become one line, such as "maximize 50 rickshaws + 30 carts; rickshaws at most carts"

WORDS = dict(zip("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
                 "seventeen eighteen nineteen".split(), range(20), strict=True))  # fmt: skip
WORDS |= dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
TIMES: dict[str, Any] = dict(once=1, twice=2, double=2, thrice=3, triple=3, hundred=100, thousand=1000, million=10**6)
TIMES |= {"half": Fraction(1, 2), "halves": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4),
          "fourth": Fraction(1, 4), "fifth": Fraction(1, 5), "sixth": Fraction(1, 6), "tenth": Fraction(1, 10)}  # fmt: skip
DIRECTION = {"max": "maximize", "high": "maximize", "most": "maximize", "incr": "maximize", "larg": "maximize",
             "great": "maximize", "min": "minimize", "low": "minimize", "least": "minimize", "decr": "minimize",
             "redu": "minimize", "small": "minimize", "few": "minimize"}  # fmt: skip
OPERATOR = {"LESS_OR_EQUAL": "at most", "GREATER_OR_EQUAL": "at least", "EQUAL": "equals"}


def number_of(text: Any) -> Fraction:
    """The number that a text of the declarations names: "$1,000", "20%", "third", "three times", "one hundred thousand"."""
    lower = str(text).lower().replace(",", "")
    total, group = Fraction(0), None
    for token in re.findall(r"\d+ ?/ ?0*[1-9]\d*|\d*\.?\d+|[a-z]+", lower):
        token = token.removesuffix("s") if token.removesuffix("s") in TIMES else token
        if token[0] in ".0123456789":
            if group is not None and "/" not in token:
                raise Skip(f"more than one number in {str(text)!r}")
            group = (group or 0) + Fraction(token.replace(" ", ""))
        elif token in WORDS:
            group = (group or 0) + WORDS[token]
        elif token in TIMES:
            group = (1 if group is None else group) * TIMES[token]
            if token in ("thousand", "million"):
                total, group = total + group, None
        elif token == "and" and group is not None:
            total, group = total + group, None
    if group is None and not total:
        raise Skip(f"no number in {str(text)!r}")
    value = (total + (group or 0)) / (100 if re.search("%|per ?cent", lower) else 1)
    return -value if lower.lstrip("$ ").startswith("-") else value


def variable_name(text: str) -> str:
    """A variable as a formulation has it: letters, digits, blanks and hyphens, beginning with a letter."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"\s*-+\s*", "-", re.sub(r"[^\w -]|_", " ", plain.replace("'", "")))
    plain = " ".join(plain.split()).strip("-")
    return plain if plain[:1].isalpha() else f"type {plain}".strip()


def formulation_of(row: dict, where: str) -> str:
    """The linear programme of a record of NL4Opt's generation task (obj_declaration, const_declarations)."""
    try:
        names = [variable_name(name) for name in column(row, ("vars",), where)]
        return "; ".join(clauses_of(row, names, where))
    except (LookupError, TypeError, AttributeError) as error:
        raise Skip(f"a declaration that cannot be read ({type(error).__name__}: {error})") from None


def clauses_of(row: dict, names: list[str], where: str) -> Iterator[str]:
    """The objective, then the constraints, over the variables `names`."""
    order = row.get("order_mapping") or {}
    if len({name.lower() for name in names}) < len(names) or not names:
        raise Skip("two variables of one name, or none")

    def variable(mention: str) -> str:
        """The variable that a mention means: by the record's own mapping, else the name that is most alike."""
        if mention in order:
            return names[order[mention]]
        return max(names, key=lambda name: likeness(mention, name))

    def terms(declaration: dict) -> dict[str, Fraction]:
        found = {variable(mention): number_of(value) for mention, value in declaration["terms"].items()}
        if not found:
            raise Skip("a declaration without terms")
        if len(found) < len(declaration["terms"]):
            raise Skip("two mentions of a term mean one variable")
        return found

    everything, one = dict.fromkeys(names, Fraction(1)), Fraction(1)
    objective = column(row, ("obj_declaration", "objective"), where)
    goal = next((v for k, v in DIRECTION.items() if objective["direction"].lower().startswith(k)), None)
    if goal is None:
        raise Skip(f"no direction: {objective['direction']!r}")
    yield f"{goal} {expression(terms(objective) if 'terms' in objective else everything)}"
    for constraint in column(row, ("const_declarations", "constraints"), where):
        kind, sign = constraint["type"], OPERATOR[constraint["operator"]]
        if kind == "linear":
            sides = terms(constraint), {"": number_of(constraint["limit"])}
        elif kind == "sum":
            sides = everything, {"": number_of(constraint["limit"])}
        elif kind in ("upperbound", "lowerbound"):
            sides = {variable(constraint["var"]): one}, {"": number_of(constraint["limit"])}
        elif kind == "ratio":
            sides = {variable(constraint["var"]): one}, dict.fromkeys(names, number_of(constraint["limit"]))
        elif kind == "xy":
            sides = {variable(constraint["x_var"]): one}, {variable(constraint["y_var"]): one}
        elif kind == "xby":
            factor = number_of(constraint["param"])
            sides = {variable(constraint["x_var"]): one}, {variable(constraint["y_var"]): factor}
        else:
            raise Skip(f"a constraint of the type {kind!r}")
        # x at most a third of y has no plain decimal, 3 x at most y has: what is left of the denominators without 2 and 5
        denominators = [value.denominator for side in sides for value in side.values()]
        factor = math.lcm(*(d // math.gcd(d, 10 ** d.bit_length()) for d in denominators))
        left, right = (expression({name: value * factor for name, value in side.items()}) for side in sides)
        yield f"{left} {sign} {right}"


def likeness(mention: str, name: str) -> tuple[float, float]:
    """How well a mention fits a variable: the share of the name's words that it has, then how alike the letters are."""
    said, words = ([word.strip(".,") for word in text.lower().split()] for text in (mention, name))
    forms = {*said, *(word + end for word in said for end in ("s", "es"))}
    forms |= {word.removesuffix(end) for word in said for end in ("s", "es")}
    letters = difflib.SequenceMatcher(None, mention.lower(), name.lower(), autojunk=False).ratio()
    return sum(word in forms for word in words) / len(words), letters


def expression(terms: dict[str, Fraction]) -> str:
    """{"carts": 3/2, "": -2} -> "1.5 carts - 2"; the name "" is a number alone."""
    text = ""
    for name, value in terms.items():
        digits = f"{float(abs(value)):.10f}".rstrip("0").rstrip(".")
        sign = ("- " if value < 0 else "+ ") if text else ("-" if value < 0 else "")
        text += f" {sign}" + (f"{digits} {name}" if name and abs(value) != 1 else name or digits)
    return text.strip() or "0"


# ---------------------------------------------------------------------------------------------------------------------
# The command


def prepare(task: str, sources: list[Path], split: str, side: str, limit: int | None) -> list[dict]:
    """All records of a split, with ids `<task>-<side>-<number of the row>`; says how many, which labels, what was skipped."""
    records, skipped, number = [], Counter(), 0
    for number, (where, row) in enumerate(source_rows(task, sources, split), 1):
        try:
            records.append({"id": f"{task}-{side}-{number}", **make_record(task, row, where)})
        except Skip as reason:
            skipped[str(reason)] += 1
    if limit and len(records) > limit:  # spread out: the files may be sorted by label
        records = [records[i * len(records) // limit] for i in range(limit)]
    origin = TASKS[task]
    hub = " ".join(filter(None, (origin.hub, origin.config)))
    name = ", ".join(map(str, sources)) or f"{hub}, {' and '.join(origin.sides[split][0])}"
    for reason, count in skipped.most_common():
        say(f"{name}: {count:,} of {number:,} rows skipped: {reason}")
    if not records:
        problem = "holds no rows" if not number else "none of its rows can be used"
        fail(f"{name}: {problem}; is this the {split} side of {task}?")
    counts = Counter(record.get("label") for record in records)
    labels = ", ".join(f"{label} {counts[label]:,}" for label in origin.labels)
    if (most := len(origin.labels)) > 12:
        labels = f"{len(counts)} of {most} labels, {min(counts.values()):,} to {max(counts.values()):,} each"
    if several := sum(len(record.get("answers", [])) > 1 for record in records):
        labels = f"{several:,} with several answers"
    say(f"{name}: {len(records):,} records{': ' * bool(labels)}{labels}; licence: {origin.licence}")
    return records


app = new_app()


@app.command()
def main(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")],
    source: Annotated[
        list[Path] | None, typer.Option(help="Official file or folder instead of the hub; repeat for several files.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Make test.jsonl of this split, such as validation_mismatched.")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Also train.jsonl, of the train split.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Try out: so many records of each file, spread over it.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of test.jsonl and train.jsonl; data/TASK without it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
) -> None:
    """Write the public test set of TASK as records."""
    if task not in TASKS:
        raise typer.BadParameter(f"{task!r} is none of {', '.join(TASKS)}", param_hint="TASK")
    origin, sources = TASKS[task], source or []
    if split and split not in origin.sides:
        raise typer.BadParameter(f"{split!r} is none of {', '.join(origin.sides)}", param_hint="--split")
    files = [path for path in sources if not path.is_dir()]
    for path in sources:
        if not path.exists():
            fail(f"--source {path}: no such file or folder; check the path")
    if files and (split or train):
        fail(f"--source {files[0]}: a file is read whole; --split and --train need the hub or the folder it is in")
    if not sources and not origin.hub:
        fail(f"{task} is not on the hub; give its official files with --source (data/README.md says where they are)")
    if train and "train" not in origin.sides:
        fail(f"--train: {task} has no training side, all of it is the test set (data/README.md); leave it out")
    folder = output_dir or Path("data") / task
    jobs = {folder / "test.jsonl": split or next(iter(origin.sides))}
    jobs |= {folder / "train.jsonl": "train"} if train else {}
    for path in jobs:
        if path.exists() and not overwrite:
            fail(f"{path}: is there already; replace it with --overwrite, or give another --output-dir")
    if not (there := next(p for p in (folder, *folder.absolute().parents) if p.exists())).is_dir():
        fail(f"--output-dir {folder}: {there} is a file; choose another folder")
    made = {path: prepare(task, sources, name, path.stem, limit) for path, name in jobs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for path, records in made.items():
        write_file(beside(path, ".partial"), records)
    for path in made:
        beside(path, ".partial").replace(path)
        say(f"wrote {path}")


if __name__ == "__main__":
    run_command(app)
