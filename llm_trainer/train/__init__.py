"""The training itself: which rows at which step, the step, the optimiser, what survives a kill."""
