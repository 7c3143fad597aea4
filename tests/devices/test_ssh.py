"""A device behind a real SSH server, on the loopback address."""

import os
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
from ssh_server import MISSING, running

from lowrank.devices import DeviceError, create_device

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

QUICK = {"sittings": 1, "turn_runs": 2, "repeats": 3, "seconds": 0.0, "warmup_seconds": 0.0}


def save_model(path: Path, features: int = 4) -> Path:
    """A matrix of random numbers, which do not compress."""
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
def there(tmp_path):
    """The folder on the other machine."""
    return tmp_path / "there/lowrank-device"


@pytest.fixture
def board(server, there):
    def create(**settings):
        own = {"host": "board", "command": server.command, "folder": str(there.parent)}
        section = {"kind": "ssh", "python": sys.executable, **own, **QUICK, **settings}
        return create_device("board", section)

    return create


@pytest.fixture
def models(tmp_path):
    return [save_model(tmp_path / f"{name}.onnx", size) for name, size in (("a", 6), ("b", 4))]


def test_a_measurement_is_that_of_the_other_machine(board, models, there, tmp_path):
    device = board()
    found = device.measure(*models, {"threads": 2})
    local = create_device("local", QUICK)
    here = local.measure(*models, {"threads": 2})
    assert found.keys() == here.keys()
    assert found["environment"] == here["environment"]
    assert found["repeats"] == here["repeats"]
    assert found["speedup"] > 0
    times = device.node_times(models[0], {})
    assert times.keys() == local.node_times(models[0], {}).keys() == {"gemm"}
    assert times["gemm"].operator == "Gemm"
    assert device.lacks_int8(models[0], {}) is None
    assert device.outputs(models[0], {}) == local.outputs(models[0], {})
    assert device.environment({}) == local.environment({})
    # The other machine ran what was sent to it.
    (room,) = (there / "room").iterdir()
    assert {path.name for path in (room / "lowrank").rglob("*.py")} >= {"local.py", "remote.py"}
    assert not list(tmp_path.glob("*.part"))
    assert device.clean()["removed"] > 0
    assert list(there.parent.iterdir()) == []


def test_paths_from_the_home_folder(board, models, tmp_path):
    home = Path.home()
    python = f"~/{os.path.relpath(sys.executable, home)}"
    folder = f"~/{os.path.relpath(tmp_path / 'with space', home)}"
    assert board(python=python, folder=folder).measure(*models, {})["speedup"] > 0
    assert (tmp_path / "with space/lowrank-device/models").is_dir()


def test_what_was_sent_is_kept_for_the_next_run(board, models, there, server):
    board().measure(*models, {})
    (room,) = (there / "room").iterdir()
    sent = {path: path.stat().st_mtime_ns for path in [room, *(there / "models").iterdir()]}
    assert len(sent) == 3
    board().measure(*models, {})
    assert {path: path.stat().st_mtime_ns for path in sent} == sent
    assert len(list((there / "models").iterdir())) == 2


def test_a_connection_cut_while_a_model_is_sent_goes_on_from_there(
    board, tmp_path, server, monkeypatch
):
    large = save_model(tmp_path / "large.onnx", 1_000_000)  # 8 MB
    device = board()
    device.environment({})
    # The next connection asks what is there; the one after it sends.
    server.cable.cut_after = [None] * (server.cable.connections + 1) + [5_000_000]
    sizes, link = [], device._link.json

    def watched(command, data=b""):
        if hasattr(data, "tell"):
            sizes.append(large.stat().st_size - data.tell())
        return link(command, data)

    monkeypatch.setattr(device._link, "json", watched)
    assert device.node_times(large, {})["gemm"].milliseconds > 0
    whole, rest = sizes
    assert whole == large.stat().st_size
    assert 0 < rest < 0.9 * whole


def test_a_connection_cut_while_it_measures_gets_the_same_measurement(board, models, server, there):
    device = board()
    device.measure(*models, {})
    jobs = len(list((there / "jobs").iterdir()))

    def cut():
        while len(list((there / "jobs").iterdir())) == jobs:
            time.sleep(0.01)
        time.sleep(0.3)
        server.cable.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    assert device.measure(*models, {"seconds": 1.5})["speedup"] > 0
    thread.join()
    # Nothing was begun a second time.
    assert len(list((there / "jobs").iterdir())) == jobs + 1


