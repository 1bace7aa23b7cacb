"""Every fast way against plain PEFT: the loss and each gradient, for every architecture."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from llm_trainer.data.examples import Examples
from llm_trainer.fast import documents, elementwise
from llm_trainer.fast.collate import collate
from llm_trainer.fast.prepare import Prepared, prepare
from llm_trainer.fast.row_attention import row_attention
from llm_trainer.model.adapter import add_adapter
from peftjob.method import IA3, Lora, PromptTuning
from tests import tiny_models

PACKED = (
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Phi",
    "Phi3",
    "Gemma",
    "Gemma2",
    "Gemma3Text",
    "GPTNeoX",
    "GPT2",
    "OPT",
    "StableLm",
    "Olmo2",
    "Granite",
    "Cohere",
    "Qwen3Moe",
    "DeepseekV3",
)
PADDED = ("Falcon", "Bloom", "Mamba")
OPTIONS: dict[str, dict[str, Any]] = {
    "Mistral": {"sliding_window": 7},
    "Gemma2": {"sliding_window": 8, "final_logit_softcapping": 3.0},
    "Gemma3Text": {"sliding_window": 8},
    "Granite": {"logits_scaling": 4.0},
    "Cohere": {"logit_scale": 0.25},
    "GPT2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "OPT": {"dropout": 0.0},
}


def examples(lengths: tuple[int, ...] = (17, 3, 40, 9, 2)) -> Examples:
    rng = np.random.default_rng(3)
    rows = []
    for length in lengths:
        trained = rng.random(length) < 0.6
        trained[0], trained[-1] = False, True
        rows.append((rng.integers(3, 64, length).tolist(), trained.tolist()))
    return Examples.of(rows)


def make(architecture: str, dtype: torch.dtype = torch.float32, method: Any = None) -> Any:
    """A model with an adapter whose weights are all different from zero."""
    base = tiny_models.causal(architecture, **OPTIONS.get(architecture, {})).to(dtype)
    torch.manual_seed(1)
    model = add_adapter(base, method or Lora(r=4, lora_alpha=8, use_rslora=True))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.train()


Outcome = tuple[float, dict[str, torch.Tensor]]


def outcome(model: Any, loss: torch.Tensor) -> Outcome:
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), grads


def plain(model: Any, data: Examples) -> Outcome:
    """Row by row, through PEFT and the model's own loss over all logits."""
    total = torch.zeros((), device=model.device)
    for i in range(len(data)):
        ids, trained = (torch.from_numpy(part.copy()).to(model.device) for part in data.row(i))
        logits = model(input_ids=ids.long()[None], use_cache=False).logits[0]
        labels = torch.where(trained, ids.long(), -100)[1:]
        total = total + F.cross_entropy(logits[:-1].float(), labels, reduction="sum")
    return outcome(model, total)


def fast(model: Any, data: Examples, notes: list[str] | None = None) -> tuple[Prepared, Outcome]:
    prepared = prepare(model, note=[].append if notes is None else notes.append)
    batch = collate(data, np.arange(len(data)), 0, packed=prepared.packed)
    moved = {name: tensor.to(model.device) for name, tensor in batch.items()}
    return prepared, outcome(model, prepared.target_loss(model, moved).loss)


def distance(one: Outcome, other: Outcome) -> float:
    """The largest difference of a gradient, as a share of the largest gradient."""
    assert one[1].keys() == other[1].keys()
    largest = max(float(g.abs().max()) for g in other[1].values())
    return max(float((one[1][n] - other[1][n]).abs().max()) for n in one[1]) / largest


@pytest.mark.parametrize("architecture", PACKED)
def test_packed_rows_train_as_plain_peft_does_to_1e_5(architecture: str) -> None:
    reference = plain(make(architecture), examples())
    prepared, found = fast(make(architecture), examples())
    assert prepared.packed
    assert prepared.target_loss.chunked
    assert found[0] == pytest.approx(reference[0], rel=1e-5)
    assert distance(found, reference) < 1e-5


LONG = {"max_position_embeddings": 512, "sliding_window": 140}


@pytest.mark.parametrize("architecture", ["Mistral", "Gemma2", "Gemma3Text"])
@pytest.mark.parametrize("lengths", [(300, 1, 141, 2, 256), (257,), (2,)])
def test_rows_beyond_a_window_a_block_and_a_chunk_train_alike(
    architecture: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIONS, architecture, LONG)
    reference = plain(make(architecture), examples(lengths))
    prepared, found = fast(make(architecture), examples(lengths))
    assert prepared.packed
    assert found[0] == pytest.approx(reference[0], rel=1e-5)
    assert distance(found, reference) < 1e-5


