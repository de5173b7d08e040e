# Symbolic knowledge distillation (West et al. 2022, arXiv 2110.07178): no feedback; a critic drops what it finds least likely
# Selects: of the training examples, by label, the four fifths whose label CRITIC=/path/to/student finds likeliest.
# Costs: the training examples, a fifth of which is dropped, and a critic: a student of a few hundred labels by people.
export POOL=none FEEDBACK_ARGS="" CRITIC=${CRITIC:?STRATEGY=critic needs CRITIC=/path/to/student, trained on labels by people}
