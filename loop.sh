#!/usr/bin/env bash
# GOLD, one line a stage: a teacher writes examples, a student learns them, a score finds what it has not learnt, and these examples
# steer what the teacher writes next.
#
#   bash loop.sh                                            the embedded demonstration: no GPU, no download, minutes
#   TEACHER=Qwen/Qwen2.5-7B-Instruct STUDENT=google-t5/t5-base bash loop.sh prompts/rte.toml runs/rte
#   STRATEGY=zerogen bash loop.sh prompts/reviews.toml runs/zerogen        another strategy; strategies/ has them all
#   LAUNCH="srun --gpus=1" TEACHER=... STUDENT=... bash loop.sh prompts/rte.toml runs/cluster
#   SERVE=1 TEACHER=... STUDENT=... bash loop.sh prompts/rte.toml runs/rte           one vLLM server for all iterations
#
# Killed? Run the same line again: finished stages say "up to date", the one that was cut off goes on. Ctrl-C ends the stage at once;
# at SIGTERM generate.py and label.py end their chunk first. PYTHON=/path/to/python installs nothing, and uses your own.
set -euo pipefail
cd "$(dirname "$0")"
refuse() { echo "error: $1" >&2; exit 1; }

TASK_FILE=${1:-prompts/reviews.toml}
RUN=${2:-runs/demo}
export STRATEGY=${STRATEGY:-gold}                # what is fed back: a file in strategies/
ITERATIONS=${ITERATIONS:-}                       # 3
NUM_EXAMPLES=${NUM_EXAMPLES:-}                   # accepted training examples an iteration: 400
SEED=${SEED:-0}
GENERATE_ARGS=${GENERATE_ARGS:-}                 # further options of each stage, such as "--top-p 0.95"
TRAIN_ARGS=${TRAIN_ARGS:-}
SCORE_ARGS=${SCORE_ARGS:-}
EVALUATE_ARGS=${EVALUATE_ARGS:-}
LABEL_ARGS=${LABEL_ARGS:-}                       # of the teacher's row
RELABEL_ARGS=${RELABEL_ARGS:-}                   # of the labels of RELABEL and ANNOTATE
FINAL_TRAIN_ARGS=${FINAL_TRAIN_ARGS:-}           # of the final student: "--loss sce", robust to wrong labels
# What a strategy may set besides feedback; given here, they combine with any STRATEGY
LOSS_ARGS=${LOSS_ARGS:-}                         # options of train_student.py that the labels need: "--loss kl"
RELABEL=${RELABEL:-}                             # options of label.py, which then labels every train.jsonl: "--relabel"
FILTER=${FILTER:-}                               # options of score_ood.py, which then chooses what of it is trained on
CRITIC=${CRITIC:-}                               # the student that scores for FILTER
ANNOTATE=${ANNOTATE:-0}                          # 1: the teacher labels NUM_EXAMPLES texts of TEXTS_FILE too, by CHOOSE
TEXTS_FILE=${TEXTS_FILE:-}                       # texts that people wrote, without labels
CORPUS_FILE=${CORPUS_FILE:-}                     # the same, for prompts to show those that are near a shot
CHOOSE=${CHOOSE:-"--score entropy --low 0 --high 1"}
TUNE=${TUNE:-}                                   # fine-tune the teacher first: options, such as "--lora-rank 16 --as-teacher chat"
TUNE_FILE=${TUNE_FILE:-}                         # on these examples, not on the seed examples
read -ra LAUNCH <<< "${LAUNCH:-}"                # goes before every stage, such as "srun --gpus=1"

