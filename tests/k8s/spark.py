"""Spark on the cluster: how an application is submitted, and what it left behind."""

import json
import os
import re
import socket
import subprocess
from collections import Counter

from cluster import HOST, Failed, run
from node import API
from stand import ACCESS_KEY, ARTEFACTS, BUCKET, REGION, ROOT, SECRET_KEY, check, get, kubectl

NAMESPACE = "spark"
# Where Spark may run; daemons are everywhere.
LABEL = "spark=yes"
EVENTS = "spark-events"
# A job of a few seconds, on a machine that has other things to do.
DEADLINE = 240
# Starts quickly; nobody measures how fast it would become.
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


class Spark:
    """One release of Spark: on this machine as users have it, and as an image."""

    def __init__(self, release, s3, endpoint, notes):
        found = run(ROOT / "scripts/spark-env", "path", release).stdout
        self.release, self.install, self.s3, self.endpoint = release, json.loads(found), s3, endpoint
        # The settings that the notes of the installed chart tell users.
        self.told = dict(re.findall(r"^  (spark\.\S+) +(\S+)$", notes, re.MULTILINE))
        self.image = f"localhost/spark:{release}"

    def make_image(self):
        """The tar of the image."""
        made = run(ROOT / "tests/k8s/spark-image", self.release, quiet=False, stdout=subprocess.PIPE).stdout
        return ROOT / made.split()[0]

    # Settings

    def s3a(self, endpoint):
        return {
            "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.endpoint.region": REGION,
            "spark.hadoop.fs.s3a.path.style.access": "true",
            "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
            # The server's directories are real ones, which cannot be deleted while they hold something.
            "spark.hadoop.fs.s3a.directory.marker.retention": "keep",
            "spark.hadoop.fs.s3a.access.key": ACCESS_KEY,
            "spark.hadoop.fs.s3a.secret.key": SECRET_KEY,
        }

    def common(self, name):
        return {
            "spark.app.name": name,
            "spark.driver.memory": "512m",
            "spark.driver.extraJavaOptions": QUICK,
            "spark.executor.extraJavaOptions": QUICK,
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.sql.shuffle.partitions": "2",
            # One task a file.
            "spark.sql.files.openCostInBytes": "128m",
        }

    def on_kubernetes(self, name):
        """What a user of the chart sets, and what makes the pods small. The event log is in the bucket of the data."""
        return (
            self.common(name)
            | self.s3a(self.endpoint)
            | self.told
            | {
                "spark.master": f"k8s://https://{API}:6443",
                "spark.kubernetes.namespace": NAMESPACE,
                "spark.kubernetes.container.image": self.image,
                "spark.kubernetes.container.image.pullPolicy": "Never",
                "spark.kubernetes.node.selector." + LABEL.split("=")[0]: LABEL.split("=")[1],
                "spark.kubernetes.executor.podNamePrefix": name,
                "spark.kubernetes.executor.label.application": name,
                "spark.kubernetes.executor.deleteOnTermination": "false",
                "spark.kubernetes.executor.request.cores": "100m",
                "spark.executor.instances": "2",
                "spark.executor.cores": "1",
                "spark.executor.memory": "512m",
                # Nothing runs before both executors are there: which of them reads what depends on no race.
                "spark.scheduler.minRegisteredResourcesRatio": "1.0",
                "spark.scheduler.maxRegisteredResourcesWaitingTime": "120s",
                # Which nodes tasks prefer is what is tested, not how busy this machine is.
                "spark.locality.wait.node": "20s",
                "spark.eventLog.enabled": "true",
                "spark.eventLog.compress": "false",
                "spark.eventLog.rolling.enabled": "false",
                "spark.eventLog.dir": f"s3a://{BUCKET}/{EVENTS}",
            }
        )

    # Submitting

    def submit(self, name, program, steps, out, settings, **environment):
        """Runs spark-submit to its end, which must be a success. Its output is the artefact spark-<name>.log."""
        file, log = ARTEFACTS / f"spark-{name}.conf", ARTEFACTS / f"spark-{name}.log"
        file.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        environment = (
            os.environ
            | {
                "SPARK_HOME": self.install["spark_home"],
                "SPARK_SCALA_VERSION": self.install["scala"],
            }
            | environment
        )
        environment.pop("SPARK_CONF_DIR", None)
        command = [f"{self.install['spark_home']}/bin/spark-submit", "--properties-file", file, program]
        command += ["--steps", json.dumps(steps), "--out", out]
        with open(log, "wb") as output:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=DEADLINE,
                check=False,
            )
        check(done.returncode == 0, f"spark-submit of {name} ended with {done.returncode}: {tail(log.read_text())}")

    def stock(self, steps):
        """Stock S3A in one JVM on this machine: what every other run has to find."""
        out = ARTEFACTS / "spark-stock.json"
        settings = (
            self.common("stock")
            | self.s3a(self.s3.endpoint)
            | {
                "spark.master": "local[2]",
                "spark.pyspark.python": self.install["python"],
                "spark.driver.extraClassPath": ":".join(self.install["s3a_jars"]),
                "spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version": "2",
                "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
            }
        )
        self.submit("stock", ROOT / "tests/spark/reads.py", steps, out, settings, SPARK_LOCAL_IP="127.0.0.1")
        return json.loads(out.read_text())

    def cluster_mode(self, name, steps, **settings):
        """The driver in a pod."""
        driver = f"{name}-driver"
        settings = (
            self.on_kubernetes(name)
            | {
                "spark.submit.deployMode": "cluster",
                "spark.kubernetes.driver.pod.name": driver,
                "spark.kubernetes.driver.request.cores": "100m",
                "spark.kubernetes.authenticate.driver.serviceAccountName": "spark",
                # Into the pod's log.
                "spark.cachelet.summary.file": "/dev/stdout",
            }
            | settings
        )
        self.submit(name, "local:///opt/tests/reads.py", steps, "-", settings)
        said = kubectl("-n", NAMESPACE, "logs", driver)
        phase = get("pod", driver, "-n", NAMESPACE)["status"]["phase"]
        # spark-submit does not fail with its driver.
        check(phase == "Succeeded", f"the driver of {name} ended {phase}: {tail(said)}")
        lines = [json.loads(line) for line in said.splitlines() if line.startswith('{"')]
        results = next((line for line in lines if "kind" not in line), None)
        check(results, f"the driver of {name} told no result: {tail(said)}")
        return Application(name, results, [line for line in lines if "kind" in line], self.s3)

    def client_mode(self, name, steps, jar, addresses, **settings):
        """The driver on this machine, which knows none of the cluster's names but those in `addresses`."""
        hosts, out, summaries = (ARTEFACTS / f"spark-{name}.{end}" for end in ("hosts", "json", "summaries"))
        known = addresses | {"localhost": "127.0.0.1", socket.gethostname(): HOST}
        hosts.write_text("".join(f"{address} {host}\n" for host, address in known.items()))
        settings = (
            self.on_kubernetes(name)
            | {
                "spark.submit.deployMode": "client",
                "spark.pyspark.python": self.install["python"],
                "spark.driver.host": HOST,
                "spark.driver.bindAddress": HOST,
                "spark.driver.extraClassPath": ":".join([*self.install["s3a_jars"], str(jar)]),
                "spark.driver.extraJavaOptions": f"{QUICK} -Djdk.net.hosts.file={hosts}",
                "spark.cachelet.summary.file": str(summaries),
            }
            | settings
        )
        self.submit(name, ROOT / "tests/spark/reads.py", steps, out, settings, SPARK_LOCAL_IP=HOST)
        summaries = [json.loads(line) for line in summaries.read_text().splitlines()]
        return Application(name, json.loads(out.read_text()), summaries, self.s3)


