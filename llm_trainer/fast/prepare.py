"""What of the fast ways applies to a model: installed one by one, each proven on the spot.

The proof is a small batch through the model as it is then, against the same rows one by one through
the model as it came: the loss and the gradients of what is trained have to agree within the
precision of the model's dtype. A way that does not agree is taken back, and that is said once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from llm_trainer.data.examples import Examples
from llm_trainer.fast import documents, elementwise, lora
from llm_trainer.fast.collate import collate
from llm_trainer.fast.loss import TargetLoss
from llm_trainer.objective import Batch

LENGTHS = (5, 9)
"""Tokens of the rows of the proof."""
NOISE = 0.02
"""Added to what is trained during the proof: a LoRA that has just begun changes nothing, and a
wrong one would not show."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Of the gradients, as a share of their norm. Rows that see each other differ by more than half."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """How a model is to be fed."""

    target_loss: TargetLoss
    packed: bool
    """Whether rows may lie one after the other."""


def prepare(
    model: PeftModel,
    *,
    packs: bool = True,
    label_smoothing: float = 0.0,
    note: Callable[[str], None],
) -> Prepared:
    """Make `model`, on its device, fast.

    Args:
        packs: False where the method forbids packed batches (a prefix before each row).
        note: takes a line for each way that does not apply.
    """
    name = type(model.get_base_model()).__name__
    with _proof(model):
        examples = _examples(model)
        expected, calls = _reference(model, examples, label_smoothing)
        target_loss = TargetLoss(model, label_smoothing=label_smoothing)
        packed = False

        def agrees(*, packed: bool) -> str | None:
            return _difference(model, target_loss, examples, expected, packed=packed)

        if target_loss.chunked and (reason := agrees(packed=False)):
            target_loss.give_up_chunks()
            note(f"{name}: logits are computed by the model's own head ({reason})")
        if packs:
            own = str(model.get_base_model().config._attn_implementation)
            documents.install(model)
            reason = agrees(packed=True) or _refusal(model, target_loss, examples)
            packed = reason is None
            if reason is not None:
                documents.uninstall(model, own)
                note(f"{name}: rows are padded, not packed ({reason})")
        groups, left = _groups(calls)
        if left:
            note(f"{name}: not all LoRA projections are fused ({left})")
        lora.install(groups)
        if groups and (reason := agrees(packed=packed)):
            lora.uninstall(model)
            note(f"{name}: LoRA projections are not fused ({reason})")
        for library in (True, False):
            elementwise.install(model, library=library)
            if not (reason := agrees(packed=packed)):
                break
            elementwise.uninstall(model)
        if reason:
            note(f"{name}: norms and activations are not fused ({reason})")
    return Prepared(target_loss=target_loss, packed=packed)


@contextmanager
def _proof(model: PeftModel) -> Iterator[None]:
    """Without dropout, with noise on what is trained; both as before afterwards."""
    was_training = model.training
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [(p, p.detach().clone(), p.grad) for p in trained]
    generator = torch.Generator().manual_seed(0)
    model.eval()
    with torch.no_grad():
        for p in trained:
            p.add_(torch.randn(p.shape, generator=generator).to(p.device, p.dtype), alpha=NOISE)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value, grad in before:
                p.copy_(value)
                p.grad = grad
        model.train(was_training)


def _examples(model: PeftModel) -> Examples:
    count = model.get_base_model().get_input_embeddings().num_embeddings
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, count, n).tolist(), [False, *[True] * (n - 1)]) for n in LENGTHS]
    return Examples.of(rows)


Outcome = tuple[float, list[torch.Tensor | None]]
"""The loss, and the gradients of what is trained."""
Calls = list[tuple[LoraLayer, torch.Tensor]]
"""LoRA layers in the order they were called, and what with."""


def _outcome(model: PeftModel, loss: torch.Tensor) -> Outcome:
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [p for p in model.parameters() if p.requires_grad]
    grads = [None if p.grad is None else p.grad.float() for p in trained]
    for p in trained:
        p.grad = None
    return float(loss.detach()), grads


def _reference(model: PeftModel, examples: Examples, smoothing: float) -> tuple[Outcome, Calls]:
    """Row by row through the model as it came; the calls of the last row."""
    device = next(model.parameters()).device
    calls: Calls = []
    hooks = [
        module.register_forward_pre_hook(lambda m, args: calls.append((m, args[0])))
        for module in model.modules()
        if isinstance(module, LoraLayer)
    ]
    total = torch.zeros((), device=device)
    for p in model.parameters():
        p.grad = None
    for i in range(len(examples)):
        calls.clear()
        ids = torch.from_numpy(examples.row(i)[0].astype(np.int64)).to(device)
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        logits = logits[-len(ids) :]  # A prompt method puts its own tokens before.
        total = total + F.cross_entropy(
            logits[:-1].float(), ids[1:], reduction="sum", label_smoothing=smoothing
        )
    for hook in hooks:
        hook.remove()
    return _outcome(model, total), calls


def _difference(
    model: PeftModel,
    target_loss: TargetLoss,
    examples: Examples,
    expected: Outcome,
    *,
    packed: bool,
) -> str | None:
    """What differs from what is expected, or None."""
    try:
        loss, grads = _outcome(
            model, target_loss(model, _batch(model, examples, packed=packed)).loss
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as err:
        lines = str(err).strip().splitlines() or [type(err).__name__]
        return lines[0][:200]
    tolerance = TOLERANCE[next(p.dtype for p in model.parameters() if p.is_floating_point())]
    if not abs(loss - expected[0]) <= tolerance * abs(expected[0]):
        return f"the loss differs: {loss:.6g}, not {expected[0]:.6g}"
    pairs = zip(grads, expected[1], strict=True)
    differences = [(a if b is None else b if a is None else a - b) for a, b in pairs]
    wrong = _norm(differences) / max(_norm(expected[1]), 1e-30)
    return None if wrong <= tolerance else f"the gradients differ by {wrong:.2g} of their norm"


def _norm(tensors: Sequence[torch.Tensor | None]) -> float:
    squares = [float(t.double().square().sum()) for t in tensors if t is not None]
    return float(np.sqrt(sum(squares)))


def _refusal(model: PeftModel, target_loss: TargetLoss, examples: Examples) -> str | None:
    """Why packed rows can't be trained on where they can be computed: attention with dropout."""
    model.train()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            target_loss(model, _batch(model, examples, packed=True))
    except NotImplementedError as err:
        return str(err)
    finally:
        model.eval()
    return None


def _batch(model: PeftModel, examples: Examples, *, packed: bool) -> Batch:
    device = next(model.parameters()).device
    batch = collate(examples, np.arange(len(examples)), 0, packed=packed)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _groups(calls: Calls) -> tuple[list[list[Any]], str]:
    """Layers that were given the same tensor one after the other; why others are left to PEFT."""
    groups: list[list[Any]] = []
    last: torch.Tensor | None = None
    left: set[str] = set()
    seen: set[int] = set()
    for layer, x in calls:
        reason = "a layer that is called twice" if id(layer) in seen else lora.applies(layer)
        seen.add(id(layer))
        if reason is not None:
            left.add(reason)
            last = None
        elif x is last:
            groups[-1].append(layer)
        else:
            groups.append([layer])
            last = x
    return groups, ", ".join(sorted(left))
