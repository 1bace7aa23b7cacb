"""A request's `model` and `adapters` → what it is answered with."""

from dataclasses import dataclass

from kserve_runtime.catalogue import Catalogue
from kserve_runtime.engine import Mix, Share
from kserve_runtime.errors import ApiError
from kserve_runtime.schemas import AdapterShare
from kserve_runtime.tokenizer import ChatTemplate


@dataclass(frozen=True, slots=True)
class Voice:
    """What a request is answered with. It stays what it is when names change their meaning."""

    mix: Mix
    template: ChatTemplate


def resolve(
    model: str, adapters: list[AdapterShare] | None, catalogue: Catalogue, *, slots: int
) -> Voice:
    """What `model` stands for, or the blend that `adapters` spells out.

    A blend is talked to in the chat template of the first adapter in it that brings one of its own.

    Raises:
        ApiError: 404 for a name that there isn't, 400 for a blend that can't be.
    """
    named = catalogue.find(model)
    if adapters is None:
        return Voice(named.mix, named.template)
    names = [share.name for share in adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ApiError(400, f"adapters: {twice!r} is there twice; give it once", param="adapters")
    if len(names) > slots:
        raise ApiError(
            400,
            f"adapters: {len(names)} of them, but this server blends {slots} at most",
            param="adapters",
        )
    models = [catalogue.find_adapter(name) for name in names]
    base = catalogue.base.template
    template = next((model.template for model in models if model.template is not base), base)
    mix = []
    for share, found in zip(adapters, models, strict=True):
        strength = found.strength if share.strength is None else share.strength
        if found.adapter is not None and strength != 0:
            mix.append(Share(found.adapter, strength))
    return Voice(tuple(mix), template)
