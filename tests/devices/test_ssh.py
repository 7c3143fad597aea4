"""A device behind a real SSH server on the loopback address."""

import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import reader_of_words, words_and_features
from ssh_server import MISSING, running

from lowrank.config.device_kinds import create_device
from lowrank.devices import DeviceError, ssh
from lowrank.testing import check_device

pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.seconds,
]

QUICK = {"sittings": 1, "turn_runs": 2, "repeats": 3, "seconds": 0.0, "warmup_seconds": 0.0}


def save_model(path: Path, features: int = 4) -> Path:
    """Save a model with a matrix of random numbers, whose file cannot be compressed."""
    weight = np.random.default_rng(features).standard_normal((features, 2), dtype=np.float32)
    maps = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("images", features), ("logits", 2))
    ]
    node = helper.make_node("Gemm", ["images", "weight"], ["logits"], "gemm")
    tensors = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph([node], "graph", maps[:1], maps[1:], tensors)
    imports = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    with running(folder) as server:
        yield server


@pytest.fixture
def remote_folder(tmp_path):
    """The folder of lowrank on the other machine."""
    return tmp_path / "there/lowrank-device"


@pytest.fixture
def board(server, remote_folder):
    def create(**settings):
        own = {"host": "board", "command": server.command, "folder": str(remote_folder.parent)}
        section = {"kind": "ssh", "python": sys.executable, **own, **QUICK, **settings}
        return create_device("board", section)

    return create


@pytest.fixture
def models(tmp_path):
    return [save_model(tmp_path / f"{name}.onnx", size) for name, size in (("a", 6), ("b", 4))]


@pytest.mark.slow
def test_the_other_machine_keeps_the_contract_of_devices(board, remote_folder):
    check_device(board())
    assert not remote_folder.exists()


def test_the_other_machine_is_measured(board, models, remote_folder, tmp_path):
    device = board()
    remote = device.measure(*models, {"threads": 2})
    local = create_device("local", QUICK)
    here = local.measure(*models, {"threads": 2})
    assert remote.keys() == here.keys()
    assert remote["environment"] == here["environment"]
    assert remote["repeats"] == here["repeats"]
    assert remote["speedup"] > 0
    times = device.node_times(models[0], {})
    assert times.keys() == local.node_times(models[0], {}).keys() == {"gemm"}
    assert times["gemm"].operator == "Gemm"
    assert device.lacks_int8(models[0], {}) is None
    assert device.outputs(models[0], {}) == local.outputs(models[0], {})
    assert device.environment({}) == local.environment({})
    # The other machine has received the code.
    (room,) = (remote_folder / "room").iterdir()
    assert {path.name for path in (room / "lowrank").rglob("*.py")} >= {"local.py", "remote.py"}
    assert not list(tmp_path.glob("*.part"))
    assert device.clean()["removed"] > 0
    assert list(remote_folder.parent.iterdir()) == []


def test_samples_of_several_inputs_reach_the_other_machine(board, tmp_path):
    onnx.save(reader_of_words(), model := tmp_path / "reader.onnx")
    np.savez(tmp_path / "samples.npz", **words_and_features(4))
    expected = create_device("local", QUICK).answers(model, tmp_path / "samples.npz", {})
    assert board().answers(model, tmp_path / "samples.npz", {}) == expected


@pytest.mark.slow
def test_paths_may_start_with_the_home_folder(board, models, tmp_path):
    home = Path.home()
    python = f"~/{os.path.relpath(sys.executable, home)}"
    folder = f"~/{os.path.relpath(tmp_path / 'with space', home)}"
    assert board(python=python, folder=folder).measure(*models, {})["speedup"] > 0
    assert (tmp_path / "with space/lowrank-device/models").is_dir()


@pytest.mark.slow
def test_files_that_were_sent_are_kept_for_the_next_run(board, models, remote_folder, server):
    board().measure(*models, {})
    (room,) = (remote_folder / "room").iterdir()
    sent = {path: path.stat().st_mtime_ns for path in [room, *(remote_folder / "models").iterdir()]}
    assert len(sent) == 3
    board().measure(*models, {})
    assert {path: path.stat().st_mtime_ns for path in sent} == sent
    assert len(list((remote_folder / "models").iterdir())) == 2


