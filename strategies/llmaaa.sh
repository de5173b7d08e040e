# LLMaAA (Zhang et al. 2023, arXiv 2310.19596): no feedback; the teacher labels texts that people wrote, those the student is least sure of
# Selects: of TEXTS_FILE=/path/to/texts.jsonl as many texts an iteration as NUM_EXAMPLES says, by CHOOSE; at first by chance.
# Costs: one label prompt an example, and two passes of the student over the texts; nothing is generated.
# CHOOSE="--score k_center --low 0 --high 1" spreads the choice over the texts; examples weigh what the teacher's confidence says.
: "${TEXTS_FILE:?STRATEGY=llmaaa needs TEXTS_FILE=/path/to/texts.jsonl}"
export POOL=none GENERATE=0 ANNOTATE=1 FEEDBACK_ARGS="" LOSS_ARGS=${LOSS_ARGS:-"--confidence-weights"}
