# Active synthetic data generation (arXiv 2512.00884): validation examples with the highest loss
# Selects: of a validation pool, by label, the fifth with the highest negative log-likelihood.
# Costs: as GOLD.
export POOL=${POOL:-validation} SCORE_WITH=student SELECT=${SELECT:-"--score nll --low 0.8 --high 1"}
export FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 0.5"}
