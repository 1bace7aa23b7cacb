"""preset://name: a base model by the name that KAITO has for it; see peftjob.presets.

May import peftjob.{errors,presets} and provider.{base,hub}.
"""

from dataclasses import replace

from peftjob import presets
from peftjob.errors import SourceError
from provider import hub
from provider.base import Listing, Request


def find(request: Request) -> Listing:
    """The files of the preset's repository. Raises as hf:// does.

    Raises:
        SourceError: there is no such preset, or it was asked for as a dataset.
    """
    if request.kind != "model":
        raise SourceError(f"{request.uri} is a base model, no {request.kind}; name hf://org/data")
    preset = presets.preset_of(request.uri)
    return hub.find(replace(request, uri=preset.uri))
