# SPDX-License-Identifier: Apache-2.0
"""Refusals for a loss that bypasses its wrapper: DDP and FSDP act only in the `forward` of what they wrap."""

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
    """A module with a loss beside its forward, of which is noted what holds it."""


_HOLDERS: WeakKeyDictionary[nn.Module, list[ref[nn.Module]]] = WeakKeyDictionary()
"""Of each Wrappable: the modules that it is a part of, and every DDP and FSDP around it."""
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")
_REDUCE_WITHOUT_FORWARD = ("_use_python_reducer", "_delay_all_reduce_all_params")
"""Modes of DDP whose hooks need no forward, and which leave no trace of one."""


def _holders(module: nn.Module) -> list[nn.Module]:
    found = (held() for held in _HOLDERS.get(module, ()))
    return [holder for holder in found if holder is not None]


def _note_holder(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if child is not None:
        # By name: to import FSDP takes a third of a second.
        wraps = type(parent).__name__ in _WRAPPERS
        for module in child.modules() if wraps else (child,):
            if isinstance(module, Wrappable):
                others = (holder for holder in _holders(module) if holder is not parent)
                _HOLDERS[module] = [ref(holder) for holder in (*others, parent)]


# A wrapper leaves no mark on what it wraps. Torch calls this where a module gets a submodule.
register_module_module_registration_hook(_note_holder)


def _is_bypassed(holder: Any) -> bool:
    """Whether gradients computed here and now are none of the wrapper's; False of any other module."""
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
    """The name of a live wrapper that the call of `module` bypasses."""
    for holder in (module, *_holders(module)):
        if _is_bypassed(holder):
            return "fully_shard" if hasattr(type(holder), "_get_fsdp_state") else type(holder).__name__
    return None


def refuse_bypass(op: str, module: nn.Module) -> None:
    """RuntimeError where a gradient would bypass the DDP (of several processes) or FSDP around the module.

    Not under torch.compile, whose graphs do not see this.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not _bypassed_by(module):
        return
    if not any(p.requires_grad for p in module.parameters()):
        return
    gc.collect()  # a wrapper that was given up may still hang in a circle of references
    wrapper = _bypassed_by(module)
    if wrapper:
        raise RuntimeError(
            f"{op}: expected a call through the wrapper, got one beside {wrapper}, so that each process "
            "would keep a gradient of its own; wrap TrainingLoss(denoiser) and call what comes out, or use "
            "torch.no_grad() where no gradient is needed"
        )


def explain_sharded(op: str, module: nn.Module, error: RuntimeError) -> None:
    """RuntimeError in words where `error` is torch's, of sharded parameters that nobody gathered."""
    if "DTensor" not in str(error):
        return
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for p in module.parameters()):
        raise RuntimeError(
            f"{op}: expected whole parameters, got sharded ones (DTensor); call the module that fully_shard "
            "was given, which gathers them: the network, or TrainingLoss(denoiser) for training"
        ) from error
