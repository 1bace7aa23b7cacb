"""What a job takes before it runs: memory, steps, arithmetic. The method is in docs/estimate.md.

    from peftjob import architecture, estimate
    estimate.estimate(spec, architecture.read(config)).choice.memory.total

    whole          spec + architecture → Estimate
    fitting        how a job is best run in a device's memory
    memory         what a process needs, part by part
    activations    what a forward pass keeps
    adapter        parameters that a method trains
    arithmetic     model FLOPs
    devices        GPUs by name, quantities

Pure: reads no files and never imports torch. May import peftjob.{architecture,spec,errors} and
what these may.
"""

from peftjob.estimate.activations import Batch
from peftjob.estimate.arithmetic import flops
from peftjob.estimate.devices import GPUS, Device
from peftjob.estimate.devices import of as device_of
from peftjob.estimate.fitting import Choice
from peftjob.estimate.memory import Memory, Setting, peak_memory
from peftjob.estimate.whole import Estimate, Rows, estimate, processes_of_replica, total_steps

__all__ = [
    "GPUS",
    "Batch",
    "Choice",
    "Device",
    "Estimate",
    "Memory",
    "Rows",
    "Setting",
    "device_of",
    "estimate",
    "flops",
    "peak_memory",
    "processes_of_replica",
    "total_steps",
]