[[ -f $TASK_FILE ]] || refuse "no $TASK_FILE: give a task file, such as prompts/reviews.toml"
[[ -e strategies/$STRATEGY.sh ]] || refuse "no strategies/$STRATEGY.sh: STRATEGY is one of $(basename -s .sh strategies/*.sh | xargs)"
source "strategies/$STRATEGY.sh"
# The task's data lie beside its file: another folder's reviews.toml is another task
data=$(realpath -ms --relative-base=. "$(dirname "$TASK_FILE")/../data/$(basename "$TASK_FILE" .toml)")
BUILD= # what to build first, where the task has embedded models
if [[ -e $data/embedded.sh ]]; then source "$data/embedded.sh"; fi
ITERATIONS=${ITERATIONS:-3} NUM_EXAMPLES=${NUM_EXAMPLES:-400} FINAL_TRAIN_ARGS=${FINAL_TRAIN_ARGS:-"--loss sce"}
[[ -n ${TEACHER:-} && -n ${STUDENT:-} ]] || refuse "$TASK_FILE has no embedded models: TEACHER=... STUDENT=... bash loop.sh $TASK_FILE $RUN"
GENERATE=${GENERATE:-1} FILTER=${FILTER:-${CRITIC:+--score nll --low 0 --high 0.8}}
source gold/checks.sh
if [[ -n ${TEST_FILE:-} ]]; then
  [[ -f $TEST_FILE ]] || refuse "no TEST_FILE $TEST_FILE; check the path"
  tests=(--test-file "$TEST_FILE")
else
  tests=() tested=$data
  if [[ ! -e $data/test.jsonl ]]; then tested=${data%_reasons}; fi # with reasons or without, a task has the same tests
  for file in "$tested"/test.jsonl "$tested"/test_*.jsonl; do if [[ -e $file ]]; then tests+=(--test-file "$file"); fi; done
fi

