"""How far the estimates of one alignment may disagree before it is in doubt.

Nothing here imports torch: the processes that score start the faster for it.
"""

DOUBTFUL = 1.0
"""Disagreement, px of 256, above which an alignment is tried anew (`utils.multistart`) and to be looked at.

Few validation pairs lie there, and nearly all pairs that do not belong together: experiment 83, checkpoints/README.md.
"""
