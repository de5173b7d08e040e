# GenCo (Zhang et al. 2023, arXiv 2304.11872): unlabelled texts of people, rewritten or continued for the label that the student predicts
# Selects: of TEXTS_FILE=/path/to/texts.jsonl, by predicted label, the more confident four fifths; every prompt has one rewritten.
# Costs: the training examples, two passes of the student over the file in every iteration but the last, and an unlabelled file.
export POOL=${TEXTS_FILE:?STRATEGY=genco needs TEXTS_FILE=/path/to/texts.jsonl} SCORE_WITH=student
export SELECT=${SELECT:-"--unlabelled --score msp --low 0 --high 0.8"} FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--rewrite"}
