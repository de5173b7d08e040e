# What the authors' released code does (github.com/mgholamikn/GOLD), as far as the stages can: for reproduction, not to be advised.
#
#   (source profiles/released-code.sh; TEACHER=... STUDENT=google-t5/t5-base bash loop.sh prompts/rte.toml runs/authors)
#
# Alike: sampling from the ten likeliest tokens; energy over all 32 decoder positions, padding too; of every 8 validation
# examples the two at ranks 4 and 5, whatever their labels; validation examples trained on; one pass over all so far between
# rounds, with the weights of the student before; 50 epochs of symmetric cross-entropy in the end. For text2text tasks theirs is
#   FINAL_TRAIN_ARGS="--sce-alpha 0.1 --sce-beta 1 --num-train-epochs 50 --learning-rate 5e-5"
# Not alike: feedback changes every iteration, not with every batch of 8; a validation prompt shows two new training examples
# (theirs does for SQuAD, for RTE and QNLI the old feedback); prompts are ours, with a sentence about the feedback examples
# where the task file has [prompt] feedback; optimiser states begin anew; padding is no part of the losses, gradients are
# clipped; a tenth is held out and the best epoch kept; the test is decoded greedily, not by 4 beams. As from memory:
# temperature 0.6 and top-p 0.9, which they leave to the teacher. 3,000 examples in all are theirs.
export ITERATIONS=8 NUM_EXAMPLES=${NUM_EXAMPLES:-188} NUM_VALIDATION=${NUM_VALIDATION:-187} FEEDBACK=score FEEDBACK_POOL=validation FEEDBACK_RATE=0.5
export SCORE=energy_padded LOW=0.5 HIGH=0.8 SCORE_ARGS="--group-size 8 --max-source-length 128 --max-target-length 32"
export GENERATE_ARGS="--top-k 10 --temperature 0.6 --validation-temperature 0.6 --top-p 0.9 --num-fewshot 3 --num-feedback-shots 2"
export TRAIN_ON_VALIDATION=1 CONTINUE_STUDENT=1 EPOCHS=1 LEARNING_RATE=5e-5 PER_DEVICE_TRAIN_BATCH_SIZE=8
export TRAIN_ARGS="--lr-scheduler-type constant --warmup-ratio 0 --weight-decay 0 --max-source-length 128 --max-target-length 32"
export FINAL_LOSS=sce FINAL_TRAIN_ARGS=${FINAL_TRAIN_ARGS:-"--sce-alpha 0.01 --sce-beta 1 --num-train-epochs 50 --learning-rate 1e-5"}
