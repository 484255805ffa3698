"""Runs one untrusted program and leaves nothing of it behind. A script, started by ``python_run``.

Input: limits as JSON in ``argv[1]``, the program on stdin, an empty working directory. Output: the
program's own output on stdout, and on stderr one line of JSON that says how it ended. It is
started as ``python -I -S``, imports nothing of this package and never runs the program in its own
process: three processes are stacked,

    supervisor (this script)  keeps the time, and kills
      init                    process 1 of a PID namespace; when it dies, the kernel kills the rest
        program               limited, without privileges, in a world of its own

With ``isolation`` *namespaces* (Linux 5.12 and later, as root or wherever users may make
namespaces) the program has no network but a loopback that is down, sees no other process, and sees
of the file system only the interpreter and the system's libraries, read-only, and 16 MB of its
own in memory, which vanish with it. As root it runs under a user id that nobody else has, so the
limit on processes holds.

With *limits* the resource limits, the clock and the kill remain, and this is missing: the program
has the network, reads and writes what its user may and can fill the disk; all processes of its
user count towards its limit, and a hostile one can kill its supervisor and survive. As root it
still becomes a user of its own, which bars the last two (and needs an interpreter that others may
read).

Left out: seccomp. System calls are not filtered; the kernel itself is the wall.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import sysconfig
import time
from contextlib import suppress
from typing import Any, NoReturn

NEW_NS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
# A user id that nobody else has, one per supervisor (process ids are below 2 ** 22).
SPARE_USERS = 1 << 30
WAITED = (signal.SIGCHLD, signal.SIGTERM)
ROOT = "/tmp"  # noqa: S108 - only inside the namespace, where it is ours alone
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the same program prints the same sets every time

PYTHON = os.path.realpath(sys.executable)

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _call("mount", *encoded[:3], ctypes.c_ulong(flags), encoded[3])


# --- the world of the program ---------------------------------------------------------------


def _needed() -> list[str]:
    """What an interpreter reads, as absolute paths outside the jail."""
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]
    devices = ["/dev/null", "/dev/zero", "/dev/urandom"]
    own = [
        PYTHON,
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        sysconfig.get_config_var("LIBDIR") or "/lib",
    ]
    found = dict.fromkeys([*libraries, *devices, *own])
    return [path for path in found if os.path.lexists(path)]


def _build_root(root: str) -> None:
    """Mounts the program's file system on ``root``; this process's mounts are its own already."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    # Open directories and files of the outside would keep their old view: there are none.
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in _needed():
        inside = root + path
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        elif os.path.isdir(path):
            os.makedirs(inside, exist_ok=True)
            _mount(path, inside, None, MS_BIND | MS_REC, None)
        elif not os.path.exists(inside):
            with open(inside, "w"):
                _mount(path, inside, None, MS_BIND, None)
    os.makedirs(root + ROOT, exist_ok=True)
    read_only = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = ctypes.c_uint(AT_RECURSIVE)
    size = ctypes.c_size_t(len(read_only))
    _call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, root.encode(), flags, read_only, size)
    data = "size=16m,nr_inodes=1024,mode=777"
    _mount("tmpfs", root + ROOT, "tmpfs", MS_NOSUID | MS_NODEV, data)


def _leave_the_outside() -> None:
    """New namespaces for this process (PID: for its children). Raises OSError if not allowed."""
    parts = NEW_NS | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _call("unshare", parts)
        return
    _call("unshare", parts | NEW_USER)
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"1000 {user} 1"),
        ("gid_map", f"1000 {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _drop_root(user: int) -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


# --- the three processes --------------------------------------------------------------------


def _become(program: bytes, limits: dict[str, Any], root: str | None, user: int) -> NoReturn:
    """The innermost process turns into the program; what it cannot do is written to stdout."""
    try:
        os.dup2(1, 2)
        if root is not None:
            os.chroot(root)
            os.chdir(ROOT)
        with open("main.py", "wb") as file:
            file.write(program)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.closerange(3, 256)
        seconds, memory = limits["seconds"], limits["memory_mb"] * 2**20
        for kind, soft, hard in (
            (resource.RLIMIT_CPU, seconds, seconds + 1),
            (resource.RLIMIT_AS, memory, memory),
            (resource.RLIMIT_FSIZE, 2**24, 2**24),
            (resource.RLIMIT_NOFILE, 64, 64),
            (resource.RLIMIT_CORE, 0, 0),
        ):
            resource.setrlimit(kind, (soft, hard))
        _drop_root(user)
        count = limits["processes"]
        resource.setrlimit(resource.RLIMIT_NPROC, (count, count))
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Not -I, which would ignore the hash seed; the environment holds nothing else.
        words = [PYTHON, "-P", "-s", "-S", "-B", "-X", "utf8", "main.py"]
        os.execve(PYTHON, words, ENVIRONMENT)  # noqa: S606 - a list of words, no shell
    except BaseException as error:
        os.write(1, f"cannot start: {error}".encode())
        os._exit(1)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _init(program: bytes, limits: dict[str, Any], root: str, user: int) -> NoReturn:
    """Process 1 of the namespace: its death is everybody's."""
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program must not trace it
    child = os.fork()
    if child == 0:
        _become(program, limits, root, user)
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(_exit_code(status))


def _descendants() -> list[int]:
    """Processes below this one. Orphans count, because this one is their reaper."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _kill_all() -> None:
    """Until there is no child left; the limit on processes makes this end."""
    while True:
        for pid in _descendants():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _wait(child: int, seconds: float) -> tuple[str, int]:
    """How the child ended (``exit``, ``time``, ``stopped``) and its wait status."""
    deadline = time.monotonic() + seconds
    ended = ""
    while not ended:
        # Any child's death wakes us, an orphan's too, and several may arrive as one.
        got = signal.sigtimedwait(WAITED, max(0.0, deadline - time.monotonic()))
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            return "exit", status
        if got is None:
            ended = "time"
        elif got.si_signo == signal.SIGTERM:
            ended = "stopped"
    os.kill(child, signal.SIGKILL)
    return ended, os.waitpid(child, 0)[1]


def main() -> None:
    limits = json.loads(sys.argv[1])
    program = sys.stdin.buffer.read()
    user = SPARE_USERS + os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    root = os.getcwd() if limits["isolation"] == "namespaces" else None
    try:
        if root is not None:
            _leave_the_outside()
            _build_root(root)
        else:
            _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            if os.getuid() == 0:
                os.chown(".", user, user)
    except OSError as error:
        print(json.dumps({"ended": "refused", "detail": str(error)}), file=sys.stderr)
        return
    child = os.fork()
    if child == 0:
        if root is not None:
            _init(program, limits, root, user)
        os.setsid()
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _become(program, limits, None, user)
    ended, status = _wait(child, limits["seconds"])
    _kill_all()
    print(json.dumps({"ended": ended, "code": _exit_code(status)}), file=sys.stderr)


if __name__ == "__main__":
    main()
