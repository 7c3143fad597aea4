"""Source of the programs that run on another machine before this package is copied to it.

Each program is FOLDER followed by PREPARE or CLEAN. The programs need Python 3.9 and its standard
library alone.
"""

# Everything that is sent goes to the subfolder `lowrank-device` of the folder that the user names.
# A marker file shows that lowrank created the subfolder. Without it, nothing inside is touched.
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

FOREIGN = ("%s exists and holds files that lowrank did not create. Nothing in it was changed. "
           "Move it, or set `folder` to another folder." % folder)

def digest_of(room):
    # The same digest as _packed_room of lowrank.devices.ssh. It covers names and contents, so an
    # added or missing file changes it.
    contents = {}
    for parent, _, names in os.walk(room):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                return None
            with open(path, "rb") as file:
                contents[os.path.relpath(path, room).replace(os.sep, "/")] = file.read()
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\\0" + contents[name])
    return digest.hexdigest()[:16]
"""

# PREPARE stores the code that arrives on its standard input, unless an unaltered copy is already
# present, and imports the packages that its further arguments name. It prints a description of the
# machine, or the problem that it found.
PREPARE = """
digest = sys.argv[2]
room = os.path.join(folder, "room", digest)
data = sys.stdin.buffer.read()
report = {"python": sys.executable, "machine": platform.machine(), "room": room, "folder": folder}

def put_room():
    # An altered room is moved away first, because another run may still have it open.
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
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)

try:
    if is_foreign():
        report["refused"] = FOREIGN
    else:
        os.makedirs(os.path.dirname(room), exist_ok=True)
        if not os.path.isfile(marker):
            with open(marker, "w") as file:
                file.write("Files that lowrank sent for measurements. "
                           "`lowrank clean_device` removes them.")
        if not os.path.isdir(room) or digest_of(room) != digest:
            put_room()
except OSError as error:
    report["problem"] = "%s: %s" % (error.filename or room, error.strerror)
for name in sys.argv[3:]:
    try:
        __import__(name)
    except ModuleNotFoundError:
        report["missing"] = name
        break
    except Exception as error:
        report["broken"] = "%s (%s)" % (name, error)
        break
print(json.dumps(report))
"""

# CLEAN removes the files with names that lowrank gives, and then the folders that became empty.
CLEAN = """
OURS = {
    "room": "[0-9a-f]{16}|new-.*",
    "models": "[0-9a-f]{64}[.](onnx|part)",
    "jobs": "[0-9a-f]{32}",
}
report = {"folder": folder, "removed": 0, "stay": []}

def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        report["removed"] += sum(len(names) for _, _, names in os.walk(path))
        shutil.rmtree(path)
    else:
        report["removed"] += 1
        os.unlink(path)

def clean():
    for part in OURS:
        subfolder = os.path.join(folder, part)
        if os.path.isdir(subfolder) and not os.path.islink(subfolder):
            for name in os.listdir(subfolder):
                if re.fullmatch(OURS[part], name):
                    remove(os.path.join(subfolder, name))
            if not os.listdir(subfolder):
                os.rmdir(subfolder)
    leftovers = set(os.listdir(folder)) - {"lock", os.path.basename(marker)}
    if leftovers:
        report["stay"] = sorted(leftovers)
        return
    for path in (lock, marker):
        if os.path.lexists(path):
            remove(path)
    os.rmdir(folder)

lock = os.path.join(folder, "lock")
try:
    if is_foreign():
        report["refused"] = FOREIGN
    elif os.path.isdir(folder):
        with open(lock, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                report["refused"] = ("a measurement is running on this device. Wait until it "
                                     "ends, then run the command again.")
            else:
                clean()
except OSError as error:
    report["refused"] = "%s: %s" % (error.filename or folder, error.strerror)
print(json.dumps(report))
"""
