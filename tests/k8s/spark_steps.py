"""Spark on the cluster: its tasks run where their data is, its executors go there, and whatever an executor lacks costs speed alone."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from cluster import HOST, say, wait_for
from spark import EVENTS, LABEL, NAMESPACE, Spark
from stand import ARTEFACTS, BUCKET, GROUP, ROOT, apply, check, get, helm, kubectl

SPARK_NODES = ["node-1", "node-2"]
# A table that Spark brings in, and two copies of it that are there already, each on one node.
TABLE, HELD = "tables/read", {"node-1": "tables/on-node-1", "node-2": "tables/on-node-2"}
ROWS, FILES = 300_000, 24


def read(name, table):
    return {"name": name, "format": "parquet", "path": f"s3a://{BUCKET}/{table}"}


class SparkSteps:
    """The steps of Spark, a part of Run. The administrator's release is installed."""

    spark_release = "3.5"

    def d_an_image_of_spark_is_made_and_tables_are_written(self):
        notes = helm("get", "notes", "cachelet", "-n", self.admin.namespace).stdout
        self.spark = Spark(self.spark_release, self.s3, self.endpoint(), notes)
        tar = self.spark.make_image()
        for node in SPARK_NODES:
            kubectl("label", "node", node, LABEL)
        self.s3.put(f"{EVENTS}/.keep")
        self.namespace(NAMESPACE)
        apply(*service_account())
        steps = [
            {"name": "write", "write": "parquet", "rows": ROWS, "files": FILES, "path": read("", TABLE)["path"]},
            read("read", TABLE),
        ]
        with ThreadPoolExecutor() as at_once:
            stock = at_once.submit(self.spark.stock, steps)
            # Only where Spark runs: it is 1 GB.
            list(at_once.map(lambda node: self.cluster.load_on(node, tar), SPARK_NODES))
            self.stock = stock.result()["read"]
        check((self.stock["rows"], self.stock["files"]) == (ROWS, FILES), f"stock S3A wrote {self.stock}")
        for copy in HELD.values():
            for file in self.table_files(TABLE):
                self.s3.put(f"{copy}/{file.name}", file.read_bytes())

    def d_in_cluster_mode_a_warm_table_is_read_node_local_and_as_stock_s3a_reads_it(self):
        ran = self.spark.cluster_mode("cluster-mode", [read("cold", TABLE), read("warm", TABLE)], **apart())
        ran.expect(self.stock)
        check(sorted(ran.nodes().values()) == SPARK_NODES, f"executors on {ran.nodes()}")
        for pod in ran.pods:
            self.expect_what_the_feature_step_adds(pod)
            check("podAntiAffinity" in pod["spec"]["affinity"], "the feature step replaced the template's affinity")
        self.expect_node_local(ran, "warm")
        check(sorted(ran.scans_by_node("warm")) == SPARK_NODES, f"warm tasks by node: {ran.scans_by_node('warm')}")
        cold, warm = ran.executions
        check(cold["origin_bytes"] > 0, f"the cold execution: {cold}")
        self.expect_only_local_bytes(warm)
        say(f"      cold: {shares(ran, 'cold')}; warm: {shares(ran, 'warm')}, {warm['local_bytes']} bytes, all local")

    def d_executors_go_where_their_table_is(self):
        for node, table in HELD.items():
            self.read_on(node, table)
            held = self.bytes_by_node(table)
            total = sum(file.stat().st_size for file in self.table_files(table))
            # The driver is there, too: without a preference the scheduler would put executors on the emptier node first.
            ran = self.spark.cluster_mode(
                f"placed-{node}",
                [read("warm", table)],
                **{
                    "spark.cachelet.placement.paths": read("", table)["path"],
                    "spark.kubernetes.driver.node.selector.kubernetes.io/hostname": node,
                },
            )
            ran.expect(self.stock)
            nodes = sorted(ran.nodes().values())
            near = sum(held.get(one, 0) for one in set(nodes))
            # What came later than the executors would be of no use.
            log = kubectl("-n", NAMESPACE, "logs", f"{ran.name}-driver")
            wanted, requested = log.find("executors are wanted on ["), log.find("Going to request")
            check(0 < wanted < requested, f"{ran.name}: executors were requested before their nodes were known")
            check(
                near >= 0.8 * total, f"executors on {nodes}, {near} of {total} bytes there: {held}, {affinities(ran)}"
            )
            check(set(nodes) == {node}, f"executors on {nodes}, the table on {held}: {affinities(ran)}")
            self.expect_node_local(ran, "warm")
            say(
                f"      held by {held}: executors on {nodes}, with {100 * near / total:.0f} % of {total} bytes; {shares(ran, 'warm')}"
            )

    def d_executors_without_the_volume_or_the_group_read_from_the_store(self):
        without = {
            "no-volume": {"spark.cachelet.featureStep.enabled": "false"},
            # A group that may not use the socket.
            "no-group": {"spark.cachelet.socket.group": str(GROUP + 1)},
        }
        for name, settings in without.items():
            ran = self.spark.cluster_mode(name, [read("read", TABLE)], **settings)
            ran.expect(self.stock)
            mounts = [mount["name"] for pod in ran.pods for mount in pod["spec"]["containers"][0]["volumeMounts"]]
            check(("cachelet-socket" in mounts) == (name == "no-group"), f"{name}: mounts {mounts}")
            total = ran.total
            check(total["local_bytes"] == 0 and total["direct_bytes"] > 0, f"{name}: {total}")
            check({locality for _, locality in ran.scans("read")} == {"PROCESS_LOCAL"}, f"{name}: {ran.scans('read')}")
            log = kubectl("-n", NAMESPACE, "logs", ran.pods[0]["metadata"]["name"])
            why = next((line for line in log.splitlines() if "no cachelet daemon answers yet" in line), "")
            check(why and (("ermission" in why) == (name == "no-group")), f"{name}: the executor's log says {why!r}")
            say(
                f"      {name}: {total['direct_bytes']} bytes from the store, none local; fallbacks {total['fallback_reasons']}"
            )

    def d_with_a_driver_outside_the_cluster_a_warm_table_is_read_node_local(self):
        service = get("service", "cachelet-locality", "-n", "cachelet")["spec"]["clusterIP"]
        ran = self.spark.client_mode(
            "client-mode",
            [read("warm", TABLE)],
            next((ROOT / "target/jars").glob("cachelet-spark-*.jar")),
            {"s3.stores.svc": HOST},
            **{"spark.hadoop.fs.cachelet.service": f"{service}:7070"} | apart(),
        )
        ran.expect(self.stock)
        for pod in ran.pods:
            self.expect_what_the_feature_step_adds(pod)
        self.expect_node_local(ran, "warm")
        self.expect_only_local_bytes(ran.executions[0])
        say(f"      driver on this machine: {shares(ran, 'warm')}")
        self.remove(NAMESPACE)

    # What they have in common

    def expect_what_the_feature_step_adds(self, pod):
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        name = pod["metadata"]["name"]
        volumes = [volume for volume in spec["volumes"] if volume["name"] == "cachelet-socket"]
        path = {"path": "/var/run/cachelet", "type": "DirectoryOrCreate"}
        check([volume.get("hostPath") for volume in volumes] == [path], f"{name}: volumes {volumes}")
        mounts = [mount for mount in container["volumeMounts"] if mount["name"] == "cachelet-socket"]
        mount = {"name": "cachelet-socket", "mountPath": "/var/run/cachelet", "readOnly": True}
        check(mounts == [mount], f"{name}: mounts {mounts}")
        groups = spec["securityContext"].get("supplementalGroups")
        check(groups == [GROUP], f"{name}: supplemental groups {groups}")
        fields = {
            one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"]
            for one in container["env"]
            if "fieldRef" in one.get("valueFrom", {})
        }
        check(fields.get("NODE_NAME") == "spec.nodeName", f"{name}: variables {fields}")
        terms = spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        not_virtual = {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}
        check(
            [not_virtual] in [term["preference"]["matchExpressions"] for term in terms], f"{name}: preferences {terms}"
        )

    def expect_node_local(self, ran, step):
        share = ran.node_local_share(step)
        check(
            share >= 0.95 and len(ran.scans(step)) >= FILES,
            f"{ran.name}, {step}: NODE_LOCAL share {share:.2f} of {ran.scans(step)}, preferred {ran.results[step]['preferred_hosts']}",
        )

    def expect_only_local_bytes(self, execution):
        other = [execution[key] for key in ("peer_bytes", "origin_bytes", "direct_bytes", "fallbacks")]
        check(execution["local_bytes"] > 0 and other == [0, 0, 0, 0], f"not all of it was local: {execution}")

    # The tables

    def table_files(self, table):
        return sorted(self.s3.file(table).glob("*.parquet"))

    def cachelet(self, node, *arguments):
        """The CLI on a node, which its daemon's pod has."""
        pod = self.admin.daemons()[node]["metadata"]["name"]
        return kubectl("-n", self.admin.namespace, "exec", pod, "--", "cachelet", *arguments)

    def read_on(self, node, table):
        for file in self.table_files(table):
            body = file.read_bytes()
            generation = ["--etag", hashlib.md5(body).hexdigest(), "--size", str(len(body))]
            self.cachelet(node, "cat", f"s3a://{BUCKET}/{table}/{file.name}", "--to", "/dev/null", *generation)
        total = sum(file.stat().st_size for file in self.table_files(table))
        wait_for(
            f"the service knows that {table} is on {node}", 10, lambda: self.bytes_by_node(table).get(node) == total
        )

    def bytes_by_node(self, table):
        """What the locality service says that each node holds of it."""
        paths = [f"s3a://{BUCKET}/{table}/{file.name}" for file in self.table_files(table)]
        answer = json.loads(self.cachelet(SPARK_NODES[0], "locate", "--output", "json", *paths))
        held = {}
        for block in (block for location in answer["locations"] for block in location["blocks"]):
            for node in block["nodes"]:
                if node["state"] == "resident":
                    held[node["node"]] = held.get(node["node"], 0) + block["length"]
        return held


def shares(ran, step):
    return f"NODE_LOCAL {100 * ran.node_local_share(step):.0f} % of {len(ran.scans(step))} tasks, by node {ran.scans_by_node(step)}"


def affinities(ran):
    return [pod["spec"].get("affinity") for pod in ran.pods]


def apart():
    """Settings with a template of executors' pods: no two on a node."""
    term = {"labelSelector": {"matchLabels": {"spark-role": "executor"}}, "topologyKey": "kubernetes.io/hostname"}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    template = ARTEFACTS / "executor.yaml"
    template.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "spec": {"affinity": affinity}}))
    return {"spark.kubernetes.executor.podTemplateFile": str(template)}


def service_account():
    """What a driver in a pod may do: make its executors."""
    metadata = {"name": "spark", "namespace": NAMESPACE}
    resources = ["pods", "services", "configmaps", "persistentvolumeclaims"]
    verbs = ["create", "get", "list", "watch", "update", "patch", "delete", "deletecollection"]
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{group}/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [{"apiGroups": [""], "resources": resources, "verbs": verbs}],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "subjects": [{"kind": "ServiceAccount", "name": "spark", "namespace": NAMESPACE}],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "spark"},
        },
    ]
