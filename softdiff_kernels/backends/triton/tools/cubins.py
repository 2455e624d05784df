# SPDX-License-Identifier: Apache-2.0
"""Where machine code and launches come from without a GPU: cubins, and the CUDA module on a pretended
runtime.

`Cubin` reads an ELF file of kernels with the tools in Triton's package. `cuda_module` links the objects of a
build of csrc/cuda against a small runtime that makes no launch: it hands the kernel's name, its grid and the
bytes of its parameters to Python.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import triton

from .sass import Instruction, Launch, parse


def tool(name: str) -> str:
    """A program of NVIDIA's in Triton's package: cuobjdump, nvdisasm or ptxas."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


@dataclass(frozen=True)
class Usage:
    """Of one kernel: registers a thread, bytes of stack a thread, static shared bytes a block."""

    registers: int
    stack: int
    shared: int


class Cubin:
    """Kernels for one architecture."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = subprocess.run(
            [tool("cuobjdump"), "-res-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
        words = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"
        self.usage = {m[1]: Usage(int(m[2]), int(m[3]), int(m[4])) for m in re.finditer(words, text)}
        self.bases, self.parameters = _parameters(path.read_bytes())

    def code(self, kernel: str) -> list[Instruction]:
        command = [tool("cuobjdump"), "-sass", "-fun", kernel, str(self.path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return parse(text)[kernel]


_INFO = ".nv.info."
_KPARAM_INFO, _PARAM_CBANK, _SIZED = 0x17, 0x0A, 0x04  # of NVIDIA's .nv.info sections


def _parameters(elf: bytes) -> tuple[dict[str, int], dict[str, list[tuple[int, int]]]]:
    """By kernel: where its parameters begin in constant bank 0, and their (offsets, sizes) in order."""
    bases: dict[str, int] = {}
    parameters: dict[str, list[tuple[int, int]]] = {}
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + n * entry) for n in range(count)]
    text = sections[names][4]
    for name_at, _, _, _, offset, size in sections:
        name = elf[text + name_at : elf.index(b"\0", text + name_at)].decode()
        if not name.startswith(_INFO):
            continue
        kernel, found, at = name[len(_INFO) :], {}, offset
        while at < offset + size:
            form, attribute, length = struct.unpack_from("<BBH", elf, at)
            at += 4
            if form != _SIZED:
                continue  # the value is in place of the length
            if attribute == _KPARAM_INFO:
                _, ordinal, where, packed = struct.unpack_from("<IHHI", elf, at)
                found[ordinal] = where, packed >> 18
            elif attribute == _PARAM_CBANK:
                bases[kernel] = struct.unpack_from("<IHH", elf, at)[1]
            at += length
        parameters[kernel] = [found[n] for n in sorted(found)]
    return bases, parameters


def cubins_of(file: Path, arch: str, folder: Path) -> list[Cubin]:
    """The cubins for "sm_90" in an object of nvcc's, unpacked into a folder."""
    subprocess.run([tool("cuobjdump"), "-xelf", arch, str(file.resolve())], cwd=folder, capture_output=True)
    return [Cubin(path) for path in sorted(folder.glob(f"*{arch}*.cubin"))]


# The part of the CUDA runtime that csrc/cuda calls. `softdiff_record` sets who is told of launches.
_RUNTIME = r"""
#include <cuda_runtime_api.h>
#include <map>
#include <string>
namespace {
using Told = void (*)(const char*, const unsigned*, unsigned, size_t, void**);
Told told = nullptr;
int capability = 90;
std::map<const void*, std::string>& kernels() { static std::map<const void*, std::string> all; return all; }
}
extern "C" {
__attribute__((visibility("default"))) void softdiff_record(Told to, int arch) {
  told = to, capability = arch;
}
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*,
                            dim3*, int*) {
  kernels()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void*) { *kernel = nullptr; return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;  // by <<<>>>: csrc/cuda/launch.h has cudaLaunchKernelEx
}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* host, void** arguments) {
  const unsigned grid[3] = {c->gridDim.x, c->gridDim.y, c->gridDim.z};
  if (told) told(kernels()[host].c_str(), grid, c->blockDim.x, c->dynamicSmemBytes, arguments);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrL2CacheSize ? 50 << 20 : what == cudaDevAttrMultiProcessorCount ? 132
         : what == cudaDevAttrComputeCapabilityMajor ? capability / 10
         : what == cudaDevAttrComputeCapabilityMinor ? capability % 10
         : what == cudaDevAttrMaxSharedMemoryPerBlockOptin
             ? (capability == 90 || capability == 100 ? 232448 : capability == 80 ? 166912 : 101376) : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaErrorNotSupported; }
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "error"; }
const char* cudaGetErrorString(cudaError_t) { return "of a pretended runtime"; }
cudaError_t cudaDriverGetVersion(int* version) { *version = 13000; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { *version = 13000; return cudaSuccess; }
}
"""
_TOLD = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)


