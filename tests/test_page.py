"""report.py --html: the page in a real browser, with texts that would like to be more than text."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import call, one_error, write_lines

from gold import sections

BROWSER = shutil.which("chromium")
in_a_browser = pytest.mark.skipif(not BROWSER, reason="needs chromium (apt-get install chromium)")
RUN_SCRIPT = "document.title = 'executed'"
HOSTILE = [
    f"</script><script>{RUN_SCRIPT}</script>", f'<img src=x onerror="{RUN_SCRIPT}">', "<!-- <script>", "{{ 7 * 7 }} {% raw %}",
    "a\u2028b\u2029c", "a\x00b\x1bc\ufffed", "a\u202eb", "&lt;b&gt; $x_1$ \\u003c 'q' \"q\"", "]]></svg>",
]  # fmt: skip
ESCAPED = {text: text.encode("unicode_escape").decode() for text in HOSTILE if not text.isascii()}
LABELS = ("<b>good</b>", "bad & $5")
OPTIONS = {"model": "org/<i>teacher", "score": "energy", "low": 0.5, "high": 0.8, "seed": 3}


def browse(page: Path, address: str = "", script: str = "", *options: str) -> str:
    """The document as chromium has it after the page's script, and another; no console message may come."""
    if script:
        page = page.with_name("probed.html")
        page.write_text(
            (page.parent / "report.html").read_text().replace("</body>", f"<script>{script}</script></body>")
        )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command += ["--enable-logging=stderr", "--v=0", *options, f"{page.as_uri()}{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def title_of(dom: str) -> str:
    return html.unescape(re.search("<title>(.*?)</title>", dom, re.S)[1])


def rows_of(dom: str) -> list[str]:
    """The rows of the table of records, each as the text that a reader sees."""
    body = re.search('<table id="records">.*?<tbody>(.*?)</tbody>', dom, re.S)[1]
    return [html.unescape(re.sub("<[^>]*>", "|", row)) for row in body.split("</tr>")[:-1]]


def number(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def make_run(run: Path, right: int = 3, texts: list[str] = HOSTILE) -> Path:
    """Two iterations. Of iter-00's feedback f0 is shown to the first two texts of iter-01, f1 to the first alone."""
    for i in range(2):
        folder = run / f"iter-0{i}"
        shots = [["s", "f0", "f1"], ["f0"], []]
        rows = [
            {"id": f"t{i}-{n}", "label": LABELS[n % 2], "source": f"t{i}-{n}: {text}", "target": LABELS[n % 2],
             "feedback": i == 1 and n < 2, "shots": shots[min(n, 2)]}
            for n, text in enumerate(texts)
        ]  # fmt: skip
        scored = [
            r | {"id": f"f{n}", "energy": -9.0 - n, "prediction": "bad", "correct": False} for n, r in enumerate(rows)
        ]
        files = {
            "train.jsonl": rows,
            "train.rejected.jsonl": [
                *({"id": f"r{i}-{n}", "reason": "no_match", "completion": t} for n, t in enumerate(texts)),
                {"id": f"d{i}", "reason": "duplicate", "source": "the same"}, {"id": f"g{i}", "reason": "removed"},
            ],
            "validation.jsonl": [r | {"id": f"f{n}"} for n, r in enumerate(rows)] if i == 0 else [],
            "scored.jsonl": scored,
            "feedback.jsonl": [r | {"rank": 2, "score": r["energy"]} for r in scored[:2]] if i == 0 else [],
        }  # fmt: skip
        folder.mkdir(parents=True)
        for name, records in files.items():
            write_lines(folder / name, records)
        counts = {"attempted": 20, "accepted": 9, "rejected": {"no_match": 9, "duplicate": 1, "removed": 1}}
        record = {"counts": counts, "seconds": 2, "options": OPTIONS, "git_commit": "abc", "stage": "generate.py"}
        record["strategy"] = "active"
        (folder / "train.jsonl.run.json").write_text(json.dumps(record))
        (folder / "scored.jsonl.run.json").write_text(
            json.dumps(record | {"stage": "score_ood.py", "means": {"energy": -9}})
        )
    for place in ("iter-00", "iter-01", "final", "untrained"):
        (run / place).mkdir(exist_ok=True)
        tests = [{"id": f"x{n}", "source": f"x{n}", "target": "bad", "prediction": f"said {n}"} for n in range(4)]
        write_lines(run / place / "predictions.jsonl", [r | {"correct": n < right} for n, r in enumerate(tests)])
        metrics = {"task": "t", "metric": "accuracy", "n": 4, "overall": {"accuracy": number(0.5)}}
        metrics["by_label"] = {label: {"n": 2, "f1": number(0.25)} for label in LABELS}
        metrics["by_group"] = {text: {"n": 2, "accuracy": number(0.75)} for text in (*HOSTILE[:2], "a\x00b")}
        (run / place / "metrics.json").write_text(json.dumps(metrics))
    return run


def paged(*runs: Path) -> str:
    """The text of the page that report.py writes."""
    done = call("report.py", *runs, "--html")
    assert done.returncode == 0, done.stderr
    path = runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")
    assert done.stdout.splitlines()[-1] == f"the page: {path}"
    return path.read_text()


def test_one_file_with_figures_that_say_their_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    page = paged(run)
    assert "<dt>strategy</dt><dd>active</dd>" in page
    assert "accuracy by iteration" in page and "0 0.500 [0.400, 0.600]" in page  # the text alternative
    assert "9 scored from -17.000 to -9.000, 2 selected" not in page  # by label: five and four
    assert "5 scored from -17.000 to -9.000, 1 selected from -9.000 to -9.000" in page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", page)
    figures = page.split("<main>")[1].split("</main>")[0]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and page.count("<svg") == page.count('role="img"') == 12
    assert {r for r in re.findall(r'(?:url\(|xlink:href=")#([\w-]+)', figures)} <= set(ids)
    assert not re.search(r"#0[1-5]0[0-9a-f]{3}\b", figures) and "var(--series-0)" in figures
    markup = re.sub("<script.*?</script>", "", page, flags=re.S)
    outside = re.findall(r'(?:src|href)="(?!#|data:,)[^"]*|@import|url\((?!#)', markup)
    assert not outside, outside
    assert paged(run) == page  # nothing of the time or of chance in it


@in_a_browser
def test_hostile_texts_are_shown_as_text(tmp_path):
    run = make_run(tmp_path / "run")
    paged(run)
    dom = browse(run / "report.html")
    assert title_of(dom) == str(run) and dom.count("<script") == 3 and "<img" not in dom
    rows = rows_of(dom)
    for kind in ("accepted", "no_match"):
        for text in HOSTILE:
            assert any(ESCAPED.get(text, text) in row and kind in row for row in rows), (kind, text)
    assert "org/&lt;i&gt;teacher" in dom  # and in figures, where a group has such a name:
    assert re.search(r"<text[^>]*>&lt;/script&gt;&lt;script…", dom) and re.search(r"<text[^>]*>a\\x00b", dom)


@in_a_browser
def test_filters_search_pages_and_what_was_written_after_an_example(tmp_path):
    run = make_run(tmp_path / "run", texts=[f"text {n}." for n in range(60)])
    paged(run)
    page = run / "report.html"
    duplicates = rows_of(browse(page, "#kind=rejected&reason=duplicate"))
    assert ["iter-00" in row for row in duplicates] == [True, False] and all("the same" in row for row in duplicates)
    click = """document.querySelector('a[href*="reason=duplicate"][href*="iter-01"]').click()"""
    (row,) = rows_of(browse(page, "", click))  # in the table of attempts
    assert "iter-01" in row and "duplicate" in row
    (row,) = rows_of(browse(page, "#kind=rejected&q=TEXT+41.&at=iter-01"))
    assert "text 41." in row and "r1-41" in row
    assert all("wrong prediction" in row and "said 3" in row for row in rows_of(browse(page, "#kind=wrong")))
    dom = browse(page, "#kind=accepted", "document.getElementById('next').click()")
    rows = rows_of(dom)
    assert len(rows) == 50 and "t0-50" in rows[0] and "page 2 of 4" in dom and "180 of" in dom
    opened = "document.querySelectorAll('details').forEach(box => box.open = true)"
    first, second = rows_of(browse(page, "#kind=feedback", opened))
    assert "f0" in first and "2 texts were written after it" in first
    assert "t1-0: text 0." in first and "t1-1: text 1." in first
    assert "f1" in second and "1 text was written after it" in second and "t1-1" not in second
    rows = rows_of(browse(page, "#kind=accepted&at=iter-01", opened))
    assert "t0-0: text 0." in rows[0] and "t0-1: text 1." in rows[0] and "written after" not in rows[2]


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_narrow_page_does_not_scroll_sideways(width, tmp_path):
    run = make_run(tmp_path / "run", texts=["word " * 40, "x" * 900, *HOSTILE])
    paged(run)
    report = "frame => document.title = frame.contentDocument.documentElement.scrollWidth"
    frame = f"<title></title><iframe src=report.html width={width} height=900 onload='({report})(this)'></iframe>"
    (run / "frame.html").write_text(frame)
    assert int(title_of(browse(run / "frame.html", "", "", "--allow-file-access-from-files"))) <= width


@in_a_browser
def test_many_long_records(tmp_path):
    run = make_run(tmp_path / "run")
    rows = [{"id": f"r{n}", "reason": "no_match", "completion": f"{n} " + "long 語 " * 300} for n in range(30_000)]
    write_lines(run / "iter-01/train.rejected.jsonl", rows)
    page = paged(run)
    assert 5 * 2**20 < (run / "report.html").stat().st_size <= 15 * 2**20
    told = re.search(
        r"20,000 of 30,(\d+) records, evenly spaced.*?The texts of ([\d,]+) are cut to (\d+) characters", page
    )
    assert told and told[2].startswith("19,9") and told[3] in ("60", "120", "250", "500")
    dom = browse(run / "report.html", "#kind=feedback")
    assert len(rows_of(dom)) == 2 and "20,000 records" in dom  # small kinds stay whole


def test_the_yield_of_each_value_of_an_attribute(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    assert "Accepted by the value" not in paged(run)
    path = run / "iter-01/train.jsonl.run.json"
    record = json.loads(path.read_text())
    values = {"two <b>": {"attempted": 4, "accepted": 3}, "three": {"attempted": 2, "accepted": 0}}
    path.write_text(json.dumps(record | {"counts": record["counts"] | {"attributes": {"size": values}}}))
    table = paged(run).split("Accepted by the value of an attribute")[2].split("</table>")[0]  # 1 is its aria-label
    rows = [re.findall(r">(\d of \d|size: [^<]*)<", row) for row in table.split("<tr>")[2:]]
    assert rows == [["size: two &lt;b&gt;", "0 of 0", "3 of 4"], ["size: three", "0 of 0", "0 of 2"]]
    assert "--share: 0.7500" in table
    monkeypatch.setattr(sections, "MAX_VALUES", 1)
    page = paged(run)
    assert "1 more values are not shown." in page and "size: three" not in page


def test_runs_side_by_side(tmp_path):
    """One student is right on the first 3 of 4 examples, the other on 1: two losses, no gain."""
    runs = make_run(tmp_path / "a"), make_run(tmp_path / "b", right=1)
    page = paged(*runs)
    table = html.unescape(re.search("<caption>Paired differences.*?</table>", page, re.S)[0])
    assert len(re.findall(r"-0\.500 \[-1\.000, \+0\.000\]", table)) == 3  # two iterations and the final student
    assert str(runs[1]) in table and page.count("<h1>") == 1 and 'id="run"' in page
    assert not (runs[0] / "report.html").exists() and not (runs[1] / "comparison.html").exists()
    write_lines(runs[1] / "final/predictions.jsonl", [{"id": "x0", "source": "another", "correct": True}])
    assert paged(*runs).count("other test examples") == 1
    for path in runs[1].rglob("metrics.json"):
        path.write_text(path.read_text().replace('"accuracy"', '"rouge_l"'))
    done = call("report.py", *runs, "--html")
    write_lines(runs[1] / "final/predictions.jsonl", [])
    assert done.returncode == 1
    one_error(done.stderr, "'rouge_l'")


@pytest.mark.parametrize("name, content, told", [
    ("iter-00/train.jsonl", '{"id": "a"', "iter-00/train.jsonl:1: not a JSON object"),
    ("iter-00/feedback.jsonl", '{"id": "a"}', "iter-00/feedback.jsonl:1: not what a stage writes: KeyError: 'rank'"),
    ("iter-00/scored.jsonl", '{"id": "a", "energy": []}', "iter-00/scored.jsonl:1: not what a stage writes: TypeError"),
    ("iter-00/scored.jsonl.run.json", '{"options": {"low": 1}}', "run: a run record or metrics.json is not what"),
    ("iter-00/scored.jsonl.run.json", "{", "scored.jsonl.run.json: not a readable JSON file"),
    ("final/metrics.json", '{"metric": "accuracy", "n": 1, "overall": {}}', "run: a run record or metrics.json is not what"),
    ("final/metrics.json", '{"metric": "accuracy", "n": 1, "overall": {"accuracy": {"value": 1, "low": 1, "high": 1}}, '
     '"by_label": {"a": {"n": 1, "f1": {"value": 1}}}}', "metrics.json is not what a stage writes: KeyError: 'low'"),
])  # fmt: skip
def test_a_broken_file_is_told_in_one_line(name, content, told, tmp_path):
    run = make_run(tmp_path / "run")
    (run / name).write_text(content + "\n")
    done = call("report.py", run, "--html")
    assert done.returncode == 1 and not (run / "report.html").exists()
    one_error(done.stderr, told)


def test_what_is_not_there_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    files = "iter-00/metrics.json feedback.jsonl predictions.jsonl scored.jsonl scored.jsonl* train.* *.json*"
    for gone in files.split():
        for path in run.rglob(gone) if "/" not in gone else [run / gone]:
            path.unlink()
        assert "<main>" in paged(run), gone
    assert "Nothing was scored" in paged(run) and "All 0 records" in paged(run)


def test_of_many_labels_and_answers_some_are_shown(tmp_path):
    run = make_run(tmp_path / "run")
    rows = [{"id": str(n), "source": f"{n} apples", "target": f"{n} + 1"} for n in range(40)]  # text2text
    write_lines(run / "iter-00/train.jsonl", rows)
    (run / "iter-01/train.jsonl").unlink()
    path = run / "final/metrics.json"
    labels = {f"a label with a long name that ends in {n:02d}": {"n": 2, "f1": number(n / 100)} for n in range(77)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"by_label": labels}))
    page = paged(run)
    assert "12 of 79 are shown: those with the lowest F1." in page and "40 different answers are not shown" in page
    assert "a label with a l…that ends in 00 (n = 2)" in page and "ends in 12" not in page


def test_without_matplotlib_figures_are_numbers_and_one_line_names_the_cure(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = call("report.py", run, "--html")
    assert done.returncode == 0 and "iter-01" in done.stdout
    assert done.stderr.count("\n") == 1 and "matplotlib" in done.stderr and "bash setup.sh" in done.stderr
    page = (run / "report.html").read_text()
    assert "<svg" not in page and "iter-01" in page


@in_a_browser
def test_a_folder_whose_name_is_no_unicode(tmp_path):
    run = make_run(Path(os.fsdecode(bytes(tmp_path) + b"/run\xff<b>")))
    assert call("report.py", run, "--html").returncode == 0
    shutil.copy(run / "report.html", tmp_path / "report.html")
    assert title_of(browse(tmp_path / "report.html")) == f"{tmp_path}/run\\udcff<b>"
