"""The init container: brings a job's base model and dataset onto its volume, or waits for them.

    python -m storage_initializer                  fill the volume (Master, or every replica)
    python -m storage_initializer --wait           wait until it is filled (Workers)

What to fetch stands in PEFTJOB_SPEC, or in the arguments that the stock Kubeflow client passes.
Where to: PEFTJOB_WORKSPACE, else /workspace:

    model/ dataset/             the inputs, each replaced as a whole
    .peftjob/model.json         manifest: uri, revision, digest, and sha256 and size of every file
    .peftjob/dataset.json       the same
    .peftjob/ready.json         written last: both inputs are there
    .peftjob/failed.json        with --defer-failure: why they never will be

Why --defer-failure: the operator retries a failed init container whatever its exit code. So on a
permanent error this one leaves failed.json and exits 0, and the main container, which reads it,
shows the same line and exits with the error's own code, which ends the job at once.

What it must not do: load a model, read rows, keep a token anywhere.
May import provider and peftjob.{errors,contract,spec}; never torch, transformers, datasets,
kubernetes or kubeflow.

    main              arguments, exit code
    inputs            what is to be fetched, from a spec
    stock_arguments   the same, from the stock client's arguments
    workspace         the files above
    filling, waiting  the two things it does
"""
