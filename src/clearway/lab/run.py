# SPDX-License-Identifier: Apache-2.0
"""The one way the lab starts other programs: no shell, a fixed environment, every command logged."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def patience() -> float:
    """What every timeout of the lab is multiplied by: $CLEARWAY_LAB_PATIENCE, for emulated machines."""
    return float(os.environ.get("CLEARWAY_LAB_PATIENCE", "1"))


class LabError(Exception):
    """What went wrong in the lab, in one line that says what to do."""


class Interrupted(BaseException):
    """SIGTERM or SIGHUP arrived; like KeyboardInterrupt it is nobody's to swallow."""


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float = 30,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output.

    `timeout` is in seconds (times patience(), as everywhere here). Raises LabError when the program is
    missing, runs longer than that, or (with `check`) exits with anything but 0; the message
    carries the end of its complaint.
    """
    log.debug("run %s", shlex.join(argv))
    try:
        # A session of its own: the terminal's Ctrl-C must reach the lab, which then cleans up, not its tools.
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout * patience(),
            env={**ENVIRONMENT, **(env or {})},
            start_new_session=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed; install it (apt-get install)") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{shlex.join(argv)}` did not end within {timeout:g} s") from error
    if check and done.returncode != 0:
        said = " | ".join((done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-3:])
        raise LabError(f"`{shlex.join(argv)}` failed ({done.returncode}): {said}")
    return done


def spawn(
    argv: Sequence[str],
    *,
    output: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Start a command in the background; its output goes to the end of file `output`, or into pipes."""
    log.debug("spawn %s", shlex.join(argv))
    with contextlib.ExitStack() as stack:
        sink = subprocess.PIPE if output is None else stack.enter_context(output.open("a"))
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT if output is not None else subprocess.PIPE,
                text=True,
                env={**ENVIRONMENT, **(env or {})},
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise LabError(f"{argv[0]} is not installed; install it (apt-get install)") from error


def stop(process: subprocess.Popen[str], *, timeout: float = 10, gently: bool = True) -> int:
    """End a process that spawn() started, by SIGTERM, by SIGKILL when that takes over `timeout` seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
        try:
            process.wait(timeout * patience())
        except subprocess.TimeoutExpired:
            log.warning("pid %d ignored SIGTERM for %g s", process.pid, timeout)
            process.kill()
            process.wait(timeout)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return int(process.returncode)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Interrupted in the main thread, so that context managers clean up."""

    def raise_interrupted(signum: int, _frame: object) -> None:
        raise Interrupted(signal.Signals(signum).name)

    previous = {
        number: signal.signal(number, raise_interrupted) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP of this thread: a second Ctrl-C must not end the cleaning up."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_until(
    what: str, happened: Callable[[], object], *, timeout: float = 10, every: float = 0.05
) -> None:
    """Call `happened` again and again until it returns something true; LabError after `timeout` seconds."""
    deadline = time.monotonic() + timeout * patience()
    while not happened():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(every)
