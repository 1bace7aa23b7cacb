"""What a method may ask of PEFT, checked where no PEFT is installed."""

from typing import Any

import pytest

from peftjob.errors import SpecError
from peftjob.spec import PeftJobSpec


def _spec(**method: Any) -> PeftJobSpec:
    data = {"source": "hf://org/x"}
    return PeftJobSpec.parse({"name": "a", "base_model": data, "dataset": data, "method": method})


@pytest.mark.parametrize(
    "method",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.1\..*_proj"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": False},
        {"type": "qlora", "init_lora_weights": "loftq"},
        {"options": {"rank_pattern": {"q_proj": 4}, "target_parameters": ["experts.down_proj"]}},
        {"type": "ia3", "target_modules": ["k_proj"], "feedforward_modules": []},
    ],
)
def test_a_method_survives_json(method: dict[str, Any]) -> None:
    spec = _spec(**method)
    assert PeftJobSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"target_modules": 5}, r"method\.target_modules: 5 is neither a list of names nor a reg"),
        ({"target_modules": [5]}, r"method\.target_modules: \[5\] is neither a list"),
        (
            {"init_lora_weights": "pisa"},
            "init_lora_weights: 'pisa' is not known; did you mean pissa",
        ),
        ({"init_lora_weights": "eva"}, "'eva' can't be used: it needs a pass over the data"),
        ({"init_lora_weights": "loftq"}, "'loftq' makes up for quantising .* take type qlora"),
        (
            {"type": "qlora", "init_lora_weights": "pissa"},
            "'pissa' needs base weights that are not",
        ),
        ({"type": "qlora", "init_lora_weights": "mica"}, "'mica' needs base weights that are not"),
        (
            {"options": {"rankpattern": {}}},
            r"method\.options: rankpattern: is no field of LoraConf",
        ),
        ({"options": {"eva_config": {}}}, "eva_config: can't be used: needs a pass over the data"),
        ({"options": {"r": 3}}, "r: is a field of method itself, not of its options"),
        ({"options": {"task_type": "X"}}, "task_type: leave it out: the spec's task decides"),
    ],
)
def test_what_can_not_be_had_is_refused_before_a_gpu_is_asked_for(
    method: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        _spec(**method)
