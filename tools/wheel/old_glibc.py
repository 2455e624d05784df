# SPDX-License-Identifier: Apache-2.0
"""Linker flags with which a new Linux makes a module for an old one: manylinux_2_28 on glibc 2.34 or later.

glibc 2.34 moved libpthread, libdl and librt into libc and gave their functions a new symbol version, though
they are the same functions: what is linked there asks for 2.34 for no reason. Stub libraries that define
those names under their old version, with the old libraries' file names, make the linker write what a linker
of 2018 would have written; glibc of any age then finds them. A symbol is taken only where the libc here has
the old and the new version at one address, so none changes its meaning. libstdc++, which is newer than 2_28
too, is linked in; libgcc_s stays shared, since a static one unwinds through a function of glibc 2.35.

    python tools/wheel/old_glibc.py FOLDER      writes the stubs, prints the value for LDFLAGS
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

WANTED = (2, 28)
# Which library of old had a function, by the beginning of its name.
HOMES = {"dl": "libdl.so.2", "shm_": "librt.so.1", "pthread_": "libpthread.so.0", "sem_": "libpthread.so.0"}
SYMBOL = re.compile(r"^(\w+) [TWi] (\w+)(@@?)GLIBC_([\d.]+)$", re.MULTILINE)
# The old version behaves otherwise, but CUDA's static runtime, its one caller here, was made for the old one.
ALSO = ("pthread_kill",)
# What libstdc++ takes from newer glibcs, for itself: a flag of 2.32 that spares atomics in programs of one
# thread (zero: there may be more), and what std::random_device reads, of 2.36.
SUBSTITUTES = """
#include <stdlib.h>
#include <unistd.h>
char __libc_single_threaded = 0;
unsigned int arc4random(void) {
    unsigned int value;
    if (getentropy(&value, sizeof value) != 0) abort();
    return value;
}
"""


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def stubs(listing: str) -> dict[str, dict[str, list[str]]]:
    """{library: {version: names}} from what `nm -D` lists of a libc."""
    new: dict[str, str] = {}
    old: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for address, name, mark, version in SYMBOL.findall(listing):
        if mark == "@@" and number(version) > WANTED:
            new[name] = address
        elif mark == "@" and number(version) <= WANTED:
            old[name].append((version, address))
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, address in sorted(new.items()):
        home = next((home for start, home in HOMES.items() if name.startswith(start)), None)
        versions = [version for version, where in old[name] if where == address or name in ALSO]
        if home and versions:
            found[home][max(versions, key=number)].append(name)
    return found


def write(folder: Path, library: str, versions: dict[str, list[str]]) -> Path:
    """Compile a stub: every name, under its version, without any code."""
    names = [name for group in versions.values() for name in group]
    source, script, made = folder / f"{library}.s", folder / f"{library}.map", folder / library
    source.write_text("".join(f".globl {n}\n.type {n},@function\n{n}:\n" for n in names))
    nodes = (f"GLIBC_{v} {{ {' '.join(f'{n};' for n in group)} }};\n" for v, group in versions.items())
    script.write_text("".join(nodes))
    link = ["cc", "-shared", "-nostdlib", f"-Wl,-soname,{library}", f"-Wl,--version-script={script}"]
    subprocess.run([*link, "-o", str(made), str(source)], check=True)
    return made


def flags(folder: Path) -> str:
    """The linker flags for this machine; empty where its glibc is old enough or its kind is unknown."""
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "gnu_get_libc_version"):
        return ""
    libc.gnu_get_libc_version.restype = ctypes.c_char_p
    if number(libc.gnu_get_libc_version().decode()) <= WANTED:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    maps = Path("/proc/self/maps").read_text()
    path = re.search(r"\S+/libc\.so\.6$", maps, flags=re.MULTILINE)
    assert path is not None
    listing = subprocess.check_output(["nm", "-D", path[0]], text=True)
    libraries = [write(folder, library, versions) for library, versions in stubs(listing).items()]
    source, made = folder / "substitutes.c", folder / "substitutes.o"
    source.write_text(SUBSTITUTES)
    subprocess.run(["cc", "-O2", "-fPIC", "-c", str(source), "-o", str(made)], check=True)
    # LDFLAGS stand before the objects, where a linker that drops unneeded libraries would drop these.
    kept = ["-Wl,--push-state,--no-as-needed", *map(str, libraries), "-Wl,--pop-state"]
    return " ".join(["-static-libstdc++", str(made), *kept])


if __name__ == "__main__":
    print(flags(Path(sys.argv[1]).resolve()))
