"""Data files → rows of tokens, each token marked as one the model should say or not.

files (which) → read (rows with their numbers) → rows (what each stands for) → chat, encode
(tokens, trained or not) → dataset (training rows and held-out rows). It knows nothing of models
but their tokenizer, nothing of ranks, and never imports torch.
"""
