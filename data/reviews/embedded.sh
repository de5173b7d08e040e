# Reviews with embedded models: see data/embedded.sh.
TASK=reviews RATE_ARGS="--learning-rate 7e-4 --per-device-train-batch-size 32"
source data/embedded.sh
