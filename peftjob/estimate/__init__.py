"""What a job takes before it runs: memory, steps, arithmetic. The method is in docs/estimate.md.

    adapter       parameters that a method trains
    arithmetic    model FLOPs

Pure: reads no files and never imports torch. May import peftjob.{architecture,spec,errors} and
what these may.
"""

from peftjob.estimate.arithmetic import flops

__all__ = ["flops"]
