#!/usr/bin/env bash
# GOLD, one line a stage: a teacher writes examples, a student learns them, a score finds examples far from what there is, and
# these steer what the teacher writes next.
#
#   bash loop.sh                                            the embedded demonstration: no GPU, no download, minutes
#   bash loop.sh prompts/word_problems.toml runs/words      the other embedded task
#   TEACHER=Qwen/Qwen2.5-7B-Instruct STUDENT=google-t5/t5-base bash loop.sh prompts/reviews.toml runs/mine
#   LAUNCH="srun --gpus=1" ITERATIONS=3 bash loop.sh prompts/reviews.toml runs/cluster
#   (source profiles/paper.sh; bash loop.sh prompts/reviews.toml runs/paper)         the paper's feedback, by the student's energy
#   (source profiles/released-code.sh; bash loop.sh prompts/rte.toml runs/authors)   options of the authors' code
#
# Killed? Run the same line again: finished stages say "up to date", the one that was cut off goes on. Ctrl-C ends the stage at
# once. So does SIGTERM, but generate.py ends its chunk first, and says so; a second signal ends that too.
# PYTHON=/path/to/python uses an environment of your own and installs nothing. Paths are relative to this folder.
set -euo pipefail
cd "$(dirname "$0")"

# Knobs ----------------------------------------------------------------------------------------------------------------
TASK_FILE=${1:-prompts/reviews.toml}
RUN=${2:-runs/demo}
if [[ ! -e $TASK_FILE ]]; then echo "error: no $TASK_FILE: give a task file, such as prompts/reviews.toml" >&2; exit 1; fi
embedded=                                        # models in there are built when they are missing
for name in reviews word_problems; do            # the file itself, not one of the same name elsewhere
  if [[ $TASK_FILE -ef prompts/$name.toml ]]; then embedded=data/$name/models; fi
done
TEACHER=${TEACHER:-${embedded:+$embedded/teacher}}
STUDENT=${STUDENT:-${embedded:+$embedded/t5}}
if [[ -z $TEACHER || -z $STUDENT ]]; then
  echo "error: $TASK_FILE has no embedded models; name yours: TEACHER=... STUDENT=... bash loop.sh $TASK_FILE $RUN" >&2
  exit 1
fi
is_embedded() { # data/reviews/models/t5, however its path is written
  [[ $(realpath -m --relative-to=. "$1") =~ ^data/(reviews|word_problems)/models/([a-z0-9]+)$ ]]
}
ITERATIONS=${ITERATIONS:-5}
NUM_EXAMPLES=${NUM_EXAMPLES:-400}                # accepted training examples an iteration
# What is fed back. The default did best in bench/strategies.py among what ran on five seeds or more: in all prompts, of each
# label the fifth of the training examples whose words are farthest from all others
FEEDBACK=${FEEDBACK:-score}                      # what a score selects, or none
SCORE=${SCORE:-tfidf} LOW=${LOW:-0.8} HIGH=${HIGH:-1} # score: the band of this score within each label
if [[ $SCORE == tfidf ]]; then pool=train; else pool=validation; fi # a student is sure of what it was trained on
FEEDBACK_POOL=${FEEDBACK_POOL:-$pool}            # of what: train (all training examples so far), validation, or a file (S3)
FEEDBACK_RATE=${FEEDBACK_RATE:-1}                # share of the training prompts that carry feedback
FEEDBACK_ROUNDS=${FEEDBACK_ROUNDS:-newest}       # or all: that of earlier iterations too
if [[ $FEEDBACK == score && $FEEDBACK_POOL == validation ]]; then size=200; else size=0; fi
NUM_VALIDATION=${NUM_VALIDATION:-$size}          # accepted validation examples an iteration: the pool for feedback
TRAIN_ON_VALIDATION=${TRAIN_ON_VALIDATION:-0}    # 1 = from the next iteration on the validation examples are trained on
REPORT=${REPORT:-0}                              # 1 = feedback prompts tell how the student does (PGKD)
PATIENCE=${PATIENCE:-0}                          # stop after so many iterations without a better student on held-out examples
CONTINUE_STUDENT=${CONTINUE_STUDENT:-0}          # 1 = each student begins with the one before, not with the base
rate=1e-4 batch=16
if is_embedded "$STUDENT"; then                  # random weights need more
  rate=5e-4
  if [[ $embedded/${BASH_REMATCH[2]} == data/reviews/models/t5 ]]; then rate=7e-4 batch=32; fi # as good, in 3/4 of the time
