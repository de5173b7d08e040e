# Generation-Distillation (Melas-Kyriazi et al. 2020, arXiv 2002.00733): no feedback; texts without labels, with soft labels of the teacher
# Selects: nothing; prompts show seed examples without their labels, and ask for none ([prompt] unlabelled).
# Costs: the training examples, and one pass of the teacher over them, which labels them (text2text: five answers).
samples=
if grep -Eq '^kind *= *"text2text"' "$TASK_FILE"; then samples=" --num-samples 5"; fi
export POOL=none FEEDBACK_ARGS="--unlabelled" RELABEL=${RELABEL:-"--relabel$samples"} LOSS_ARGS=${LOSS_ARGS:-"--loss kl"}
export FINAL_TRAIN_ARGS=${FINAL_TRAIN_ARGS:-"--loss kl"}
