# The released code of GOLD (github.com/mgholamikn/GOLD), as far as the stages can: for reproduction, not to be advised
# Selects: of every 8 validation examples, whatever their labels, ranks 4 and 5 of the energy over all 32 positions, padding too.
# Costs: as GOLD; the validation examples are trained on as well.
# docs/strategies.md says what is alike and what is not. 3,000 examples in all are theirs. text2text tasks of theirs:
#   FINAL_TRAIN_ARGS="--loss sce --sce-alpha 0.1 --sce-beta 1 --num-train-epochs 50 --learning-rate 5e-5"
export ITERATIONS=${ITERATIONS:-8} NUM_EXAMPLES=${NUM_EXAMPLES:-188} POOL=validation SCORE_WITH=student
export SELECT="--score energy_padded --low 0.5 --high 0.8 --group-size 8"
export FEEDBACK_ARGS="--feedback-rate 0.5 --num-feedback-shots 2 --num-validation 187 --num-fewshot 3"
export GENERATE_ARGS=${GENERATE_ARGS:-"--top-k 10 --temperature 0.6 --validation-temperature 0.6 --top-p 0.9 --min-p 0"}
export TRAIN_ON_VALIDATION=1 CONTINUE_STUDENT=1
export TRAIN_ARGS=${TRAIN_ARGS:-"--num-train-epochs 1 --learning-rate 5e-5 --per-device-train-batch-size 8 --lr-scheduler-type constant
 --warmup-ratio 0 --weight-decay 0 --max-source-length 128 --max-target-length 32"}
export FINAL_TRAIN_ARGS=${FINAL_TRAIN_ARGS:-"--loss sce --sce-alpha 0.01 --sce-beta 1 --num-train-epochs 50 --learning-rate 1e-5"}