def tail(text):
    return "\n".join(text.splitlines()[-30:])


class Application:
    """What an application found, and what it did as its event log, its summaries and its executors' pods tell."""

    def __init__(self, name, results, summaries, s3):
        self.name, self.results = name, results
        self.executions = [line for line in summaries if line["kind"] == "sql_execution"]
        self.total = next(line for line in summaries if line["kind"] == "application")
        self.pods = get("pods", "-n", NAMESPACE, "-l", f"application={name},spark-role=executor")["items"]
        check(len(self.pods) == 2, f"{name} had {len(self.pods)} executors' pods in place of 2")
        application = self.pods[0]["metadata"]["labels"]["spark-app-selector"]
        log = s3.file(f"{EVENTS}/{application}")
        if not log.exists():
            raise Failed(f"there is no event log {log} of {name}")
        self.events = [json.loads(line) for line in log.read_text().splitlines()]
        failed = [
            event["Task End Reason"]
            for event in self.of("SparkListenerTaskEnd")
            if event["Task End Reason"]["Reason"] != "Success"
        ]
        check(not failed, f"tasks of {name} failed: {failed[:2]}")

    def of(self, kind):
        return [event for event in self.events if event["Event"] == kind]

    def nodes(self):
        """The nodes of the executors, by the host strings that Spark has for them."""
        by_address = {pod["status"]["podIP"]: pod["spec"]["nodeName"] for pod in self.pods}
        hosts = [event["Executor Info"]["Host"] for event in self.of("SparkListenerExecutorAdded")]
        check(sorted(hosts) == sorted(by_address), f"{self.name}: executors on {hosts}, pods of {by_address}")
        return by_address

    def scans(self, step):
        """The tasks of a step that read files: (host, locality)."""
        stages = {
            stage
            for job in self.of("SparkListenerJobStart")
            if job["Properties"].get("spark.jobGroup.id") == step
            for stage in job["Stage IDs"]
        }
        return [
            (task["Task Info"]["Host"], task["Task Info"]["Locality"])
            for task in self.of("SparkListenerTaskEnd")
            if task["Stage ID"] in stages and task["Task Metrics"]["Input Metrics"]["Bytes Read"] > 0
        ]

    def node_local_share(self, step):
        """A task without preferred hosts is called PROCESS_LOCAL: NODE_LOCAL alone says that a host matched."""
        scans = self.scans(step)
        return sum(locality == "NODE_LOCAL" for _, locality in scans) / len(scans)

    def scans_by_node(self, step):
        nodes = self.nodes()
        return dict(sorted(Counter(nodes[host] for host, _ in self.scans(step)).items()))

    def expect(self, stock):
        """Every step found what stock S3A finds in the table."""
        for step, result in self.results.items():
            found, wanted = ({key: one[key] for key in ("rows", "hash", "files")} for one in (result, stock))
            check(found == wanted, f"{self.name}, {step}: {found}, with stock S3A {wanted}")