@dataclass(frozen=True)
class Recorded:
    """A launch that was not made, and the kernel's code and resources."""

    name: str
    cubin: Cubin
    launch: Launch


class CudaModule:
    """The CUDA kernels of a build, for one architecture. Alive as long as its folder is."""

    def __init__(self, objects: Path, arch: str, folder: Path) -> None:
        """objects: a folder with the objects of all of csrc/cuda, found anywhere below it."""
        files = sorted(objects.rglob("*.o"))
        kernels = [file for file in files if file.name.endswith(".cu.o")]
        if not kernels or not any(file.name == "bindings.cpp.o" for file in files):
            raise FileNotFoundError(
                f"{objects}: expected the objects of csrc/cuda, bindings.cpp.o among them"
            )
        self.cubins: dict[str, Cubin] = {}
        for file in kernels:
            place = folder / file.name
            place.mkdir()
            for cubin in cubins_of(file, arch, place):
                self.cubins.update(dict.fromkeys(cubin.usage, cubin))
        if not self.cubins:
            raise FileNotFoundError(f"{objects}: no machine code for {arch} was built")
        include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
        source, built = folder / "runtime.cpp", folder / "_cuda.so"
        source.write_text(_RUNTIME)
        compiler = os.environ.get("CXX", "g++").split()
        link = ["-shared", "-fPIC", "-O1", "-Wl,-Bsymbolic", f"-I{include}", "-o", built, source, *files]
        subprocess.run([*compiler, *map(str, link)], check=True)
        self._library = ctypes.CDLL(str(built))
        self._listener = _TOLD(self._hear)
        self._library.softdiff_record(self._listener, ctypes.c_int(int(arch[3:])))
        self._heard: list[Recorded] = []
        spec = spec_from_file_location("softdiff_kernels._cuda", built)
        assert spec is not None and spec.loader is not None
        self.module = module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def _hear(self, name: bytes, grid: Any, threads: int, shared: int, given: Any) -> None:
        kernel = name.decode()
        cubin = self.cubins[kernel]
        sizes = cubin.parameters[kernel]
        data = bytearray(max((offset + size for offset, size in sizes), default=0))
        for n, (offset, size) in enumerate(sizes):
            data[offset : offset + size] = ctypes.string_at(given[n], size)
        self._heard.append(
            Recorded(
                kernel,
                cubin,
                Launch(tuple(grid[:3]), threads, bytes(data), cubin.bases[kernel], shared),
            )
        )

    def launches(self, call: Callable[[Any], None]) -> list[Recorded]:
        """What a call of the CUDA backend would launch; `call` is given the backend."""
        before = sys.modules.get("softdiff_kernels._cuda")
        sys.modules["softdiff_kernels._cuda"] = self.module
        try:
            from ...cuda import BACKEND

            self._heard = []
            call(BACKEND)
            return self._heard
        finally:
            if before is not None:
                sys.modules["softdiff_kernels._cuda"] = before


@contextmanager
def cuda_module(objects: Path, arch: str) -> Iterator[CudaModule]:
    """The objects of a build as a module whose launches are recorded; no other may have been loaded."""
    with tempfile.TemporaryDirectory() as folder:
        yield CudaModule(objects, arch, Path(folder))
