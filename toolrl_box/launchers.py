"""Where the runs of a study are computed: as processes of this machine, or on a Ray cluster.

Input: a command and the file that takes what it prints. Output: its exit code. Asked to stop, a
launcher sends the process SIGTERM once, so that the run saves and can be resumed, and waits for it
(not SIGINT: Ray blocks that in everything its workers start).

The Ray launcher runs the same command on a worker (one CPU each) and needs what Ray clusters
have: the same Python environment and a shared file system. Left out: copying files, GPUs.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toolrl_box.durable import writing
from toolrl_box.errors import MissingExtraError

Asked = Callable[[], bool]
Launch = Callable[[Sequence[str], Path, Asked], int]
"""(command, log file, whether to stop) -> exit code; -n: ended by signal n."""

POLL_SECONDS = 0.2
LOST = 1  # exit code of a run whose worker was lost


def local(command: Sequence[str], log_file: Path, asked: Asked) -> int:
    """Run ``command`` here, in a session of its own: signals reach it through us alone, once."""
    process = _start(command, log_file)
    try:
        while not asked():
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_SECONDS)
        process.terminate()
        return process.wait()
    except BaseException:  # a second signal: at once
        process.kill()
        raise


def ray_launcher() -> Launch:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or start one on this machine.

    Raises MissingExtraError when ray is not installed.
    """
    if find_spec("ray") is None:
        raise MissingExtraError(
            "launcher 'ray' needs a package that is not installed: pip install 'toolrl-box[ray]'"
        )
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    # A lost worker is reported and not tried again: the run's folder may hold half a step.
    remote = ray.remote(num_cpus=1, max_retries=0)(_on_worker)

    def launch(command: Sequence[str], log_file: Path, asked: Asked) -> int:
        task: Any = remote.remote(list(command), str(log_file.resolve()), os.getcwd())
        cancelled = False
        while not ray.wait([task], timeout=POLL_SECONDS)[0]:
            if asked() and not cancelled:
                ray.cancel(task)  # a KeyboardInterrupt on the worker
                cancelled = True
        try:
            return int(ray.get(task))
        except ray.exceptions.TaskCancelledError:
            return -signal.SIGTERM
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            with writing(log_file), open(log_file, "a") as log:
                log.write(f"error: the Ray worker was lost: {reason}\n")
            return LOST

    return launch


LAUNCHERS: Mapping[str, Callable[[], Launch]] = {"local": lambda: local, "ray": ray_launcher}


def _on_worker(command: list[str], log_file: str, folder: str) -> int:
    os.chdir(folder)
    process = _start(command, Path(log_file))
    try:
        while True:  # a cancellation arrives between two waits, never within one
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_SECONDS)
    except KeyboardInterrupt:
        process.terminate()
        return process.wait()


def _start(command: Sequence[str], log_file: Path) -> subprocess.Popen[bytes]:
    # One thread a run: with two, two jobs on two cores are slower than one after the other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with writing(log_file), open(log_file, "ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