fi
LEARNING_RATE=${LEARNING_RATE:-$rate}
PER_DEVICE_TRAIN_BATCH_SIZE=${PER_DEVICE_TRAIN_BATCH_SIZE:-$batch}
EPOCHS=${EPOCHS:-10}
FINAL_LOSS=${FINAL_LOSS:-sce} FINAL_TRAIN_ARGS=${FINAL_TRAIN_ARGS:-} # of the final student: robust to wrong labels
TEST_FILE=${TEST_FILE:-}                         # none: test.jsonl, and test_*.jsonl, beside the seed examples of the task file
MEASURE_TEACHER=${MEASURE_TEACHER:-1}            # 0 = the teacher itself does not answer the test file
GROUP_BY=${GROUP_BY-${embedded:+group}}          # a field of the test file to measure by as well
SEED=${SEED:-0}
GENERATE_ARGS=${GENERATE_ARGS:-} TRAIN_ARGS=${TRAIN_ARGS:-} # further options, such as "--dtype bfloat16"
SCORE_ARGS=${SCORE_ARGS:-} EVALUATE_ARGS=${EVALUATE_ARGS:-} LABEL_ARGS=${LABEL_ARGS:-}
read -ra LAUNCH <<< "${LAUNCH:-}"                # goes before every stage, such as "srun --gpus=1"

# Knobs that do not go together --------------------------------------------------------------------------------------
refuse() { echo "error: $1" >&2; exit 1; }
if [[ -n $TEST_FILE && ! -e $TEST_FILE ]]; then refuse "no TEST_FILE $TEST_FILE; check the path"; fi
for given in "FEEDBACK score none" "FEEDBACK_ROUNDS newest all" "TRAIN_ON_VALIDATION 0 1" "REPORT 0 1" \
  "CONTINUE_STUDENT 0 1" "MEASURE_TEACHER 0 1"; do
  read -r name values <<< "$given"
  if [[ " $values " != *" ${!name} "* ]]; then refuse "$name=${!name} is none of $values"; fi
done
for name in ITERATIONS NUM_EXAMPLES PER_DEVICE_TRAIN_BATCH_SIZE; do
  if [[ ! ${!name} =~ ^[1-9][0-9]*$ ]]; then refuse "$name=${!name} is no number from 1 on"; fi
done
for name in LEARNING_RATE EPOCHS; do
  if [[ ! ${!name} =~ ^[0-9]*\.?[0-9]+([eE]-?[0-9]+)?$ ]]; then refuse "$name=${!name} is no number"; fi
done
if [[ ! $PATIENCE =~ ^(0|[1-9][0-9]*)$ ]]; then refuse "PATIENCE=$PATIENCE is no number of iterations"; fi
if [[ $FEEDBACK_POOL != validation && $FEEDBACK_POOL != train && ! -e $FEEDBACK_POOL ]]; then
  refuse "no FEEDBACK_POOL $FEEDBACK_POOL: validation, train, or the path of a file"
fi
if [[ $FEEDBACK == score && $FEEDBACK_POOL != validation && $FEEDBACK_ROUNDS == all ]]; then
  refuse "FEEDBACK_ROUNDS=all would repeat examples of FEEDBACK_POOL=$FEEDBACK_POOL"
fi
if [[ $REPORT == 1 && $FEEDBACK != score ]]; then refuse "REPORT=1 needs FEEDBACK=score"; fi
if [[ $REPORT == 1 && $FEEDBACK_POOL == train && $SCORE =~ ^(random|tfidf)$ ]]; then
  refuse "REPORT=1 tells of predictions, which SCORE=$SCORE of FEEDBACK_POOL=train has none of; source profiles/paper.sh, say"
fi
if [[ $TRAIN_ON_VALIDATION == 1 && $NUM_VALIDATION == 0 ]]; then
  refuse "TRAIN_ON_VALIDATION=1 with NUM_VALIDATION=0 has nothing to add; source profiles/paper.sh, say"
fi
if [[ $FEEDBACK == score && $NUM_VALIDATION == 0 && $FEEDBACK_POOL == validation ]]; then
  refuse "FEEDBACK=score with NUM_VALIDATION=0 has nothing to select from; FEEDBACK=none, or another FEEDBACK_POOL"
fi

