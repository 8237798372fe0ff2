"""`jcl run`, killed by SIGKILL at the n-th pass of a named point: killed.py POINT N ARGUMENTS..."""

import os
import signal
import sys

import jcl.checkpoint
import jcl.data.streams
import jcl.folder
import jcl.program
import jcl.report
import jcl.run
from jcl import hosts
from jcl.__main__ import main

POINTS = {
    "task": (jcl.run._StepLog, "add"),  # a step is on its way
    "consolidate": (jcl.program.Program, "evaluate"),  # consolidate is dispatched, not finished
    "evaluation": (jcl.program, "evaluation_batches"),  # some tasks of the row are evaluated
    "config": (jcl.folder.json, "dump"),  # config.json is opened, not written
    "fresh": (jcl.folder.shutil, "rmtree"),  # a part of the old run is gone
    "report": (jcl.report, "_picture"),  # report.md is written, the rest is not
    "next": (jcl.checkpoint, "_begun"),  # a checkpoint is due, those before it are complete
    "save": (jcl.checkpoint, "_sums"),  # the arrays are written, the manifest is not
    "batch": (jcl.data.streams._ShuffledBatches, "__getitem__"),  # one of the training
    "rename": (jcl.checkpoint, "_sync"),  # the manifest is written, the name is not
}


def kill_at(point, count):
    """Replaces the point's function by one that kills the process at its n-th call."""
    owner, name = POINTS[point]
    original = getattr(owner, name)
    left = iter(range(count - 1, -1, -1))

    def counting(*given, **named):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(owner, name, counting)


if __name__ == "__main__":
    hosts.HEARTBEAT_SECONDS = 30  # alike in joined.py
    kill_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(["run", *sys.argv[3:]]))
