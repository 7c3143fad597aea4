"""Run a command as on an older x86 processor, with AVX2 but without AVX-512, VNNI, bf16 and AMX.

    python benchmarks/older_cpu.py python benchmarks/int8.py --output int8_older_cpu.json
    python benchmarks/older_cpu.py make test

The command runs at the speed of this processor, restricted to the older instructions:

- ONNX Runtime has no option for this. The command uses copies of its libraries in which every CPUID
  instruction traps. `older_cpu.c` handles the trap and hides the newer instructions.
- PyTorch, oneDNN and MKL are restricted by their environment variables.
- /proc/cpuinfo lists the remaining flags, with "restricted to AVX2" after the model name.

The copies and /proc/cpuinfo are mounted in a namespace of the command, so nothing outside it
changes. Needs Linux on x86-64, root, gcc and objdump. Latencies are those of this processor's AVX2
units, not of an old machine, because its clock rate, caches and memory are unchanged.
"""

import argparse
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NEWER = re.compile(r"avx512\w*|avx_vnni\w*|avx_ifma|amx_\w+|bf16")
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
CPUID, TRAP = b"\x0f\xa2", b"\x0f\x0a"
LINE = re.compile(r"^\s*([0-9a-f]+):\s.*\bcpuid\b", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    command = parser.parse_args().command
    if not command:
        parser.error("name a command")
    if sys.platform != "linux" or platform.machine() != "x86_64" or os.getuid() != 0:
        sys.exit("older_cpu.py needs Linux on x86-64, and root for private mounts")
    for tool in ("gcc", "objdump", "unshare"):
        if not shutil.which(tool):
            sys.exit(f"{tool} was not found; install gcc, binutils and util-linux")
    with tempfile.TemporaryDirectory() as folder:
        # Processes of other users also load the library.
        Path(folder).chmod(0o755)
        sys.exit(run(command, Path(folder)))


def run(command: list[str], folder: Path) -> int:
    """Run `command` with replaced libraries and flags, and return its exit status."""
    handler = folder / "older_cpu.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", handler, "-ldl"], check=True)
    mounts = {
        Path("/proc/cpuinfo"): older_cpuinfo(folder),
        Path("/etc"): preloading(handler, folder),
    }
    mounts |= {library: trapping_copy(library, folder) for library in runtime_libraries()}
    script = [
        f"mount --bind {shlex.quote(str(b))} {shlex.quote(str(a))}" for a, b in mounts.items()
    ]
    script.append(f"exec {shlex.join(command)}")
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", " && ".join(script)],
        env=os.environ | ENVIRONMENT,
        check=False,
    ).returncode


def preloading(handler: Path, folder: Path) -> Path:
    """Copy /etc and add a list of preloaded libraries.

    An environment variable would not be passed to processes that are started over SSH.
    """
    copy = folder / "etc"
    shutil.copytree("/etc", copy, symlinks=True)
    (copy / "ld.so.preload").write_text(f"{handler}\n")
    return copy


def older_cpuinfo(folder: Path) -> Path:
    """Write /proc/cpuinfo without the newer flags."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("flags"):
            key, _, flags = line.partition(": ")
            lines[number] = f"{key}: " + " ".join(
                f for f in flags.split() if not NEWER.fullmatch(f)
            )
        elif line.startswith("model name"):
            lines[number] += " (restricted to AVX2)"
    path = folder / "cpuinfo"
    path.write_text("\n".join(lines) + "\n")
    return path


def runtime_libraries() -> list[Path]:
    """List the libraries of ONNX Runtime that contain CPUID instructions."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        sys.exit("onnxruntime is not installed for this Python")
    libraries = sorted(Path(spec.origin).parent.glob("capi/*.so*"))
    return [path for path in libraries if CPUID in path.read_bytes()]


def trapping_copy(library: Path, folder: Path) -> Path:
    """Copy a library with a trap in place of every CPUID instruction.

    objdump finds the instructions, because the same two bytes also occur inside others. Its
    addresses are offsets in the file, because .text is loaded at its offset in the file.
    """
    code = bytearray(library.read_bytes())
    for match in LINE.finditer(output("objdump", "-d", "--no-show-raw-insn", str(library))):
        place = int(match[1], 16)
        if code[place : place + 2] != CPUID:
            sys.exit(f"{library}: no CPUID at {place:#x}: objdump's addresses are not file offsets")
        code[place : place + 2] = TRAP
    copy = folder / library.name
    copy.write_bytes(code)
    return copy


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
