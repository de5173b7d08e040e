# Uncertainty sampling (Lewis & Gale 1994), on generated examples: those that the student is least confident of
# Selects: of a validation pool, by label, the fifth with the lowest top probability.
# Costs: as GOLD.
export POOL=${POOL:-validation} SCORE_WITH=student SELECT=${SELECT:-"--score msp --low 0.8 --high 1"}
export FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 0.5"}
