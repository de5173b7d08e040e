# Sourced by loop.sh: variables that will not do, or do not go together, are refused before anything runs.
for name in ITERATIONS NUM_EXAMPLES; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || refuse "$name=${!name} is no number from 1 on"
done
if ((${REPORT:-0})) && ! grep -Eq '\$\{?report\b' "$TASK_FILE"; then
  refuse "STRATEGY=$STRATEGY needs \$report in [prompt] feedback of $TASK_FILE; add it, as prompts/rte.toml has it"
fi
[[ $POOL =~ ^(validation|train|none)$ || -e $POOL ]] || refuse "no file POOL=$POOL; check the path"
if ((!GENERATE)); then
  ((ANNOTATE)) || refuse "GENERATE=0 without ANNOTATE=1 leaves nothing to train on; leave it out"
  [[ $POOL == none && -z $RELABEL$FILTER ]] || refuse "GENERATE=0 with STRATEGY=$STRATEGY: feedback, RELABEL, FILTER and CRITIC are for generated examples; try STRATEGY=llmaaa"
fi
if [[ -n $CRITIC && $FILTER == *teacher_nll* ]]; then refuse "CRITIC and FILTER=\"$FILTER\": a critic has no teacher_nll; leave one of them out"; fi
if ((ANNOTATE)); then
  [[ -n $TEXTS_FILE ]] || refuse "ANNOTATE=1 needs TEXTS_FILE=/path/to/texts.jsonl"
  if [[ $CHOOSE != *random* ]] && grep -Eq '^kind *= *"text2text"' "$TASK_FILE"; then
    refuse "ANNOTATE=1 with a text2text task, of which a student predicts no label: give CHOOSE=\"--score random --low 0 --high 1\""
  fi
fi
for name in TEXTS_FILE CORPUS_FILE TUNE_FILE; do [[ -z ${!name} || -f ${!name} ]] || refuse "no $name ${!name}; check the path"; done
