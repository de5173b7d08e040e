# The paper's feedback (GOLD, arXiv 2403.19754): of a validation pool, what the student's energy puts at 50 to 80 % of each label.
#
#   (source profiles/paper.sh; bash loop.sh prompts/reviews.toml runs/paper)
#   (source profiles/paper.sh; SCORE=msp LOW=0.8 HIGH=1 bash loop.sh prompts/reviews.toml runs/msp)      another selection
export FEEDBACK=score FEEDBACK_POOL=validation SCORE=energy LOW=0.5 HIGH=0.8 FEEDBACK_RATE=0.5
