# Variables of loop.sh for the embedded models of this task: a teacher and students that data/build_models.py makes here.
TEACHER=${TEACHER:-data/reviews/models/teacher} STUDENT=${STUDENT:-data/reviews/models/t5}
for model in "$TEACHER" "$STUDENT"; do
  if [[ $model == data/reviews/models/* ]]; then BUILD+=" ${model##*/}"; fi
done
BUILD=${BUILD:+-m data.build_models reviews$BUILD}
if [[ $STUDENT == data/reviews/models/* ]]; then # random weights need a higher rate
  TRAIN_ARGS=${TRAIN_ARGS:-"--learning-rate 7e-4 --per-device-train-batch-size 32"}
fi
EVALUATE_ARGS=${EVALUATE_ARGS:-"--group-by group"}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # two threads would wait longer for each other than they work
