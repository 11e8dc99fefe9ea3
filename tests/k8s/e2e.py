"""The chart on a real cluster: installed in both modes, replaced under load, uninstalled; readers notice nothing but the
speed.

    e2e.py [--keep] [--only STEP] [--spark 3.5|4.1]

--keep leaves the cluster running; --only runs the steps whose names match STEP, a regular expression, after the first
installation; --spark chooses another Spark than 3.5. A line a step on standard output; what a failure needs to be understood is
left in target/e2e-k8s.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import urllib.request

from cluster import Cluster, Failed, run, say, wait_for
from example_steps import ExampleSteps
from failure_steps import FailureSteps
from spark_steps import SparkSteps
from stand import (
    ACCESS_KEY,
    ARTEFACTS,
    BUCKET,
    CHART,
    CLAIMED_SOCKET,
    HOST_SOCKET,
    LONGEST_GAP_MS,
    OBJECT_BYTES,
    OBJECTS,
    READER,
    ROOT,
    S3,
    SECRET_KEY,
    Release,
    apply,
    check,
    client,
    get,
    helm,
    kubectl,
    merged,
)


class Run(SparkSteps, FailureSteps, ExampleSteps):
    """The steps, in order. Each leaves the cluster as the next one expects it."""

    def __init__(self, cluster):
        self.cluster, self.s3, self.image = cluster, None, ""

    def endpoint(self):
        return f"http://s3.stores.svc:{self.s3.port}"

    def namespace(self, name, **labels):
        labels = {f"pod-security.kubernetes.io/{key}": value for key, value in labels.items()}
        apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        kubectl(
            "-n",
            name,
            "create",
            "secret",
            "generic",
            "lake-keys",
            f"--from-literal=access_key_id={ACCESS_KEY}",
            f"--from-literal=secret_access_key={SECRET_KEY}",
        )

    def remove(self, *namespaces):
        kubectl("delete", "namespace", *namespaces, "--timeout=90s")

    # Pods

    def finished(self, manifest):
        """Runs a pod to its end: exit code and what it wrote."""
        name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
        apply(manifest)

        def phase():
            return get("pod", name, "-n", namespace)["status"]["phase"]

        wait_for(f"pod {name} ends", 90, lambda: phase() in ("Succeeded", "Failed"))
        state = get("pod", name, "-n", namespace)["status"]["containerStatuses"][0]["state"]["terminated"]
        text = kubectl("-n", namespace, "logs", name)
        kubectl("-n", namespace, "delete", "pod", name, "--now")
        return state["exitCode"], text

    def cat(self, release, node, supplemental=True):
        arguments = ["cat", f"s3a://{BUCKET}/{OBJECTS[0]}", "--to", "/dev/null", "--output", "json", "--verify"]
        return self.finished(
            client("cat", release.namespace, node, self.endpoint(), self.image, arguments, HOST_SOCKET, supplemental)
        )

    def start_reader(self, name, namespace, node, volume=None, supplemental=True):
        objects = [f"s3a://{BUCKET}/{name}" for name in OBJECTS]
        apply(client(name, namespace, node, self.endpoint(), READER, objects, volume or HOST_SOCKET, supplemental))

    def report(self, name, namespace):
        """What a reader has said last."""
        lines = kubectl("-n", namespace, "logs", name, "--tail=1", check=False).strip().splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}

    def until(self, what, name, namespace, holds, seconds=90):
        last = {}

        def true_now():
            nonlocal last
            last = self.report(name, namespace)
            check(get("pod", name, "-n", namespace)["status"]["phase"] != "Failed", f"reader {name} ended")
            return bool(last) and holds(last)

        try:
            wait_for(what, seconds, true_now, 0.5)
        except Failed as failed:
            raise Failed(f"{failed}; reader {name} said last: {last}") from None
        return last

    # Steps

    def set_up(self):
        built = run(
            ROOT / "charts/image/build", "--with", f"steady-reader={READER}", quiet=False, stdout=subprocess.PIPE
        ).stdout
        tars = [line.split()[0] for line in built.splitlines()]
        self.image = built.splitlines()[0].split()[1]
        self.cluster.up(3)
        self.cluster.load(*(ROOT / tar for tar in tars))
        self.s3 = S3()
        self.s3.fill()
        apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "stores"}})
        apply(*self.s3.service("stores"))

    def a_the_chart_installs_for_an_administrator(self):
        self.namespace("cachelet")
        self.admin = Release("cachelet", self.endpoint())
        self.admin.install()
        self.admin.wait()
        self.admin.expect_workers()
        for node, pod in self.admin.daemons().items():
            with urllib.request.urlopen(f"http://{pod['status']['podIP']}:7002/readyz", timeout=5) as answer:
                check(answer.read() == b"ready\n", f"{node} has something to remark about its readiness")
            worker = self.admin.workers()[node][0]
            for key in ("podIP", "hostIP"):
                check(
                    worker[{"podIP": "pod_ip", "hostIP": "host_ip"}[key]] == pod["status"][key],
                    f"{node}: {key} of {worker}",
                )

    def a_sparks_user_with_the_sockets_group_reads_through_descriptors(self):
        for node in self.admin.daemons():
            for turn in ("cold", "warm"):
                code, text = self.cat(self.admin, node)
                check(code == 0, f"{node}: cat ended with {code}: {text}")
                stats = json.loads(text)["stats"]
                check(
                    stats["local_bytes"] == OBJECT_BYTES and stats["grants_received"] == 1, f"{node}, {turn}: {stats}"
                )
        workers = [worker for found in self.admin.workers().values() for worker in found]
        origin = sum(worker["origin_bytes"] for worker in workers)
        check(
            origin == OBJECT_BYTES,
            f"three nodes took {origin} bytes from the store, one copy is {OBJECT_BYTES}: {workers}",
        )
        say(f"      bytes by source: origin {origin}, peers {sum(worker['peer_bytes'] for worker in workers)}")

    def a_without_the_group_a_reader_is_refused_cleanly_and_reads_from_the_store(self):
        code, text = self.cat(self.admin, "node-1", supplemental=False)
        check(code in (69, 77) and "ermission" in text, f"cat without the group: {code}: {text}")
        self.start_reader("stranger", "cachelet", "node-1", supplemental=False)
        said = self.until("a reader without the group reads", "stranger", "cachelet", lambda now: now["origin"] > 20)
        check((said["cached"], said["failed"], said["wrong"]) == (0, 0, 0), f"{said}")
        kubectl("-n", "cachelet", "delete", "pod", "stranger", "--now")

    def a_nobody_can_write_through_a_granted_descriptor(self):
        self.start_reader("reader", "cachelet", "node-1")
        self.until("a reader holds its objects", "reader", "cachelet", lambda now: now["held_cached"] > 20)
        # As the machine's root, from outside of every container.
        script = r"""
