"""A real Kubernetes cluster on this machine: control plane, and nodes that are namespaces with kubelet and containerd.

    cluster.py up [NODES]         start it (3 nodes)
    cluster.py load IMAGE.tar...  import images on every node
    cluster.py node NAME CMD...   run a command in a node's namespaces
    cluster.py down               end everything, remove networks and state

Needs root, cgroup v1, and the programs that install-tools installs. The control plane is in a network namespace on a bridge of
its own; pods and services are reached from this machine through routes. NetworkPolicies are accepted and not enforced: the
bridge plug-in knows none. Nothing outside 10.88.0.0/24, 10.96.0.0/16 and 10.244.0.0/16 is touched.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from node import API, HOST, SERVICES, node_files, node_ip, pod_range

HERE = Path(__file__).resolve().parent
CACHE = Path(
    os.environ.get("CACHELET_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cachelet"
)
NETWORK = "cachelet-k8s"
CGROUP = "cachelet-k8s"
CONTROLLERS = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"]
# kubelet sets these for the machine; they are put back.
SYSCTLS = [
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
]
# Every node has its own, so nothing that nodes share may lie below them.
HIDDEN = ["/tmp", "/var", "/run", "/dev/shm", "/mnt", "/srv"]


class Failed(Exception):
    """What was attempted, and what came of it."""


def say(message):
    print(f"[{time.strftime('%T')}] {message}", flush=True)


def run(*command, check=True, quiet=True, **options):
    done = subprocess.run([str(part) for part in command], capture_output=quiet, text=True, check=False, **options)
    if check and done.returncode:
        raise Failed(
            f"{' '.join(map(str, command[:6]))}: exit code {done.returncode}: {(done.stderr or '').strip()[-2000:]}"
        )
    return done


def wait_for(what, seconds, holds, pause=0.2):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(pause)


def started_at(pid):
    """When a process started, in ticks since boot: tells it from a later one of the same id. None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


