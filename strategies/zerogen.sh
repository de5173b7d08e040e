# ZeroGen (Ye et al. 2022, arXiv 2202.07922): no feedback
# Selects: nothing; every prompt shows seed examples alone.
# Costs: the training examples.
export POOL=none FEEDBACK_ARGS=""
