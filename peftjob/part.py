"""What every piece of a spec is."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A piece of a spec: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
