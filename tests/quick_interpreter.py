# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, without work that it does again at each call of a function inside a kernel."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any


def quicken() -> None:
    """Spares the interpreter what it does in vain; leaves alone one that has other parts.

    - An inner call patches triton.language again, to the same effect: a third to a half of the time.
    - Integer operations are done again in 64 bits to find overflows, but the assertion that follows is left
      out unless `debug` is set: half of the time that remains.
    """
    try:
        interpreter: Any = importlib.import_module("triton.runtime.interpreter")
        language: Any = importlib.import_module("triton.language")
        patch, unchanged = interpreter._patch_lang, interpreter._LangPatchScope
        modules, is_builtin = (language, language.core), language.core.is_builtin
        builder = interpreter.interpreter_builder
        options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    except (ImportError, AttributeError, TypeError):
        return

    @functools.cache
    def seen(fn: Any) -> list[Any]:
        # Kernels name triton.language; its own functions, such as zeros, the module that it is made of.
        return [module for module in modules if any(value is module for value in fn.__globals__.values())]

    def once(fn: Any) -> Any:
        # A patched function is no builtin any more; the launch's own scope restores it at the end.
        return patch(fn) if any(is_builtin(module.load) for module in seen(fn)) else unchanged()

    interpreter._patch_lang = once
    builder.options = options
