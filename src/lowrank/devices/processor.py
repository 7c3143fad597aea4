"""Describe this machine's processor and choose 8-bit types for it. Standard library only."""

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

# Instructions that accumulate 8-bit products in 32 bits, as Linux names them.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})
_ARM_DOT_PRODUCT = frozenset({"asimddp", "i8mm"})
_AVX512 = frozenset({"avx512f"})
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

# Names of the same instructions on other operating systems.
_MACOS_FLAGS = {
    "avx1.0": "avx",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
}
_MACOS_ARM = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}
_WINDOWS_ARM = {43: "asimddp", 66: "i8mm", 68: "bf16"}  # PF_ARM_V82_DP, _V82_I8MM, _V86_BF16

# Position of each flag in CPUID: leaf, subleaf, register (EAX, EBX, ECX, EDX), bit.
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
    """A processor: its `architecture`, its name `cpu`, and its `flags` as Linux names them.

    `flags` is empty if the operating system does not list them.
    """

    architecture: str
    cpu: str
    flags: tuple[str, ...] = ()

    @classmethod
    def here(cls) -> Processor:
        """Describe the processor of this machine."""
        name, flags = _READERS.get(sys.platform, _linux)()
        return cls(platform.machine() or "unknown", name, tuple(sorted(set(flags))))

    @property
    def is_x86(self) -> bool:
        """Whether the architecture is x86, 32 or 64 bits."""
        return self.architecture.lower() in _X86

    @property
    def is_arm(self) -> bool:
        """Whether the architecture is ARM, 32 or 64 bits."""
        return _ARM.match(self.architecture) is not None

    def has(self, flags: Iterable[str]) -> bool:
        """Return whether the processor has at least one of these flags."""
        return not set(flags).isdisjoint(self.flags)

    @property
    def features(self) -> dict[str, bool]:
        """Features that matter for the speed and the arithmetic of networks, by name."""
        return {
            "vnni": self.has(_VNNI),
            "avx512": self.has(_AVX512),
            "bf16": self.has(_BF16),
            "dot_product": self.has(_ARM_DOT_PRODUCT),
        }

    @property
    def signature(self) -> str:
        """Short text that differs between processors that may compute differently."""
        return f"{self.architecture}, {self.cpu}, {' '.join(self.flags)}"

    def to_json(self) -> dict[str, Any]:
        """Return the description that `describe_device` writes, without the runtime's version."""
        return {**dataclasses.asdict(self), "flags": list(self.flags), **self.features}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Processor:
        """Create a processor from the result of `to_json`. Other entries are ignored."""
        return cls(document["architecture"], document["cpu"], tuple(document["flags"]))


@dataclasses.dataclass(frozen=True)
class IntegerTypes:
    """The types of an int8 network.

    `activations` is `int8` or `uint8`. `reduce_range` says whether weights have 7 bits.
    """

    activations: str
    reduce_range: bool

    @property
    def file(self) -> str:
        """Name of the ONNX file with these types."""
        kind = {"uint8": "u8", "int8": "s8"}[self.activations]
        return f"{kind}_reduced.onnx" if self.reduce_range else f"{kind}.onnx"


def integer_types(
    processor: Processor, activations: str = "auto", reduce_range: bool | str = "auto"
) -> IntegerTypes:
    """Choose the types that a processor multiplies fast and without saturation.

    Activations are int8 on ARM and uint8 on every other architecture. Only on ARM does ONNX Runtime
    fuse int8 activations into integer kernels. Elsewhere, tensors with two consumers keep their
    conversions, and the convolutions after them run in float.

    Weights have 7 bits on x86 without VNNI, which adds two 8-bit products in 16 bits and saturates.
    ARM does not saturate: it adds the products in 16 bits with signed factors and symmetric
    weights, or in 32 bits if it has dot products.

    Parameters
    ----------
    processor : Processor
        The processor that runs the network.
    activations : str
        `auto`, or the user's choice: `int8` or `uint8`.
    reduce_range : bool or str
        `auto`, or the user's choice.
    """
    if activations == "auto":
        activations = "int8" if processor.is_arm else "uint8"
    if reduce_range == "auto":
        reduce_range = processor.is_x86 and not processor.has(_VNNI)
    return IntegerTypes(activations, bool(reduce_range))


