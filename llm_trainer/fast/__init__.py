"""What makes a step fast: each module an exact replacement, with a test against plain PEFT.

Where a replacement does not apply to a model, the model's own way is kept and that is said once.
"""
