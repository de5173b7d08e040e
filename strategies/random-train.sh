# Control, and the feedback of prompt2model (Viswanathan et al. 2023, arXiv 2308.12261): any training examples so far
# Selects: all of them; the prompts draw from these by chance.
# Costs: the training examples.
export POOL=train SCORE_WITH=texts SELECT=${SELECT:-"--score random --low 0 --high 1"}
export FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 0.5"}
