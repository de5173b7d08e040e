#!/usr/bin/env bash
# outlines_core 0.2.14: maxLength beside a pattern switches the pattern off; minimum and maximum are never looked at.
#
# One would expect: {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3} asks for both, as JSON Schema says, or
#   is refused like other things that the library does not know ("not", for one, raises ValueError).
# What happens: the expression that is built knows the length only, and takes "A1!" or "日本". Without maxLength the
#   pattern holds. {"type": "integer", "minimum": 1, "maximum": 5} takes 0, 9 and -5. Both in silence. So the tighter
#   schema gives the looser grammar.
# Why it matters here: ratings, ids and codes are asked for with just these keywords, and a pattern that works in a
#   first trial stops to work when somebody adds a bound to it. xgrammar keeps the pattern and drops the bound (with a
#   warning), llguidance keeps both: a change of the backend changes the data.
# In the toolkit: not met, --structured is a regular expression of its own, without a schema, and the parser reads
#   every completion afterwards. Cure elsewhere: check each record against the schema with a validator.
# Seen (Linux, a CPU):
#     {"type": "string", "pattern": "^[a-z]+$"} {'"abc"': True, '"A1!"': False, '"日本"': False}
#     {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3} {'"abc"': True, '"A1!"': True, '"日本"': True}
#     {"type": "string", "pattern": "^[a-z]+$", "minLength": 1} {'"abc"': True, '"A1!"': True, '"日本"': True}
#     {"type": "integer", "minimum": 1, "maximum": 5} {'3': True, '0': True, '9': True, '-5': True}
#     not: Unsupported JSON Schema structure {"not":{"type":"string"}}
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m pip install -qq --target "$dir" outlines_core==0.2.14
PYTHONPATH="$dir" python3 - <<'PY'
import json
import re

from outlines_core.json_schema import build_regex_from_schema

same = True
for schema, texts, expected in (
    ({"type": "string", "pattern": "^[a-z]+$"}, ['"abc"', '"A1!"', '"日本"'], [True, False, False]),
    ({"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, ['"abc"', '"A1!"', '"日本"'], [True, True, True]),
    ({"type": "string", "pattern": "^[a-z]+$", "minLength": 1}, ['"abc"', '"A1!"', '"日本"'], [True, True, True]),
    ({"type": "integer", "minimum": 1, "maximum": 5}, ["3", "0", "9", "-5"], [True, True, True, True]),
):
    form = build_regex_from_schema(json.dumps(schema))
    seen = [re.fullmatch(form, text) is not None for text in texts]
    same &= seen == expected
    print(json.dumps(schema), dict(zip(texts, seen, strict=True)))
try:
    build_regex_from_schema('{"not": {"type": "string"}}')
    same = False
except ValueError as problem:
    print("not:", str(problem).splitlines()[0])
raise SystemExit(None if same else "CHANGED: not the behaviour that is described at the top of this script")
PY