def test_a_connection_lost_twice_is_told(board, models, server):
    device = board()
    device.environment({})
    server.cable.cut_after = [0] * (server.cable.connections + 9)
    with pytest.raises(
        DeviceError, match=r"board: the connection was lost twice \(.*\)\. What was"
    ):
        device.measure(*models, {})


def test_two_clients_at_the_same_time(board, models, there):
    device, told = board(), []
    device.measure(*models, {})
    started = threading.Event()

    def long():
        started.set()
        told.append(board().measure(*models, {"seconds": 3.0})["speedup"])

    before = (there / "lock").stat().st_mtime_ns
    thread = threading.Thread(target=long)
    thread.start()
    while (there / "lock").stat().st_mtime_ns == before:
        time.sleep(0.01)
    with pytest.raises(DeviceError, match=r"board: it is busy .* at .* started \d+ s ago"):
        device.measure(*models, {})
    thread.join()
    assert told
    assert told[0] > 0
    # It is free again.
    assert device.measure(*models, {})["speedup"] > 0


def test_a_changed_host_key_is_refused(board, models, server):
    server.stop()
    server.make_key("host_key")
    server.start()
    with pytest.raises(DeviceError, match="its host key is not the one that is known"):
        board().measure(*models, {})


def test_an_unknown_host_key_is_refused(board, server):
    (server.folder / "known").write_text("")
    with pytest.raises(DeviceError, match=r"its host key is not known here\. Connect once by hand"):
        board().environment({})


def test_a_key_that_is_not_accepted(board, server):
    server.make_key("user_key")
    with pytest.raises(DeviceError, match="board: it accepts none of the keys"):
        board().environment({})


def test_a_server_that_does_not_answer(board, server):
    server.stop()
    server.cable.close()
    with pytest.raises(DeviceError, match="board: no SSH server answers there"):
        board().environment({})


def test_an_unknown_host(board):
    with pytest.raises(DeviceError, match="there is no host of that name"):
        board(host="no-such-host.invalid").environment({})


def test_no_host():
    with pytest.raises(DeviceError, match="`host` is missing"):
        create_device("board", {"kind": "ssh"})


def test_no_ssh_client(board):
    with pytest.raises(DeviceError, match="there is no '/no/ssh' here"):
        board(command="/no/ssh").environment({})


def test_no_python_there(board):
    with pytest.raises(DeviceError, match=r"there is no 'python3\.99' over there .* Install"):
        board(python="python3.99").environment({})