# Signals --------------------------------------------------------------------------------------------------------------
# bash heeds none while a command in the foreground works. So a stage is a job in the background (set -m: with a process group
# of its own), and what comes to this shell is passed on to all of that group. A job that does not end by it is killed within a
# second; SIGTERM may take longer, since generate.py ends its chunk first. A second signal kills. tee hears the last words.
end() { # the signal's name; the shell dies of it too (130, 143, 129): a loop around this script must not go on
  set +e
  trap 'kill -KILL %1' HUP INT QUIT TERM
  for signal in "$1" TERM KILL; do
    kill -s "$signal" %1
    for _ in {1..5}; do if [[ -n $(jobs -r) ]]; then sleep 0.1; fi; done
    if [[ $1 == TERM ]]; then break; fi
  done 2> /dev/null
  if [[ -n $(jobs -r) ]]; then echo "SIGTERM: waits for the stage above; Ctrl-C ends it at once" >&2; fi
  while [[ -n $(jobs -r) ]]; do wait -f %1; done
  trap - "$1"
  kill -s "$1" $$
}
for name in HUP INT QUIT TERM; do trap "end $name" "$name"; done
job_ends() { set +m; wait -f %1; } # after: set -m; COMMAND < /dev/null &

# Environment and embedded models --------------------------------------------------------------------------------------
if [[ -z ${PYTHON:-} ]]; then set -m; bash setup.sh < /dev/null & job_ends; PYTHON=.venv/bin/python; fi
if [[ -z $TEST_FILE ]]; then # not by the task's name: a file of the same name elsewhere is another task
  TEST_FILE=$("$PYTHON" -c 'import os.path, pathlib, sys, task
print(os.path.normpath(task.load_task(pathlib.Path(sys.argv[1])).seed_examples.parent / "test.jsonl"))' "$TASK_FILE")
  further=("${TEST_FILE%.jsonl}"_*.jsonl) # such as test_zipf.jsonl
  if [[ -z $embedded ]]; then echo "test file: $TEST_FILE, beside the seed examples; TEST_FILE=... takes another" >&2; fi
fi
export TQDM_MININTERVAL=1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # spinning threads make a busy CPU machine ten times slower
mkdir -p "$RUN"
run() {
  echo "+ $*"
  set -m
  ${LAUNCH[@]+"${LAUNCH[@]}"} "$PYTHON" "$@" < /dev/null 2>&1 | (trap '' HUP INT QUIT TERM; exec tee -a "$RUN/loop.log") &
  job_ends
}
for model in "$TEACHER" "$STUDENT"; do
  if is_embedded "$model"; then run -m data.build_models "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"; fi
done
if is_embedded "$TEACHER" && is_embedded "$STUDENT"; then # two threads would wait longer for each other than they work
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi

# The loop -------------------------------------------------------------------------------------------------------------
measure() { # model, folder, test file
  if [[ ! -e $3 ]]; then echo "no $3: $1 is not measured" >&2; return; fi
  run evaluate.py --task-file "$TASK_FILE" --model "$1" --output-dir "$2" --test-file "$3" ${GROUP_BY:+--group-by "$GROUP_BY"} \
    $EVALUATE_ARGS
}
labels() { # does the task file say how the teacher labels?
  "$PYTHON" -c 'import pathlib, sys, task; sys.exit("label" not in task.load_task(pathlib.Path(sys.argv[1])).prompt)' "$TASK_FILE"
}
measure "$STUDENT" "$RUN/untrained" "$TEST_FILE"
if [[ $MEASURE_TEACHER == 1 && -e $TEST_FILE ]] && labels; then
  run generate.py label --task-file "$TASK_FILE" --model "$TEACHER" --input-file "$TEST_FILE" \
    --output-file "$RUN/teacher/labelled.jsonl" --seed "$SEED" $LABEL_ARGS
  run evaluate.py --task-file "$TASK_FILE" --prediction-field teacher_label --test-file "$RUN/teacher/labelled.jsonl" \
    --output-dir "$RUN/teacher" ${GROUP_BY:+--group-by "$GROUP_BY"}
fi
better() { # is the headline number of one folder above that of another?
  "$PYTHON" -c 'import json, pathlib, sys
a, b = (json.loads((pathlib.Path(p) / "metrics.json").read_text()) for p in sys.argv[1:])
sys.exit(not a["overall"][a["metric"]]["value"] > b["overall"][b["metric"]]["value"])' "$@"
}
trained_on=() feedback=() begin=$STUDENT best= waited=0
for ((i = 0; i < ITERATIONS; i++)); do
  dir=$(printf '%s/iter-%02d' "$RUN" "$i")
  run generate.py sample --task-file "$TASK_FILE" --model "$TEACHER" --output-dir "$dir" --seed "$SEED" \
    --num-examples "$NUM_EXAMPLES" --num-validation "$NUM_VALIDATION" --feedback-rate "$FEEDBACK_RATE" \
    "${feedback[@]}" "${trained_on[@]/#--train-file/--exclude-file}" $GENERATE_ARGS # texts of earlier rounds are duplicates
  trained_on+=(--train-file "$dir/train.jsonl")
  run train_student.py --task-file "$TASK_FILE" --model "$begin" --output-dir "$dir/student" --seed "$SEED" \
    --learning-rate "$LEARNING_RATE" --per-device-train-batch-size "$PER_DEVICE_TRAIN_BATCH_SIZE" --num-train-epochs "$EPOCHS" \
    "${trained_on[@]}" $TRAIN_ARGS
  if [[ $CONTINUE_STUDENT == 1 ]]; then begin=$dir/student; fi
  if [[ $FEEDBACK_ROUNDS == newest ]]; then feedback=(); fi
  if [[ $FEEDBACK == score ]]; then
    pool=(--input-file "$FEEDBACK_POOL") needs=(--model "$dir/student")
    if [[ $FEEDBACK_POOL == validation ]]; then pool=(--input-file "$dir/validation.jsonl"); fi
    if [[ $FEEDBACK_POOL == train ]]; then pool=("${trained_on[@]/#--train-file/--input-file}"); fi
    if [[ $FEEDBACK_POOL == train && $SCORE =~ ^(random|tfidf)$ ]]; then needs=(); fi # no student has a part in these
    if [[ $SCORE == energy_delta ]]; then needs+=(--base-model "$STUDENT"); fi
    if [[ $SCORE =~ ^(embedding|tfidf)$ ]]; then needs+=("${trained_on[@]}"); fi
    run score_ood.py --task-file "$TASK_FILE" "${pool[@]}" "${needs[@]}" --output-file "$dir/scored.jsonl" \
      --feedback-file "$dir/feedback.jsonl" --score "$SCORE" --low "$LOW" --high "$HIGH" --seed "$SEED" $SCORE_ARGS
    feedback+=(--feedback-file "$dir/feedback.jsonl")
    if [[ $REPORT == 1 ]]; then
      run evaluate.py --task-file "$TASK_FILE" --prediction-field prediction --test-file "$dir/scored.jsonl" \
        --output-dir "$dir/report"
      feedback+=(--report-file "$dir/report/metrics.json")
    fi
  fi
  if [[ $TRAIN_ON_VALIDATION == 1 ]]; then trained_on+=(--train-file "$dir/validation.jsonl"); fi
  measure "$dir/student" "$dir" "$TEST_FILE"
  if ((PATIENCE)); then # the newest student beside the best before it, on the examples that all of them have been kept from
    for student in "$dir" ${best:+"$best"}; do
      run evaluate.py --task-file "$TASK_FILE" --model "$student/student" --test-file "$dir/student/held_out.jsonl" \
        --output-dir "$dir/held_out/$(basename "$student")" $EVALUATE_ARGS
    done
    if [[ -z $best ]] || better "$dir/held_out/$(basename "$dir")" "$dir/held_out/$(basename "$best")"; then
      best=$dir waited=0
    elif ((++waited >= PATIENCE)); then
      echo "no better student in $PATIENCE iterations: that is all" >&2
      break
    fi
  fi
done

# The final student: everything, robust loss ---------------------------------------------------------------------------
run train_student.py --task-file "$TASK_FILE" --model "$STUDENT" --output-dir "$RUN/final/student" --seed "$SEED" \
  --learning-rate "$LEARNING_RATE" --per-device-train-batch-size "$PER_DEVICE_TRAIN_BATCH_SIZE" --num-train-epochs "$EPOCHS" \
  --loss "$FINAL_LOSS" "${trained_on[@]}" $TRAIN_ARGS $FINAL_TRAIN_ARGS
measure "$RUN/final/student" "$RUN/final" "$TEST_FILE"
for file in ${further[@]+"${further[@]}"}; do
  if [[ -e $file ]]; then measure "$RUN/final/student" "$RUN/final/$(basename "$file" .jsonl)" "$file"; fi
done

run report.py "$RUN"
cat << END
Look into   $RUN/iter-00/train.jsonl           what the teacher wrote
            $RUN/iter-00/train.rejected.jsonl  what was turned down, and why
            $RUN/iter-00/feedback.jsonl        what is far from all the rest, and the teacher was shown next
            $RUN/final/predictions.jsonl       the final student on the test set
Try next    (with the variables of this run) FEEDBACK=none TRAIN_ON_VALIDATION=0 REPORT=0 bash loop.sh $TASK_FILE ${RUN%/}-no-feedback && $PYTHON report.py $RUN ${RUN%/}-no-feedback
END
