# Generation-Distillation (Melas-Kyriazi et al. 2020, arXiv 2002.00733): no feedback; texts without labels, with soft labels of the teacher
# Selects: nothing; prompts show seed examples without their labels, and ask for none ([prompt] unlabelled).
# Costs: the training examples, and one pass of the teacher over them, which labels them.
# text2text: LABEL_ARGS="--num-samples 5" gives answers with shares.
export POOL=none FEEDBACK_ARGS="--unlabelled" RELABEL="--relabel"
export TRAIN_ARGS=${TRAIN_ARGS:-"--loss kl"} FINAL_TRAIN_ARGS=${FINAL_TRAIN_ARGS:-"--loss kl"}
