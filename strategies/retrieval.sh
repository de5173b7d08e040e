# RADA (Seo et al. 2024, arXiv 2402.13482): no feedback; prompts show texts of people, without labels, that are near a shot
# Selects: of TEXTS_FILE=/path/to/texts.jsonl, by TF-IDF, the ten nearest texts to a shot, of which a prompt shows two.
# Costs: the training examples, whose prompts are longer, and an unlabelled file. CORPUS_FILE does the same beside any strategy.
export POOL=none FEEDBACK_ARGS="" CORPUS_FILE=${TEXTS_FILE:?STRATEGY=retrieval needs TEXTS_FILE=/path/to/texts.jsonl}
