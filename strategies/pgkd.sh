# PGKD (Performance-Guided Knowledge Distillation, arXiv 2411.05045): confident errors, and a report of the student's results
# Selects: of a validation pool, by label, the more confident half of the wrong predictions; prompts show the report too ($report).
# Costs: as GOLD.
export POOL=${POOL:-validation} SCORE_WITH=student SELECT=${SELECT:-"--score hard_negative --low 0.5 --high 1"}
export FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 0.5"} REPORT=1