def _linux() -> tuple[str, list[str]]:
    """Return the name and the flags from /proc/cpuinfo."""
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
    # On ARM, the flags are called Features, and most kernels list numbers instead of a name. On a
    # Raspberry Pi, `Model` is the name of the board. On x86, `model` is a number.
    part = " ".join(
        f"{key} {entries[key]}" for key in ("CPU implementer", "CPU part") if key in entries
    )
    name = entries.get("model name") or entries.get("Model") or part or platform.processor()
    flags = entries.get("flags") or entries.get("Features") or ""
    return name or "unknown", flags.split()


def _macos() -> tuple[str, list[str]]:
    """Return the name and the flags from sysctl."""
    flags = []
    for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
        listed = _sysctl(key).lower().split()
        flags += [_MACOS_FLAGS.get(flag, flag) for flag in listed]
    flags += [flag for key, flag in _MACOS_ARM.items() if _sysctl(f"hw.optional.arm.{key}") == "1"]
    return _sysctl("machdep.cpu.brand_string") or "unknown", flags


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _windows() -> tuple[str, list[str]]:
    """Return the name from the registry, and the flags from CPUID or, on ARM, from the system."""
    import winreg

    try:
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:  # type: ignore[attr-defined]
            name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()  # type: ignore[attr-defined]
    except OSError:
        name = platform.processor()
    if platform.machine().lower() in _X86:
        return name or "unknown", flags_by_cpuid()
    present = ctypes.windll.kernel32.IsProcessorFeaturePresent  # type: ignore[attr-defined]
    return name or "unknown", [flag for number, flag in _WINDOWS_ARM.items() if present(number)]


def flags_by_cpuid() -> list[str]:
    """Read the flags from an x86-64 processor itself; an empty list if the system forbids it."""
    if sys.maxsize < 2**32 or platform.machine().lower() not in _X86:
        return []
    try:
        registers = {
            (leaf, subleaf): _cpuid(leaf, subleaf)
            for leaf, subleaf in {position[:2] for position in _CPUID.values()}
            if leaf <= _cpuid(0, 0)[0]
        }
    except (OSError, ValueError, AttributeError):
        return []
    return [
        flag
        for flag, (leaf, subleaf, register, bit) in _CPUID.items()
        if (leaf, subleaf) in registers and registers[leaf, subleaf][register] >> bit & 1
    ]


def _cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """Run the instruction CPUID as machine code and return EAX, EBX, ECX and EDX."""
    # Arguments: leaf, subleaf, and the address for four 32-bit numbers. Windows passes them in ECX,
    # EDX and R8. Other systems pass them in EDI, ESI and RDX.
    move = b"\x89\xc8\x89\xd1" if sys.platform == "win32" else b"\x89\xf8\x49\x89\xd0\x89\xf1"
    code = (
        b"\x53"  # push rbx
        + move  # eax = leaf, ecx = subleaf, r8 = address
        + b"\x0f\xa2"  # cpuid
        + b"\x41\x89\x00\x41\x89\x58\x04\x41\x89\x48\x08\x41\x89\x50\x0c"
        + b"\x5b\xc3"  # pop rbx; ret
    )
    numbers = (ctypes.c_uint32 * 4)()
    signature = (None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    if sys.platform == "win32":
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        kernel.VirtualAlloc.restype = ctypes.c_void_p
        # 0x3000: commit and reserve. 0x40: readable, writable and executable.
        address = kernel.VirtualAlloc(None, ctypes.c_size_t(len(code)), 0x3000, 0x40)
        if not address:
            raise OSError("no executable memory")
        ctypes.memmove(address, code, len(code))
        try:
            ctypes.CFUNCTYPE(*signature)(address)(leaf, subleaf, ctypes.addressof(numbers))
        finally:
            kernel.VirtualFree(ctypes.c_void_p(address), ctypes.c_size_t(0), 0x8000)
    else:
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        with mmap.mmap(-1, mmap.PAGESIZE, prot=protection) as memory:
            memory.write(code)
            view = (ctypes.c_char * len(code)).from_buffer(memory)
            address = ctypes.addressof(view)
            ctypes.CFUNCTYPE(*signature)(address)(leaf, subleaf, ctypes.addressof(numbers))
            # mmap cannot be closed while a view of it exists.
            del view
    return tuple(numbers)


_READERS = {"darwin": _macos, "win32": _windows}
