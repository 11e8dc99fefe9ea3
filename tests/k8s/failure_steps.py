"""What e2e.py does with failures: nodes, daemons, service, API server and store go away one after the other, while readers on
every node check each byte; and what an uninstallation leaves on the nodes.

The oracle of a read is what the store gave when its reader began. A reader goes to the store wherever its daemon does not
serve it, as S3A would, so that a read that fails is one that the store itself failed: `direct`, a reader without Cachelet,
shows when that is.
"""

import json
import random
import re
import time
import urllib.request
from pathlib import Path

from cluster import CGROUP, Failed, run, say, wait_for
from stand import (
    BUCKET,
    CLAIMED_SOCKET,
    HOST_SOCKET,
    OBJECTS,
    READER,
    Release,
    apply,
    check,
    client,
    get,
    helm,
    kubectl,
)

NAMESPACE = "cachelet"
# Reads of each node's readers that show that its daemon serves again.
FRESH_READS = 20


def page(address, path, body=None):
    """What a daemon or the service answers at its pod's address."""
    request = urllib.request.Request(f"http://{address}{path}", data=body and json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=3) as answer:
        return answer.read().decode()


class FailureSteps:
    # Readers

    def readers(self):
        return {f"steady-{node}": node for node in self.cluster.nodes()}

    def start_missing(self):
        """A reader on every node, each holding its objects and served by its daemon, and one that knows no daemon."""
        there = {pod["metadata"]["name"] for pod in get("pods", "-n", NAMESPACE, "-l", "app=client")["items"]}
        for name, node in self.readers().items():
            if name not in there:
                self.start_reader(name, NAMESPACE, node)
        if "direct" not in there:
            objects = ["--direct", *(f"s3a://{BUCKET}/{name}" for name in OBJECTS)]
            # No step kills the first node: it is the way to the cluster's services.
            apply(client("direct", NAMESPACE, "node-1", self.endpoint(), READER, objects, HOST_SOCKET))
        for name in self.readers():
            self.until(
                "a reader holds its objects, all of them cached",
                name,
                NAMESPACE,
                lambda now: now["held_cached"] > 2 * len(OBJECTS) and now["cached"] > 2 * len(OBJECTS),
            )
        self.until("a reader reads from the store", "direct", NAMESPACE, lambda now: now["origin"] > 20)

    def remove_readers(self):
        kubectl("-n", NAMESPACE, "delete", "pod", "-l", "app=client", "--now")

    def marks(self):
        return {name: self.report(name, NAMESPACE) for name in [*self.readers(), "direct"]}

    def unharmed(self, marks, names=None):
        """No read of these readers failed or was wrong since `marks`; what they did, in one line."""
        done = {}
        for name in names or self.readers():
            said = self.report(name, NAMESPACE)
            check((said["failed"], said["wrong"]) == (0, 0), f"{name}: {said}")
            fresh = {key: said[key] - marks[name][key] for key in ("cached", "held_cached", "origin", "held_origin")}
            done[self.readers()[name]] = "/".join(str(count) for count in fresh.values())
        return f"0 failed, 0 wrong; cached/held/origin/held from origin {done}"

    def workers_are_as_pods(self):
        try:
            wanted = {node: [(pod["metadata"]["uid"], "ready")] for node, pod in self.admin.daemons().items()}
            found = self.admin.workers()
        except Failed:
            # Whoever is asked may be what is away.
            return False
        seen = {node: [(one["uuid"], one["state"]) for one in workers] for node, workers in found.items()}
        return seen == wanted and len(seen) == len(self.cluster.nodes())

    def recovered(self, what, seconds):
        """Every worker is there, and every node's reader is served locally again, within `seconds` from now."""
        began = time.monotonic()
        wait_for(f"{what}: a ready worker on every node", seconds, self.workers_are_as_pods)
        served = {name: self.report(name, NAMESPACE)["cached"] for name in self.readers()}
        for name in self.readers():
            left = max(1, seconds - (time.monotonic() - began))
            self.until(
                f"{what}: local reads on {name}",
                name,
                NAMESPACE,
                lambda now, name=name: now["cached"] >= served[name] + FRESH_READS,
                left,
            )
        took = time.monotonic() - began
        check(took <= seconds, f"{what}: recovered after {took:.1f} s, the bound is {seconds} s")
        return f"recovered in {took:.1f} s (bound {seconds} s)"

    def restarts(self, node):
        """Container and number of restarts of a node's daemon."""
        status = self.admin.daemons()[node]["status"]["containerStatuses"][0]
        return status.get("containerID", "").rpartition("/")[2], status["restartCount"], status

    # e: failures

    def e_a_killed_node_harms_no_other_and_comes_back_with_its_cache(self):
        self.start_missing()
        lost = "node-3"
        others = [name for name, node in self.readers().items() if node != lost]
        before, marks = self.restarts(lost), self.marks()
        self.cluster.kill(lost)
        began = time.monotonic()

        def left_out():
            return lost not in self.answered(candidates=None)

        wait_for("the service leaves the lost node out of its answers", 20, left_out)
        noticed = time.monotonic() - began
        for name in others:
            self.until(
                "a reader elsewhere reads on",
                name,
                NAMESPACE,
                lambda now, name=name: now["cached"] > marks[name]["cached"] + 5 * FRESH_READS,
            )
        said = self.unharmed(marks, others)
        self.cluster.start_node(lost)
        began = time.monotonic()
        # The reader of the lost node is lost with it.
        kubectl("-n", NAMESPACE, "delete", "pod", f"steady-{lost}", "--force", "--grace-period=0")
        wait_for(
            "the daemon of the lost node has started anew", 120, lambda: self.restarts(lost)[0] not in ("", before[0])
        )
        kubectl("wait", "--for=condition=Ready", f"node/{lost}", "--timeout=60s")
        self.start_missing()
        self.recovered("node back", 30)
        took = time.monotonic() - began
        check(took <= 120, f"{lost} served again {took:.1f} s after its start only, the bound is 120 s")
        worker = self.admin.workers()[lost][0]
        check(worker["blocks"] >= len(OBJECTS), f"{lost} came back without its cache: {worker}")
        check(worker["origin_bytes"] + worker["peer_bytes"] == 0, f"{lost} fetched again what its disk had: {worker}")
        say(f"      node killed: left out of answers after {noticed:.1f} s (bound 20 s); elsewhere {said}")
        say(
            f"      node started: serves locally again after {took:.1f} s (bound 120 s), {worker['blocks']} blocks of before,"
            f" 0 bytes fetched again"
        )

    def answered(self, candidates):
        """The nodes that any replica of the service names for the objects."""
        paths = [{"path": f"s3a://{BUCKET}/{name}"} for name in OBJECTS]
        body = {"paths": paths} | ({"candidates": candidates} if candidates else {})
        named, replicas = set(), 0
        for pod in get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=locality")["items"]:
            address = f"{pod['status'].get('podIP')}:7070"
            try:
                answer = json.loads(page(address, "/v1/locations", body))
            except OSError:
                # One that is on the lost node.
                continue
            replicas += 1
            named |= {node["node"] for one in answer["locations"] for block in one["blocks"] for node in block["nodes"]}
        check(replicas, "no replica of the service answers")
        return named

    def e_b_a_drained_node_keeps_its_daemon(self):
        self.start_missing()
        drained = "node-2"
        before, marks = self.restarts(drained)[:2], self.marks()
        others = [name for name, node in self.readers().items() if node != drained]
        began = time.monotonic()
        # As an executor is, a reader is evicted.
        kubectl(
            "drain",
            drained,
            "--ignore-daemonsets",
            "--force",
            "--delete-emptydir-data",
            "--timeout=60s",
        )
        took = time.monotonic() - began
        check(self.restarts(drained)[:2] == before, "draining touched the daemon")
        kubectl("-n", NAMESPACE, "rollout", "status", "deployment/cachelet-locality", "--timeout=30s")
        said = self.unharmed(marks, others)
        kubectl("uncordon", drained)
        self.start_missing()
        recovered = self.recovered("uncordoned", 30)
        say(f"      drained in {took:.1f} s: elsewhere {said}")
        say(f"      uncordoned: {recovered}")

    def e_c_an_out_of_memory_kill_is_over_in_seconds(self):
        self.start_missing()
        victim = "node-1"
        container, restarts, _ = self.restarts(victim)
        marks = self.marks()
        group = next(Path("/sys/fs/cgroup/memory", CGROUP).rglob(f"*{container}"))
        # Fills need memory; what they read is in no cache yet.
        objects = [f"large-{index}" for index in range(3)]
        for index, name in enumerate(objects):
            self.s3.put(name, random.Random(100 + index).randbytes(48 << 20))
        # What can be given up is; what is left is the daemon's own memory and the kernel's for it.
        (group / "memory.force_empty").write_text("0")
        limit = int((group / "memory.usage_in_bytes").read_text()) + (2 << 20)
        (group / "memory.limit_in_bytes").write_text(str(limit))
        for name in objects:
            arguments = ["cat", f"s3a://{BUCKET}/{name}", "--to", "/dev/null"]
            apply(client(name, NAMESPACE, victim, self.endpoint(), self.image, arguments, HOST_SOCKET))
        wait_for("the kernel kills the daemon", 60, lambda: self.restarts(victim)[1] > restarts)
        recovered = self.recovered("killed for memory", 30)
        _, now, status = self.restarts(victim)
        ended = status["lastState"]["terminated"]
        check(ended["exitCode"] == 137 and ended["reason"] == "OOMKilled", f"the daemon ended otherwise: {ended}")
        kubectl("-n", NAMESPACE, "delete", "pod", *objects, "--now")
        gap = self.report(f"steady-{victim}", NAMESPACE)["longest_gap_ms"]
        say(
            f"      limit {limit >> 20} MiB: {ended['reason']}, exit code {ended['exitCode']}, restarts {restarts} -> {now};"
            f" {recovered}; longest gap of its reader {gap} ms"
        )
        say(f"      {self.unharmed(marks)}")

    def e_d_deleted_replicas_of_the_service_are_not_missed(self):
        self.start_missing()
        marks = self.marks()
        selector = "app.kubernetes.io/component=locality"
        before = set(kubectl("-n", NAMESPACE, "get", "pods", "-l", selector, "-o", "name").split())
        kubectl("-n", NAMESPACE, "delete", "pods", "-l", selector, "--wait=false")
        began = time.monotonic()
        kubectl("-n", NAMESPACE, "rollout", "status", "deployment/cachelet-locality", "--timeout=60s")
        recovered = self.recovered("replicas deleted", 30)
        named = self.answered(candidates=None)
        check(len(named) == len(self.cluster.nodes()), f"the new replicas name {named} only")
        after = set(kubectl("-n", NAMESPACE, "get", "pods", "-l", selector, "-o", "name").split())
        check(len(before) == 2 and not before & after, f"replicas were not replaced: {before} {after}")
        said = self.unharmed(marks)
        say(f"      both replaced, and answering, after {time.monotonic() - began:.1f} s; {recovered}; {said}")

    def e_e_a_minute_without_api_server_is_noticed_by_nobody(self):
        self.start_missing()
        marks, daemons = self.marks(), self.admin.daemons()
        pods = get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=locality")["items"]
        services = [pod["status"]["podIP"] for pod in pods]
        before = {name: self.written(name) for name in self.readers()}
        self.cluster.kill("apiserver")
        down, looks = time.monotonic(), 0
        while time.monotonic() - down < 60:
            check(run("kubectl", "get", "--raw", "/readyz", check=False).returncode != 0, "the API server answers")
            for node, pod in daemons.items():
                check(page(f"{pod['status']['podIP']}:7002", "/readyz") == "ready\n", f"{node} is not ready")
            for address in services:
                nodes = json.loads(page(f"{address}:7070", "/v1/nodes"))["nodes"]
                ready = {one["node"] for one in nodes if one["state"] == "ready"}
                check(ready == set(daemons), f"{address} knows {nodes}")
                known = json.loads(
                    page(f"{address}:7070", "/v1/locations", {"paths": [{"path": f"s3a://{BUCKET}/{OBJECTS[0]}"}]})
                )
                check(known["locations"][0]["known"], f"{address} knows no location: {known}")
            looks += 1
            time.sleep(2)
        fresh = {name: self.written(name)["cached"] - before[name]["cached"] for name in self.readers()}
        check(min(fresh.values()) > 100, f"readers stood still meanwhile: {fresh}")
        took = time.monotonic() - down
        self.cluster.start_api_server()
        recovered = self.recovered("API server back", 30)
        uids = {node: pod["metadata"]["uid"] for node, pod in self.admin.daemons().items()}
        check(uids == {node: pod["metadata"]["uid"] for node, pod in daemons.items()}, "daemons were replaced")
        # Nodes may have been taken for lost, and kubelets come back by and by; a rollout begins when all have.
        kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=180s")
        began = time.monotonic()
        kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/cachelet")
        self.admin.wait()
        after = {pod["metadata"]["uid"] for pod in self.admin.daemons().values()}
        check(not after & set(uids.values()), "the rollout replaced nothing")
        rollout = time.monotonic() - began
        rolled = self.recovered("rollout", 30)
        say(f"      {took:.0f} s without API server: {looks} looks, all ready, locations known; cached reads {fresh}")
        say(f"      {recovered}; then a rollout in {rollout:.1f} s, {rolled}; {self.unharmed(marks)}")

    def written(self, name):
        """What a reader said last, from its node's disk: without the API server there is no other way."""
        logs = self.cluster.state.glob(f"{self.readers()[name]}/var/log/pods/{NAMESPACE}_{name}_*/client/*.log")
        last = max(logs, key=lambda log: log.stat().st_mtime).read_text().splitlines()[-1]
        return json.loads(last.partition(" F ")[2])

    def e_f_ten_seconds_without_store_fail_no_cached_read(self):
        self.start_missing()
        marks = self.marks()
        self.s3.kill()
        began = time.monotonic()
        self.until(
            "reads that go straight to the store fail",
            "direct",
            NAMESPACE,
            lambda now: now["failed"] > marks["direct"]["failed"],
            9,
        )
        time.sleep(max(0, 10 - (time.monotonic() - began)))
        during = self.marks()
        took = time.monotonic() - began
        self.s3.start()
        self.s3.listening()
        for name in self.readers():
            fresh = {key: during[name][key] - marks[name][key] for key in ("cached", "held_cached")}
            check(min(fresh.values()) > FRESH_READS, f"{name} stood still while the store was away: {fresh}")
        direct = self.until(
            "reads that go straight to the store work again",
            "direct",
            NAMESPACE,
            lambda now: now["origin"] > during["direct"]["origin"] + FRESH_READS,
        )
        recovered = self.recovered("store back", 15)
        code, text = self.cat(self.admin, "node-1")
        check(code == 0, f"an open after the store came back: {code}: {text}")
        failed = direct["failed"] - marks["direct"]["failed"]
        check(failed and direct["wrong"] == 0, f"the store was not away: {direct}")
        say(
            f"      {took:.1f} s without store: {failed} direct reads failed; through the daemons {self.unharmed(marks)}"
        )
        say(f"      {recovered}")
        self.remove_readers()

    # g: what an uninstallation leaves, if it shall leave nothing

    def g_wiping_on_uninstall_leaves_only_what_daemons_did_not_make(self):
        cache, socket = "/var/lib/wiped", "/var/run/wiped"
        self.namespace("wiped")
        release = Release("wiped", self.endpoint(), wipeOnUninstall=True, hostPath={"cache": cache, "socket": socket})
        self.wipe_after(release, cache, socket, {"hostPath": {"path": socket}})
        # The directories are prepared by now, so that every pod, those that wipe included, can do with the least rights.
        kubectl("label", "namespace", "wiped", "pod-security.kubernetes.io/enforce=restricted")
        claims = {"create": True, "cachePath": cache, "socketPath": socket}
        release = Release(
            "wiped", self.endpoint(), wipeOnUninstall=True, mode="claims", claims=claims, prepareDirectories=False
        )
        self.wipe_after(release, cache, socket, CLAIMED_SOCKET)
        self.remove("wiped")

    def node_files(self, node, *directories):
        """Everything but directories below these directories of a node."""
        command = ["find", *directories, "-mindepth", "1", "!", "-type", "d"]
        return sorted(run(*self.cluster.inside(node), *command, check=False).stdout.split())

    def cache_something(self, node, cache, volume):
        arguments = ["cat", f"s3a://{BUCKET}/{OBJECTS[0]}", "--to", "/dev/null"]
        code, text = self.finished(client("cat", "wiped", node, self.endpoint(), self.image, arguments, volume))
        check(code == 0, f"{node}: cat ended with {code}: {text}")
        found = self.node_files(node, cache)
        check(any("/v1/blocks/" in file for file in found), f"{node} caches nothing: {found}")

    def wipe_after(self, release, cache, socket, volume):
        mode = release.values.get("mode", "hostPath")
        release.install()
        release.wait()
        nodes = self.cluster.nodes()
        for node in nodes:
            self.cache_something(node, cache, volume)
        # A rollout is no uninstallation.
        kubectl("-n", "wiped", "rollout", "restart", "daemonset/cachelet")
        release.wait()
        for node in nodes:
            found = self.node_files(node, cache)
            check(any("/v1/blocks/" in file for file in found), f"{mode}: a rollout wiped {node}: {found}")
        strangers = [f"{cache}/notes.txt", f"{cache}/v1/blocks/00/notes.txt", f"{socket}/notes.txt"]
        for path in strangers:
            run(*self.cluster.inside("node-2"), "sh", "-c", f"echo mine >{path}")
        began = time.monotonic()
        done = helm("uninstall", "cachelet", "-n", "wiped", "--wait", "--timeout", "120s")
        took = time.monotonic() - began
        said = re.findall(r"\d+ of \d+ nodes are wiped", done.stdout + done.stderr)
        check(
            said[-1:] == [f"{len(nodes)} of {len(nodes)} nodes are wiped"],
            f"{mode}: helm said {done.stdout}{done.stderr}",
        )
        self.expect_nothing_left("wiped")
        granted = kubectl("-n", "wiped", "get", "role,rolebinding,job", "-o", "name")
        check(not granted, f"{mode}: left: {granted}")
        for node in nodes:
            expected = sorted(strangers + [f"{cache}/v1/lock"]) if node == "node-2" else []
            kept = self.node_files(node, cache, socket)
            check(kept == expected, f"{mode}: {node} keeps {kept}, not {expected}")
            if node != "node-2":
                below = run(*self.cluster.inside(node), "find", cache, socket, "-mindepth", "1").stdout.split()
                check(not below, f"{mode}: {node} keeps directories: {below}")
        say(f"      {mode}: uninstalled and wiped in {took:.1f} s, helm said: {said[-1]}; strangers on node-2 are left")

    def g_a_node_that_is_down_keeps_its_cache_and_the_uninstallation_says_so(self):
        cache, socket, lost = "/var/lib/wiped-down", "/var/run/wiped-down", "node-3"
        self.namespace("wiped")
        directories = {"cache": cache, "socket": socket}
        release = Release("wiped", self.endpoint(), wipeOnUninstall=True, hostPath=directories)
        release.install()
        release.wait()
        others = [node for node in self.cluster.nodes() if node != lost]
        before = self.restarts(lost)[0]
        for node in self.cluster.nodes():
            self.cache_something(node, cache, {"hostPath": {"path": socket}})
        self.cluster.kill(lost)
        # Less patience than the daemons' grace period and three minutes, which is what it has by itself.
        done = helm("uninstall", "cachelet", "-n", "wiped", "--timeout", "30s", check=False)
        said = done.stdout + done.stderr
        check(done.returncode != 0, f"helm is content although {lost} is down: {said}")
        counts = re.findall(r"\d+ of \d+ nodes are wiped", said)
        check(counts[-1:] == [f"{len(others)} of {len(others) + 1} nodes are wiped"], f"helm said {said}")
        for node in others:
            check(not self.node_files(node, cache, socket), f"{node} keeps {self.node_files(node, cache, socket)}")
        left = kubectl("-n", "wiped", "get", "daemonset,job,role,rolebinding,serviceaccount,configmap", "-o", "name")
        check("wipe" not in left, f"the uninstallation left {left}")
        listed = helm("list", "-n", "wiped", "--all", "--short").stdout.strip()
        check(not listed, f"the release is still there: {listed}")
        self.cluster.start_node(lost)
        wait_for("the administrator's daemon is back there", 120, lambda: self.restarts(lost)[0] not in ("", before))
        kubectl("wait", "--for=condition=Ready", f"node/{lost}", "--timeout=60s")
        kept = self.node_files(lost, cache)
        check(any("/v1/blocks/" in file for file in kept), f"{lost} has lost its cache: {kept}")
        say(f"      {lost} was down: helm failed after 30 s and said: {counts[-1]}; {lost} keeps {len(kept)} files")
        self.remove("wiped")
