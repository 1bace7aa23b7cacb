"""A base model's folder + a method → a model to train: loaded, adapted, checked.

Weights come from safetensors only, code of a model's own is never run, nothing is fetched.
"""