def test_an_interrupted_transfer_of_a_model_is_continued(board, tmp_path, server, monkeypatch):
    large = save_model(tmp_path / "large.onnx", 1_000_000)  # 8 MB
    device = board()
    device.environment({})
    # The next connection asks which bytes have arrived. The one after it sends the model.
    server.cable.cut_after = [None] * (server.cable.connections + 1) + [5_000_000]
    sizes, run_json = [], device._link.json

    def record_size(command, data=b""):
        if hasattr(data, "tell"):
            sizes.append(large.stat().st_size - data.tell())
        return run_json(command, data)

    monkeypatch.setattr(device._link, "json", record_size)
    assert device.node_times(large, {})["gemm"].milliseconds > 0
    first_size, second_size = sizes
    assert first_size == large.stat().st_size
    assert 0 < second_size < 0.9 * first_size


@pytest.mark.slow
def test_a_measurement_continues_while_the_connection_is_lost(board, models, server, remote_folder):
    device = board()
    device.measure(*models, {})
    jobs = len(list((remote_folder / "jobs").iterdir()))

    def cut():
        while len(list((remote_folder / "jobs").iterdir())) == jobs:
            time.sleep(0.01)
        time.sleep(0.3)
        server.cable.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    assert device.measure(*models, {"seconds": 0.8})["speedup"] > 0
    thread.join()
    # The measurement was not started a second time.
    assert len(list((remote_folder / "jobs").iterdir())) == jobs + 1


def test_a_connection_that_is_lost_twice_is_an_error(board, models, server):
    device = board()
    device.environment({})
    server.cable.cut_after = [0] * (server.cable.connections + 9)
    with pytest.raises(
        DeviceError, match=r"board: the connection was lost twice \(.*\)\. Measurements"
    ):
        device.measure(*models, {})


@pytest.mark.slow
def test_second_client_waits_for_the_first(board, models, remote_folder, caplog, monkeypatch):
    device, speedups = board(), []
    device.measure(*models, {})
    started = threading.Event()

    def long():
        started.set()
        speedups.append(board().measure(*models, {"seconds": 5.0})["speedup"])

    before = (remote_folder / "lock").stat().st_mtime_ns
    thread = threading.Thread(target=long)
    thread.start()
    while (remote_folder / "lock").stat().st_mtime_ns == before:
        time.sleep(0.01)
    monkeypatch.setattr(ssh, "_LONGEST_WAIT_SECONDS", 0.0)
    with pytest.raises(DeviceError, match=r"board: it is busy .* at .* started \d+ s ago"):
        device.measure(*models, {})
    monkeypatch.undo()
    with caplog.at_level(logging.INFO, logger="lowrank"):
        assert device.measure(*models, {})["speedup"] > 0
    (message,) = caplog.messages
    assert re.fullmatch(r"board: it is busy .*; waiting for it to end", message)
    thread.join()
    assert speedups
    assert speedups[0] > 0


def test_a_changed_host_key_is_refused(board, models, server):
    server.stop()
    server.make_key("host_key")
    server.start()
    with pytest.raises(DeviceError, match="its host key differs from the known one"):
        board().measure(*models, {})


def test_an_unknown_host_key_is_refused(board, server):
    (server.folder / "known").write_text("")
    with pytest.raises(DeviceError, match=r"its host key is not known on this machine\. Run `ssh"):
        board().environment({})


def test_a_key_that_is_not_accepted(board, server):
    server.make_key("user_key")
    with pytest.raises(DeviceError, match="board: it accepts none of your keys"):
        board().environment({})


def test_a_server_that_does_not_answer(board, server):
    server.stop()
    server.cable.close()
    with pytest.raises(DeviceError, match="board: no SSH server answers on that port"):
        board().environment({})


def test_an_unknown_host(board):
    with pytest.raises(DeviceError, match="no host has this name"):
        board(host="no-such-host.invalid").environment({})


def test_no_host():
    with pytest.raises(DeviceError, match="`host` is missing"):
        create_device("board", {"kind": "ssh"})


def test_no_ssh_client(board):
    with pytest.raises(DeviceError, match="'/no/ssh' was not found on this machine"):
        board(command="/no/ssh").environment({})


