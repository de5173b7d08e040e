# SuperGen (Meng et al. 2022, arXiv 2202.04538): no feedback; trains on the texts that the teacher finds most likely
# Selects: of each label the four fifths with the highest mean log-probability a token under the teacher (FILTER); the rest stands in dropped.jsonl.
# Costs: a fifth of the training examples; the log-probabilities come with the texts.
export POOL=none FEEDBACK_ARGS="--teacher-nll" FILTER=${FILTER:-"--score teacher_nll --low 0 --high 0.8"}
