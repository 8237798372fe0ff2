"""Runs that end in every way, each in a fork of one process that has imported everything already.

As a script it is the server: a line of JSON in, what became of the run as a line of JSON out. A
fork spares a run the imports, which makes a hundred kills bearable.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import quick

TINY = Path(__file__).parent / "configs" / "tiny.py"


class Runs:
    """The client. One device, and every program is compiled once for all runs."""

    def __init__(self):
        self._cache = tempfile.TemporaryDirectory(prefix="jcl-tests-")
        environment = os.environ | {
            "XLA_FLAGS": quick.FLAGS,
            "JAX_COMPILATION_CACHE_DIR": self._cache.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *arguments, config=TINY, **asked):
        """`jcl run`, or another command.

        Args:
            arguments: of the command, behind the config.
            asked: the `command`; what happens to it, see `Child`; `seconds` until it gets a
                SIGKILL from outside, which are counted from its next checkpoint in the folder
                `saved`, where it is given; [path, lines], the file and its length at which it is
                `signalled` by SIGTERM.

        Returns:
            {"code", as Popen.returncode; "output", of both streams; "seconds" that it took}.
        """
        asked["arguments"] = [str(config), *map(str, arguments)]
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._cache.cleanup()


class Child:
    """What happens to the run in a fork: at the `count`-th pass of a `point` it gets the `signals`,
    or its folder is `moved`, or an `error` is raised there; its clock may be `jumping`."""

    def __init__(self, *, point=None, count=1, signals=(), moved=None, error=None, jumping=False):
        self._left, self._signals = iter(range(count - 1, -1, -1)), signals
        self._moved, self._error = moved, error
        if jumping:
            time.time = jumps(time.time())
        if point:
            import killed

            owner, name = killed.POINTS[point]
            self._original = getattr(owner, name)
            setattr(owner, name, lambda *given, **named: self._pass(given, named))

    def _pass(self, given, named):
        if next(self._left, None) == 0:
            for name in self._signals:
                os.kill(os.getpid(), signal.Signals[name])
            if self._moved:
                while list(Path(self._moved[0]).glob("checkpoints/*.partial")):
                    time.sleep(0.01)
                os.rename(*self._moved)
            if self._error:
                raise self._exception()
        return self._original(*given, **named)

    def _exception(self):
        import jax

        kind, text = self._error
        return {"ValueError": ValueError, "JaxRuntimeError": jax.errors.JaxRuntimeError}[kind](text)


def jumps(start):
    """A clock that is set back or forward by up to two days whenever it is asked."""
    draw = random.Random(0)
    return lambda: start + 86400 * draw.uniform(-1, 1)


def serve():
    import killed  # noqa: F401, and with it all of jcl
    import matplotlib.pyplot  # noqa: F401, a third of what a small run takes

    from jcl.__main__ import main

    for line in sys.stdin:
        asked = json.loads(line)
        arguments, seconds = asked.pop("arguments"), asked.pop("seconds", None)
        saved, command = asked.pop("saved", None), asked.pop("command", "run")
        signalled = asked.pop("signalled", None)
        with tempfile.TemporaryFile("w+") as output:
            begun = time.monotonic()
            pid = os.fork()
            if pid == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                # Tests that run behind an & of a shell have inherited that it is ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = 99
                try:
                    Child(**asked)
                    code = main([command, *arguments])
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            if signalled:
                terminate_at(pid, *signalled)
            status = ended(pid, begun, seconds, saved)
            output.seek(0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "output": output.read(),
                "seconds": time.monotonic() - begun,
            }
        print(json.dumps(answer), flush=True)


def terminate_at(pid, path, lines):
    """Sends SIGTERM once the file has so many lines."""
    for _ in range(6000):
        if Path(path).exists() and Path(path).read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)


def newest(folder):
    """The name of its newest whole checkpoint."""
    return folder and max((path.name for path in Path(folder).glob("[0-9]" * 6)), default="")


def ended(pid, begun, seconds, saved=None):
    """The status with which it ends, by SIGKILL when the seconds are over."""
    before = newest(saved)
    while True:
        found, status = os.waitpid(pid, 0 if seconds is None else os.WNOHANG)
        if found:
            return status
        if saved and newest(saved) == before:
            begun = time.monotonic()
        left = seconds - (time.monotonic() - begun)
        if left <= 0:
            os.kill(pid, signal.SIGKILL)
            seconds = None
        time.sleep(max(0.0, min(left, 0.002)))


if __name__ == "__main__":
    serve()
