# SPDX-License-Identifier: Apache-2.0
"""NVIDIA machine code as `cuobjdump -sass` prints it: how often a block of threads issues each instruction.

`walk` runs the warps of one thread block through a kernel. It computes only the integers that branches depend
on: thread and block numbers, loop counters, the launch's parameters. All else, what is loaded from memory and
what is computed in floating point, is unknown, and instructions on it are counted, not computed. So trips of
loops, and options that a call does not use, need no table: the code itself says.

A branch on unknown data is decided as for generic images: a float is finite, normal, not NaN and equal to no
constant, a division needs no slow path, a subroutine that only one side of a branch calls is for special
cases and is not called. What this leaves open is in `Walk.open`: such a branch is not taken, and the count is
not to be relied on.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np

LANES = 32
_WORD = 0xFFFFFFFF
_UNKNOWN = -1  # of a register's 32 values, int64, else 0 to 2^32 - 1; predicates are 0, 1 or this

_LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P[T\d]+) )?([A-Z][A-Za-z0-9_.]*)\s*([^;]*?)\s*;")
_TARGET = re.compile(r"0x[0-9a-f]+$")


@dataclass(frozen=True)
class Instruction:
    """One line: guard is (predicate, negated) or None."""

    at: int
    guard: tuple[str, bool] | None
    op: str
    operands: tuple[str, ...]

    @cached_property
    def base(self) -> str:
        return self.op.partition(".")[0]

    @cached_property
    def flags(self) -> list[str]:
        return self.op.split(".")[1:]


def parse(text: str) -> dict[str, list[Instruction]]:
    """The kernels of a dump by their mangled names."""
    kernels: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in text.splitlines():
        if "Function : " in line:
            code = kernels[line.partition("Function : ")[2].strip()] = []
        elif m := _LINE.match(line):
            guard = (m[3], bool(m[2])) if m[3] else None
            operands = tuple(part.strip().replace(".reuse", "") for part in m[5].split(",")) if m[5] else ()
            code.append(Instruction(int(m[1], 16), guard, m[4], operands))
    return kernels


# --- What an instruction occupies ------------------------------------------------------------------------


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_SHARED = _set("LDS STS LDSM STSM ATOMS SHFL REDUX LDGSTS")
_GLOBAL = _set("LDG STG LD ST ATOM ATOMG RED REDG LDGSTS LDL STL UBLKCP UTMALDG")
_XU = _set("MUFU I2F F2I F2F FRND POPC FLO BREV FCHK")
_FMA = _set("FADD FMUL FFMA FADD2 FMUL2 FFMA2 HFMA2 HADD2 HMUL2")
_FP64 = {"DADD", "DMUL", "DFMA", "DSETP"}
_CONTROL = _set(
    "BRA BRX JMP CALL RET EXIT NOP BAR BSSY BSYNC BREAK WARPSYNC DEPBAR LDGDEPBAR WARPGROUP MEMBAR ERRBAR "
    "CCTL YIELD SYNCS UCGABAR_ARV UCGABAR_WAIT S2R CS2R S2UR LDC ULDC LDCU FENCE CGAERRBAR ENDCOLLECTIVE "
    "BMOV NANOSLEEP"
)


def _width(flags: Sequence[str]) -> int:
    """Bytes a lane of a memory instruction."""
    for flag in flags:
        if flag in ("U8", "S8", "8"):
            return 1
        if flag in ("U16", "S16", "16"):
            return 2
        if flag in ("64", "128", "256"):
            return int(flag) // 8
    return 4


@lru_cache(maxsize=4096)
def cost(op: str) -> Mapping[str, float]:
    """What one warp instruction takes: issue slots; instructions of fma, imad, alu, fp64, xu; multiply-adds a
    lane of mma and wgmma; shared, in wavefronts of 128 bytes as if no two lanes met in a bank; bytes of
    global, and those stored among them."""
    base, *flags = op.split(".")
    took: dict[str, float] = {"issue": 1}
    if base == "HGMMA":
        m, n, k = (int(v) for v in flags[0].split("x"))
        took["wgmma"] = m * n * k / 4 / LANES  # one warp's share of a group of four
    elif base in ("HMMA", "IMMA"):
        shape = next(f for f in flags if f.isdigit())
        took["mma"] = {"1688": 16 * 8 * 8, "16816": 16 * 8 * 16, "16832": 16 * 8 * 32}[shape] / LANES
    elif base.endswith("MMA") and base != "HFMA2":
        took["other mma"] = 1
    if base in _SHARED:
        bytes_ = 16 * int(flags[-1]) if base in ("LDSM", "STSM") else 4 if base == "SHFL" else _width(flags)
        if base in ("LDSM", "STSM"):
            bytes_ = 4 * int(flags[-1])
        took["shared"] = max(1.0, bytes_ / 4)
    if base in _GLOBAL:
        took["global"] = float(LANES * _width(flags))
        if base in ("STG", "ST", "RED", "REDG"):
            took["stored"] = took["global"]
        took["local" if base in ("LDL", "STL") else "lsu"] = 1
    elif base in _XU:
        took["xu"] = 1
    elif base == "IMAD":
        took["imad"] = 1
    elif base in _FMA:
        took["fma"] = 1
    elif base in _FP64:
        took["fp64"] = 1
    elif (
        base not in _CONTROL and base not in _SHARED and not base.startswith("U") and not base.endswith("MMA")
    ):
        took["alu"] = 1
    return took


# --- The control-flow graph, and which instructions decide branches --------------------------------------

_ENDS = _set("BRA BRX JMP EXIT RET CALL")


def _target(i: Instruction) -> int | None:
    m = _TARGET.search(i.operands[-1]) if i.operands and i.base in ("BRA", "CALL", "JMP") else None
    return int(m[0], 16) if m else None


@dataclass
class _Block:
    first: int  # indices into the code
    last: int
    costs: Counter[str]
    needed: list[int] = field(default_factory=list)


_COMPARING = _set("ISETP FSETP DSETP HSETP2 PLOP3")
_CARRYING = _set("IADD3 IADD VIADD LEA IMAD")
_PREDICATE, _REGISTER = re.compile(r"U?P(\d|T)"), re.compile(r"(U?R)(\d+|Z)")


def _dests_and_sources(i: Instruction) -> tuple[list[str], list[str]]:
    """Registers and predicates that are written, in the operands' order, with all words of wide ones and with
    those that take nothing (RZ, PT); and those that are read."""
    base, ops = i.base, i.operands
    name = base.removeprefix("U")
    count = 1
    if base in _NO_RESULT or not ops:
        count = 0
    elif name in _COMPARING or base in ("SHFL", "ELECT", "MATCH", "UTCATOMSWS"):
        count = 2
    elif name in _CARRYING:
        while count < min(3, len(ops)) and _PREDICATE.fullmatch(ops[count]):
            count += 1
    elif name in ("LOP3", "VOTE"):  # of a predicate and a word, either may stand alone
        count += (name == "LOP3") == bool(_PREDICATE.fullmatch(ops[0]))
    dests: list[str] = []
    for o in ops[:count]:
        m = _REGISTER.fullmatch(o)
        if m is None or m[2] == "Z":
            dests += [o] * (_words(base, i.flags) if m else 1)
        else:
            dests += [f"{m[1]}{int(m[2]) + k}" for k in range(_words(base, i.flags))]
    sources = [i.guard[0]] if i.guard else []
    for o in ops[count:]:
        sources += _names(o)
    every = [f"P{k}" for k in range(7)]
    return (every if base == "R2P" else dests), sources + (every if base in ("P2R", "R2P") else [])


_STORES = {"STS", "STSM", "LDGSTS", "ATOMS"}  # into shared memory
_NO_RESULT = {
    "BRA", "BRX", "JMP", "EXIT", "RET", "CALL", "STG", "STS", "ST", "STL", "RED", "REDG", "BAR", "NOP",
    "STSM", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "MEMBAR", "LDGSTS",
}  # fmt: skip


def _names(operand: str) -> list[str]:
    """Registers in an operand, both words of those that may be pairs."""
    found = []
    for m in re.finditer(r"(?<![A-Z_])(U?)([RP])(\d+)", operand):
        found.append(m[0])
        if m[2] == "R":
            found.append(f"{m[1]}R{int(m[3]) + 1}")
    return found


def _words(base: str, flags: Sequence[str]) -> int:
    if base in ("HGMMA", "QGMMA", "IGMMA"):
        return max(4, int(flags[0].split("x")[1]) // 2)
    if base in ("LDG", "LDS", "LD", "LDL", "LDC", "ULDC", "LDCU", "ATOM", "ATOMG"):
        return max(1, _width(flags) // 4)
    if base in ("HMMA", "IMMA", "LDSM"):
        return 4
    if base in ("SHF", "USHF"):
        return 1
    if base in ("DADD", "DMUL", "DFMA", "CS2R", "DMNMX"):
        return 1 if "32" in flags else 2
    if "WIDE" in flags or "64" in flags or "F64" in flags or "U64" in flags or "S64" in flags:
        return 2
    return 1


@dataclass
class _Program:
    code: list[Instruction]
    index: dict[int, int]
    blocks: dict[int, _Block]  # by the index of their first instruction
    dests: dict[int, list[str]] = field(default_factory=dict)
    reads_shared: bool = False  # whether a branch depends on what was loaded from shared memory


def _program(code: list[Instruction], shared: bool = False) -> _Program:
    """shared: whether what is stored in shared memory counts as known."""
    index = {i.at: n for n, i in enumerate(code)}
    leaders = {0}
    returns = set()
    for n, i in enumerate(code):
        if i.base in _ENDS:
            leaders.add(n + 1)
            if (to := _target(i)) is not None:
                leaders.add(index[to])
            if i.base == "CALL":
                returns.add(n + 1)
        elif i.base in ("MOV", "IMAD") and i.operands and (m := _TARGET.match(i.operands[-1])):
            to = int(m[0], 16)
            if to and to in index:
                returns.add(index[to])  # perhaps where a subroutine is to return
    has_calls = any(i.base == "CALL" for i in code)
    if has_calls:
        leaders |= returns
    starts = sorted(n for n in leaders if n < len(code))
    blocks = {}
    for first, after in zip(starts, [*starts[1:], len(code)], strict=True):
        costs: Counter[str] = Counter()
        for i in code[first:after]:
            for pipe, much in cost(i.op).items():
                costs[pipe] += much  # type: ignore[assignment]
        blocks[first] = _Block(first, after - 1, costs)
    program = _Program(code, index, blocks)
    _slice(program, sorted(returns) if has_calls else [], shared)
    return program


def _successors(program: _Program, block: _Block, returns: Sequence[int]) -> list[int]:
    i = program.code[block.last]
    after = block.last + 1
    if i.base == "EXIT":
        return [after] if i.guard and after < len(program.code) else []
    if i.base == "RET":
        return list(returns)
    to = _target(i) if i.base in _ENDS else None
    found = [program.index[to]] if to is not None else []
    conditional = i.guard or (i.base == "BRA" and len(i.operands) > 1)
    if (i.base not in _ENDS or conditional) and after < len(program.code):
        found.append(after)
    return found


def _slice(program: _Program, returns: Sequence[int], shared: bool) -> None:
    """Fills in which instructions of each block a branch depends on: relevance flows backwards."""
    reads = {}
    for block in program.blocks.values():
        for n in range(block.first, block.last + 1):
            reads[n] = _dests_and_sources(program.code[n])
    program.dests = {n: dests for n, (dests, _) in reads.items()}
    entry: dict[int, frozenset[str]] = dict.fromkeys(program.blocks, frozenset())
    successors = {first: _successors(program, block, returns) for first, block in program.blocks.items()}
    work = sorted(program.blocks, reverse=True)
    predecessors: dict[int, list[int]] = {first: [] for first in program.blocks}
    for first, following in successors.items():
        for to in following:
            predecessors[to].append(first)
    waiting = set(work)
    while work:
        first = work.pop(0)
        waiting.discard(first)
        block = program.blocks[first]
        wanted = set().union(*(entry[to] for to in successors[first]))
        needed = []
        for n in range(block.last, block.first - 1, -1):
            i = program.code[n]
            dests, sources = reads[n]
            if i.base in _ENDS:
                wanted.update(sources)
                continue
            if shared and i.base in _STORES:
                needed.append(n)
                wanted.update(sources)
                continue
            if wanted.intersection(dests):
                needed.append(n)
                if not i.guard:
                    wanted.difference_update(dests)
                program.reads_shared |= i.base == "LDS"
                if i.base in _OPERATIONS or (shared and i.base == "LDS"):
                    wanted.update(sources)
                elif i.guard:
                    wanted.add(i.guard[0])
        block.needed = needed[::-1]  # of the last visit, which saw all that is wanted
        if wanted != entry[first]:
            entry[first] = frozenset(wanted)
            for before in predecessors[first]:
                if before not in waiting:
                    waiting.add(before)
                    work.append(before)


# --- Integers that are known ------------------------------------------------------------------------------

Values: TypeAlias = "np.ndarray[Any, Any]"  # of int64, one for each lane
_ALL = np.ones(LANES, dtype=bool)


def _constant(value: int) -> Values:
    return np.full(LANES, value, dtype=np.int64)


_NOTHING, _YES = _constant(_UNKNOWN), _constant(1)


def _where_known(result: Values, *operands: Values) -> Values:
    least = operands[0]
    for o in operands[1:]:
        least = np.minimum(least, o)
    return np.where(least >= 0, result, _UNKNOWN)


def _signed(v: Values) -> Values:
    return np.where(v >= 1 << 31, v - (1 << 32), v)


@lru_cache(maxsize=65536)
def _operand(operand: str) -> tuple[str, str, int]:
    """(kind, register, number): "register"; "constant"; "bank" 0 at the register plus the number; or ""."""
    name = operand.lstrip("-~")
    if m := re.fullmatch(r"(U?R)(\d+|Z)(\.64|\.H0_H0)?", name):
        return ("constant", "", 0) if m[2] == "Z" else ("register", m[1] + m[2], int(m[2]))
    if m := re.fullmatch(r"c\[0x0\]\[(?:(U?R(?:\d+|Z))\+?)?(-?0x[0-9a-f]+)?\]", name):
        return "bank", "" if m[1] is None or m[1].endswith("Z") else m[1], int(m[2] or "0", 16)
    if re.fullmatch(r"0x[0-9a-f]+|\d+", name):
        whole = int(name, 0)
        whole = ~whole if operand[0] == "~" else -whole if operand[0] == "-" else whole
        return "constant", "", whole
    if name == "SRZ":
        return "constant", "", 0
    number = _number(operand)
    if number is not None:
        return "constant", "", struct.unpack("<I", struct.pack("<f", number))[0]
    return "", "", 0


class _Warp:
    """The registers of one warp; all that was not computed is unknown."""

    def __init__(self, launch: Launch, block: int, warp: int, memory: _Shared) -> None:
        self.launch, self.block, self.warp, self.memory = launch, block, warp, memory
        self.values: dict[str, Values] = {}
        self.assumed: set[int] = set()  # addresses of compares that were decided as for generic images

    def get(self, operand: str, word: int = 0) -> Values:
        """A source operand's 32 bits; word 1: the upper half of a pair."""
        kind, name, number = _operand(operand)
        if kind == "register":
            v = self.values.get(name if word == 0 else f"{name[: -len(str(number))]}{number + 1}", _NOTHING)
        elif kind == "constant":
            return _constant(number >> (32 * word) & _WORD)
        elif kind == "bank":
            v = self._parameter(name, number + 4 * word)
        else:
            return _NOTHING
        if operand[0] == "~":
            return np.where(v < 0, v, v ^ _WORD)
        if operand[0] == "-" and word == 0:
            return np.where(v < 0, v, -v & _WORD)
        return v

    def _parameter(self, base: str, offset: int) -> Values:
        if not base:
            return _constant(self.launch.constant(offset))
        at = self.values.get(base, _NOTHING)
        return np.array([self.launch.constant(int(a) + offset) if a >= 0 else _UNKNOWN for a in at])

    def predicate(self, operand: str) -> Values:
        negated, name = operand.startswith("!"), operand.lstrip("!")
        v = _YES if name.endswith("PT") else self.values.get(name, _NOTHING)
        return np.where(v < 0, v, 1 - v) if negated else v

    def put(self, name: str, value: Values, mask: Values, guard: Values) -> None:
        """Writes where guard is 1 and the lane is active; where the guard is unknown, so is the result."""
        if name.endswith(("RZ", "PT")) or name == "RZ":
            return
        if name.startswith("U"):
            mask = _ALL  # of the whole warp
        if guard is _YES and (mask is _ALL or mask.all()):
            self.values[name] = value
            return
        before = self.values.get(name, _NOTHING)
        chosen = np.where(guard == 1, value, np.where(guard == 0, before, _UNKNOWN))
        self.values[name] = np.where(mask, chosen, before)


