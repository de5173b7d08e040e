# Word problems with embedded models: see data/embedded.sh.
TASK=word_problems RATE_ARGS="--learning-rate 5e-4"
source data/embedded.sh
