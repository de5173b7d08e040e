# RADA (Seo et al. 2024, arXiv 2402.13482): no feedback; prompts show texts of people, without labels, that are near a shot
# Selects: of CORPUS_FILE=/path/to/texts.jsonl, by TF-IDF, the ten nearest texts to a shot, of which a prompt shows two.
# Costs: the training examples, whose prompts are longer, and an unlabelled file.
CORPUS_FILE=${CORPUS_FILE:?STRATEGY=retrieval needs CORPUS_FILE=/path/to/texts.jsonl}
export POOL=none FEEDBACK_ARGS=${FEEDBACK_ARGS:-"--corpus-file $CORPUS_FILE"}
