"""What every piece of a spec is."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A piece of a spec: immutable, and an unknown field is an error.

    No number is infinite, and no error repeats its input, which may be a secret's value.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )
