"""What this machine's processor can do, and which 8-bit types suit it. Standard library alone."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_X86 = frozenset({"x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"})
_ARM = re.compile(r"arm|aarch64", re.IGNORECASE)

# Instructions that add products of 8 bits in 32 bits, as Linux names them.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
_ARM_DOT_PRODUCT = frozenset({"asimddp", "i8mm"})
_AVX512 = frozenset({"avx512f"})
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

# The same instructions by the names of other systems.
_MACOS_FLAGS = {
    "avx1.0": "avx",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
}
_MACOS_ARM = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}
_WINDOWS_ARM = {43: "asimddp", 66: "i8mm", 68: "bf16"}  # PF_ARM_V82_DP, _V82_I8MM, _V86_BF16

# Bits of CPUID: leaf, subleaf, register (EAX, EBX, ECX, EDX), bit.
_CPUID = {
    "avx2": (7, 0, 1, 5),
    "avx512f": (7, 0, 1, 16),
    "avx512_vnni": (7, 0, 2, 11),
    "amx_bf16": (7, 0, 3, 22),
    "amx_int8": (7, 0, 3, 25),
    "avx_vnni": (7, 1, 0, 4),
    "avx512_bf16": (7, 1, 0, 5),
    "avx_vnni_int8": (7, 1, 3, 4),
}


@dataclasses.dataclass(frozen=True)
class Processor:
    """A processor: its `architecture`, its name, and its `flags` as Linux names them.

    `flags` are empty where the system does not list them.
    """

    architecture: str
    cpu: str
    flags: tuple[str, ...] = ()

    @classmethod
    def here(cls) -> Processor:
        """The processor of this machine."""
        name, flags = _READERS.get(sys.platform, _linux)()
        return cls(platform.machine() or "unknown", name, tuple(sorted(set(flags))))

    @property
    def is_x86(self) -> bool:
        """Whether it is of Intel's architecture, 32 or 64 bits."""
        return self.architecture.lower() in _X86

    @property
    def is_arm(self) -> bool:
        """Whether it is of ARM's architecture, 32 or 64 bits."""
        return _ARM.match(self.architecture) is not None

    def has(self, flags: Iterable[str]) -> bool:
        """Whether it has at least one of these instructions."""
        return not set(flags).isdisjoint(self.flags)

    @property
    def features(self) -> dict[str, bool]:
        """What matters for the speed and the arithmetic of networks, by name."""
        return {
            "vnni": self.has(_VNNI),
            "avx512": self.has(_AVX512),
            "bf16": self.has(_BF16),
            "dot_product": self.has(_ARM_DOT_PRODUCT),
        }

    @property
    def signature(self) -> str:
        """A short text that differs between processors that compute differently."""
        return f"{self.architecture}, {self.cpu}, {' '.join(self.flags)}"

    def to_json(self) -> dict[str, Any]:
        """The description that `describe_device` writes, without the runtime's version."""
        return {**dataclasses.asdict(self), "flags": list(self.flags), **self.features}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Processor:
        """The inverse of `to_json`; further entries are ignored."""
        return cls(document["architecture"], document["cpu"], tuple(document["flags"]))


@dataclasses.dataclass(frozen=True)
class IntegerTypes:
    """The types of an int8 network: of its activations, and whether its weights have 7 bits."""

    activations: str
    reduce_range: bool

    @property
    def file(self) -> str:
        """The name of the ONNX file of these types."""
        kind = {"uint8": "u8", "int8": "s8"}[self.activations]
        return f"{kind}_reduced.onnx" if self.reduce_range else f"{kind}.onnx"


def integer_types(
    processor: Processor, activations: str = "auto", reduce_range: bool | str = "auto"
) -> IntegerTypes:
    """Choose the types that a processor multiplies fast and without saturation.

    ONNX Runtime fuses int8 activations into integer kernels on ARM only: elsewhere, tensors with
    two readers keep their conversions, and convolutions behind them run in float. So they are
    uint8 on every other architecture. x86 without VNNI adds two products of 8 bits in 16 bits,
    which saturates: weights have 7 bits there. ARM adds them in 16 bits without saturation, since
    both factors are signed and weights are symmetric, or in 32 bits where it has dot products.

    Parameters
    ----------
    processor
        What runs the network.
    activations
        `auto`, or the user's choice: `int8` or `uint8`.
    reduce_range
        `auto`, or the user's choice.
    """
    if activations == "auto":
        activations = "int8" if processor.is_arm else "uint8"
    if reduce_range == "auto":
        reduce_range = processor.is_x86 and not processor.has(_VNNI)
    return IntegerTypes(activations, bool(reduce_range))


def _linux() -> tuple[str, list[str]]:
    """Name and flags by /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    return from_cpuinfo(text)


def from_cpuinfo(text: str) -> tuple[str, list[str]]:
    """Read the name and the flags of the first processor in the text of /proc/cpuinfo."""
    entries: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if value.strip():
            entries.setdefault(key.strip(), value.strip())
    # ARM calls its flags features, and most of its kernels give a number for a name. On Raspberry
    # Pis `Model` is the board; on x86 `model` is a number, too.
    part = " ".join(
        f"{key} {entries[key]}" for key in ("CPU implementer", "CPU part") if key in entries
    )
    name = entries.get("model name") or entries.get("Model") or part or platform.processor()
    flags = entries.get("flags") or entries.get("Features") or ""
    return name or "unknown", flags.split()


def _macos() -> tuple[str, list[str]]:
    """Name and flags by sysctl."""
    flags = []
    for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
        listed = _sysctl(key).lower().split()
        flags += [_MACOS_FLAGS.get(each, each) for each in listed]
    flags += [flag for key, flag in _MACOS_ARM.items() if _sysctl(f"hw.optional.arm.{key}") == "1"]
    return _sysctl("machdep.cpu.brand_string") or "unknown", flags


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _windows() -> tuple[str, list[str]]:
    """Name by the registry, flags by CPUID or, on ARM, by the system."""
    import winreg

    try:
        place = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:  # type: ignore[attr-defined]
            name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()  # type: ignore[attr-defined]
    except OSError:
        name = platform.processor()
    if platform.machine().lower() in _X86:
        return name or "unknown", flags_by_cpuid()
    present = ctypes.windll.kernel32.IsProcessorFeaturePresent  # type: ignore[attr-defined]
    return name or "unknown", [flag for number, flag in _WINDOWS_ARM.items() if present(number)]


def flags_by_cpuid() -> list[str]:
    """Ask an x86-64 processor itself; nothing where the system does not allow it."""
    if sys.maxsize < 2**32 or platform.machine().lower() not in _X86:
        return []
    try:
        found = {
            (leaf, subleaf): _cpuid(leaf, subleaf)
            for leaf, subleaf in {place[:2] for place in _CPUID.values()}
            if leaf <= _cpuid(0, 0)[0]
        }
    except (OSError, ValueError, AttributeError):
        return []
    return [
        flag
        for flag, (leaf, subleaf, register, bit) in _CPUID.items()
        if (leaf, subleaf) in found and found[leaf, subleaf][register] >> bit & 1
    ]


def _cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX and EDX of the instruction CPUID, by a few bytes of machine code."""
    # Arguments: leaf, subleaf, and where four numbers of 32 bits go. Windows passes them in ECX,
    # EDX and R8, others in EDI, ESI and RDX.
    moved = b"\x89\xc8\x89\xd1" if sys.platform == "win32" else b"\x89\xf8\x49\x89\xd0\x89\xf1"
    code = (
        b"\x53"  # push rbx
        + moved  # eax = leaf, ecx = subleaf, r8 = where
        + b"\x0f\xa2"  # cpuid
        + b"\x41\x89\x00\x41\x89\x58\x04\x41\x89\x48\x08\x41\x89\x50\x0c"
        + b"\x5b\xc3"  # pop rbx; ret
    )
    numbers = (ctypes.c_uint32 * 4)()
    signature = (None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        kernel.VirtualAlloc.restype = ctypes.c_void_p
        # Committed and reserved; readable, writable and executable.
        place = kernel.VirtualAlloc(None, ctypes.c_size_t(len(code)), 0x3000, 0x40)
        if not place:
            raise OSError("no executable memory")
        ctypes.memmove(place, code, len(code))
        try:
            ctypes.CFUNCTYPE(*signature)(place)(leaf, subleaf, ctypes.addressof(numbers))
        finally:
            kernel.VirtualFree(ctypes.c_void_p(place), ctypes.c_size_t(0), 0x8000)
    else:
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        with mmap.mmap(-1, mmap.PAGESIZE, prot=protection) as memory:
            memory.write(code)
            view = (ctypes.c_char * len(code)).from_buffer(memory)
            place = ctypes.addressof(view)
            ctypes.CFUNCTYPE(*signature)(place)(leaf, subleaf, ctypes.addressof(numbers))
            # The memory is not given back while a view of it is left.
            del view
    return tuple(numbers)  # type: ignore[return-value]


_READERS = {"darwin": _macos, "win32": _windows}
