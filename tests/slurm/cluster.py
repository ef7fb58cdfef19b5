"""Cluster: a real Slurm of several nodes on this machine, for tests: munged, slurmctld, a slurmd for each node.

Nodes have names and ports of their own and share everything else. `PACKAGES` are what it needs of Debian; it has to be
root, since slurmd is. Everything is a child of this process, and ends with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.launch import Outcome, environment, run

PACKAGES = ("slurm-wlm", "munge")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "setpriv")

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=10
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool.%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
KillWait=3
MinJobAge=3600
SchedulerParameters=bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
"""


class Cluster:
    """Commands of Slurm, as if typed on a login node. place: configuration, logs and spools."""

    def __init__(self, place: Path, nodes: int) -> None:
        self.place = place
        self.nodes = [f"node{number + 1}" for number in range(nodes)]
        self.environment = {"SLURM_CONF": str(place / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons, and wait until every node is idle."""
        (self.place / "state").mkdir()
        key = self.place / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = _free_ports(1 + len(self.nodes))
        text = _CONFIGURATION.format(host=socket.gethostname(), port=ports[0], place=self.place)
        for node, port in zip(self.nodes, ports[1:], strict=True):
            text += f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=4\n"
        text += f"PartitionName=test Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP\n"
        (self.place / "slurm.conf").write_text(text)
        (self.place / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self._start("munged", *_munged(self.place))
        _wait((self.place / "munge.socket").exists, 20, self._logs)
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.place / "slurm.conf"))
        for node in self.nodes:
            self.start_node(node)
        _wait(lambda: self.idle() == len(self.nodes), 60, self._logs)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        (self.place / f"spool.{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self.place / "slurm.conf"))

    def kill_node(self, node: str) -> None:
        """Kill whatever runs on a node at once, its daemon first."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        marks = {f"MPISPARSE_TEST_DAEMON={node}", f"SLURMD_NODENAME={node}"}
        for process in self._processes(marks):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        """End all daemons, and every process of a job that is left."""
        with suppress(Exception):
            self.run("scancel", "--user=root", timeout=10)
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
            daemon.kill()
            daemon.wait()
        for process in self._processes(set()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def run(self, *command: str, timeout: float = 30, env: dict[str, str] | None = None) -> Outcome:
        """Return how a command ended."""
        return run(command, timeout=timeout, env={**self.environment, **(env or {})})

    def submit(self, *words: str, env: dict[str, str] | None = None) -> str:
        """Return the name of a job that `sbatch` took."""
        outcome = self.run("sbatch", "--parsable", *words, env=env)
        assert outcome.code == 0, outcome.text
        return outcome.stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """Return what Slurm says of a job, by its own keys: JobState, ExitCode, Restarts, ..."""
        outcome = self.run("scontrol", "--oneliner", "show", "job", job)
        assert outcome.code == 0, outcome.text
        return dict(word.split("=", 1) for word in outcome.stdout.split() if "=" in word)

    def wait_for(self, job: str, *states: str, timeout: float, hurry: bool = False) -> dict[str, str]:
        """Return what Slurm says of a job as soon as it is in one of `states`.

        Args:
            hurry: start a requeued job at once; otherwise Slurm waits for a minute or two.
        """
        found: dict[str, str] = {}
        hurried: set[str] = set()

        def there() -> bool:
            nonlocal found
            found = self.show(job)
            if hurry and found["Reason"] == "BeginTime" and found["Restarts"] not in hurried:
                # Nodes refuse a job of the same second as the one that they have just ended.
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")
                hurried.add(found["Restarts"])
            return found["JobState"] in states

        _wait(there, timeout, lambda: f"{job} is {found.get('JobState')}, not {states}\n{self._logs()}")
        return found

    def idle(self) -> int:
        """Return how many nodes are idle."""
        outcome = self.run("sinfo", "--noheader", "--states=idle", "--format=%D")
        return int(outcome.stdout.strip() or 0) if outcome.code == 0 else 0

    def _start(self, name: str, *command: str) -> None:
        # Children of a test that is killed must not outlive it.
        with (self.place / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=environment({**self.environment, "MPISPARSE_TEST_DAEMON": name}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _processes(self, marks: set[str]) -> Iterator[int]:
        """Yield processes of this cluster that have one of `marks` in their environment, or all."""
        mine = f"SLURM_CONF={self.environment['SLURM_CONF']}"
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = set(path.read_bytes().decode(errors="replace").split("\0"))
            except OSError:
                continue
            process = int(path.parent.name)
            if mine in variables and (not marks or marks & variables) and process != os.getpid():
                yield process

    def _logs(self) -> str:
        logs = sorted([*self.place.glob("*.log"), *self.place.glob("*.out")])
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)


@contextmanager
def running_cluster(place: Path, nodes: int) -> Iterator[Cluster]:
    """Give a cluster, or skip the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of our own needs root")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install {' '.join(PACKAGES)}")
    cluster = Cluster(place, nodes)
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def _munged(place: Path) -> list[str]:
    files = [f"--{what}-file={place}/munged.{what}" for what in ("log", "pid", "seed")]
    return [
        "munged",
        "--foreground",
        "--force",
        f"--socket={place}/munge.socket",
        f"--key-file={place}/munge.key",
        *files,
    ]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _wait(there: Callable[[], bool], timeout: float, why: Callable[[], str]) -> None:
    end = monotonic() + timeout
    while not there():
        if monotonic() > end:
            pytest.fail(f"not within {timeout} s: {why()}")
        sleep(0.2)
