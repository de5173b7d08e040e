# AttrPrompt (Yu et al. 2023, arXiv 2306.15895): no feedback; every prompt asks for other attributes, such as a subtopic
# Selects: nothing; of each of [prompt.attributes] in the task file every prompt shows a value drawn by chance.
# Costs: the training examples, in prompts that are longer by a line.
export POOL=none FEEDBACK_ARGS="--attributes"
