# Distilling step-by-step (Hsieh et al. 2023, arXiv 2305.02301): no feedback; the teacher writes reasons, which the student learns
# Selects: nothing. In place of TASK.toml the loop runs TASK_reasons.toml, where the teacher writes its reasons before the answer.
# Costs: the training examples, each with its reasons, and a student that learns two rows of each, or longer targets.
if ! grep -q '^rationale_field' "$TASK_FILE"; then
  reasoned=${TASK_FILE%.toml}_reasons.toml
  [[ -f $reasoned ]] || refuse "STRATEGY=rationales needs $reasoned: $TASK_FILE with a rationale_field (docs/tasks.md)"
  TASK_FILE=$reasoned
fi
export POOL=none FEEDBACK_ARGS=""
