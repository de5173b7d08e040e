# Word problems with reasons, with embedded models: see data/embedded.sh. The test files are those of data/word_problems.
TASK=word_problems_reasons RATE_ARGS="--learning-rate 5e-4"
source data/embedded.sh
