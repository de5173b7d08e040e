# Ours: training examples whose words are far from all others
# Selects: of all training examples so far, by label, the fifth with the highest TF-IDF distance to the nearest other one.
# Costs: the training examples; no student has a part in it.
export POOL=train SCORE_WITH=texts SELECT=${SELECT:-"--score tfidf --low 0.8 --high 1"}
export FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--feedback-rate 1"}