def test_attention_in_chunks_is_not_taken_for_attention_to_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {**tiny_models.CONFIGS["Gemma"], "intermediate_size_mlp": 48, "num_local_experts": 2}
    # The chunk is longer than the rows of the proof.
    small["attention_chunk_size"] = 16
    monkeypatch.setitem(tiny_models.CONFIGS, "Llama4Text", small)
    notes: list[str] = []
    reference = plain(make("Llama4Text"), examples())
    _, found = fast(make("Llama4Text"), examples(), notes)
    assert "rows are padded, not packed (a mask that its attention is not told of)" in notes[0]
    assert distance(found, reference) < 1e-5


WHOLE = {"head": ("lm_head",), "embeddings": ("embed_tokens",), "both": ("lm_head", "embed_tokens")}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modules", WHOLE)
def test_heads_and_embeddings_that_are_trained_whole_train_alike(
    modules: str, dtype: torch.dtype, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIONS, "Llama", {"tie_word_embeddings": tied})
    method = Lora(r=4, lora_alpha=8, modules_to_save=WHOLE[modules])
    reference = plain(make("Llama", dtype, method), examples())
    model = make("Llama", dtype, method)
    prepared, found = fast(model, examples())
    assert prepared.packed
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert distance(found, reference) < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("architecture", PADDED)
def test_what_can_not_be_packed_is_padded_and_said_once(architecture: str) -> None:
    reference = plain(make(architecture), examples())
    notes: list[str] = []
    prepared, found = fast(make(architecture), examples(), notes)
    assert not prepared.packed
    assert len([note for note in notes if "rows are padded, not packed" in note]) == 1
    assert found[0] == pytest.approx(reference[0], rel=1e-5)
    assert distance(found, reference) < 1e-5


@pytest.mark.parametrize("architecture", ["Llama", "Phi3", "Gemma2", "GPTNeoX", "Qwen3"])
def test_in_bfloat16_the_error_is_bfloat16s_own(architecture: str) -> None:
    exact = plain(make(architecture), examples())
    own = distance(plain(make(architecture, torch.bfloat16), examples()), exact)
    ours = distance(fast(make(architecture, torch.bfloat16), examples())[1], exact)
    assert ours < 1.5 * own + 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Phi3", "Qwen2", "Qwen3"])
def test_on_a_gpu_the_error_is_bfloat16s_own(architecture: str) -> None:
    exact = plain(make(architecture).cuda(), examples())
    own = distance(plain(make(architecture, torch.bfloat16).cuda(), examples()), exact)
    prepared, found = fast(make(architecture, torch.bfloat16).cuda(), examples())
    assert prepared.packed
    assert distance(found, exact) < 1.5 * own + 1e-3


@pytest.mark.parametrize(
    ("architecture", "projections"), [("Llama", 14), ("Phi3", 8), ("GPTNeoX", 8), ("Falcon", 8)]
)
def test_all_lora_projections_are_fused(architecture: str, projections: int) -> None:
    model = make(architecture)
    prepare(model, note=lambda _: None)
    fused = [m for m in model.modules() if type(m.__dict__.get("forward")).__name__ == "_Member"]
    assert len(fused) == projections


def test_projections_of_one_input_are_computed_together() -> None:
    model = make("Llama")
    prepare(model, note=lambda _: None)
    attention = model.get_base_model().model.layers[0].self_attn
    groups = {id(getattr(attention, n).forward._group) for n in ("q_proj", "k_proj", "v_proj")}
    assert len(groups) == 1
    assert id(attention.o_proj.forward._group) not in groups


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Lora(r=4, lora_dropout=0.1), "not all LoRA projections are fused (dropout)"),
        (Lora(r=4, use_dora=True), "not all LoRA projections are fused (DoRA or another variant)"),
        (IA3(), ""),
    ],
)
def test_other_methods_go_peft_s_way(method: Any, said: str) -> None:
    notes: list[str] = []
    reference = plain(make("Llama", method=method).eval(), examples())
    model = make("Llama", method=method).eval()
    _, found = fast(model, examples(), notes)
    assert distance(found, reference) < 1e-5
    assert said in " ".join(notes)


