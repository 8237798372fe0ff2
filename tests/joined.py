"""`jcl run`, which says at its end how many examples it has read: joined.py ARGUMENTS...

Its clock is set back or forward whenever it is asked.
"""

import sys
import time

from forked import jumps

import jcl.data.streams
from jcl import hosts
from jcl.__main__ import main


def count_rows(module=jcl.data.streams):
    """Replaces `gather` by one that counts; returns the counts, and the original."""
    original, rows = module.gather, []

    def counting(source, indices, *epochs):
        rows.append(len(indices))
        return original(source, indices, *epochs)

    module.gather = counting
    return rows, original


if __name__ == "__main__":
    hosts.HEARTBEAT_SECONDS = 30  # so that a test need not wait long; alike in killed.py
    time.time = jumps(time.time())
    rows, _ = count_rows()
    status = main(["run", *sys.argv[1:]])
    print(f"rows {sum(rows)}", file=sys.stderr)
    sys.exit(status)
