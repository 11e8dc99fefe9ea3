"""What the chart renders and refuses, and that values, schema and docs say the same. No cluster; helm's own engine renders."""

import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

from helm_python import Chart, HelmError, lint, values_from_yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/cachelet"
GOLDEN = Path(__file__).parent / "golden"
BINARIES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
UPDATE = os.environ.get("UPDATE_DOCS") == "1"

STORE = {"name": "lake", "kind": "s3", "region": "eu-central-1"}
# Secrets are random where they are generated; these renders shall not be.
SMALL = {"stores": [STORE], "remote": {"existingSecret": "cachelet-remote"}}
MODES = {
    "hostpath": SMALL,
    "claims": SMALL
    | {
        "mode": "claims",
        "prepareDirectories": False,
        "wipeOnUninstall": True,
        "claims": {"create": True, "clientNamespaces": ["spark"]},
        "priorityClass": {"create": False},
    },
    "everything": {
        "fullnameOverride": "lake-cache",
        "commonLabels": {"team": "data"},
        "image": {"registry": "registry.example.com:5000", "tag": "1.2.3", "pullSecrets": ["pull"]},
        "seLinuxLevel": "s0",
        "wipeOnUninstall": True,
        "stores": [
            STORE | {"secret": "lake-keys", "session_token": True, "buckets": ["lake-*"], "max_retries": 5},
            {"name": "alibaba_1", "kind": "oss", "region": "cn-hangzhou", "authorization": "daemon"},
        ],
        "credentials": {"irsaRoleArn": "arn:aws:iam::1:role/cache", "rrsaRoleName": "cache"},
        "cache": {"quota": "1.5TiB", "dedicated": True},
        "remote": {"existingSecret": "own"},
        "daemon": {
            "config": {"fill": {"memory": "128MiB", "timeout": "30s"}, "cache": {"max_open_files": 100000}},
            "maxUnavailable": 0,
            "maxSurge": "10%",
            "drainSeconds": 45,
            "nodeSelector": {"disk": "nvme"},
            "tolerations": [{"operator": "Exists"}],
            "extraEnv": [{"name": "AWS_EC2_METADATA_DISABLED", "value": "true"}],
            "podAnnotations": {"note": "daemon"},
            "podLabels": {"tier": "cache"},
        },
        "locality": {"config": {"lease": "5s", "max_answer_nodes": 3}, "antiAffinity": "required", "replicas": 3},
        "networkPolicy": {"clientNamespaces": {"matchLabels": {"spark": "yes"}}},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "test": {"object": "s3a://lake/ready.txt"},
    },
}


def render(values):
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        return chart.render(values, name="cachelet", namespace="cache-system")


def objects(values):
    """Every object of a render."""
    found = []
    for path, text in sorted(render(values).items()):
        if path.endswith(".txt"):
            continue
        for document in re.split(r"^---$", text, flags=re.MULTILINE):
            parsed = values_from_yaml(document)
            if parsed:
                found.append(parsed)
    return found


def pods(values):
    """The pod specification of everything that has one."""
    for one in objects(values):
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]
        elif "template" in one.get("spec", {}):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def of_kind(values, kind, name=""):
    return [one for one in objects(values) if one["kind"] == kind and name in one["metadata"]["name"]]


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict) and value and not documented_whole(path + (key,)):
            yield from leaves(value, path + (key,))
        else:
            yield path + (key,), value


def documented_whole(path):
    return path in documentation()


def documentation():
    """Path of a value -> the comment above it, for every value that has one."""
    found, comment, above = {}, [], []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if not line.strip():
            comment = []
        elif line.lstrip().startswith("#"):
            comment.append(line.strip("# ").strip())
        elif match := re.match(r"( *)([A-Za-z]\w*):", line):
            depth = len(match[1]) // 2
            above = above[:depth] + [match[2]]
            if comment:
                found[tuple(above)] = " ".join(comment)
            comment = []
    return found


def set_at(path, value):
    tree = value
    for key in reversed(path):
        tree = {key: tree}
    return tree