def test_attention_with_dropout_keeps_rows_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS, "GPT2", {"attn_pdrop": 0.1})
    notes: list[str] = []
    assert not prepare(make("GPT2"), note=notes.append).packed
    assert "rows are padded, not packed (attention with dropout" in notes[0]


def test_a_prompt_method_trains_padded_rows_as_plain_peft_does() -> None:
    method = PromptTuning(num_virtual_tokens=3)
    model = make("Llama", method=method)
    prepared = prepare(model, packs=False, note=lambda _: None)
    batch = collate(examples(), np.arange(5), 0)
    found = outcome(model, prepared.target_loss(model, batch).loss)
    assert not prepared.packed
    other = make("Llama", method=method)
    labels = batch["labels"].clone()
    count = int((labels[:, 1:] != -100).sum())
    reference = outcome(other, other(**{**batch, "labels": labels}).loss * count)
    assert found[0] == pytest.approx(reference[0], rel=1e-5)
    assert distance(found, reference) < 1e-5


def test_gradient_checkpointing_changes_nothing() -> None:
    reference = plain(make("Llama"), examples())
    model = make("Llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prepared, found = fast(model, examples())
    assert prepared.packed
    assert distance(found, reference) < 1e-5


def test_the_proof_leaves_no_trace() -> None:
    model = make("Llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    prepare(model, note=lambda _: None)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_generation_with_a_cache_goes_on_as_before() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    plain_model, model = make("Llama").eval(), make("Llama").eval()
    prepared, _ = fast(model, examples())
    assert prepared.packed
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 63}
    assert torch.equal(model.generate(ids, **options), plain_model.generate(ids, **options))


def test_a_wrong_way_is_found_out_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(q: Any, k: Any, v: Any, **_: Any) -> Any:
        return v.mean(1, keepdim=True).expand_as(v).repeat_interleave(len(q) // len(v), 0)

    monkeypatch.setattr(documents, "row_attention", leaky)
    notes: list[str] = []
    prepared, found = fast(make("Llama"), examples(), notes)
    assert not prepared.packed
    assert "rows are padded, not packed (the" in notes[0]
    assert distance(found, plain(make("Llama"), examples())) < 1e-5


class Kernel(torch.autograd.Function):
    """Stands for a library's SwiGLU, which needs a GPU."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        Kernel.backwards += 1
        gate, up = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            return torch.autograd.grad(F.silu(gate) * up, (gate, up), grad * Kernel.factor)

    backwards, factor = 0, 1.0


@pytest.mark.parametrize(("factor", "taken"), [(1.0, True), (3.0, False)])
def test_a_librarys_kernel_is_taken_only_if_its_gradients_are_right(
    monkeypatch: pytest.MonkeyPatch, factor: float, taken: bool
) -> None:
    monkeypatch.setattr(Kernel, "factor", factor)
    monkeypatch.setattr(
        elementwise, "_liger", lambda _, module, __: Kernel if module == "swiglu" else None
    )
    data, notes = examples(), list[str]()
    expected = plain(make("Llama"), data)
    model = make("Llama")
    prepared = prepare(model, note=notes.append)
    monkeypatch.setattr(Kernel, "backwards", 0)
    loss = prepared.target_loss(model, collate(data, np.arange(len(data)), 0, packed=True)).loss
    assert distance(outcome(model, loss), expected) < 1e-5
    assert (Kernel.backwards > 0) == taken
    assert notes == []


def test_a_librarys_kernel_that_fails_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no kernel image is available")

    broken = type("Broken", (), {"apply": staticmethod(fails)})
    monkeypatch.setattr(elementwise, "_liger", lambda *_: broken)
    model = make("Llama")
    assert elementwise.install(model) == 7


@pytest.mark.parametrize("length", [1, 2, 100, 256, 257, 400])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, None), (None, 5.0), (129, 2.0)])
@pytest.mark.parametrize("keys", [1, 4])
def test_attention_of_a_row_is_softmax_of_what_it_sees(
    length: int, window: int | None, softcap: float | None, keys: int
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(h, length, 8, requires_grad=True) for h in (4, keys, keys))
    scores = (q @ k.repeat_interleave(4 // keys, 0).transpose(1, 2)) * 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(length)[:, None] - torch.arange(length)[None]
    hidden = (behind < 0) | (behind >= (window or length))
    p = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    expected = p @ v.repeat_interleave(4 // keys, 0)
    found = row_attention(q, k, v, scale=0.5, window=window, softcap=softcap)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(torch.autograd.grad(found, (q, k, v), weights), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
