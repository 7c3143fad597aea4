#!/bin/sh
# The steps of Containerfile, on a Debian with Python 3.11 or newer, as root:
#
#     install.sh system                        Debian's packages, and the user `lowrank`
#     install.sh environment cpu|cuda EXTRAS   the packages of constraints.txt, without lowrank
#     install.sh package                       lowrank itself
#
# The script is in /opt/lowrank, and the files that pip reads are in /opt/lowrank/source.
set -eu

# Where Containerfile keeps pip's downloads for the next build.
export PIP_CACHE_DIR=/var/cache/pip
# The image's HOME belongs to its user.
HOME=$(getent passwd root | cut -d: -f6)
export HOME

folder=/opt/lowrank
source=$folder/source
venv=$folder/venv
pip="$venv/bin/pip --disable-pip-version-check"

# git names the commit in results. ssh measures on other machines.
system() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends \
        ca-certificates git openssh-client python3 python3-venv
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
    useradd --uid 1000 --create-home lowrank
    chmod 1777 /home/lowrank
}

environment() {
    target=$1 extras=$2
    case $target in
        cpu | cuda) ;;
        *) fail "there is no target '$target': expected cpu or cuda" ;;
    esac
    check_extras "$extras"
    # A package without code, but with the dependencies of lowrank.
    empty=$(mktemp -d)
    cp "$source/pyproject.toml" "$empty"
    mkdir -p "$empty/src/lowrank"
    touch "$empty/README.md" "$empty/LICENSE" "$empty/src/lowrank/__init__.py"
    python3 -m venv "$venv"
    $pip install --quiet -c "$source/constraints.txt" "$empty${extras:+[$extras]}"
    rm -r "$empty"
    if [ "$target" = cpu ]; then
        remove_gpu_parts
    fi
    check_torch
}

package() {
    # --force-reinstall: the package without code has the same version.
    $pip install --quiet --no-deps --no-cache-dir --force-reinstall "$source"
    "$venv/bin/lowrank" --version
}

# Both targets have the torch and the torchvision of constraints.txt, which belong together. This torch
# links most of NVIDIA's libraries, so it cannot be imported without them. What goes is what it opens
# only on a GPU: 2.3 GB. check_torch shows whether this is true of another version, too.
remove_gpu_parts() {
    $pip uninstall --quiet --yes \
        cuda-bindings cuda-pathfinder nvidia-cuda-cccl nvidia-cusolver triton
    # The linked library is libcudnn.so.9. It opens the others.
    rm "$venv"/lib/python3*/site-packages/nvidia/cudnn/lib/libcudnn_*.so.*
}

# Run forward and backward passes, and linear algebra, on the processor.
check_torch() {
    "$venv/bin/python" - << 'EOT'
import torch

try:
    import torchvision  # After torch: its operators register with the torch of its build.
except ModuleNotFoundError:  # Comes with the extra `workflow`.
    pass
layers = torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4)
network = torch.nn.Sequential(*layers)
network(torch.randn(2, 3, 8, 8)).sum().backward()
with torch.autocast("cpu", dtype=torch.bfloat16):
    network(torch.randn(2, 3, 8, 8))
torch.linalg.svd(torch.randn(5, 5))
torch.fft.rfft(torch.randn(8))
EOT
}

# pip only warns of an extra that does not exist.
check_extras() {
    python3 - "$source/pyproject.toml" "$1" << 'EOT'
import sys
import tomllib

path, extras = sys.argv[1:]
with open(path, "rb") as file:
    known = tomllib.load(file)["project"]["optional-dependencies"]
if unknown := {extra for extra in extras.split(",") if extra} - known.keys():
    sys.exit(f"EXTRAS: pyproject.toml has no extra {sorted(unknown)}; it has {sorted(known)}")
EOT
}

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

case ${1-} in
    system) system ;;
    environment) environment "${2-}" "${3-}" ;;
    package) package ;;
    *) fail "there is no step '${1-}': expected system, environment or package" ;;
esac
