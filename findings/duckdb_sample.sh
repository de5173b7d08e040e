#!/usr/bin/env bash
# duckdb 2.0.1: a sample of 10 % of 1,500 records is all of them or none, and WHERE comes after the sample.
#
# One would expect: `SELECT * FROM records USING SAMPLE 10%` gives about 150 of 1,500, and `... WHERE label = 'pos'
#   USING SAMPLE 50 ROWS`, with SAMPLE at the end of the query, gives 50 of the 150 positives.
# What happens: the default method of a percentage throws one coin for each block of 2,048 rows. A file of 1,500
#   records is one block: most seeds give 0 rows, some give all 1,500, none gives a part. "10 PERCENT (bernoulli,
#   seed)" throws a coin for each row. And SAMPLE is drawn from the table before WHERE is looked at, so 50 ROWS with a
#   WHERE that a tenth of the rows meets gives about 5, at times 0. Two notations on one page, both without a warning.
# Why it matters here: data sets of this field have some hundred to some thousand rows, and DuckDB reads our JSON
#   lines as they are. A subset "of 10 %" is then empty, or the full set in the name of a tenth.
# In the toolkit: not met, shards and samples are drawn by our own code, by row. Cure: bernoulli, and the WHERE in an
#   inner query: FROM (SELECT ... WHERE ...) USING SAMPLE reservoir(50 ROWS).
# Seen (Linux, a CPU):
#     10% (system, seed):     rows {0: 34, 1500: 6} (rows: how often, of 40)
#     10%, no seed:           rows {0: 35, 1500: 5}
#     10 PERCENT (bernoulli): rows 140 to 170
#     WHERE ... 50 ROWS:      rows 0 to 11 though 150 meet the WHERE
#     WHERE in an inner query: {50}
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -qq --target "$dir" duckdb==2.0.1
PYTHONPATH="$dir" python3 - <<'PY'
import duckdb

base = duckdb.connect()
base.execute("SET threads = 1")
base.execute(
    "CREATE TABLE records AS"
    " SELECT range AS id, CASE WHEN range % 10 = 0 THEN 'pos' ELSE 'neg' END AS label FROM range(1500)"
)


def counts(query):
    """How many rows the query gives with each of 40 seeds."""
    return [base.execute(f"SELECT count(*) FROM ({query.format(seed=s)})").fetchone()[0] for s in range(40)]


block = counts("SELECT * FROM records USING SAMPLE 10% (system, {seed})")
default = counts("SELECT * FROM records USING SAMPLE 10%")
coin = counts("SELECT * FROM records USING SAMPLE 10 PERCENT (bernoulli, {seed})")
late = counts("SELECT * FROM records WHERE label = 'pos' USING SAMPLE 50 ROWS (reservoir, {seed})")
inner = counts("SELECT * FROM (SELECT * FROM records WHERE label = 'pos') USING SAMPLE 50 ROWS (reservoir, {seed})")
print("10% (system, seed):     rows", {n: block.count(n) for n in sorted(set(block))}, "(rows: how often, of 40)")
print("10%, no seed:           rows", {n: default.count(n) for n in sorted(set(default))})
print("10 PERCENT (bernoulli): rows", min(coin), "to", max(coin))
print("WHERE ... 50 ROWS:      rows", min(late), "to", max(late), "though 150 meet the WHERE")
print("WHERE in an inner query:", set(inner))
same = (
    set(block) == {0, 1500}
    and set(default) <= {0, 1500}
    and 100 < min(coin) <= max(coin) < 200
    and max(late) < 20
    and set(inner) == {50}
)
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
