# Fine-tuned teacher (Kaddour & Liu 2023, arXiv 2310.01119): no feedback; the teacher is fine-tuned on the seed examples first
# Selects: nothing; every prompt shows seed examples alone.
# Costs: the training examples, and a training of the teacher. TUNE works with the other strategies too.
export POOL=none FEEDBACK_ARGS=""
export TUNE=${TUNE:-"--lora-rank 16 --learning-rate 2e-4 --num-train-epochs 3 --per-device-train-batch-size 4"}
