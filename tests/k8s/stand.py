"""What the steps of e2e.py are made of: the S3 server, an installed release, and pods as executors are."""

import hashlib
import hmac
import json
import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from cluster import HOST, Failed, run, wait_for

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT / "target/e2e-k8s"
CHART = ROOT / "charts/cachelet"
READER = "localhost/steady-reader:1"
ACCESS_KEY, SECRET_KEY, REGION, BUCKET = "cachelet-test", "cachelet-test-secret", "us-east-1", "lake"
OBJECTS = [f"part-{index}" for index in range(6)]
OBJECT_BYTES = 3 << 20
# Readers may be without a daemon for this long while theirs is replaced.
LONGEST_GAP_MS = 5000
GROUP = 4242


def kubectl(*arguments, **options):
    return run("kubectl", *arguments, **options).stdout


def get(*arguments):
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def apply(*manifests):
    kubectl("apply", "-f", "-", input="\n---\n".join(json.dumps(one) for one in manifests))


def helm(*arguments, **options):
    return run("helm", *arguments, **options)


def check(holds, message):
    if not holds:
        raise Failed(message)


class S3:
    """A real S3 server on this machine, which pods reach under a name of the cluster's DNS."""

    def __init__(self):
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        self.data = ARTEFACTS / "s3"
        self.endpoint = f"http://{HOST}:{self.port}"
        self.start()

    def start(self):
        environment = os.environ | {
            "S3_SERVER_HOST": HOST,
            "S3_SERVER_ACCESS_KEY": ACCESS_KEY,
            "S3_SERVER_SECRET_KEY": SECRET_KEY,
        }
        self.process = subprocess.Popen(
            [ROOT / "scripts/s3-server", "versitygw", str(self.port), self.data],
            env=environment,
            start_new_session=True,
            stdout=open(ARTEFACTS / "s3.log", "ab"),
            stderr=subprocess.STDOUT,
        )

    def listening(self):
        wait_for("the S3 server listens", 120, self.listens)

    def fill(self):
        self.listening()
        self.put("")
        for index, name in enumerate(OBJECTS):
            self.put(name, random.Random(index).randbytes(OBJECT_BYTES))

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def put(self, key, body=b""):
        """A PUT signed with AWS signature 4."""
        path, host, now = f"/{BUCKET}/{key}".rstrip("/"), f"{HOST}:{self.port}", time.gmtime()
        stamp, day, content = (
            time.strftime("%Y%m%dT%H%M%SZ", now),
            time.strftime("%Y%m%d", now),
            hashlib.sha256(body).hexdigest(),
        )
        headers = {"host": host, "x-amz-content-sha256": content, "x-amz-date": stamp}
        signed = ";".join(headers)
        canonical = "\n".join(
            ["PUT", path, "", *(f"{key}:{value}" for key, value in headers.items()), "", signed, content]
        )
        scope = f"{day}/{REGION}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        secret = f"AWS4{SECRET_KEY}".encode()
        for part in [day, REGION, "s3", "aws4_request", to_sign]:
            secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={signed}, Signature={secret.hex()}"
        )
        request = urllib.request.Request(self.endpoint + path, data=body, headers=headers, method="PUT")
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except urllib.error.HTTPError as error:
            raise Failed(f"PUT {path}: {error.code} {error.read()[:300]}") from error

    def file(self, key):
        """Where the server keeps an object: as a file."""
        return self.data / "buckets" / BUCKET / key

    def stop(self):
        self.process.terminate()
        self.process.wait(10)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def service(self, namespace):
        """A name for it in the cluster, so that programs have to resolve one."""
        metadata = {"name": "s3", "namespace": namespace}
        port = {"name": "http", "port": self.port}
        return [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"clusterIP": "None", "ports": [port]},
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "addressType": "IPv4",
                "ports": [port],
                "metadata": metadata | {"labels": {"kubernetes.io/service-name": "s3"}},
                "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
            },
        ]


class Release:
    """An installed chart."""

    def __init__(self, namespace, endpoint, **values):
        self.namespace = namespace
        # Small, for three nodes on one machine.
        self.values = merged(
            {
                "image": {"pullPolicy": "Never"},
                "stores": [
                    {
                        "name": "lake",
                        "kind": "s3",
                        "endpoint": endpoint,
                        "region": REGION,
                        "allow_http": True,
                        "secret": "lake-keys",
                    }
                ],
                "cache": {"quota": "1GiB"},
                "daemon": {
                    "config": {"cache": {"min_free_percent": 1}},
                    "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
                },
                "locality": {"resources": {"requests": {"cpu": "20m", "memory": "32Mi"}}},
                "test": {"object": f"s3a://{BUCKET}/{OBJECTS[0]}"},
            },
            values,
        )

    def install(self, *flags, verb="install"):
        helm(verb, "cachelet", CHART, "-n", self.namespace, "-f", "-", *flags, input=json.dumps(self.values))

    def wait(self):
        kubectl("-n", self.namespace, "rollout", "status", "daemonset/cachelet", "--timeout=180s")
        kubectl("-n", self.namespace, "rollout", "status", "deployment/cachelet-locality", "--timeout=120s")

    def uninstall(self):
        helm("uninstall", "cachelet", "-n", self.namespace, "--wait", "--timeout", "120s")

    def daemons(self):
        """The daemons' pods that are not ending, by node."""
        found = get("pods", "-n", self.namespace, "-l", "app.kubernetes.io/component=daemon")["items"]
        return {pod["spec"]["nodeName"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def workers(self):
        """What the CLI says in a daemon's pod, by node: a list, for there must never be two."""
        pod = next(iter(self.daemons().values()))["metadata"]["name"]
        answer = json.loads(kubectl("-n", self.namespace, "exec", pod, "--", "cachelet", "status", "--output", "json"))
        found = {}
        for worker in answer["nodes"]:
            found.setdefault(worker["node"], []).append(worker)
        return found

    def expect_workers(self):
        """One worker for each daemon's pod, ready, of its UUID; nothing of earlier ones."""
        wanted = {node: [(pod["metadata"]["uid"], "ready")] for node, pod in self.daemons().items()}
        seen = {}

        def agreed():
            nonlocal seen
            seen = {node: [(one["uuid"], one["state"]) for one in workers] for node, workers in self.workers().items()}
            return seen == wanted

        try:
            # A heartbeat is 2 s.
            wait_for("", 4, agreed)
        except Failed:
            raise Failed(f"workers after one heartbeat: {seen}, pods: {wanted}") from None


def merged(base, more):
    result = dict(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def restricted(user=185, group=0, supplemental=True):
    pod = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": group, "seccompProfile": {"type": "RuntimeDefault"}}
    return pod | ({"supplementalGroups": [GROUP]} if supplemental else {})


def client(name, namespace, node, endpoint, image, arguments, volume, supplemental=True):
    """A pod as an executor is: Spark's user, the socket's directory read-only, credentials of its own."""
    env = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT": endpoint,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "client"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "nodeSelector": {"kubernetes.io/hostname": node},
            "securityContext": restricted(supplemental=supplemental),
            "containers": [
                {
                    "name": "client",
                    "image": image,
                    "imagePullPolicy": "Never",
                    "args": arguments,
                    "env": [{"name": key, "value": value} for key, value in env.items()],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                    "volumeMounts": [{"name": "socket", "mountPath": "/var/run/cachelet", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "socket", **volume}],
        },
    }


HOST_SOCKET = {"hostPath": {"path": "/var/run/cachelet", "type": "DirectoryOrCreate"}}
CLAIMED_SOCKET = {"persistentVolumeClaim": {"claimName": "cachelet-socket", "readOnly": True}}