def test_no_python_on_the_other_machine(board):
    with pytest.raises(DeviceError, match=r"'python3\.99' was not found on that machine .*Install"):
        board(python="python3.99").environment({})


def python_with(tmp_path, code: str) -> str:
    """Create a Python program for the other machine that first runs some code."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_no_onnxruntime_on_the_other_machine(board, tmp_path):
    code = "import sys; sys.modules['onnxruntime'] = None"
    message = r"has no onnxruntime\. Install it: `ssh board .* -m pip install numpy onnxruntime`"
    with pytest.raises(DeviceError, match=message):
        board(python=python_with(tmp_path, code)).environment({})


def test_no_openvino_on_the_other_machine(board, tmp_path):
    code = "import sys; sys.modules['openvino'] = None"
    message = r"has no openvino\. Install it: `ssh board .* -m pip install numpy openvino`"
    with pytest.raises(DeviceError, match=message):
        board(python=python_with(tmp_path, code), runtime="openvino").environment({})


def test_onnxruntime_of_another_architecture(board, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/onnxruntime.py").write_text("raise ImportError('wrong ELF class')")
    shutil.move(tmp_path / "site", tmp_path / "other")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'other')!r})"
    message = r"onnxruntime \(wrong ELF class\) does not load on this machine \(\w+\)"
    with pytest.raises(DeviceError, match=message):
        board(python=python_with(tmp_path, code)).environment({})


def test_an_old_python_on_the_other_machine(board, tmp_path):
    code = "import sys; sys.version_info = (3, 7, 3); sys.version = '3.7.3 (default)'"
    with pytest.raises(DeviceError, match=r"is Python 3\.7\.3; 3\.9 or later is needed"):
        board(python=python_with(tmp_path, code)).environment({})


def test_a_login_shell_that_prints(board, tmp_path):
    path = tmp_path / "talking"
    path.write_text("#!/bin/sh\necho Welcome\n")
    path.chmod(0o755)
    with pytest.raises(DeviceError, match=r"printed 'Welcome\\n', but JSON was expected"):
        board(python=str(path)).environment({})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_no_space_on_the_other_machine(board, models, remote_folder):
    device = board()
    device.environment({})
    (remote_folder / "models").mkdir()
    digest = subprocess.run(["sha256sum", models[0]], capture_output=True, text=True, check=True)
    (remote_folder / "models" / f"{digest.stdout.split()[0]}.part").symlink_to("/dev/full")
    with pytest.raises(DeviceError, match=r"board: no space is left for .* on that machine"):
        device.measure(*models, {})


def test_a_folder_that_cannot_be_created(board):
    with pytest.raises(DeviceError, match="cannot write to /proc/none"):
        board(folder="/proc/none").environment({})


def test_an_unavailable_provider(board, models):
    with pytest.raises(DeviceError, match=r"board: .*'NoSuch' is not available here\. Available: "):
        board(provider="NoSuch").measure(*models, {})


def test_the_error_for_a_damaged_model_has_its_path_on_this_machine(board, models, tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(models[0].read_bytes()[:-20])
    with pytest.raises(DeviceError, match=r"board: \S*cut\.onnx: ONNX Runtime .* cannot load"):
        board().measure(models[0], cut, {})
    with pytest.raises(DeviceError, match=r"absent\.onnx: no such model"):
        board().measure(models[0], tmp_path / "absent.onnx", {})


def files_below(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_cleaning_removes_no_files_of_the_user(board, models, remote_folder):
    remote_folder.parent.mkdir()
    (remote_folder.parent / "thesis.tex").write_text("years of work")
    (remote_folder.parent / "models").mkdir()
    (remote_folder.parent / "models/mine.onnx").write_bytes(b"mine")
    before = files_below(remote_folder.parent)
    board().measure(*models, {})
    (remote_folder / "models/notes.txt").write_text("put here by hand")
    report = board().clean()
    assert report["stay"] == ["models"]
    assert set(files_below(remote_folder)) == {"made_by_lowrank", "lock", "models/notes.txt"}
    (remote_folder / "models/notes.txt").unlink()
    assert board().clean()["stay"] == []
    assert files_below(remote_folder.parent) == before


def test_a_foreign_folder_with_the_same_name_is_not_changed(board, models, remote_folder):
    (remote_folder / "models").mkdir(parents=True)
    (remote_folder / "models" / f"{'0' * 64}.onnx").write_bytes(b"mine")
    before = files_below(remote_folder)
    for action in (lambda: board().clean(), lambda: board().measure(*models, {})):
        with pytest.raises(DeviceError, match=r"board: .*holds files that lowrank did not create"):
            action()
    assert files_below(remote_folder) == before


@pytest.mark.slow
def test_cleaning_does_not_follow_links(board, models, remote_folder, tmp_path):
    board().measure(*models, {})
    shutil.rmtree(remote_folder / "models")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{'0' * 64}.onnx").write_bytes(b"mine")
    (remote_folder / "models").symlink_to(tmp_path / "elsewhere")
    assert board().clean()["stay"] == ["models"]
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_cleaning_if_nothing_was_sent(board, remote_folder):
    report = {"folder": f"board: {remote_folder}", "removed": 0, "stay": []}
    assert board().clean() == report
    assert not remote_folder.parent.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "altered",
        pytest.param("truncated", marks=pytest.mark.slow),
        pytest.param("part of another", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_was_damaged_on_the_other_machine_is_sent_again(
    board, models, remote_folder, damage
):
    model = models[0]
    board().node_times(model, {})
    sent = sorted((remote_folder / "models").iterdir())
    contents = {path: path.read_bytes() for path in sent}
    for path, content in contents.items():
        if damage == "part of another":
            path.rename(path.with_suffix(".part"))
            path.with_suffix(".part").write_bytes(b"x" * 50)
        elif damage == "altered":
            path.write_bytes(content[:-30] + bytes(30))
        else:
            path.write_bytes(content[:-30])
    assert board().node_times(model, {}).keys() == {"gemm"}
    assert {path: path.read_bytes() for path in (remote_folder / "models").iterdir()} == contents


@pytest.mark.parametrize("damage", ["altered", "added", "removed", "truncated"])
def test_code_that_was_changed_on_the_other_machine_does_not_run(
    board, remote_folder, tmp_path, damage
):
    board().environment({})
    (room,) = (remote_folder / "room").iterdir()
    before = files_below(room)
    assert not list(room.rglob("*.pyc"))
    path = room / "lowrank/devices/device.py"
    code = f"open({str(tmp_path / 'pwned')!r}, 'w')\n"
    if damage == "altered":
        path.write_text(path.read_text().replace("import json", code + "import json", 1) + code)
    elif damage == "added":
        # Python looks for modules in the current folder first.
        (room / "json.py").write_text(code)
    elif damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    assert board().environment({})
    assert not (tmp_path / "pwned").exists()
    assert files_below(room) == before
    assert [path.name for path in (remote_folder / "room").iterdir()] == [room.name]


HOSTS = [
    "-oProxyCommand=touch pwned",
    "--",
    "a b",
    "board\nx",
    "board;touch pwned",
    "$(touch x)",
    "",
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_never_used_as_an_option_or_as_code(board, tmp_path, monkeypatch, host):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceError, match="setting 'host' is"):
        board(host=host).environment({})
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "command",
    [
        "touch pwned",
        "sh -c 'touch pwned' ssh",
        "ssh -oProxyCommand='touch pwned'",
        "ssh -o ProxyCommand='touch pwned'",
        "ssh -F -oProxyCommand='touch pwned'",
        "ssh -p",
        "ssh board touch pwned",
        "ssh 'board",
        "",
    ],
)
def test_a_command_other_than_the_ssh_client_is_refused(board, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceError, match=r"[`']command[`'] is"):
        board(command=command).environment({})
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["python", "folder"])
@pytest.mark.parametrize(
    "text", ["{}/x'; touch {}/pwned; '", "{}/$(touch {}/pwned)", "{}/`touch {}/pwned`"]
)
def test_words_for_the_remote_shell_are_quoted(board, tmp_path, name, text):
    expected = (
        pytest.raises(DeviceError, match="was not found") if name == "python" else nullcontext()
    )
    with expected:
        board(**{name: text.format(tmp_path, tmp_path)}).environment({})
    assert not (tmp_path / "pwned").exists()
