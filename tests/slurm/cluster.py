"""A Slurm of two nodes, and a third to take the place of one, on one machine, for tests: needs root, and the daemons of the distribution's packages.

Everything lives in one temporary folder and on ports of its own, so that several may run side by side. Every process is a
descendant of this one (it adopts orphans), which is how stop() finds them all.
"""
import ctypes
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time

NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")

# Timings are short, so that lost nodes and requeues take seconds; the rest is what several slurmd on one host need.
CONFIG = """
ClusterName=roundhouse
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmdSpoolDir={root}/spool/%n
StateSaveLocation={root}/state
TmpFS={root}/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,requeue_delay=1
ReturnToService=2
InactiveLimit=0
KillWait=15
MessageTimeout=5
SlurmdTimeout=6
SlurmctldTimeout=10
MinJobAge=300
Waittime=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n[1-3] NodeHostName={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[3]}] CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=spare Nodes=n[1-3] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing():
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if absent:
        return "not installed: " + " ".join(absent)
    # Slurm's PMIx plugin opens the library by the name that only the development package has.
    names = pathlib.Path("/usr/lib").glob("*/pmix2/lib/libpmix.so")
    if not any(names):
        return "not installed: libpmix.so (libpmix-dev)"
    return ""


def become_subreaper():
    """Orphans among this process's descendants become its children. Survives exec."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid):
    """Process ids below `pid`, nearest first."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # The name in parentheses may hold spaces; the parent is the second field after it.
                parent = int(pathlib.Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        for child in children.get(queue.pop(0), []):
            found.append(child)
            queue.append(child)
    return found


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def consecutive_free_ports(count):
    """The first of `count` free ports in a row."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return first
        except (OSError, OverflowError):
            continue
        finally:
            for each in sockets:
                each.close()
    raise RuntimeError("no free ports")


class Cluster:
    def __init__(self):
        become_subreaper()
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="rh-slurm-", dir="/tmp"))
        self.daemons = {}
        first = consecutive_free_ports(4)
        for node in NODES:
            (self.root / "spool" / node).mkdir(parents=True)
            (self.root / "tmp" / node).mkdir(parents=True)
        (self.root / "state").mkdir()
        config = self.root / "slurm.conf"
        config.write_text(CONFIG.format(root=self.root, host=socket.gethostname().split(".")[0],
                                        ports=[first, first + 1, first + 2, first + 3]))
        # GPUs without a driver: Slurm counts them, hands them out and sets CUDA_VISIBLE_DEVICES.
        for gpu in range(2):
            os.mknod(self.root / f"gpu{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (self.root / "gres.conf").write_text(f"NodeName=n[1-3] Name=gpu File={self.root}/gpu[0-1]\n")
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("SLURM_", "SBATCH_", "OMPI_", "PMIX_", "PMI_"))}
        self.environment.update(
            PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
            SLURM_CONF=str(config),
            # Both nodes have one host name, so Open MPI's shared-memory files of equal local ranks would collide.
            OMPI_MCA_btl="self,tcp",
            OMPI_MCA_pml="ob1",
            OMPI_MCA_btl_tcp_if_include="lo")

    def start(self):
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.root.chmod(0o755)
        self._spawn("munged", ["munged", "--foreground", "--force", f"--key-file={key}",
                               f"--socket={self.root}/munge.socket", f"--pid-file={self.root}/munged.pid",
                               "--log-file=/dev/null", f"--seed-file={self.root}/munged.seed"])
        wait_for(lambda: (self.root / "munge.socket").exists(), 10, "munged")
        self._spawn("slurmctld", ["slurmctld", "-D", "-c"])
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.tell("sinfo", "-h", "-p", "spare", "-t", "idle", "-o", "%D").strip() == "3", 30,
                 "all nodes to be idle")

    def start_node(self, node):
        # Its job steps are orphaned on purpose; as subreaper the daemon keeps them below it, so that they can be told
        # from the other node's.
        self._spawn(node, ["slurmd", "-D", "-N", node], preexec_fn=become_subreaper)

    def start_node_without(self, node, folder):
        """A node on which the file system of this folder is not mounted: it sees an empty one."""
        self._spawn(node, ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none '{folder}' && exec slurmd -D -N {node}"],
                    preexec_fn=become_subreaper)

    def kill_node(self, node):
        """As if the power went: the daemon, its job steps and their tasks, in one moment."""
        daemon = self.daemons.pop(node)
        kill_all([daemon.pid] + descendants(daemon.pid))
        daemon.wait()

    def tell(self, *command):
        """What a Slurm command prints; nothing if it fails, which happens while the cluster is busy."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def submit(self, arguments, environment=None, folder=None):
        done = subprocess.run(["sbatch", "--parsable", *arguments], env={**self.environment, **(environment or {})},
                              cwd=folder, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError("sbatch failed: " + done.stderr.strip())
        return done.stdout.strip()

    def job(self, number):
        """Facts about a job by Slurm's names: JobState, Restarts, ExitCode, Reason."""
        words = self.tell("scontrol", "show", "job", "-o", number).split()
        return dict(word.partition("=")[::2] for word in words)

    def stop(self):
        kill_all(descendants(os.getpid()))
        for daemon in self.daemons.values():
            daemon.wait()
        # Steps that were orphaned meanwhile.
        for _ in range(20):
            left = descendants(os.getpid())
            if not left:
                break
            kill_all(left)
            try:
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
            except ChildProcessError:
                break
            time.sleep(0.1)
        shutil.rmtree(self.root, ignore_errors=True)

    def logs(self):
        for log in sorted(self.root.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-25:]
            print(f"--- {log.name}", *lines, sep="\n", flush=True)

    def _spawn(self, name, command, **options):
        with open(self.root / f"{name}.log", "ab") as log:
            self.daemons[name] = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                                                  stderr=subprocess.STDOUT, **options)


def wait_for(condition, seconds, what, every=0.1):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(every)
