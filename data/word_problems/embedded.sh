# Variables of loop.sh for the embedded models of this task: a teacher and students that data/build_models.py makes here.
TEACHER=${TEACHER:-data/word_problems/models/teacher} STUDENT=${STUDENT:-data/word_problems/models/t5}
for model in "$TEACHER" "$STUDENT"; do
  if [[ $model == data/word_problems/models/* ]]; then BUILD+=" ${model##*/}"; fi
done
BUILD=${BUILD:+-m data.build_models word_problems$BUILD}
if [[ $STUDENT == data/word_problems/models/* ]]; then # random weights need a higher rate
  TRAIN_ARGS=${TRAIN_ARGS:-"--learning-rate 5e-4"}
fi
EVALUATE_ARGS=${EVALUATE_ARGS:-"--group-by group"}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # two threads would wait longer for each other than they work
