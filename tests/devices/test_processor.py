"""The description of processors and the choice of 8-bit types."""

import platform
import sys
from pathlib import Path

import pytest

from lowrank.devices.processor import (
    IntegerTypes,
    Processor,
    flags_by_cpuid,
    from_cpuinfo,
    integer_types,
)

AVX512 = ("avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl")


@pytest.mark.parametrize(
    ("architecture", "flags", "file"),
    [
        # x86 without VNNI: older processors, and the first ones with AVX-512.
        ("x86_64", ("sse4_2",), "u8_reduced.onnx"),
        ("x86_64", ("avx2", "fma"), "u8_reduced.onnx"),
        ("AMD64", ("avx2",), "u8_reduced.onnx"),
        ("i686", ("sse4_1",), "u8_reduced.onnx"),
        ("x86_64", AVX512, "u8_reduced.onnx"),
        # x86 with VNNI of either width, or with the matrix unit.
        ("x86_64", (*AVX512, "avx512_vnni"), "u8.onnx"),
        ("x86_64", ("avx2", "avx_vnni"), "u8.onnx"),
        ("AMD64", (*AVX512, "amx_int8"), "u8.onnx"),
        # A system that lists no flags: types that are correct on every x86 processor.
        ("x86_64", (), "u8_reduced.onnx"),
        # ARM with and without dot products, under the names of different systems.
        ("aarch64", ("fp", "asimd"), "s8.onnx"),
        ("aarch64", ("fp", "asimd", "asimddp", "i8mm"), "s8.onnx"),
        ("arm64", ("asimddp",), "s8.onnx"),
        ("ARM64", (), "s8.onnx"),
        ("armv7l", ("neon",), "s8.onnx"),
        # Other architectures: uint8, which ONNX Runtime fuses everywhere except on ARM.
        ("riscv64", (), "u8.onnx"),
    ],
)
def test_types_suit_the_processor(architecture, flags, file):
    assert integer_types(Processor(architecture, "any", flags)).file == file


def test_the_users_choice_applies_on_every_processor():
    old, board = Processor("x86_64", "old", ("avx2",)), Processor("aarch64", "board")
    assert integer_types(old, "int8").file == "s8_reduced.onnx"
    assert integer_types(old, "auto", False) == IntegerTypes("uint8", False)
    assert integer_types(board, "uint8", True).file == "u8_reduced.onnx"


X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 60
model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz
flags\t\t: fpu sse4_2 avx2 fma
bogomips\t: 6784.42

processor\t: 1
model name\t: another
flags\t\t: avx512_vnni
"""
RASPBERRY_PI = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
SERVER = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


@pytest.mark.parametrize(
    ("text", "name", "flag"),
    [
        (X86, "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz", "avx2"),
        (RASPBERRY_PI, "Raspberry Pi 5 Model B Rev 1.0", "asimddp"),
        (SERVER, "CPU implementer 0x41 CPU part 0xd4f", "bf16"),
    ],
)
def test_the_first_processor_of_cpuinfo_is_described(text, name, flag):
    found_name, flags = from_cpuinfo(text)
    assert found_name == name
    assert flag in flags
    assert "avx512_vnni" not in flags


def test_features_that_matter():
    new = Processor("x86_64", "new", (*AVX512, "avx512_vnni", "avx512_bf16"))
    assert new.features == {"vnni": True, "avx512": True, "bf16": True, "dot_product": False}
    board = Processor("aarch64", "board", ("asimddp",))
    assert board.features == {"vnni": False, "avx512": False, "bf16": False, "dot_product": True}


def test_a_description_survives_a_round_trip_through_json():
    here = Processor.here()
    assert here.architecture == platform.machine()
    assert here.cpu
    assert Processor.from_json(here.to_json() | {"runtime_version": "1.2.3"}) == here
    assert here.cpu in here.signature


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="compares with Linux's list"
)
def test_cpuid_reports_the_flags_that_linux_lists():
    """CPUID, which is used on Windows, must agree with the list of Linux."""
    name, flags = from_cpuinfo(Path("/proc/cpuinfo").read_text())
    if "(restricted to AVX2)" in name:
        pytest.skip("benchmarks/older_cpu.py changes only the list, not the processor")
    listed = set(flags)
    reported = set(flags_by_cpuid())
    assert "avx2" in reported or "avx2" not in listed
    known = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
    assert reported & known == listed & known
