"""llm_trainer: the workers of a tuning job: a base model + a dataset → an adapter.

`python -m llm_trainer` is the container's entry point (launch): it starts one worker for each
process of this replica, passes signals on, and turns whatever ends a worker into one line and an
exit code that restartPolicy ExitCode understands. `torchrun -m llm_trainer` starts workers as
well; a worker knows itself by LOCAL_RANK or by the launcher's folder for errors.

A worker (worker) goes one way: options → dataset (files, read, rows, chat, encode, plan) → model
(model, targets) → train (loss, heldout, progress_lines) → publish (card). Each step is taken by
all ranks together (ranks), so that an error on one of them is the same error on all of them.

It must not download anything, write anywhere but to the output, nor train a token that the model
is not meant to say. Only rank 0 writes. May import peftjob.errors, contract, spec, progress, stock
and oci, and provider; never peftjob.client, local or cli.
"""
