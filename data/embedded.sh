# Variables of loop.sh for models that data/build_models.py makes here: a teacher and students. Sourced by data/TASK/embedded.sh, which
# sets TASK and RATE_ARGS, the training options of a student with random weights.
models=data/$TASK/models
TEACHER=${TEACHER:-$models/teacher} STUDENT=${STUDENT:-$models/t5}
for model in "$TEACHER" "$STUDENT"; do
  if [[ $model == "$models"/* ]]; then BUILD+=" ${model##*/}"; fi
done
BUILD=${BUILD:+-m data.build_models $TASK$BUILD}
if [[ $STUDENT == "$models"/* ]]; then TRAIN_ARGS=${TRAIN_ARGS:-$RATE_ARGS}; fi
if [[ $TEACHER == "$models"/* && $STUDENT == "$models"/* ]]; then # two threads would wait longer for each other than they work
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
if [[ $TEACHER == "$models"/* ]]; then GENERATE_ARGS="--min-p 0 $GENERATE_ARGS"; fi # its language is small: it writes no rubbish
if [[ -z ${TEST_FILE:-} ]]; then EVALUATE_ARGS=${EVALUATE_ARGS:-"--group-by group"}; fi # a field of this project's test files
