# GOLD (Gholami et al. 2024, arXiv 2403.19754): validation examples in the middle-high band of the student's energy
# Selects: of a validation pool, by label, what the energy puts at the quantiles 0.5 to 0.8; the top is left out as noise.
# Costs: the tokens of a validation pool in every iteration but the last, and one pass of the student over it.
export POOL=${POOL:-validation} SCORE_WITH=student SELECT=${SELECT:-"--score energy --low 0.5 --high 0.8"}
export FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 0.5"}
