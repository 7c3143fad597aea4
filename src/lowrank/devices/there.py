"""Programs for the Python of another machine, before anything of ours is there: their text.

Each is FOLDER and what follows it. They run on Python 3.9 and use its standard library alone.
"""

# All that is sent is in a folder of its own below the one that the user names, with a file in it
# that says whose it is. Without that file nothing in it is touched.
FOLDER = """
import fcntl, hashlib, io, json, os, re, sys
if sys.version_info < (3, 9):
    print(json.dumps({"old": sys.version.split()[0]})); sys.exit()
import platform, shutil, tarfile, tempfile
folder = os.path.join(os.path.expanduser(sys.argv[1]), "lowrank-device")
marker = os.path.join(folder, "made_by_lowrank")

def is_foreign():
    return not os.path.isfile(marker) and os.path.lexists(folder) and (
        os.path.islink(folder) or not os.path.isdir(folder) or bool(os.listdir(folder)))

FOREIGN = ("%s is there and holds files that lowrank did not make. Nothing in it was changed. "
           "Move it, or name another `folder`." % folder)

def digest_of(room):
    # As _packed_room of lowrank.devices.ssh, so that one file more or less is another hash.
    found = {}
    for place, _, names in os.walk(room):
        for name in names:
            path = os.path.join(place, name)
            if os.path.islink(path):
                return None
            with open(path, "rb") as file:
                found[os.path.relpath(path, room).replace(os.sep, "/")] = file.read()
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\\0" + found[name])
    return digest.hexdigest()[:16]
"""

# It keeps the room that comes in, unless the same is there unaltered, and says what the machine is.
PREPARE = """
digest = sys.argv[2]
room = os.path.join(folder, "room", digest)
data = sys.stdin.buffer.read()
found = {"python": sys.executable, "machine": platform.machine(), "room": room, "folder": folder}

def put_room():
    # An altered room is moved out of the way: another run may still have it open.
    new, old = (tempfile.mkdtemp(prefix="new-", dir=os.path.dirname(room)) for _ in range(2))
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(new)
        if os.path.isdir(room):
            os.rename(room, old)
        try:
            os.rename(new, room)
        except OSError:
            if not os.path.isdir(room):
                raise
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)

try:
    if is_foreign():
        found["refused"] = FOREIGN
    else:
        os.makedirs(os.path.dirname(room), exist_ok=True)
        if not os.path.isfile(marker):
            with open(marker, "w") as file:
                file.write("What lowrank sent to be measured; `lowrank clean_device` removes it.")
        if not os.path.isdir(room) or digest_of(room) != digest:
            put_room()
except OSError as error:
    found["problem"] = "%s: %s" % (error.filename or room, error.strerror)
for name in ("numpy", "onnxruntime"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        found["missing"] = name
        break
    except Exception as error:
        found["broken"] = "%s (%s)" % (name, error)
        break
print(json.dumps(found))
"""

# It removes what has the names that lowrank gives, and then the folders that are empty.
CLEAN = """
OURS = {
    "room": "[0-9a-f]{16}|new-.*",
    "models": "[0-9a-f]{64}[.](onnx|part)",
    "jobs": "[0-9a-f]{32}",
}
found = {"folder": folder, "removed": 0, "stay": []}

def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        found["removed"] += sum(len(names) for _, _, names in os.walk(path))
        shutil.rmtree(path)
    else:
        found["removed"] += 1
        os.unlink(path)

def clean():
    for part in OURS:
        place = os.path.join(folder, part)
        if os.path.isdir(place) and not os.path.islink(place):
            for name in os.listdir(place):
                if re.fullmatch(OURS[part], name):
                    remove(os.path.join(place, name))
            if not os.listdir(place):
                os.rmdir(place)
    left = set(os.listdir(folder)) - {"lock", os.path.basename(marker)}
    if left:
        found["stay"] = sorted(left)
        return
    for path in (lock, marker):
        if os.path.lexists(path):
            remove(path)
    os.rmdir(folder)

lock = os.path.join(folder, "lock")
try:
    if is_foreign():
        found["refused"] = FOREIGN
    elif os.path.isdir(folder):
        with open(lock, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                found["refused"] = "a measurement is running there. Wait for it, then run again."
            else:
                clean()
except OSError as error:
    found["refused"] = "%s: %s" % (error.filename or folder, error.strerror)
print(json.dumps(found))
"""
