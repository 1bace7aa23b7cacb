"""Names that processes agree on: paths in the pod, environment variables, labels, annotations.

The client, the local cluster and the three containers meet here and nowhere else.
May import nothing of peftjob.
"""

# Paths in the pod. The local cluster rewrites them to folders in args and environment.
WORKSPACE = "/workspace"
MODEL_DIR = "/workspace/model"
DATASET_DIR = "/workspace/dataset"
INPUTS_STATE_DIR = "/workspace/.peftjob"
OUTPUT_DIR = "/output"
CLAIMS_DIR = "/mnt/pvc"
"""Where a claim that a pvc:// source names is mounted, in a folder of its name."""
MOUNTED_MODEL_DIR = "/mnt/models"
"""Where KServe's storage initializer puts what `storageUri` names."""

FETCHED_FILE = ".peftjob-fetched.json"
"""What `python -m provider` has put into the folder beside it: sizes and digests."""

# Environment of our containers. Values that are paths are rewritten by the local cluster.
SPEC_ENV = "PEFTJOB_SPEC"
WORKSPACE_ENV = "PEFTJOB_WORKSPACE"
OUTPUT_ENV = "PEFTJOB_OUTPUT"
POD_IP_ENV = "PEFTJOB_POD_IP"
"""Where the trainer serves metrics; set where they are asked for."""
CLAIMS_DIR_ENV = "PEFTJOB_PVC_DIR"
"""Set by the local cluster: the folder that stands for CLAIMS_DIR."""
REGISTRY_DIR_ENV = "PEFTJOB_REGISTRY_DIR"
"""Set by the local cluster: the folder that holds the embedded registry (OCI image layouts)."""

TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LOG_ENV = "PEFTJOB_TERMINATION_LOG"
"""Set by the local cluster, which can't mount a file over /dev/termination-log."""

# What the storage initializer leaves in INPUTS_STATE_DIR (see storage_initializer).
READY_MARKER = "ready.json"
FAILED_MARKER = "failed.json"
DESCRIBED_FILE = "described.json"
"""The base model's and the dataset's parts of a spec, for a trainer of the stock client's."""

# Labels and annotations of ours.
INPUTS_ANNOTATION = "peftjob.org/inputs"
"""On a claim: the digest of the inputs that it was made for."""
WAITS_ANNOTATION = "peftjob.org/waits-for"
"""On a PyTorchJob: the claim that is being filled for it; it is suspended until then."""
ADAPTER_ANNOTATION = "peftjob.org/adapter"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

# Names in the PyTorchJob.
TRAINER_CONTAINER = "pytorch"
STORAGE_INITIALIZER_CONTAINER = "storage-initializer"
RUNTIME_CONTAINER = "kserve-container"
THREADS_ENV = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "10000"}
"""How OpenMP's threads wait between two operations: a tenth of a millisecond by spinning, then
asleep. Asleep at once (PASSIVE), a decoding step of many small operations takes twice as long;
libgomp's own 3 ms take each other's cores where there are more threads than cores. ACTIVE is what
makes libgomp spin at all when several threads have pools of their own, as in the runtime."""
RUNTIME_NAME = "peftjob-runtime"
MODEL_FORMAT = "peft"

PACKED_SUFFIXES = (".gz", ".zst")


def unpacked(name: str) -> str:
    """Where a data file that its source holds compressed lies on the volume, unpacked.

    rows.jsonl.gz is rows.gz.jsonl there. Of a glob, the glob of what it matches: *.gz is *.gz.*
    """
    for suffix in PACKED_SUFFIXES:
        if name.lower().endswith(suffix):
            folder, slash, last = name[: -len(suffix)].rpartition("/")
            stem, dot, kind = last.rpartition(".")
            return f"{folder}{slash}{stem if dot else last}{suffix}.{kind if dot else '*'}"
    return name