mkdir -p "$RUN"
export TQDM_MININTERVAL=1 OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # spinning threads make a busy CPU ten times slower
source gold/jobs.sh
if [[ -z ${PYTHON:-} ]]; then set -m; bash setup.sh requirements-extra.txt < /dev/null & job_ends; PYTHON=.venv/bin/python; fi
if [[ -n $BUILD ]]; then run $BUILD; fi
measure() { # folder, then what to measure; all test files for the final student, else the first
  if ((${#tests[@]})); then run evaluate.py --task-file "$TASK_FILE" --output-dir "$@" $EVALUATE_ARGS; else echo "no $tested/test.jsonl: not measured; TEST_FILE=... names another" >&2; fi
}
task=(--task-file "$TASK_FILE" --seed "$SEED") made=()
if [[ -n $TUNE ]]; then
  run train_student.py "${task[@]}" --as-teacher auto --model "$TEACHER" ${TUNE_FILE:+--train-file "$TUNE_FILE"} --output-dir "$RUN/tuned-teacher" $TUNE
  TEACHER=$RUN/tuned-teacher made=(--exclude-file "$RUN/tuned-teacher/tuned_on.jsonl") # what it may write by heart
fi
if ((${SERVE:-0})); then source gold/serve.sh; fi

# The untrained student and the teacher itself
measure "$RUN/untrained" --model "$STUDENT" "${tests[@]:0:2}"
if ((${#tests[@]})) && grep -Eq '^label *=' "$TASK_FILE"; then
  run label.py "${task[@]}" --model "$TEACHER" --input-file "${tests[1]}" --output-file "$RUN/teacher/labelled.jsonl" $LABEL_ARGS
  measure "$RUN/teacher" --prediction-field teacher_label --test-file "$RUN/teacher/labelled.jsonl"
fi

# The loop: generate, train, score
trained_on=() feedback=() base=$STUDENT
for ((i = 0; i < ITERATIONS; i++)); do
  dir=$(printf '%s/iter-%02d' "$RUN" "$i")
  feeds=$((i + 1 < ITERATIONS)) # nothing reads the scores of the last iteration, and its pool only where that is trained on
  if [[ $POOL == none ]]; then feeds=0; fi
  pool=(--num-validation 0) # stands behind GENERATE_ARGS, which may ask for a pool where there is one
  if [[ $POOL == validation ]] && ((feeds || ${TRAIN_ON_VALIDATION:-0})); then pool=(); fi
  if ((GENERATE)); then
    run generate.py "${task[@]}" --model "$TEACHER" --output-dir "$dir" --num-examples "$NUM_EXAMPLES" $FEEDBACK_ARGS \
      "${feedback[@]}" ${CORPUS_FILE:+--corpus-file "$CORPUS_FILE"} "${made[@]}" $GENERATE_ARGS "${pool[@]}"
    file=$dir/train.jsonl made+=(--exclude-file "$dir/train.jsonl")
    if [[ -n $RELABEL ]]; then
      run label.py "${task[@]}" --model "$TEACHER" --input-file "$file" --output-file "$dir/labelled.jsonl" $RELABEL $RELABEL_ARGS
      file=$dir/labelled.jsonl
    fi
    if [[ -n $FILTER ]]; then
      if [[ -n $CRITIC ]]; then with=(--model "$CRITIC" --output-file "$dir/criticised.jsonl"); else with=(); fi
      run score_ood.py "${task[@]}" --input-file "$file" "${with[@]}" --feedback-file "$dir/kept.jsonl" \
        --rejected-file "$dir/dropped.jsonl" $FILTER
      file=$dir/kept.jsonl
    fi
    trained_on+=(--train-file "$file")
  fi
  if ((ANNOTATE)); then # the first texts by chance
    with=(--score random --low 0 --high 1)
    if ((i)); then with=("${trained_on[@]}" $CHOOSE); fi
    if ((i)) && [[ $CHOOSE != *random* ]]; then with+=(--model "$student"); fi
    run score_ood.py "${task[@]}" --input-file "$TEXTS_FILE" --unlabelled "${with[@]}" --num-selected "$NUM_EXAMPLES" \
      --output-file "$dir/texts.jsonl" --feedback-file "$dir/chosen.jsonl"
    run label.py "${task[@]}" --model "$TEACHER" --input-file "$dir/chosen.jsonl" --output-file "$dir/annotated.jsonl" --relabel $RELABEL_ARGS
    trained_on+=(--train-file "$dir/annotated.jsonl")
  fi
  student=$dir/student
  run train_student.py "${task[@]}" --model "$base" --output-dir "$student" "${trained_on[@]}" $LOSS_ARGS $TRAIN_ARGS
  if ((${CONTINUE_STUDENT:-0})); then base=$student; fi
  measure "$dir" --model "$student" "${tests[@]:0:2}"
  if ((${TRAIN_ON_VALIDATION:-0})); then trained_on+=(--train-file "$dir/validation.jsonl") made+=(--exclude-file "$dir/validation.jsonl"); fi
  if ! ((feeds)); then continue; fi
  case $POOL in
    validation) pool=(--input-file "$dir/validation.jsonl") ;;
    train) pool=("${trained_on[@]/#--train-file/--input-file}") ;;
    *) pool=(--input-file "$POOL") ;;
  esac
  if [[ $SCORE_WITH == student ]]; then with=(--model "$student"); else with=(); fi
  if [[ $SELECT == *tfidf* || $SELECT == *embedding* || $SELECT == *k_center* ]]; then with+=("${trained_on[@]}"); fi
  run score_ood.py "${task[@]}" "${pool[@]}" "${with[@]}" --output-file "$dir/scored.jsonl" --feedback-file "$dir/feedback.jsonl" \
    $SELECT $SCORE_ARGS
  feedback=(--feedback-file "$dir/feedback.jsonl")
  if ((${REPORT:-0})); then
    run evaluate.py "${task[@]}" --prediction-field prediction --test-file "$dir/scored.jsonl" --output-dir "$dir/report"
    feedback+=(--report-file "$dir/report/metrics.json")
  fi
done

# The final student: everything, robust loss
run train_student.py "${task[@]}" --model "$STUDENT" --output-dir "$RUN/final/student" "${trained_on[@]}" $LOSS_ARGS $TRAIN_ARGS $FINAL_TRAIN_ARGS
measure "$RUN/final" --model "$RUN/final/student" "${tests[@]}"
run report.py "$RUN" --html
