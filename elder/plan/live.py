"""Count what tensors take while code runs: the bytes that live at once, by kind, and floating-point operations.

The code may be run on fake tensors, which have shapes and no memory: then it is known what it would take.
"""

import weakref
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

ACTIVATIONS, GRADIENTS, LOGITS = "activations", "gradients", "logits"
CASTS, OPTIMISER, WEIGHTS = "weights in bfloat16", "optimiser", "weights"
aten = torch.ops.aten
# attention on a CPU, which torch's counter does not know by name
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}
Parts = dict[str, float]  # {kind: bytes}


class Live(TorchDispatchMode):
    """Counts inside a ``with`` block; weights that were there before do not count.

    Args:
        vocabulary: what has as many columns is taken for logits.

    Attributes:
        phase: name of what is being done; peaks are kept for each.
        peaks: {phase: what lived, by kind, when most did}.
        flops: floating-point operations so far.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.phase = ""
        self.peaks: dict[str, Parts] = {}
        self.flops = 0.0
        self.kind = ACTIVATIONS  # of what appears now
        self._kinds: dict[int, str] = {}
        self._watched: dict[int, weakref.ref] = {}
        self._now: Counter[str] = Counter()
        self._weights: set[int] = set()
        self._vocabulary = vocabulary

    def ignore(self, model: nn.Module) -> None:
        """Count none of a model's weights and buffers."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._weights.add(id(tensor.untyped_storage()))

    def add(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor, or call it by another kind if it counts already."""
        storage = tensor.untyped_storage()
        before = self._kinds.get(id(storage))
        if before is None:
            self._add(tensor, kind)
        elif before != kind:
            self._now[before] -= storage.nbytes()
            self._now[kind] += storage.nbytes()
            self._kinds[id(storage)] = kind

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, and count it."""
        kwargs = kwargs or {}
        if function is aten._local_scalar_dense.default and is_fake(args[0]):
            return _some_number(args[0])
        result = function(*args, **kwargs)
        packet = function._overloadpacket
        count = flop_registry.get(ATTENTION.get(packet, packet))
        if count is not None:
            if packet in ATTENTION:
                args = _of_all_heads(args)
            self.flops += count(*args, **kwargs, out_val=result)
        kind = self._kind_of(packet, args)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                is_wide = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary
                self._add(tensor, LOGITS if is_wide else kind)
        return result

    def _kind_of(self, packet: Any, args: Any) -> str:
        if packet is aten._to_copy and id(args[0].untyped_storage()) in self._weights:
            return CASTS
        return self.kind

    def _add(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._kinds or key in self._weights:
            return
        self._kinds[key] = kind
        self._now[kind] += size
        self._watched[key] = weakref.ref(storage, partial(self._remove, key, size))
        self._keep_peak()

    def _remove(self, key: int, size: int, _: object) -> None:
        del self._watched[key]
        self._now[self._kinds.pop(key)] -= size

    def _keep_peak(self) -> None:
        highest = self.peaks.get(self.phase)
        if highest is None or self._now.total() > sum(highest.values()):
            self.peaks[self.phase] = dict(self._now)


def _of_all_heads(args: Any) -> list[Any]:
    """Return what attention is given, keys and values by their shape had every query head its own.

    Before torch 2.12 its counter refuses heads that are shared.
    """
    shapes = [one.shape for one in args if isinstance(one, Tensor) and one.ndim == 4]
    heads = max(shape[1] for shape in shapes)
    return [
        (one.shape[0], heads, *one.shape[2:])
        if isinstance(one, Tensor) and one.ndim == 4
        else one
        for one in args
    ]


def _some_number(tensor: Tensor) -> float | int | bool:
    """Return a number in place of one that a fake tensor does not have."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1
