"""Several processes in one run: how they find each other, what they agree on, what one does for
all.

Every process runs the same program over the devices of all. It makes only the part of a batch that
its own devices hold (`sharding.Placement`), and only process 0 writes to the run folder and prints;
the arrays of a checkpoint are written by all. Nothing here touches a device before `join`.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jcl.errors import InputError

HEARTBEAT_SECONDS = 60  # after which a process that says nothing is given up, and all with it
GOODBYE_SECONDS = 30  # that a process waits at its end for the others
LAST_WORDS_SECONDS = 3
EXPLICIT = "--coordinator HOST:PORT --processes N --process K, on every host with a K of its own"

Result = TypeVar("Result")


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> int:
    """Makes this process one of a run's, where a launcher or the arguments say that it is.

    Without arguments the launcher's environment counts, where it starts more than one process:
    Slurm's `srun`, Open MPI's `mpirun`, an indexed Job of Kubernetes, and any TPU VM, whose hosts
    find each other by Google's metadata. Where there is no launcher, nothing happens.

    Args:
        coordinator: HOST:PORT of process 0, with a port that is free there.
        processes: of the run. 1, and nothing else, keeps out of a launcher's.
        process: which of them this is, from 0.

    Returns:
        The number of processes, or 1 where only the devices themselves will tell.

    Raises:
        InputError: the arguments do not fit together, JAX is in use already, or the others are not
            to be found.
    """
    if (coordinator, process) == (None, None) and processes == 1:
        return 1
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise InputError(
            f"{', '.join(missing)} is missing: several processes need {EXPLICIT}; a single one "
            "needs none of them."
        )
    if missing:
        count = launched()
        if count is None:
            return 1
        _initialize({})
        return count
    return _explicit(coordinator or "", processes or 0, -1 if process is None else process)


def launched() -> int | None:
    """The processes that a launcher has started, 1 where it does not say, None without one."""
    environment = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm):
        count = int(environment["SLURM_NTASKS"])
        return count if count > 1 else None
    if "OMPI_MCA_orte_hnp_uri" in environment:
        count = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
        return count if count > 1 else None
    if environment.get("TPU_ML_PLATFORM") == "JAX":  # JAX has found TPUs when it was imported
        hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
        if hosts is not None:  # GKE
            return 1 if "," in hosts or "MEGASCALE_NUM_SLICES" in environment else None
        return None if "TPU_SKIP_MDS_QUERY" in environment else 1
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment):
        return 1
    return None


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is process 0, which writes and prints for all; so is a process alone."""
    return not several() or jax.process_index() == 0


def wait(name: str) -> None:
    """Returns when all processes have come here; the name is of the place."""
    if several():
        multihost_utils.sync_global_devices(name)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process; all wait for each other here."""
    if not several():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def told(value: Any) -> Any:
    """What process 0 gives, on every process; as JSON knows it where there are several."""
    if not several():
        return value
    content = np.frombuffer(json.dumps(value).encode() if first() else b"", np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    content = content if first() else np.zeros(length, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(content))))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails inside on one process fails on all, so that they end at once and alike.

    Raises:
        InputError: on the processes where nothing failed; the others keep their own error.
    """
    if not several():
        yield
        return
    own = None
    try:
        yield
    except Exception as error:
        own = error
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(own is not None)))
    if own is not None:
        raise own
    if len(failed):
        raise InputError(
            f"Process {failed[0]} of {jax.process_count()} has failed: see what it says."
        )


def by_first(function: Callable[[], Result]) -> Result:
    """What the function returns on process 0, where alone it is called; `told` to all.

    Raises:
        InputError: it failed there; process 0 keeps its own error.
    """
    result: Any = None
    with together():
        if first():
            result = function()
    return told(result)


def leave(status: int) -> None:
    """Ends this process at once, where its usual end would wait for those that have failed or gone.

    When process 0 ends, JAX aborts the others: it lets them have their say first.
    """
    if first():
        time.sleep(LAST_WORDS_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _explicit(coordinator: str, processes: int, process: int) -> int:
    host, _, port = coordinator.rpartition(":")
    if not re.fullmatch(r"[\w.:\[\]-]+", host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(
            f"--coordinator {coordinator}: give the address of process 0 and a port that is free "
            "there, such as 10.0.0.2:4321."
        )
    if processes < 1:
        raise InputError(f"--processes {processes}: at least one.")
    if not 0 <= process < processes:
        raise InputError(
            f"--process {process}: of {processes} processes the first is 0 and the last "
            f"{processes - 1}."
        )
    # Who may connect is not asked for a name: other machines are kept out where none is needed.
    inside = host in ("127.0.0.1", "localhost", "[::1]")
    _initialize(
        {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
            "coordinator_bind_address": coordinator if inside else None,
        }
    )
    return processes


def _initialize(settings: dict[str, Any]) -> None:
    # It would take SIGTERM for itself, and a process that is told to end would not.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **settings,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=GOODBYE_SECONDS,
        )
    except Exception as error:
        if "must be called before" in str(error):
            raise InputError(
                "The processes of a run cannot find each other once JAX is in use: let the config "
                "use JAX in build(config) only."
            ) from error
        where = settings.get("coordinator_address", "the launcher's address")
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The processes of this run did not find each other at {where} ({line}): start all of "
            f"them within five minutes, and let them reach that address; or give {EXPLICIT}, or "
            "--processes 1 for a run of this process alone."
        ) from error