def python_with(tmp_path, code: str) -> str:
    """A Python over there that runs some code first."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_no_onnxruntime_there(board, tmp_path):
    code = "import sys; sys.modules['onnxruntime'] = None"
    told = r"has no onnxruntime\. Install it: `ssh board .* -m pip install numpy onnxruntime`"
    with pytest.raises(DeviceError, match=told):
        board(python=python_with(tmp_path, code)).environment({})


def test_onnxruntime_of_another_architecture(board, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/onnxruntime.py").write_text("raise ImportError('wrong ELF class')")
    shutil.move(tmp_path / "site", tmp_path / "other")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'other')!r})"
    told = r"onnxruntime \(wrong ELF class\) does not load on this machine \(\w+\)"
    with pytest.raises(DeviceError, match=told):
        board(python=python_with(tmp_path, code)).environment({})


def test_an_old_python_there(board, tmp_path):
    code = "import sys; sys.version_info = (3, 7, 3); sys.version = '3.7.3 (default)'"
    with pytest.raises(DeviceError, match=r"is Python 3\.7\.3; 3\.9 or later is needed"):
        board(python=python_with(tmp_path, code)).environment({})


def test_a_shell_that_talks(board, tmp_path):
    path = tmp_path / "talking"
    path.write_text("#!/bin/sh\necho Welcome\n")
    path.chmod(0o755)
    with pytest.raises(DeviceError, match=r"answered 'Welcome\\n' where JSON was expected"):
        board(python=str(path)).environment({})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_no_space_there(board, models, there):
    device = board()
    device.environment({})
    (there / "models").mkdir()
    digest = subprocess.run(["sha256sum", models[0]], capture_output=True, text=True, check=True)
    (there / "models" / f"{digest.stdout.split()[0]}.part").symlink_to("/dev/full")
    with pytest.raises(DeviceError, match=r"board: no space is left for .* there"):
        device.measure(*models, {})


def test_a_folder_that_cannot_be_made(board):
    with pytest.raises(DeviceError, match="nothing can be kept in /proc/none"):
        board(folder="/proc/none").environment({})


def test_a_provider_that_is_not_there(board, models):
    with pytest.raises(DeviceError, match=r"board: .*'NoSuch' is not available here\. Available: "):
        board(provider="NoSuch").measure(*models, {})


def test_a_damaged_model_is_named_as_it_is_here(board, models, tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(models[0].read_bytes()[:-20])
    with pytest.raises(DeviceError, match=r"board: \S*cut\.onnx: ONNX Runtime .* cannot load"):
        board().measure(models[0], cut, {})
    with pytest.raises(DeviceError, match=r"absent\.onnx: no such model"):
        board().measure(models[0], tmp_path / "absent.onnx", {})


def files_below(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_cleaning_removes_no_file_of_the_users(board, models, there):
    there.parent.mkdir()
    (there.parent / "thesis.tex").write_text("years of work")
    (there.parent / "models").mkdir()
    (there.parent / "models/mine.onnx").write_bytes(b"mine")
    before = files_below(there.parent)
    board().measure(*models, {})
    (there / "models/notes.txt").write_text("put here by hand")
    found = board().clean()
    assert found["stay"] == ["models"]
    assert set(files_below(there)) == {"made_by_lowrank", "lock", "models/notes.txt"}
    (there / "models/notes.txt").unlink()
    assert board().clean()["stay"] == []
    assert files_below(there.parent) == before


def test_a_folder_of_that_name_that_is_not_ours_is_left_alone(board, models, there):
    (there / "models").mkdir(parents=True)
    (there / "models" / f"{'0' * 64}.onnx").write_bytes(b"mine")
    before = files_below(there)
    for use in (lambda: board().clean(), lambda: board().measure(*models, {})):
        with pytest.raises(DeviceError, match=r"board: .*holds files that lowrank did not make"):
            use()
    assert files_below(there) == before


def test_cleaning_follows_no_link(board, models, there, tmp_path):
    board().measure(*models, {})
    shutil.rmtree(there / "models")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{'0' * 64}.onnx").write_bytes(b"mine")
    (there / "models").symlink_to(tmp_path / "elsewhere")
    assert board().clean()["stay"] == ["models"]
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_cleaning_where_nothing_was_sent(board, there):
    assert board().clean() == {"folder": str(there), "removed": 0, "stay": []}
    assert not there.parent.exists()


@pytest.mark.parametrize("damage", ["altered", "truncated", "part of another"])
def test_a_model_that_was_damaged_there_is_sent_again(board, models, there, damage):
    board().measure(*models, {})
    sent = sorted((there / "models").iterdir())
    whole = {path: path.read_bytes() for path in sent}
    for path, content in whole.items():
        if damage == "part of another":
            path.rename(path.with_suffix(".part"))
            path.with_suffix(".part").write_bytes(b"x" * 50)
        elif damage == "altered":
            path.write_bytes(content[:-30] + bytes(30))
        else:
            path.write_bytes(content[:-30])
    assert board().measure(*models, {})["speedup"] > 0
    assert {path: path.read_bytes() for path in (there / "models").iterdir()} == whole


@pytest.mark.parametrize("damage", ["altered", "added", "removed", "truncated"])
def test_code_that_was_changed_there_does_not_run(board, there, tmp_path, damage):
    board().environment({})
    (room,) = (there / "room").iterdir()
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
    assert [each.name for each in (there / "room").iterdir()] == [room.name]


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
def test_a_host_is_never_an_option_nor_code(board, tmp_path, monkeypatch, host):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceError, match="`host` is"):
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
def test_a_command_is_the_ssh_client_and_nothing_else(board, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceError, match="`command` is"):
        board(command=command).environment({})
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["python", "folder"])
@pytest.mark.parametrize(
    "text", ["{}/x'; touch {}/pwned; '", "{}/$(touch {}/pwned)", "{}/`touch {}/pwned`"]
)
def test_words_for_the_shell_over_there_are_quoted(board, tmp_path, name, text):
    expected = (
        pytest.raises(DeviceError, match="there is no") if name == "python" else nullcontext()
    )
    with expected:
        board(**{name: text.format(tmp_path, tmp_path)}).environment({})
    assert not (tmp_path / "pwned").exists()
