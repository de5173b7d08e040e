# Self-consistency (Wang et al. 2023, arXiv 2203.11171): no feedback; the majority of the teacher's answers replaces the one it wrote
# Selects: of the training examples those whose answer three of five samples give; of labels, those with a probability of .6.
# Costs: the training examples, five answers to each (one label prompt, where the task has labels).
samples=
if grep -Eq '^kind *= *"text2text"' "$TASK_FILE"; then samples=" --num-samples 5"; fi
export POOL=none FEEDBACK_ARGS="" RELABEL=${RELABEL:-"--relabel --min-share 0.6$samples"}