class Cluster:
    """The one cluster of this machine. Its state is in a directory, so that a later process can end what an earlier one began."""

    def __init__(self):
        self.state = CACHE / "k8s-cluster"
        self.pki = self.state / "pki"
        if any(self.state.is_relative_to(hidden) for hidden in HIDDEN):
            raise Failed(f"{self.state} lies below one of {' '.join(HIDDEN)}, which nodes hide: set CACHELET_CACHE")
        tools = run(HERE / "install-tools", quiet=False, stdout=subprocess.PIPE).stdout.strip()
        self.tools = Path(tools)
        os.environ["PATH"] = f"{tools}:/usr/sbin:/sbin:{os.environ['PATH']}"
        os.environ["KUBECONFIG"] = str(self.state / "kubeconfig")

    # The cluster as a whole

    def up(self, nodes=3):
        if os.geteuid() != 0:
            raise Failed("a cluster needs root: it makes namespaces and mounts")
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            raise Failed(
                "this machine has cgroup v2 only; the cluster needs the v1 hierarchy (systemd.unified_cgroup_hierarchy=0)"
            )
        self.down()
        self.state.mkdir(parents=True)
        self.lock = open(self.state / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        saved = "".join(f"{key}={Path('/proc/sys', key).read_text()}" for key in SYSCTLS)
        (self.state / "sysctls").write_text(saved)
        say("certificates and network")
        self.certificates()
        self.network()
        self.make_cgroup(CGROUP)
        say("control plane")
        self.control_plane()
        names = [self.node_up(number) for number in range(1, nodes + 1)]
        pause = self.pause_image()
        for name in names:
            wait_for(f"containerd of {name}", 60, lambda name=name: self.has_containerd(name))
            self.load_on(name, pause)
        for name in names:
            run("kubectl", "wait", "--for=create", f"node/{name}", "--timeout=90s")
            run("kubectl", "wait", "--for=condition=Ready", f"node/{name}", "--timeout=90s")
        say(f"up: {', '.join(names)}; export KUBECONFIG={self.state / 'kubeconfig'} PATH={self.tools}:$PATH")

    def down(self):
        """Ends what runs, from the outside in, and removes the state. Nothing to end is fine."""
        if not self.state.exists():
            return
        kept = sorted(self.state.glob("*.pid"), key=lambda file: not file.stem.startswith("node"))
        for file in kept:
            self.end(file)
        run("ip", "route", "del", SERVICES, "dev", f"{NETWORK}-h", check=False)
        run("ip", "link", "del", f"{NETWORK}-h", check=False)
        for space in Path("/run/netns").glob(f"{NETWORK}*"):
            run("ip", "netns", "del", space.name, check=False)
        for controller in CONTROLLERS:
            top = Path("/sys/fs/cgroup", controller, CGROUP)
            for group in sorted(top.rglob("*"), reverse=True) + [top]:
                if group.is_dir():
                    try:
                        group.rmdir()
                    except OSError:
                        pass
        saved = self.state / "sysctls"
        if saved.exists():
            for line in saved.read_text().splitlines():
                key, _, value = line.partition("=")
                Path("/proc/sys", key).write_text(value)
        shutil.rmtree(self.state, ignore_errors=True)
        if self.state.exists():
            raise Failed(f"{self.state} cannot be removed: something below it is still mounted or in use")

    # Processes

    def start(self, name, command, group=CGROUP, space=NETWORK):
        def enter():
            for controller in CONTROLLERS:
                Path("/sys/fs/cgroup", controller, group, "tasks").write_text("0")

        log = open(self.state / f"{name}.log", "ab")
        child = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{space}", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=enter,
        )
        (self.state / f"{name}.pid").write_text(f"{child.pid} {started_at(child.pid)}")

    def end(self, file, how=signal.SIGTERM):
        pid, began = file.read_text().split()

        def gone():
            # Our own children stay until somebody asks for them.
            try:
                os.waitpid(int(pid), os.WNOHANG)
            except ChildProcessError:
                pass
            return started_at(pid) != began

        if not gone():
            # A node's outer process takes the node's whole pid namespace with it.
            os.kill(int(pid), signal.SIGKILL if file.stem.startswith("node") else how)
            try:
                wait_for(f"the end of {file.stem}", 5, gone, 0.05)
            except Failed:
                os.kill(int(pid), signal.SIGKILL)
                wait_for(f"the end of {file.stem}", 5, gone, 0.05)
        file.unlink()

    def kill(self, name):
        """Kills a node with everything on it, or a part of the control plane, as a power failure would."""
        self.end(self.state / f"{name}.pid", signal.SIGKILL)

    def make_cgroup(self, path):
        for controller in CONTROLLERS:
            group = Path("/sys/fs/cgroup", controller, path)
            group.mkdir(parents=True, exist_ok=True)
            if controller == "cpuset":
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (group / name).write_text((group.parent / name).read_text())

    # Certificates. RSA: Java's Kubernetes clients cannot read EC keys without further libraries.

    def certificates(self):
        self.pki.mkdir()
        run(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            self.pki / "ca.key",
            "-out",
            self.pki / "ca.crt",
            "-subj",
            "/CN=cachelet-k8s",
            "-days",
            "30",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        )
        run("openssl", "genrsa", "-out", self.pki / "sa.key", "2048")
        run("openssl", "rsa", "-in", self.pki / "sa.key", "-pubout", "-out", self.pki / "sa.pub")
        names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ]
        names = ",".join([f"DNS:{name}" for name in names] + ["IP:127.0.0.1", f"IP:{API}", "IP:10.96.0.1"])
        self.certificate("apiserver", "/CN=kube-apiserver", names)
        self.certificate("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client")
        self.certificate("front-proxy", "/CN=front-proxy-client")
        for name, subject in [
            ("admin", "/O=system:masters/CN=admin"),
            ("controllers", "/CN=system:kube-controller-manager"),
            ("scheduler", "/CN=system:kube-scheduler"),
            ("proxy", "/CN=system:kube-proxy"),
            ("dns", "/CN=cluster-dns"),
        ]:
            self.certificate(name, subject)
            self.kubeconfig(name, self.pki / f"{name}.conf")
        shutil.copy(self.pki / "admin.conf", self.state / "kubeconfig")

    def certificate(self, name, subject, names=""):
        key, request, extensions = (self.pki / f"{name}.{end}" for end in ("key", "csr", "ext"))
        lines = [
            "basicConstraints=CA:FALSE",
            "keyUsage=digitalSignature,keyEncipherment",
            "extendedKeyUsage=serverAuth,clientAuth",
        ]
        extensions.write_text("\n".join(lines + [f"subjectAltName={names}"] * bool(names)) + "\n")
        run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", subject)
        run(
            "openssl",
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self.pki / "ca.crt",
            "-CAkey",
            self.pki / "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            extensions,
            "-out",
            self.pki / f"{name}.crt",
        )

    def kubeconfig(self, name, path):
        def config(*arguments):
            run("kubectl", "config", f"--kubeconfig={path}", *arguments)

        config(
            "set-cluster",
            "c",
            f"--server=https://{API}:6443",
            f"--certificate-authority={self.pki / 'ca.crt'}",
            "--embed-certs",
        )
        config(
            "set-credentials",
            "u",
            f"--client-certificate={self.pki / f'{name}.crt'}",
            f"--client-key={self.pki / f'{name}.key'}",
            "--embed-certs",
        )
        config("set-context", "c", "--cluster=c", "--user=u")
        config("use-context", "c")

    # Network and control plane

    def network(self):
        run("ip", "netns", "add", NETWORK)
        inside = ["ip", "-n", NETWORK]
        for command in [
            ["link", "set", "lo", "up"],
            ["link", "add", "bridge", "type", "bridge"],
            ["addr", "add", f"{API}/24", "dev", "bridge"],
            ["link", "set", "bridge", "up"],
        ]:
            run(*inside, *command)
        run("ip", "link", "add", f"{NETWORK}-h", "type", "veth", "peer", "name", "host", "netns", NETWORK)
        run(*inside, "link", "set", "host", "master", "bridge")
        run(*inside, "link", "set", "host", "up")
        run("ip", "addr", "add", f"{HOST}/24", "dev", f"{NETWORK}-h")
        run("ip", "link", "set", f"{NETWORK}-h", "up")
        # Services are reached through the first node, from this machine and from the control plane.
        run("ip", "route", "add", SERVICES, "via", node_ip(1), "dev", f"{NETWORK}-h")
        run(*inside, "route", "add", SERVICES, "via", node_ip(1))
        run(
            "nsenter",
            f"--net=/run/netns/{NETWORK}",
            "sh",
            "-c",
            "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables",
            check=False,
        )

    def control_plane(self):
        pki, local = self.pki, "http://127.0.0.1"
        self.start(
            "etcd",
            [
                "etcd",
                f"--data-dir={self.state}/etcd",
                f"--listen-client-urls={local}:2379",
                f"--advertise-client-urls={local}:2379",
                f"--listen-peer-urls={local}:2380",
                f"--initial-advertise-peer-urls={local}:2380",
                f"--initial-cluster=default={local}:2380",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )
        self.start_api_server()
        self.start(
            "controllers",
            [
                "kube-controller-manager",
                f"--kubeconfig={pki}/controllers.conf",
                "--bind-address=127.0.0.1",
                "--leader-elect=false",
                "--use-service-account-credentials",
                f"--service-account-private-key-file={pki}/sa.key",
                f"--root-ca-file={pki}/ca.crt",
                f"--cluster-signing-cert-file={pki}/ca.crt",
                f"--cluster-signing-key-file={pki}/ca.key",
            ],
        )
        self.start(
            "scheduler",
            [
                "kube-scheduler",
                f"--kubeconfig={pki}/scheduler.conf",
                "--bind-address=127.0.0.1",
                "--leader-elect=false",
            ],
        )
        run(
            "kubectl",
            "create",
            "clusterrolebinding",
            "nodes-proxy",
            "--clusterrole=system:node-proxier",
            "--user=system:kube-proxy",
        )
        run(
            "kubectl",
            "create",
            "clusterrole",
            "cluster-dns",
            "--verb=list,watch",
            "--resource=services,pods,namespaces,endpointslices.discovery.k8s.io",
        )
        run("kubectl", "create", "clusterrolebinding", "cluster-dns", "--clusterrole=cluster-dns", "--user=cluster-dns")
        (self.state / "Corefile").write_text(
            f".:53 {{\n bind {API}\n errors\n kubernetes cluster.local in-addr.arpa {{\n  kubeconfig {pki}/dns.conf c\n  pods insecure\n }}\n"
            " cache 5\n}\n"
        )
        self.start("dns", ["coredns", "-conf", self.state / "Corefile"])

    def start_api_server(self):
        pki, local = self.pki, "http://127.0.0.1"
        self.start(
            "apiserver",
            [
                "kube-apiserver",
                f"--etcd-servers={local}:2379",
                f"--bind-address={API}",
                f"--advertise-address={API}",
                "--secure-port=6443",
                f"--tls-cert-file={pki}/apiserver.crt",
                f"--tls-private-key-file={pki}/apiserver.key",
                f"--client-ca-file={pki}/ca.crt",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
                f"--kubelet-client-key={pki}/apiserver-kubelet.key",
                f"--kubelet-certificate-authority={pki}/ca.crt",
                "--kubelet-preferred-address-types=InternalIP",
                f"--service-cluster-ip-range={SERVICES}",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-account-key-file={pki}/sa.pub",
                f"--service-account-signing-key-file={pki}/sa.key",
                f"--requestheader-client-ca-file={pki}/ca.crt",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                f"--proxy-client-cert-file={pki}/front-proxy.crt",
                f"--proxy-client-key-file={pki}/front-proxy.key",
            ],
        )
        wait_for(
            "the API server is ready",
            90,
            lambda: run("kubectl", "get", "--raw", "/readyz", check=False).returncode == 0,
            0.4,
        )

    # Nodes

    def node_up(self, number):
        name, ip = f"node-{number}", node_ip(number)
        dir, space, link = self.state / name, f"{NETWORK}-{number}", f"node{number}"
        for part in ("var/lib", "var/log", "var/tmp", "var/cache", "tmp", "cni"):
            (dir / part).mkdir(parents=True)
        self.certificate(name, f"/O=system:nodes/CN=system:node:{name}", f"DNS:{name},IP:{ip}")
        self.kubeconfig(name, dir / "kubelet.conf")
        run("ip", "netns", "add", space)
        inside = ["ip", "-n", space]
        run(*inside, "link", "set", "lo", "up")
        run("ip", "-n", NETWORK, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", NETWORK, "link", "set", link, "master", "bridge")
        run("ip", "-n", NETWORK, "link", "set", link, "up")
        run(*inside, "addr", "add", f"{ip}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", API)
        for other in range(1, 10):
            if other != number:
                run(*inside, "route", "add", pod_range(other), "via", node_ip(other))
        run("ip", "-n", NETWORK, "route", "replace", pod_range(number), "via", ip)
        run("ip", "route", "replace", pod_range(number), "via", ip, "dev", f"{NETWORK}-h")
        for file, text in node_files(name, number, dir, self.pki).items():
            (dir / file).write_text(text)
        self.make_cgroup(f"{CGROUP}/{name}")
        self.start_node(name)
        return name

    def start_node(self, name):
        """Starts a node that is not running: a new one, or a killed one, whose disk is as it was and whose /run is empty."""
        number = int(name.removeprefix("node-"))
        dir, ip, space = self.state / name, node_ip(number), f"{NETWORK}-{number}"
        self.start(
            name,
            [
                "unshare",
                "--mount",
                "--pid",
                "--uts",
                "--ipc",
                "--cgroup",
                "--fork",
                "--kill-child",
                HERE / "node-init",
                name,
                dir,
                ip,
                " ".join(CONTROLLERS),
            ],
            f"{CGROUP}/{name}",
            space,
        )

    def nodes(self):
        return sorted(file.stem for file in self.state.glob("node-*.pid"))

    def inside(self, name):
        """The command that enters a node's namespaces."""
        outer = (self.state / f"{name}.pid").read_text().split()[0]
        inner = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        if not inner:
            raise Failed(f"{name} does not run: see {self.state / name}.log")
        return ["nsenter", "-t", inner[0], "-a"]

    def has_containerd(self, name):
        try:
            return run(*self.inside(name), "test", "-S", "/run/containerd/containerd.sock", check=False).returncode == 0
        except Failed:
            return False

    def load_on(self, name, tar):
        run(*self.inside(name), "ctr", "-n", "k8s.io", "images", "import", Path(tar).resolve())

    def load(self, *tars):
        for name in self.nodes():
            for tar in tars:
                self.load_on(name, tar)

    def pause_image(self):
        """The image that holds every pod's namespaces."""
        tar = self.state / "pause.tar"
        run(
            sys.executable,
            HERE.parents[1] / "charts/image/pack.py",
            "--oci",
            tar,
            "--name",
            "localhost/pause:1",
            "--program",
            f"{self.tools / 'pause'}=/pause",
            "--entrypoint",
            "/pause",
        )
        return tar


def main(arguments):
    match arguments:
        case ["up"]:
            Cluster().up()
        case ["up", nodes] if nodes.isdigit() and 1 <= int(nodes) <= 9:
            Cluster().up(int(nodes))
        case ["load", *tars] if tars:
            Cluster().load(*tars)
        case ["node", name, *command] if command:
            sys.exit(subprocess.run([*Cluster().inside(name), *command], check=False).returncode)
        case ["down"]:
            Cluster().down()
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(64)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Failed as failed:
        sys.exit(f"cluster: {failed}")
