"""Base models by short names: those that KAITO has tuning presets for.

`preset://phi-4-mini-instruct` stands for a repository of the Hub. Pure; may import peftjob.errors.
"""

import difflib
from dataclasses import dataclass

from peftjob.errors import SourceError

SCHEME = "preset://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A base model and what there is to know of it before it is fetched."""

    name: str
    repository: str
    """On the Hub: org/name."""
    context_tokens: int
    """The longest sequence that it was made for."""
    chat_template: str | None
    """The name of a chat template like its own (llm_trainer.data.preset_templates); None where
    there is none."""
    licence: str
    """SPDX identifier."""
    gated: bool = False
    """Whether its terms have to be accepted on the Hub, so that HF_TOKEN is needed."""

    @property
    def uri(self) -> str:
        """Where its files are."""
        return f"hf://{self.repository}"

    @property
    def note(self) -> str:
        """One line for who is about to use it."""
        step = f"; accept its terms at https://huggingface.co/{self.repository}, and set HF_TOKEN"
        return f"{self.repository} ({self.licence}){step if self.gated else ''}"


def _phi(name: str, repository: str, context_tokens: int, chat_template: str = "phi-3") -> Preset:
    return Preset(
        name=name,
        repository=f"microsoft/{repository}",
        context_tokens=context_tokens,
        chat_template=chat_template,
        licence="MIT",
    )


def _qwen(size: str) -> Preset:
    return Preset(
        name=f"qwen2.5-coder-{size}-instruct",
        repository=f"Qwen/Qwen2.5-Coder-{size.upper()}-Instruct",
        context_tokens=32_768,
        chat_template="chatml",
        licence="Apache-2.0",
    )


def _mistral(name: str, repository: str) -> Preset:
    return Preset(
        name=name,
        repository=f"mistralai/{repository}",
        context_tokens=32_768,
        chat_template="mistral",
        licence="Apache-2.0",
        gated=True,
    )


def _falcon(name: str) -> Preset:
    return Preset(
        name=name,
        repository=f"tiiuae/{name}",
        context_tokens=2048,
        chat_template=None,
        licence="Apache-2.0",
    )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _phi("phi-4", "phi-4", 16_384, "phi-4"),
        _phi("phi-4-mini-instruct", "Phi-4-mini-instruct", 131_072),
        _phi("phi-3-mini-4k-instruct", "Phi-3-mini-4k-instruct", 4096),
        _phi("phi-3-mini-128k-instruct", "Phi-3-mini-128k-instruct", 131_072),
        _phi("phi-3-medium-4k-instruct", "Phi-3-medium-4k-instruct", 4096),
        _phi("phi-3-medium-128k-instruct", "Phi-3-medium-128k-instruct", 131_072),
        _phi("phi-3.5-mini-instruct", "Phi-3.5-mini-instruct", 131_072),
        _mistral("mistral-7b", "Mistral-7B-v0.3"),
        _mistral("mistral-7b-instruct", "Mistral-7B-Instruct-v0.3"),
        _qwen("7b"),
        _qwen("32b"),
        # KAITO had these up to v0.10.
        _falcon("falcon-7b"),
        _falcon("falcon-7b-instruct"),
        _falcon("falcon-40b"),
        _falcon("falcon-40b-instruct"),
    )
}


def preset_of(uri: str) -> Preset:
    """The preset that `preset://name` names.

    Raises:
        SourceError: there is none of this name.
    """
    name = uri.removeprefix(SCHEME).rstrip("/").lower()
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise SourceError(f"there is no preset {name!r}; known are {', '.join(PRESETS)}{meant}")
