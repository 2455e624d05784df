# SPDX-License-Identifier: Apache-2.0
"""Refuses a loss that bypasses a wrapper: DDP and FSDP act only in the `forward` of the module they wrap."""

from __future__ import annotations

import gc
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel


class Wrappable(nn.Module):
    """A module with a loss beside its forward. The modules that hold it are recorded."""


_HOLDERS: WeakKeyDictionary[nn.Module, list[ref[nn.Module]]] = WeakKeyDictionary()
"""For each Wrappable: the modules that it is a submodule of, and every DDP and FSDP around it."""
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
_REDUCE_WITHOUT_FORWARD = ("_use_python_reducer", "_delay_all_reduce_all_params")
"""Modes of DDP whose hooks need no forward, and in which a forward cannot be detected."""


def _holders(module: nn.Module) -> list[nn.Module]:
    holders = (reference() for reference in _HOLDERS.get(module, ()))
    return [holder for holder in holders if holder is not None]


def _note_holder(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if child is not None:
        # By name, because importing FSDP takes a third of a second.
        wraps = type(parent).__name__ in _WRAPPERS
        for module in child.modules() if wraps else (child,):
            if isinstance(module, Wrappable):
                others = (holder for holder in _holders(module) if holder is not parent)
                _HOLDERS[module] = [ref(holder) for holder in (*others, parent)]


# A wrapper leaves no mark on the module that it wraps. Torch calls this when a module gets a submodule.
register_module_module_registration_hook(_note_holder)


def _is_bypassed(holder: Any) -> bool:
    """Whether a gradient computed now would not pass through this wrapper; False for any other module."""
    if isinstance(holder, DistributedDataParallel):
        return (
            holder.require_backward_grad_sync  # False within no_sync(), where nothing is reduced anyway
            and getattr(DistributedDataParallel, "_active_ddp_module", holder) is None  # set in its forward
            and not any(getattr(holder, mode, False) for mode in _REDUCE_WITHOUT_FORWARD)
            and dist.is_initialized()
            and holder.process_group.size() > 1
        )
    if hasattr(type(holder), "_get_fsdp_state"):  # fully_shard
        state = getattr(holder._get_fsdp_state(), "_training_state", None)
    else:
        state = getattr(holder, "training_state", None) if type(holder).__name__ in _WRAPPERS else None
    return getattr(state, "name", None) == "IDLE"


def _bypassed_by(module: nn.Module) -> str | None:
    """The name of a wrapper around `module` that a call now would bypass; None if there is none."""
    for holder in (module, *_holders(module)):
        if _is_bypassed(holder):
            return "fully_shard" if hasattr(type(holder), "_get_fsdp_state") else type(holder).__name__
    return None


def refuse_bypass(op: str, module: nn.Module) -> None:
    """RuntimeError if a gradient would bypass the DDP (of several processes) or FSDP around the module.

    Does nothing under torch.compile, whose graphs cannot see this.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not _bypassed_by(module):
        return
    if not any(p.requires_grad for p in module.parameters()):
        return
    gc.collect()  # a wrapper that is no longer used may still be alive in a reference cycle
    wrapper = _bypassed_by(module)
    if wrapper:
        raise RuntimeError(
            f"{op}: expected a call through the wrapper, got one that bypasses {wrapper}, so each process "
            "would keep its own gradient; wrap TrainingLoss(denoiser) and call the wrapped module, or use "
            "torch.no_grad() if no gradient is needed"
        )


def explain_sharded(op: str, module: nn.Module, error: RuntimeError) -> None:
    """RuntimeError with an explanation if `error` is torch's about sharded parameters."""
    if "DTensor" not in str(error):
        return
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for p in module.parameters()):
        raise RuntimeError(
            f"{op}: expected whole parameters, got sharded ones (DTensor); call the module that was given to "
            "fully_shard, which gathers them: the network, or TrainingLoss(denoiser) for training"
        ) from error
