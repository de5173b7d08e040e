# Control: any validation examples
# Selects: of the pool that GOLD has, as many examples of each label by chance.
# Costs: as GOLD, without the pass of the student.
export POOL=${POOL:-validation} SCORE_WITH=texts SELECT=${SELECT:-"--score random --low 0.5 --high 0.8"}
export FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 0.5"}
