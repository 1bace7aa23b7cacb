"""Which servers load an adapter; the runtime's own rules are held against its code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import ModelError
from peftjob.oci.compatibility import BASE_CHANGING_INITS, UNMIXABLE, check, rank_of

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none"}
SHAPES = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (8, 64),
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (64, 8),
}


def refusals(config: dict[str, Any], shapes: Any = SHAPES, rank: int = 16) -> dict[str, str]:
    verdicts = check(CONFIG | config, shapes, vllm_rank=rank)
    return {item.server: "; ".join(item.reasons) for item in verdicts if not item.loads}


def test_a_plain_lora_is_loaded_by_all() -> None:
    assert not refusals({"use_rslora": True, "rank_pattern": {"q_proj": 8}})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "only LORA can be served"),
        ({"use_dora": True}, "use_dora is set"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base weights"),
        ({"init_lora_weights": "olora"}, "changes the base weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
    ],
)
def test_what_no_server_takes_is_refused_by_all(config: dict[str, Any], reason: str) -> None:
    found = refusals(config)

    assert found.keys() == {"runtime", "vllm", "kaito"}
    assert all(reason in text for text in found.values())


def test_a_rank_above_the_servers_says_what_to_start_it_with() -> None:
    shapes = {name: tuple(40 if size == 8 else size for size in s) for name, s in SHAPES.items()}

    assert rank_of(shapes) == 40
    found = refusals({"r": 40}, shapes)
    assert found.keys() == {"vllm", "kaito"}
    assert "above the server's 16; start it with --max-lora-rank 64" in found["vllm"]
    assert not refusals({"r": 40}, shapes, rank=64)


def test_a_classifiers_head_is_loaded_by_vllm_only() -> None:
    assert refusals({"modules_to_save": ["score"]}).keys() == {"runtime"}


def test_a_tensor_that_is_no_lora_weight_is_named() -> None:
    found = refusals({}, SHAPES | {"base_model.model.lm_head.weight": (8, 8)})

    assert "base_model.model.lm_head.weight" in found["vllm"]
    assert "base_model.model.lm_head.weight" in found["runtime"]


LORA_A, LORA_B = SHAPES


@pytest.mark.parametrize(
    ("config", "shapes", "reason"),
    [
        ({}, {LORA_A: (8, 64)}, rf"holds '{LORA_A}' and no '{LORA_B}'"),
        ({}, {LORA_B: (64, 8)}, rf"holds '{LORA_B}' and no '{LORA_A}'"),
        ({}, SHAPES | {LORA_B: (64, 4)}, "is of rank 4, and adapter_config.json says 8"),
        ({"rank_pattern": {"k": 2}}, SHAPES | {LORA_A: (4, 64)}, "of rank 4, .* says 2 or 8"),
        ({}, SHAPES | {LORA_A: ()}, "is of rank 0"),
        ({"r": None, "lora_alpha": None}, SHAPES, "has no r and no lora_alpha"),
    ],
)
def test_matrices_that_do_not_go_together_are_named(
    config: dict[str, Any], shapes: Any, reason: str
) -> None:
    found = refusals(config, shapes)

    assert found.keys() == {"runtime", "vllm", "kaito"}
    assert all(re.search(reason, text) for text in found.values())


@pytest.mark.parametrize(
    "fields",
    [
        *({name: True} for name in UNMIXABLE),
        *({"init_lora_weights": n} for n in BASE_CHANGING_INITS),
    ],
    ids=str,
)
def test_the_runtime_refuses_what_is_said_here(fields: dict[str, Any], tmp_path: Path) -> None:
    runtime = pytest.importorskip("kserve_runtime.adapter_config")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))

    with pytest.raises(ModelError, match="can't be served beside others"):
        runtime.read_config("a", tmp_path)