class _Shared:
    """A block's shared memory by words: what every store of a whole run agrees on.

    `known` is what an earlier run left, for loads; `stored` collects what this run stores. If both are equal
    in the end, each load had the one value that any store there has, whatever the order of the warps.
    """

    def __init__(self, known: dict[int, int]) -> None:
        self.known = known
        self.stored: dict[int, int] = {}
        self.lost = False  # a store went to an unknown place

    @staticmethod
    def _place(w: _Warp, operand: str) -> Values:
        inner = operand[operand.index("[") + 1 : operand.rindex("]")]
        at = _constant(0)
        for part in inner.replace("-", "+-").split("+"):
            if part := part.strip():
                v = w.get(part)
                at = np.where((at < 0) | (v < 0), _UNKNOWN, (at + v) & _WORD)
        return at

    def store(self, w: _Warp, i: Instruction, mask: Values) -> None:
        at = self._place(w, next(o for o in i.operands if o.startswith("[")))
        words = max(1, _width(i.flags) // 4)
        values = [_NOTHING] * words
        if i.base == "STS" and _width(i.flags) >= 4:
            values = [w.get(_later(i.operands[1], k)) for k in range(words)]
        if i.base in ("STSM", "LDGSTS"):
            values = [_NOTHING] * 4
        for lane in np.flatnonzero(mask):
            if at[lane] < 0:
                self.lost = True
                continue
            for k, v in enumerate(values):
                word = (int(at[lane]) + 4 * k) // 4
                value = int(v[lane])
                self.stored[word] = value if self.stored.get(word, value) == value else _UNKNOWN

    def load(self, w: _Warp, i: Instruction) -> list[Values]:
        words = max(1, _width(i.flags) // 4)
        if self.lost or _width(i.flags) < 4 or not self.known:
            return [_NOTHING] * words
        at = self._place(w, i.operands[1])
        return [
            np.array([self.known.get((int(a) + 4 * k) // 4, _UNKNOWN) if a >= 0 else _UNKNOWN for a in at])
            for k in range(words)
        ]


def _later(register: str, by: int) -> str:
    m = re.fullmatch(r"(U?R)(\d+)", register)
    return f"{m[1]}{int(m[2]) + by}" if m else register


@dataclass(frozen=True)
class Launch:
    """A kernel's launch: blocks, threads of a block, and its parameters' bytes, which stand in constant
    bank 0 from `base` on."""

    grid: tuple[int, int, int]
    threads: int
    parameters: bytes
    base: int
    shared: int = 0  # dynamic, bytes a block

    def constant(self, offset: int) -> int:
        """A word of constant bank 0, or -1."""
        if self.base <= offset <= self.base + len(self.parameters) - 4:
            return int.from_bytes(self.parameters[offset - self.base :][:4], "little")
        if self.base <= offset < self.base + len(self.parameters):
            return int.from_bytes(self.parameters[offset - self.base :], "little")
        start = 0x360 if self.base >= 0x380 else 0  # where the launch's own numbers are
        numbers = (self.threads, 1, 1, *self.grid)
        at = (offset - start) // 4
        return numbers[at] if offset % 4 == 0 and 0 <= at < 6 else _UNKNOWN


Operation = Callable[[_Warp, Instruction], "list[Values]"]
_OPERATIONS: dict[str, Operation] = {}


def _operation(*bases: str) -> Callable[[Operation], Operation]:
    def add(f: Operation) -> Operation:
        _OPERATIONS.update({b: f for base in bases for b in (base, "U" + base)})
        return f

    return add


def _after_carries(i: Instruction, first: int = 1) -> tuple[list[str], list[str]]:
    """(predicates that get carries, what follows) of an instruction's operands after its register."""
    ops = list(i.operands[first:])
    carries = []
    while ops and re.fullmatch(r"U?P[T\d]", ops[0]):
        carries.append(ops.pop(0))
    return carries, ops


def _carried(total: Values, count: int, known: Sequence[Values]) -> list[Values]:
    """A sum's low word, and whether it carries, once for each of `count` predicates."""
    low, carry = _where_known(total & _WORD, *known), total >> 32
    return [low, *(_where_known((carry > k).astype(np.int64), *known) for k in range(count))]


@_operation("MOV", "R2UR")
def _move(w: _Warp, i: Instruction) -> list[Values]:
    return [w.get(i.operands[1])]


@_operation("S2R", "S2UR", "CS2R")
def _special(w: _Warp, i: Instruction) -> list[Values]:
    name = i.operands[1]
    lanes = np.arange(LANES, dtype=np.int64)
    x, y, z = w.launch.grid
    numbers = {
        "SR_TID.X": lanes + LANES * w.warp,
        "SR_TID.Y": _constant(0),
        "SR_TID.Z": _constant(0),
        "SR_LANEID": lanes,
        "SR_CTAID.X": _constant(w.block % x),
        "SR_CTAID.Y": _constant(w.block // x % y),
        "SR_CTAID.Z": _constant(w.block // x // y % z),
        "SR_CgaCtaId": _constant(0),  # its number in a cluster: no launch here has any
        "SR_CTA_RANK": _constant(0),
        "SRZ": _constant(0),
    }
    v = numbers.get(name, _NOTHING)
    return [v, _constant(0) if name == "SRZ" else _NOTHING]


@_operation("LDC", "LDCU")
def _load_constant(w: _Warp, i: Instruction) -> list[Values]:
    v = [w.get(i.operands[1], k) for k in range(_words("LDC", i.flags))]
    size = _width(i.flags)
    if size >= 4:
        return v
    m = re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", i.operands[1])
    if m is None or i.flags[-1].startswith("S"):
        return [_NOTHING]
    at = int(m[1], 16)
    word = w.launch.constant(at - at % 4)
    return [_constant(word >> (8 * (at % 4)) & ((1 << 8 * size) - 1) if word >= 0 else _UNKNOWN)]


@_operation("IADD3", "IADD", "VIADD")
def _add(w: _Warp, i: Instruction) -> list[Values]:
    carries, ops = _after_carries(i)
    if "64" in i.flags:
        return [_NOTHING, _NOTHING, *[_NOTHING] * len(carries)]
    numbers = [o for o in ops if not re.fullmatch(r"!?U?P[T\d]", o)]
    extra = [o for o in ops if re.fullmatch(r"!?U?P[T\d]", o)] if "X" in i.flags else []
    terms = []
    for o in numbers:
        v = w.get(o)
        if o.startswith("-"):  # 2^32 - b, so that a - 0 carries
            v = np.where(v == 0, 1 << 32, v) if w.get(o[1:]).max() >= 0 and "X" not in i.flags else v
        terms.append(v)
    terms += [w.predicate(p) for p in extra]
    total = sum(terms[1:], terms[0])
    return _carried(total, len(carries), terms)


@_operation("IMAD")
def _multiply_add(w: _Warp, i: Instruction) -> list[Values]:
    carries, ops = _after_carries(i)
    a, b, c = (w.get(o) for o in ops[:3])
    known = [a, b, c]
    if "WIDE" in i.flags or "HI" in i.flags:
        c_high = w.get(ops[2], 1)
        negated = ops[2].startswith("-")
        if negated or "X" in i.flags:
            return [_NOTHING, _NOTHING, *[_NOTHING] * len(carries)]
        if re.match(r"-?(0x|\d)", ops[2]):
            c_high = _constant(0)
        known.append(c_high)
        kind = np.uint64
        if "U32" not in i.flags:
            a, b = _signed(a), _signed(b)
        product = a.astype(kind) * b.astype(kind) + (c_high.astype(kind) << np.uint64(32)) + c.astype(kind)
        low = (product & np.uint64(_WORD)).astype(np.int64)
        high = (product >> np.uint64(32)).astype(np.int64)
        words = [_where_known(low, *known), _where_known(high, *known)]["HI" in i.flags :]
        return words + [_NOTHING] * len(carries)
    total = (a.astype(np.uint64) * b.astype(np.uint64) & np.uint64(_WORD)).astype(np.int64) + c
    if "X" in i.flags and len(ops) > 3:
        carry = w.predicate(ops[3])
        total, known = total + carry, [*known, carry]
    return _carried(total, len(carries), known)


@_operation("LEA")
def _shift_add(w: _Warp, i: Instruction) -> list[Values]:
    carries, ops = _after_carries(i)
    a, b = w.get(ops[0]), w.get(ops[1])
    if "64" in i.flags:
        return [_NOTHING] * (2 + len(carries))
    if "HI" not in i.flags:
        shift = int(ops[2], 16)
        known, total = [a, b], ((a << shift) & _WORD) + b
        if "X" in i.flags:
            known.append(w.predicate(ops[3]))
            total = total + known[-1]
        return _carried(total, len(carries), known)
    if "SX32" in i.flags:
        shift, wide, rest = int(ops[2], 16), _signed(a), ops[3:]
        known = [a, b]
        part = (wide >> (32 - shift)) & _WORD
    else:
        high = w.get(ops[2])
        shift, rest = int(ops[3], 16), ops[4:]
        known = [a, b, high]
        part = ((high << shift) | (a >> (32 - shift))) & _WORD
    total = part + b
    if "X" in i.flags and rest:
        known.append(w.predicate(rest[0]))
        total = total + known[-1]
    return _carried(total, len(carries), known)


@_operation("SHF")
def _shift(w: _Warp, i: Instruction) -> list[Values]:
    low, by, high = (w.get(o) for o in i.operands[1:4])
    known = [low, by, high]
    right = "R" in i.flags
    signed = "S32" in i.flags or "S64" in i.flags
    if "W" in i.flags:
        by = by & 31
    out = np.zeros(LANES, dtype=np.int64)
    for k in range(LANES):
        if min(v[k] for v in known) < 0:
            continue
        wide = int(high[k]) << 32 | int(low[k])
        if signed and wide >> 63:
            wide -= 1 << 64
        n = min(int(by[k]), 63)
        wide = wide >> n if right else wide << n
        out[k] = (wide >> 32 if "HI" in i.flags else wide) & _WORD
    return [_where_known(out, *known)]


def _by_table(table: int, a: Values, b: Values, c: Values, bits: int) -> Values:
    """A three-input logic function of words; unknown bits stay unknown unless the table ignores them."""
    whole = (1 << bits) - 1
    terms = {}
    for n, v in ((2, a), (1, b), (0, c)):
        # Does the table depend on this input at all?
        used = any((table >> r & 1) != (table >> (r ^ 1 << n) & 1) for r in range(8))
        terms[n] = v if used else np.zeros_like(v)
    out = np.zeros(LANES, dtype=np.int64)
    for row in range(8):
        if table >> row & 1:
            part = np.full(LANES, whole, dtype=np.int64)
            for n, v in terms.items():
                part = part & (v if row >> n & 1 else v ^ whole)
            out = out | part
    exact = _where_known(out & whole, *terms.values())
    if table == 0x80 or table == 0xC0:  # and: a known 0 decides
        zero = (a == 0) | (b == 0) | ((c == 0) & (table == 0x80))
        exact = np.where(zero, 0, exact)
    if bits == 1 and table == 0xF8:  # a and b, or c
        exact = np.where(c == 1, 1, exact)
    if bits == 1 and table == 0xFE:
        exact = np.where((a == 1) | (b == 1) | (c == 1), 1, exact)
    return exact


@_operation("LOP3")
def _logic(w: _Warp, i: Instruction) -> list[Values]:
    ops = list(i.operands)
    tested = bool(re.fullmatch(r"U?P[T\d]", ops[0]))
    first = 2 if tested else 1
    a, b, c = (w.get(o) for o in ops[first : first + 3])
    value = _by_table(int(ops[first + 3], 16), a, b, c, 32)
    nonzero = _where_known((value != 0).astype(np.int64), value)
    return [nonzero, value] if tested else [value]


@_operation("PLOP3")
def _predicate_logic(w: _Warp, i: Instruction) -> list[Values]:
    a, b, c = (w.predicate(o) for o in i.operands[2:5])
    return [_by_table(int(o, 16), a, b, c, 1) for o in i.operands[5:7]]


def _joined(flags: Sequence[str], compared: Values, other: Values) -> Values:
    """A comparison joined with another predicate, as .AND, .OR or .XOR says."""
    if "OR" in flags:
        return np.where((compared == 1) | (other == 1), 1, _where_known(compared | other, compared, other))
    if "XOR" in flags:
        return _where_known(compared ^ other, compared, other)
    return np.where((compared == 0) | (other == 0), 0, _where_known(compared & other, compared, other))


def _both(flags: Sequence[str], compared: Values, other: Values) -> list[Values]:
    opposite = np.where(compared < 0, compared, 1 - compared)
    return [_joined(flags, compared, other), _joined(flags, opposite, other)]


_COMPARES: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
    "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip


@_operation("ISETP")
def _compare(w: _Warp, i: Instruction) -> list[Values]:
    flags, ops = i.flags, i.operands
    a, b = w.get(ops[2]), w.get(ops[3])
    if "64" in flags:
        return [_NOTHING, _NOTHING]
    x, y = (a, b) if "U32" in flags else (_signed(a), _signed(b))
    compared = _where_known(_COMPARES[flags[0]](x, y).astype(np.int64), a, b)
    if "U32" in flags and flags[0] in ("GE", "LT"):  # of 0, whatever the other is
        compared = np.where(b == 0, int(flags[0] == "GE"), compared)
    if "EX" in flags:
        lower = w.predicate(ops[5])
        if flags[0] == "NE":
            compared = np.where(x != y, 1, lower)
        elif flags[0] == "EQ":
            compared = np.where(x == y, lower, 0)
        else:
            strict = np.less(x, y) if flags[0][0] == "L" else np.greater(x, y)
            compared = np.where(x == y, lower, strict.astype(np.int64))
        compared = _where_known(compared, a, b)
    return _both(flags, compared, w.predicate(ops[4]))


_HUGE, _TINY = 1e30, 1e-30


def _generic(w: _Warp, i: Instruction) -> list[Values]:
    """A float's comparison, of data: finite, normal, not NaN, equal to nothing."""
    kind, ops = i.flags[0], i.operands
    w.assumed.add(i.at)
    sure: int | None = None
    constants = [_number(o) for o in ops[2:4]]
    if kind == "NAN":
        sure = 0
    elif kind in ("NUM",):
        sure = 1
    elif kind in ("EQ", "EQU"):
        sure = 0
    elif kind in ("NE", "NEU"):
        sure = 1
    elif len(ops) > 4 and ops[2].startswith("|") and constants[1] is not None:
        if abs(constants[1]) > _HUGE:
            sure = int(kind[0] == "L")
        elif 0 < abs(constants[1]) < _TINY:
            sure = int(kind[0] == "G")
    compared = _NOTHING if sure is None else _constant(sure)
    return _both(i.flags, compared, w.predicate(ops[4]))


for _base in ("FSETP", "DSETP", "HSETP2"):
    _OPERATIONS[_base] = _generic


def _number(operand: str) -> float | None:
    try:
        return float(operand.replace("INF", "inf").replace("QNAN", "nan"))
    except ValueError:
        return None


@_operation("FCHK")
def _division_check(w: _Warp, i: Instruction) -> list[Values]:
    w.assumed.add(i.at)
    return [_constant(0)]


@_operation("VOTE")
def _vote(w: _Warp, i: Instruction) -> list[Values]:
    """Over the lanes that take part, which are nearly always all of them."""
    ops = i.operands
    word, rest = (_NOTHING, ops) if not ops[0].lstrip("U").startswith("R") else (_NOTHING, ops[1:])
    p = w.predicate(rest[1])
    if p.min() < 0:
        result = _constant(1) if "ANY" in i.flags and p.max() == 1 else _NOTHING
        result = _constant(0) if "ALL" in i.flags and (p == 0).any() else result
    else:
        result = _constant(int(p.any() if "ANY" in i.flags else p.all()))
        word = _constant(sum(int(b) << n for n, b in enumerate(p)))
    return [word, result] if rest is not ops else [result]


_OPERATIONS["VOTEU"] = _vote


@_operation("SYNCS", "UTCATOMSWS")
def _ready(w: _Warp, i: Instruction) -> list[Values]:
    """What a barrier in memory waits for is there at the first look, and tensor memory is free."""
    return [_YES if i.flags[0] in ("PHASECHK", "FIND_AND_SET") else _NOTHING]


@_operation("ELECT")
def _elect(w: _Warp, i: Instruction) -> list[Values]:
    return [(np.arange(LANES) == 0).astype(np.int64)] + [_NOTHING] * (len(i.operands) - 1)


@_operation("SEL", "FSEL")
def _select(w: _Warp, i: Instruction) -> list[Values]:
    a, b, p = w.get(i.operands[1]), w.get(i.operands[2]), w.predicate(i.operands[3])
    return [np.where(p == 1, a, np.where(p == 0, b, np.where(a == b, a, _UNKNOWN)))]


@_operation("IMNMX", "VIMNMX", "VIADDMNMX")
def _extreme(w: _Warp, i: Instruction) -> list[Values]:
    ops = list(i.operands[1:])
    a, b = w.get(ops[0]), w.get(ops[1])
    known = [a, b]
    if i.base.endswith("ADDMNMX"):
        c = w.get(ops[2])
        a, b, known = (a + b) & _WORD, c, [a, b, c]
    p = w.predicate(next(o for o in ops if re.fullmatch(r"!?U?P[T\d]", o)))
    x, y = (a, b) if "U32" in i.flags else (_signed(a), _signed(b))
    out = np.where((p == 1), np.where(x < y, a, b), np.where(x > y, a, b))
    return [_where_known(out, *known, p)]


@_operation("IABS")
def _magnitude(w: _Warp, i: Instruction) -> list[Values]:
    v = w.get(i.operands[1])
    return [_where_known(np.abs(_signed(v)) & _WORD, v)]


@_operation("PRMT")
def _permute(w: _Warp, i: Instruction) -> list[Values]:
    a, select, b = (w.get(o) for o in i.operands[1:4])
    out = np.zeros(LANES, dtype=np.int64)
    for k in range(LANES):
        wide = int(b[k] & _WORD) << 32 | int(a[k] & _WORD)
        for n in range(4):
            nibble = int(select[k]) >> (4 * n) & 15
            byte = wide >> (8 * (nibble & 7)) & 255
            if nibble & 8:
                byte = 255 * (byte >> 7)
            out[k] |= byte << (8 * n)
    return [_where_known(out, a, select, b)]


@_operation("P2R")
def _pack_predicates(w: _Warp, i: Instruction) -> list[Values]:
    if i.flags or i.operands[1] != "PR":
        return [_NOTHING]
    rest, mask = w.get(i.operands[2]), int(i.operands[3], 16)
    out, known = rest & ~mask, [rest]
    for n in range(7):
        if mask >> n & 1:
            p = w.predicate(f"P{n}")
            out, known = out | p << n, [*known, p]
    return [_where_known(out, *known)]


@_operation("R2P")
def _unpack_predicates(w: _Warp, i: Instruction) -> list[Values]:
    value, mask = w.get(i.operands[1]), int(i.operands[2], 16)
    return [_where_known(value >> n & 1, value) if mask >> n & 1 else w.predicate(f"P{n}") for n in range(7)]


@_operation("HFMA2")
def _two_halves(w: _Warp, i: Instruction) -> list[Values]:
    """How the compiler makes some constants: -0 times 0 plus two halves."""
    ops = i.operands
    if [o.lstrip("-") for o in ops[1:3]] != ["RZ", "RZ"] or len(ops) < 5:
        return [_NOTHING]
    halves = [_number(o) for o in ops[3:5]]
    if None in halves:
        return [_NOTHING]
    high, low = (int(np.float16(h).view(np.uint16)) for h in halves)
    return [_constant(high << 16 | low)]


# What a division of integers is made of: floats with a known bit pattern.


def _floats(v: Values) -> Any:
    return (v & _WORD).astype(np.uint32).view(np.float32)


def _bits(f: Any) -> Values:
    return np.asarray(f, dtype=np.float32).view(np.uint32).astype(np.int64)


@_operation("I2F", "I2FP")
def _to_float(w: _Warp, i: Instruction) -> list[Values]:
    v = w.get(i.operands[1])
    if any(flag in i.flags for flag in ("F64", "U64", "S64", "U8", "U16", "S16", "F16")):
        return [_NOTHING, _NOTHING]
    number = (v if "U32" in i.flags else _signed(v)).astype(np.float64)
    f = number.astype(np.float32)
    if "RP" in i.flags:
        f = np.where(f.astype(np.float64) < number, np.nextafter(f, np.float32(np.inf)), f)
    return [_where_known(_bits(f), v)]


@_operation("MUFU")
def _reciprocal(w: _Warp, i: Instruction) -> list[Values]:
    v = w.get(i.operands[1])
    if i.flags != ["RCP"]:
        return [_NOTHING, _NOTHING]
    with np.errstate(all="ignore"):
        return [_where_known(_bits(np.float32(1) / _floats(v)), v)]


@_operation("F2I")
def _to_integer(w: _Warp, i: Instruction) -> list[Values]:
    v = w.get(i.operands[1])
    if "TRUNC" not in i.flags or "U64" in i.flags or "F64" in i.flags or i.operands[1].startswith(("-", "|")):
        return [_NOTHING, _NOTHING]
    with np.errstate(all="ignore"):
        number = np.nan_to_num(np.trunc(_floats(v).astype(np.float64)), posinf=2.0**32 - 1, neginf=0.0)
        whole = np.clip(number, 0 if "U32" in i.flags else -(2.0**31), 2.0**32 - 1).astype(np.int64) & _WORD
    return [_where_known(whole, v)]


# --- The walk --------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """What one block issues. warps: how many it has. open: addresses of branches that nothing decided;
    assumed: of compares decided as for generic images."""

    costs: Counter[str]
    warps: int
    open: set[int]
    assumed: set[int]


class Unreadable(Exception):
    """The code does what this reader does not follow."""


_MOST_STEPS = 2_000_000


_MOST_RUNS = 5


def walk(code: list[Instruction], launch: Launch, block: int = 0) -> Walk:
    """Runs every warp of a block, see the top of this file; more than once where a branch depends on what
    warps leave for each other in shared memory, until that stays the same.
    """
    program = _program(code)
    if program.reads_shared:
        program = _program(code, shared=True)
    known: dict[int, int] = {}
    for _ in range(_MOST_RUNS if program.reads_shared else 1):
        memory = _Shared(known)
        walked = _walk_block(program, launch, block, memory)
        left = {} if memory.lost else {word: v for word, v in memory.stored.items() if v >= 0}
        if left == known:
            return walked
        known = left
    # It does not settle: nothing in shared memory is known.
    return _walk_block(program, launch, block, _Shared({}))


def _walk_block(program: _Program, launch: Launch, block: int, memory: _Shared) -> Walk:
    total = Walk(Counter(), -(-launch.threads // LANES), set(), set())
    for warp in range(total.warps):
        counts, open_, assumed = _walk_warp(program, _Warp(launch, block, warp, memory))
        for first, times in counts.items():
            for pipe, much in program.blocks[first].costs.items():
                total.costs[pipe] += times * much
        total.open |= open_
        total.assumed |= assumed
    return total


def _walk_warp(program: _Program, w: _Warp) -> tuple[Counter[int], set[int], set[int]]:
    counts: Counter[int] = Counter()
    open_: set[int] = set()
    live = np.arange(LANES) + LANES * w.warp < w.launch.threads
    # Lanes that diverged wait at different places: the furthest behind goes first, so that they meet again.
    paths: dict[int, Values] = {0: live}
    steps = 0
    while paths:
        first = min(paths)
        mask = paths.pop(first)
        steps += 1
        if steps > _MOST_STEPS:
            raise Unreadable(f"no end after {steps} blocks of code, at {program.code[first].at:#x}")
        counts[first] += 1
        here = program.blocks[first]
        for n in here.needed:
            _execute(w, program.code[n], program.dests[n], mask)
        for to, lanes in _branch(program, w, here, mask, open_):
            if lanes.any():
                paths[to] = paths[to] | lanes if to in paths else lanes
    return counts, open_, w.assumed


def _execute(w: _Warp, i: Instruction, dests: list[str], mask: Values) -> None:
    guard = w.predicate(("!" if i.guard[1] else "") + i.guard[0]) if i.guard else _YES
    if i.base in _STORES:
        active = mask & (guard != 0)
        if active.any():
            w.memory.store(w, i, active)
        if i.base != "ATOMS":
            return
    operation = _OPERATIONS.get(i.base)
    values = operation(w, i) if operation else w.memory.load(w, i) if i.base == "LDS" else []
    for n, name in enumerate(dests):
        w.put(name, values[n] if n < len(values) else _NOTHING, mask, guard)


def _branch(
    program: _Program, w: _Warp, block: _Block, mask: Values, open_: set[int]
) -> Iterator[tuple[int, Values]]:
    """Where the lanes go after a block."""
    i, after = program.code[block.last], block.last + 1
    taken = _YES
    if i.guard and i.base in _ENDS:
        taken = w.predicate(("!" if i.guard[1] else "") + i.guard[0])
    if i.base == "BRA" and len(i.operands) > 1:
        condition = _constant(0) if "DIV" in i.flags else w.predicate(i.operands[0])
        taken = _joined(["AND"], taken, condition)
    if i.base not in _ENDS:
        yield after, mask
        return
    if (taken[mask] < 0).any():
        decided = _by_shape(program, block)
        if decided is None:
            open_.add(i.at)
            decided = False
        taken = np.where(taken < 0, int(decided), taken)
    goes = mask & (taken == 1)
    if goes.any():
        if i.base in ("BRA", "CALL", "JMP") and (to := _target(i)) is not None:
            yield program.index[to], goes
        elif i.base == "RET":
            where = w.get(i.operands[0].split()[0])[goes]
            if where.min() < 0 or where.min() != where.max() or int(where[0]) not in program.index:
                raise Unreadable(f"a return to an unknown place at {i.at:#x}")
            yield program.index[int(where[0])], goes
        elif i.base != "EXIT":
            raise Unreadable(f"{i.op} at {i.at:#x}")
    yield after, mask & (taken == 0)


def _by_shape(program: _Program, block: _Block) -> bool | None:
    """A branch on unknown data by what its sides are: a call for special cases is not made, threads do not
    leave early. None: neither says."""
    i = program.code[block.last]
    if i.base == "EXIT":
        return False
    to = _target(i)
    if to is None:
        return None
    target, after = program.index[to], block.last + 1
    sides = [_calls(program, target), _calls(program, after)]
    if sides[0] != sides[1]:
        return sides[1]
    return None


def _calls(program: _Program, first: int) -> bool:
    here = program.blocks.get(first)
    return here is not None and program.code[here.last].base == "CALL"
