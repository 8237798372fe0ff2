"""`jcl run`, killed by SIGKILL at the n-th pass of a named point: killed.py POINT N ARGUMENTS..."""

import os
import signal
import sys

import jcl.checkpoint
import jcl.folder
import jcl.report
import jcl.run
from jcl.__main__ import main

POINTS = {
    "task": (jcl.run._StepLog, "add"),  # a step is on its way
    "consolidate": (jcl.run._Program, "evaluate"),  # consolidate is dispatched, not finished
    "evaluation": (jcl.run, "evaluation_batches"),  # some tasks of the row are evaluated
    "config": (jcl.folder.json, "dump"),  # config.json is opened, not written
    "fresh": (jcl.folder.shutil, "rmtree"),  # a part of the old run is gone
    "report": (jcl.report, "_picture"),  # report.md is written, the rest is not
    "save": (jcl.checkpoint, "_sums"),  # the arrays are written, the manifest is not
    "rename": (jcl.checkpoint, "_sync"),  # the manifest is written, the name is not
}

point, count, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
owner, name = POINTS[point]
original = getattr(owner, name)


def counting(*given, **named):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*given, **named)


setattr(owner, name, counting)
sys.exit(main(["run", *arguments]))
