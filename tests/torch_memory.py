"""Real training steps of transformers, peft and bitsandbytes, with what PyTorch holds counted byte by byte.

``kept``: what autograd saves, by torch.autograd.graph.saved_tensors_hooks. ``held``: all storages that live at each
moment of a step, by a dispatch mode; on fake tensors a 7B-wide model takes a second and no memory.
"""

from __future__ import annotations

import contextlib
import importlib
import weakref
from typing import Any

import pytest

from harness.scenario import Training

torch = pytest.importorskip("torch", reason="torch is not installed: `make setup` installs it")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

SMALL = {
    "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 128, "head_dim": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def build(name: str, training: Training, config: dict[str, Any], device: str = "cpu") -> tuple[Any, Any]:
    """(the model ready to train as ``training`` says, its config)."""
    cls = getattr(transformers, name)
    made = cls.config_class(**config)
    made._attn_implementation, made.architectures = training.attn_implementation, [name]
    full = training.method == "full"
    floats = training.precision == "fp32" or (full and training.precision == "mixed")
    with torch.device(device):
        model = cls(made).to(torch.float32 if floats else torch.bfloat16)
        if training.method == "qlora":
            in_four_bits(model, training)
        if not full:
            lora = peft.LoraConfig(r=training.lora.rank, target_modules=training.lora.target_modules)
            model = peft.get_peft_model(model, lora, autocast_adapter_dtype=training.precision != "bf16")
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not full:
            model.enable_input_require_grads()
    return model.train(), made


def in_four_bits(model: Any, training: Training) -> None:
    """Every linear layer but lm_head as bitsandbytes' own, then peft's preparation where asked."""
    bnb = pytest.importorskip("bitsandbytes")
    compute = torch.float32 if training.precision == "fp32" else torch.bfloat16
    for path, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and path != "lm_head":
            kind = {"quant_type": "nf4", "compress_statistics": training.double_quant}
            small = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=compute, **kind
            )
            small.weight = bnb.nn.Params4bit(layer.weight.data.clone(), requires_grad=False, module=small, **kind)
            if layer.bias is not None:
                small.bias = torch.nn.Parameter(layer.bias.data, requires_grad=False)
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, small.to("cpu"))
    model.is_loaded_in_4bit = True
    if training.prepare_model_for_kbit_training:
        peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def autocast(training: Training) -> Any:
    """The context of a forward pass."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.precision == "mixed")


def batch(training: Training) -> Any:
    """Token ids of one micro-batch."""
    return torch.ones((training.micro_batch, training.sequence_length), dtype=torch.long)


def kept(name: str, training: Training, layers: int) -> tuple[int, Any]:
    """(bytes that autograd saves in a small model's forward pass, without parameters and their casts; its config)."""
    model, config = build(name, training, {**SMALL, "num_hidden_layers": layers})
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {s for p in model.parameters() for s in (tuple(p.shape), tuple(p.shape[::-1]))}
    sizes, alive = {}, []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own and tuple(tensor.shape) not in shapes:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = batch(training)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(training):
        model(input_ids=ids, labels=ids, use_cache=False)
    return sum(sizes.values()), config


class Living(TorchDispatchMode):
    """Counts the bytes of all storages that are alive; ``peak`` is the most since it was last set."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.total = self.peak = 0
        for tensor in model.parameters():
            self.meet(tensor)
            state = getattr(tensor, "quant_state", None)
            for part in (state, getattr(state, "state2", None)):
                for held_by_it in vars(part).values() if part is not None else ():
                    if isinstance(held_by_it, torch.Tensor):
                        self.meet(held_by_it)

    def meet(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.total += storage.nbytes()
            self.peak = max(self.peak, self.total)
            weakref.finalize(storage, self.leave, key)

    def leave(self, key: int) -> None:
        self.total -= self.sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.meet(tensor)
        return out


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-4, foreach=True),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9, foreach=True),
    "adafactor": lambda p: transformers.optimization.Adafactor(p, lr=1e-4, relative_step=False, scale_parameter=False),
}


def held(
    name: str, training: Training, config: dict[str, Any], monkeypatch: Any, *, fake: bool = True
) -> tuple[int, int]:
    """(bytes between steps, bytes at the peak of the second step), parameters and states included."""
    module = importlib.import_module(getattr(transformers, name).__module__)
    for mask in ("create_causal_mask", "create_sliding_window_causal_mask"):
        # On fake tensors transformers can't see that nothing is padded, and would make a mask.
        if fake and hasattr(module, mask):
            monkeypatch.setattr(module, mask, lambda **_: None)
    model, _ = build(name, training, config, "meta" if fake else "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext():
        if fake:
            _materialize(model, training)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer, ids = OPTIMIZERS[training.optimizer](trained), batch(training)
        with Living(model) as living:
            for _ in range(2):
                between = living.peak = living.total
                with autocast(training):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                del loss
            return between, living.peak


def _materialize(model: Any, training: Training) -> None:
    """Meta tensors -> fake CPU tensors; peft makes adapters on the meta device in float32."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held_by in (module._parameters, module._buffers):
            for key, old in list(held_by.items()):
                if old is None:
                    continue
                if id(old) not in made:
                    kind = torch.bfloat16 if training.precision == "bf16" and old.is_floating_point() else old.dtype
                    new = torch.empty(old.shape, dtype=kind)
                    if held_by is module._parameters:
                        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = new, old
                held_by[key] = made[id(old)][0]
