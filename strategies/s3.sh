# S3 (Wang et al. 2023, arXiv 2310.13671): the student's errors on a small file of people's examples
# Selects: what the student gets wrong in HUMAN_FILE=/path/to/validation.jsonl.
# Costs: the training examples, one pass of the student, and a labelled file.
export POOL=${HUMAN_FILE:?STRATEGY=s3 needs HUMAN_FILE=/path/to/labelled.jsonl} SCORE_WITH=student
export SELECT=${SELECT:-"--score error --low 0 --high 1"} FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 0.5"}