import errno, glob, os
tried = 0
for exe in glob.glob('/proc/[0-9]*/exe'):
    try:
        if not os.readlink(exe).endswith('/steady-reader'): continue
    except OSError: continue
    process = os.path.dirname(exe)
    held = [fd for fd in glob.glob(process + '/fd/*') if '/v1/blocks/' in os.readlink(fd)]
    for path in held + [process + '/root/var/run/cachelet/intruder']:
        tried += path in held
        try: os.open(path, os.O_RDWR | (0 if path in held else os.O_CREAT))
        except OSError as error: assert error.errno == errno.EROFS, (path, error)
        else: raise SystemExit('could open for writing: ' + path)
assert tried, 'the reader holds no descriptor of a block'
print(tried)
"""
        done = run(*self.cluster.inside("node-1"), sys.executable, "-c", script, check=False)
        check(done.returncode == 0, f"tampering: {done.stdout}{done.stderr}")
        kubectl("-n", "cachelet", "delete", "pod", "reader", "--now")

    def a_helm_test_reads_through_a_local_socket(self):
        helm("test", "cachelet", "-n", "cachelet", "--timeout", "90s")

    def c_nobody_fails_while_daemons_are_replaced(self):
        names = {f"reader-{node}": node for node in self.admin.daemons()}
        for name, node in names.items():
            self.start_reader(name, "cachelet", node)
        for name in names:
            self.until(
                "a reader reads locally", name, "cachelet", lambda now: now["cached"] > 50 and now["held_cached"] > 50
            )
        surge = merged(self.admin.values, {"daemon": {"maxUnavailable": 0, "maxSurge": 1}})

        def restart():
            kubectl("-n", "cachelet", "rollout", "restart", "daemonset/cachelet")

        def change_strategy():
            self.admin.values = surge
            self.admin.install(verb="upgrade")
            restart()

        def undo():
            kubectl("-n", "cachelet", "rollout", "undo", "daemonset/cachelet")

        for what, rollout in [("default strategy", restart), ("maxSurge 1", change_strategy), ("undo", undo)]:
            before = {node: pod["metadata"]["uid"] for node, pod in self.admin.daemons().items()}
            started = time.monotonic()
            rollout()
            self.admin.wait()
            took = time.monotonic() - started
            after = {node: pod["metadata"]["uid"] for node, pod in self.admin.daemons().items()}
            check(
                not set(before.values()) & set(after.values()), f"{what}: daemons were not replaced: {before} {after}"
            )
            self.admin.expect_workers()
            marks = {name: self.report(name, "cachelet")["cached"] for name in names}
            gaps = {}
            for name, node in names.items():
                said = self.until(
                    "a reader reads locally again",
                    name,
                    "cachelet",
                    lambda now, name=name: now["cached"] > marks[name] + 20,
                )
                gaps[node] = said["longest_gap_ms"]
                check((said["failed"], said["wrong"]) == (0, 0), f"{what}: {name}: {said}")
                check(
                    said["longest_gap_ms"] <= LONGEST_GAP_MS,
                    f"{what}: {name} was without a daemon for too long: {said}",
                )
            say(f"      {what}: {took:.1f} s, longest gap so far {gaps} ms")
        total = {
            key: sum(self.report(name, "cachelet")[key] for name in names)
            for key in ("cached", "origin", "held_cached", "held_origin", "failed", "wrong")
        }
        say(f"      reads: {total}")
        kubectl("-n", "cachelet", "delete", "pod", "-l", "app=client", "--now")

    def f_pod_security_finds_only_hostpath_in_admin_mode_and_nothing_without(self):
        labels = {"enforce": "privileged", "warn": "restricted", "audit": "restricted"}
        self.namespace("judge", **labels)

        def warnings(**values):
            release = Release(
                "judge", self.endpoint(), prepareDirectories=False, priorityClass={"create": False}, **values
            )
            text = helm(
                "template", "cachelet", CHART, "-n", "judge", "--no-hooks", "-f", "-", input=json.dumps(release.values)
            ).stdout
            said = run("kubectl", "apply", "--dry-run=server", "-n", "judge", "-f", "-", input=text).stderr
            return [line for line in said.splitlines() if "violate PodSecurity" in line]

        found = warnings()
        check(found, "admin mode should violate `restricted` by its hostPath volumes")
        for line in found:
            violations = re.findall(r"([a-zA-Z ]+?) \((?:[^()]|\([^()]*\))*\)", line.partition('": ')[2])
            check([one.strip(" ,") for one in violations] == ["restricted volume types"], f"admin mode: {line}")
        found = warnings(mode="claims")
        check(not found, f"claims mode: {found}")
        self.remove("judge")

    def cached_blocks(self, node):
        return run(*self.cluster.inside(node), "find", "/var/lib/cachelet/v1/blocks", "-type", "f").stdout.split()

    def g_uninstalling_leaves_only_the_cache(self):
        before = {node: len(self.cached_blocks(node)) for node in self.cluster.nodes()}
        self.admin.uninstall()
        self.expect_nothing_left("cachelet")
        for node, blocks in before.items():
            left = len(self.cached_blocks(node))
            check(
                left == blocks >= len(OBJECTS),
                f"{node}: {left} cached blocks after the uninstallation, {blocks} before it",
            )
            sockets = run(*self.cluster.inside(node), "find", "/run/cachelet", "-type", "s").stdout
            check(not sockets, f"{node}: sockets are left: {sockets}")
        self.remove("cachelet")

    def expect_nothing_left(self, namespace):
        kinds = "all,configmap,secret,serviceaccount,networkpolicy,poddisruptionbudget,persistentvolumeclaim"
        label = ["-l", "app.kubernetes.io/instance=cachelet"]

        def left():
            here = kubectl("get", kinds, "-n", namespace, "-o", "name", *label).split()
            everywhere = kubectl("get", "persistentvolume,priorityclass", "-o", "name", *label).split()
            return here + [name for name in everywhere if f"/{namespace}-" in name]

        wait_for(f"{namespace} is empty after the uninstallation", 60, lambda: not left())

    def b_claims_work_and_an_executor_that_was_there_first_turns_local(self):
        self.namespace("cache-claims", enforce="baseline")
        self.namespace("executors", enforce="restricted")
        for node in ("node-1", "node-2"):
            kubectl("label", "node", node, "cache=yes")
        paths = {"cachePath": "/var/lib/cachelet-claims", "socketPath": "/var/run/cachelet-claims"}
        claims = {"create": True, "clientNamespaces": ["executors"], **paths}
        self.claims = Release(
            "cache-claims", self.endpoint(), mode="claims", claims=claims, daemon={"nodeSelector": {"cache": "yes"}}
        )
        self.claims.install()
        # On node 3 there is neither daemon nor directory yet.
        self.start_reader("early", "executors", "node-3", CLAIMED_SOCKET)
        self.start_reader("usual", "executors", "node-1", CLAIMED_SOCKET)
        self.claims.wait()
        early = self.until(
            "the early reader reads from the store", "early", "executors", lambda now: now["origin"] > 20
        )
        check((early["cached"], early["failed"], early["wrong"]) == (0, 0, 0), f"before its daemon: {early}")
        self.until(
            "a reader reads locally", "usual", "executors", lambda now: now["cached"] > 20 and now["local_bytes"] > 0
        )
        for pod in get("pods", "-n", "cache-claims")["items"] + get("pods", "-n", "executors")["items"]:
            held = [volume for volume in pod["spec"]["volumes"] if "hostPath" in volume]
            check(not held, f"{pod['metadata']['name']} has hostPath volumes: {held}")
        kubectl("label", "node", "node-3", "cache=yes")
        self.claims.wait()
        now = self.until(
            "the early reader turns local",
            "early",
            "executors",
            lambda now: now["cached"] > 20 and now["held_cached"] > 20,
        )
        check((now["failed"], now["wrong"]) == (0, 0), f"after its daemon came: {now}")
        self.claims.expect_workers()

    def f_claims_on_prepared_nodes_are_admitted_where_restricted_is_enforced(self):
        # A claim stays for as long as a pod uses it.
        kubectl("-n", "executors", "delete", "pod", "-l", "app=client", "--now")
        self.claims.uninstall()
        self.expect_nothing_left("cache-claims")
        kubectl("label", "namespace", "cache-claims", "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
        self.claims.values["prepareDirectories"] = False
        self.claims.install()
        self.claims.wait()
        self.start_reader("usual", "executors", "node-2", CLAIMED_SOCKET)
        now = self.until(
            "a reader reads locally", "usual", "executors", lambda now: now["cached"] > 20 and now["local_bytes"] > 0
        )
        check((now["failed"], now["wrong"]) == (0, 0), f"{now}")

    def tear_down(self):
        if self.s3:
            self.s3.stop()
        self.cluster.down()

    def artefacts(self):
        """What one needs to understand a failure."""
        say(f"      leaving events, logs and states in {ARTEFACTS}")
        for name, command in {
            "events.txt": ["kubectl", "get", "events", "-A", "--sort-by=.lastTimestamp"],
            "objects.txt": ["kubectl", "get", "all,pv,pvc,nodes", "-A", "-o", "wide"],
            "pods.txt": ["kubectl", "describe", "pods", "-A"],
        }.items():
            (ARTEFACTS / name).write_text(run(*command, check=False).stdout)
        for pod in json.loads(run("kubectl", "get", "pods", "-A", "-o", "json", check=False).stdout or '{"items": []}')[
            "items"
        ]:
            metadata = pod["metadata"]
            for before in ([], ["--previous"]):
                logs = run(
                    "kubectl",
                    "logs",
                    "-n",
                    metadata["namespace"],
                    metadata["name"],
                    "--all-containers",
                    *before,
                    check=False,
                ).stdout
                if logs:
                    (ARTEFACTS / f"{metadata['name']}{'.previous' if before else ''}.log").write_text(logs)
            if metadata.get("labels", {}).get("app.kubernetes.io/component") == "daemon" and pod["status"].get("podIP"):
                for page in ("status", "readyz"):
                    got = run(
                        "curl", "-s", "-m", "3", f"http://{pod['status']['podIP']}:7002/{page}", check=False
                    ).stdout
                    (ARTEFACTS / f"{metadata['name']}.{page}").write_text(got)
        # Not all below it: nodes keep the files of all images there.
        for log in (log for pattern in ("*.log", "*/*.log") for log in self.cluster.state.glob(pattern)):
            shutil.copy(log, ARTEFACTS / f"cluster-{log.relative_to(self.cluster.state).as_posix().replace('/', '-')}")


def steps():
    """The steps' names in the order in which they run: those of other modules while the administrator's release is there."""
    named = [[name for name in vars(part) if re.match(r"[a-h]_", name)] for part in Run.__mro__]
    own, others = named[0], sorted((name for part in named[1:] for name in part), key=lambda name: name[0])
    after = next(index for index, name in enumerate(own) if name > "d")
    return own[:after] + others + own[after:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--spark", choices=["3.5", "4.1"], default="3.5")
    options = parser.parse_args()
    shutil.rmtree(ARTEFACTS, ignore_errors=True)
    ARTEFACTS.mkdir(parents=True)
    this = Run(Cluster())
    this.spark_release = options.spark
    names = steps()
    # Installing is what every other step of the same letter group builds on.
    chosen = [name for name in names if re.search(options.only, name) or name == names[0]]
    started, ended_well = time.monotonic(), False
    # Being told to stop is a reason to clean up, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("e2e: told to stop"))
    try:
        for name in ["set_up", *chosen]:
            say(f"{name.replace('_', ' ')} ...")
            began = time.monotonic()
            getattr(this, name)()
            say(f"  ok, {time.monotonic() - began:.1f} s")
        ended_well = True
    except Exception as error:
        say(f"  FAILED: {error}")
        if not isinstance(error, Failed):
            traceback.print_exc()
        this.artefacts()
    finally:
        if not options.keep:
            this.tear_down()
    say(f"{'passed' if ended_well else 'FAILED'} in {time.monotonic() - started:.0f} s")
    sys.exit(0 if ended_well else 1)


if __name__ == "__main__":
    main()