class ChartTest(unittest.TestCase):
    maxDiff = None

    def test_lint_has_nothing_to_say(self):
        for mode, values in MODES.items():
            report = lint(CHART, values, strict=True, namespace="cache-system")
            said = [message for message in report["messages"] if message["severity"] > 1]
            self.assertEqual((said, report.get("errors") or []), ([], []), mode)

    def test_each_mode_renders_what_was_agreed(self):
        for mode, values in MODES.items():
            text = "".join(
                f"# {path}\n{body.strip()}\n" for path, body in sorted(render(values).items()) if body.strip()
            )
            golden = GOLDEN / f"{mode}.yaml"
            if UPDATE:
                golden.write_text(text)
            self.assertEqual(text, golden.read_text(), f"{golden}: UPDATE_DOCS=1 writes it anew")

    def test_what_cannot_work_is_refused_by_name(self):
        for values, words in [
            ({}, ["no store is configured", "region"]),
            (SMALL | {"mode": "admin"}, ["mode", "hostPath", "claims"]),
            (SMALL | {"mdoe": "claims"}, ["mdoe"]),
            (SMALL | {"user": 0}, ["user", "1"]),
            (SMALL | {"cache": {"quota": "lots"}}, ["quota"]),
            (SMALL | {"hostPath": {"cache": "var/lib"}}, ["hostPath/cache"]),
            (SMALL | {"stores": [{"name": "lake"}]}, ["stores/0", "kind"]),
            (SMALL | {"stores": [STORE | {"regoin": "x"}]}, ["stores/0", "regoin"]),
            (SMALL | {"stores": [STORE, STORE]}, ["two stores are named", "lake"]),
            (SMALL | {"daemon": {"config": {"fil": {}}}}, ["daemon/config", "fil"]),
            (SMALL | {"daemon": {"maxSurge": 1}}, ["maxSurge", "maxUnavailable: 0"]),
            (SMALL | {"daemon": {"maxUnavailable": 0}}, ["maxUnavailable", "maxSurge"]),
            (SMALL | {"claims": {"create": True}}, ["claims.create", "mode: claims"]),
            (SMALL | {"image": {"digest": "latest"}}, ["digest"]),
            (SMALL | {"test": {"object": "/lake/x"}}, ["test/object"]),
        ]:
            with self.assertRaises(HelmError) as refused:
                render(values)
            for word in words:
                self.assertIn(word, str(refused.exception), f"refusal of {values}")

    def test_daemon_and_service_accept_their_rendered_configuration(self):
        for mode, values in MODES.items():
            data = of_kind(values, "ConfigMap")[0]["data"]
            for program, key in [("cacheletd", "cacheletd.toml"), ("cachelet-locality", "locality.toml")]:
                with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                    file.write(data[key])
                    file.flush()
                    command = [BINARIES / program, "--config", file.name, "--check-config"]
                    checked = subprocess.run(command, capture_output=True, text=True, check=False)
                    self.assertEqual(checked.returncode, 0, f"{mode}: {checked.stderr}\n{data[key]}")

    def test_without_prepared_directories_every_pod_is_restricted_but_for_its_volumes(self):
        for mode, values in MODES.items():
            for name, pod in pods(values | {"prepareDirectories": False}):
                where = f"{mode}: {name}"
                for banned in ("hostNetwork", "hostPID", "hostIPC"):
                    self.assertNotIn(banned, pod, where)
                self.assertIs(pod["automountServiceAccountToken"], False, where)
                self.assertIs(pod["securityContext"]["runAsNonRoot"], True, where)
                self.assertEqual(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", where)
                for container in pod["containers"] + pod.get("initContainers", []):
                    expected = {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    }
                    self.assertEqual(container["securityContext"], expected, where)

    def test_claims_mode_has_no_hostpath_in_any_pod(self):
        for name, pod in pods(MODES["claims"]):
            for volume in pod["volumes"]:
                self.assertNotIn("hostPath", volume, name)

    def test_the_cache_is_mounted_twice_and_the_second_time_read_only(self):
        for mode, values in MODES.items():
            pod = of_kind(values, "DaemonSet")[0]["spec"]["template"]["spec"]
            mounts = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "cache"]
            self.assertEqual([mount.get("readOnly", False) for mount in mounts], [False, True], mode)

    def test_a_pod_may_take_as_long_to_stop_as_the_daemon_does(self):
        for drain in (1, 20, 600):
            values = SMALL | {"daemon": {"drainSeconds": drain}}
            pod = of_kind(values, "DaemonSet")[0]["spec"]["template"]["spec"]
            # Requests, then connections, each as long; then pages are written to disk.
            self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], 2 * drain + 10)

    def test_no_object_grants_a_role_but_the_uninstallation_one_to_watch_itself(self):
        for mode, values in MODES.items():
            granting = [one for one in objects(values) if "Role" in one["kind"]]
            hooks = {one["metadata"].get("annotations", {}).get("helm.sh/hook") for one in granting}
            self.assertEqual(hooks, {"post-delete"} if values.get("wipeOnUninstall") else set(), mode)
            for one in granting:
                self.assertIn(one["kind"], ("Role", "RoleBinding"), mode)
                daemonset = of_kind(values, "DaemonSet", "-wipe")[0]["metadata"]["name"]
                rule = {
                    "apiGroups": ["apps"],
                    "resources": ["daemonsets"],
                    "resourceNames": [daemonset],
                    "verbs": ["get"],
                }
                self.assertEqual(one.get("rules", [rule]), [rule], mode)

    def test_a_wipe_is_a_matter_of_the_uninstallation_alone_and_leaves_nothing_behind(self):
        for mode, values in MODES.items():
            parts = [one for one in objects(values) if "-wipe" in one["metadata"]["name"]]
            self.assertEqual(bool(parts), bool(values.get("wipeOnUninstall")), mode)
            weights = {}
            for one in parts:
                notes, where = one["metadata"]["annotations"], f"{mode}: {one['kind']} {one['metadata']['name']}"
                self.assertEqual(notes["helm.sh/hook"], "post-delete", where)
                policies = set(notes["helm.sh/hook-delete-policy"].split(","))
                self.assertEqual(policies, {"before-hook-creation", "hook-succeeded", "hook-failed"}, where)
                weights[one["kind"]] = int(notes["helm.sh/hook-weight"])
            if parts:
                self.assertEqual(max(weights, key=weights.get), "Job", mode)
                self.assertEqual(sorted(weights, key=weights.get)[-2], "DaemonSet", mode)

    def test_a_wipe_goes_where_daemons_were_and_mounts_what_they_had(self):
        for mode, values in MODES.items():
            if not values.get("wipeOnUninstall"):
                continue
            daemons, wipes = (
                one["spec"]["template"]["spec"]
                for one in sorted(of_kind(values, "DaemonSet"), key=lambda one: "-wipe" in one["metadata"]["name"])
            )
            for key in ("affinity", "nodeSelector", "tolerations"):
                self.assertEqual(daemons.get(key), wipes.get(key), mode)
            self.assertNotIn("--wipe-directories", json.dumps(daemons), mode)
            volumes = {
                one["metadata"]["name"]: one["spec"]["hostPath"]["path"] for one in of_kind(values, "PersistentVolume")
            }
            claims = {
                (one["metadata"]["namespace"], one["metadata"]["name"]): volumes[one["spec"]["volumeName"]]
                for one in of_kind(values, "PersistentVolumeClaim")
            }

            def path(pod, name):
                volume = next(one for one in pod["volumes"] if one["name"] == name)
                if "hostPath" in volume:
                    return volume["hostPath"]["path"]
                return claims["cache-system", volume["persistentVolumeClaim"]["claimName"]]

            for name in ("cache", "socket"):
                self.assertEqual(path(daemons, name), path(wipes, name), mode)
            released = {one["metadata"]["name"] for one in of_kind(values, "PersistentVolumeClaim")}
            kept = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in wipes["volumes"]} - {None}
            self.assertTrue(
                kept <= {one for one in released if "-wipe-" in one}, "the release's claims are gone by then"
            )

    def test_one_value_moves_every_image_to_another_registry(self):
        for _, pod in pods(SMALL | {"image": {"registry": "mirror.local"}}):
            for container in pod["containers"] + pod.get("initContainers", []):
                self.assertTrue(container["image"].startswith("mirror.local/"), container["image"])

    def test_a_changed_setting_replaces_the_pods_and_a_new_chart_version_alone_does_not(self):
        def template(values):
            return of_kind(values, "DaemonSet")[0]["spec"]["template"]

        changed = SMALL | {"cache": {"quota": "200GiB"}}
        self.assertNotEqual(template(SMALL)["metadata"], template(changed)["metadata"])
        self.assertNotIn("helm.sh/chart", template(SMALL)["metadata"]["labels"])

    def test_virtual_nodes_get_no_daemon(self):
        pod = of_kind(SMALL, "DaemonSet")[0]["spec"]["template"]["spec"]
        required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        expected = {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}
        self.assertIn(expected, required["nodeSelectorTerms"][0]["matchExpressions"])

    def test_the_notes_name_this_releases_spark_settings(self):
        notes = {mode: render(values)["cachelet/templates/NOTES.txt"] for mode, values in MODES.items()}
        for text in notes.values():
            for word in (
                "io.cachelet.hadoop.CacheletS3AFileSystem",
                "io.cachelet.spark.CacheletPlugin",
                "io.cachelet.spark.CacheletFeatureStep",
            ):
                self.assertIn(word, text)
        self.assertRegex(notes["hostpath"], r"spark\.cachelet\.socket\.hostPath +/var/run/cachelet\n")
        self.assertRegex(notes["claims"], r"spark\.cachelet\.socket\.claim +cachelet-socket\n")
        self.assertIn("CacheletOSSFileSystem", notes["everything"])

    def test_every_value_is_documented_and_every_documented_value_exists(self):
        defaults = values_from_yaml((CHART / "values.yaml").read_text())
        documented = documentation()
        paths = {path for path, _ in leaves(defaults)}
        self.assertEqual(sorted(paths - documented.keys()), [], "values without a comment")
        groups = {path[:depth] for path in paths for depth in range(1, len(path))}
        self.assertEqual(sorted(documented.keys() - paths - groups), [], "comments without a value")

    def test_every_value_changes_what_is_rendered(self):
        others = {
            ("nameOverride",): "other",
            ("mode",): "claims",
            ("image", "digest"): "sha256:" + "0" * 64,
            ("claims", "volumeKind"): "local",
            ("claims", "nodeLabel"): "disk=nvme",
            ("claims", "clientNamespaces"): ["other"],
            ("stores",): [STORE | {"region": "us-east-1"}],
            ("credentials", "irsaRoleArn"): "arn:aws:iam::1:role/x",
            ("cache", "quota"): "7GiB",
            ("daemon", "config"): {"fill": {"timeout": "9s"}},
            ("daemon", "maxUnavailable"): "50%",
            ("daemon", "tolerations"): [{"operator": "Exists"}],
            ("daemon", "extraEnv"): [{"name": "A", "value": "b"}],
            ("daemon", "excludedNodes"): {"virtual": ["yes"]},
            ("locality", "tolerations"): [{"operator": "Exists"}],
            ("locality", "antiAffinity"): "required",
            ("networkPolicy", "clientNamespaces"): {"matchLabels": {"a": "b"}},
            ("networkPolicy", "monitoringNamespaces"): {"matchLabels": {"a": "b"}},
            ("podMonitor", "interval"): "7s",
            ("test", "object"): "s3a://lake/x",
            ("image", "pullPolicy"): "Always",
            ("image", "pullSecrets"): ["pull"],
        }
        # Values that count only beside others.
        beside = {
            "claims": {"mode": "claims", "claims": {"create": True}},
            "podMonitor": {"podMonitor": {"enabled": True}},
        }
        defaults = values_from_yaml((CHART / "values.yaml").read_text())
        for path, default in leaves(defaults):
            base = merged(SMALL, beside.get(path[0], {}))
            if path in others:
                other = others[path]
            elif isinstance(default, bool):
                other = not default if path != ("claims", "create") else False
            elif isinstance(default, int):
                other = default + 1
            elif isinstance(default, dict):
                other = {"requests": {"cpu": "1"}} if path[-1] == "resources" else {"key": "value"}
            else:
                other = "/other" if str(default).startswith("/") else "other"
            if path == ("podMonitor", "enabled"):
                base = SMALL
            if path[-1] == "nodeLabel":
                base = merged(base, {"claims": {"volumeKind": "local"}})
            if path[-1] == "maxSurge":
                base = merged(base, {"daemon": {"maxUnavailable": 0, "maxSurge": 1}})
                other = 2
            changed = render(base) != render(merged(base, set_at(path, other)))
            self.assertTrue(changed, f"{'.'.join(path)} = {other} changes nothing")

    def test_the_docs_table_is_made_from_the_values(self):
        defaults = values_from_yaml((CHART / "values.yaml").read_text())
        documented = documentation()
        rows = []
        for path, value in leaves(defaults):
            shown = json.dumps(value) if not isinstance(value, str) or not value else value
            rows.append(f"| `{'.'.join(path)}` | `{shown}` | {documented.get(path, '')} |")
        text = (
            "# Values of the Helm chart\n\nMade from `charts/cachelet/values.yaml`. How they go together: "
            "[kubernetes.md](kubernetes.md).\n\n| value | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )
        file = ROOT / "docs/helm-values.md"
        if UPDATE:
            file.write_text(text)
        self.assertEqual(text, file.read_text(), "UPDATE_DOCS=1 writes it anew")

    def test_a_store_takes_every_key_that_the_daemon_documents(self):
        text = (ROOT / "docs/configuration.md").read_text()
        table = text.split("<!-- generated: store -->")[1].split("<!-- end -->")[0]
        documented = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
        schema = json.loads((CHART / "values.schema.json").read_text())
        offered = set(schema["properties"]["stores"]["items"]["properties"])
        self.assertEqual(offered - {"secret", "session_token"}, documented)


def merged(base, more):
    result = dict(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


if __name__ == "__main__":
    unittest.main()
