"""That what docs/examples shows exists: settings, options, labels, ports. What needs an API server is in tests/k8s."""

import os
import re
import struct
import unittest
import zipfile
from functools import cache
from pathlib import Path

from helm_python import Chart, values_from_yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs/examples"
# Settings whose names Spark or Hadoop puts together from parts that are no constants.
COMPOSED = {"fs.s3a.impl", "fs.oss.impl"}


def documents(file):
    for text in re.split(r"^---$", file.read_text(), flags=re.MULTILINE):
        yield values_from_yaml(text)


def examples(*endings):
    return sorted(file for file in EXAMPLES.iterdir() if file.suffix in endings)


def properties(file):
    for line in file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            key, value = line.split(None, 1)
            yield key, value


def options(file):
    """The options and settings of a spark-submit command."""
    command = file.read_text().partition("\nspark-submit ")[2].replace("\\\n", " ")
    return re.findall(r"(?:^|\s)(--[a-z-]+)", command), re.findall(r"--conf ([^=\s]+)=(\S+)", command)


def settings():
    """File, setting and value of every Spark setting in the examples."""
    for file in examples(".conf"):
        yield from ((file.name, key, value) for key, value in properties(file))
    for file in examples(".sh"):
        yield from ((file.name, key, value) for key, value in options(file)[1])
    for file in examples(".yaml"):
        for document in documents(file):
            spec = document.get("spec", {})
            spec = spec.get("template", spec) if document.get("kind") == "ScheduledSparkApplication" else spec
            yield from ((file.name, key, value) for key, value in spec.get("sparkConf", {}).items())


@cache
def constants(path, prefix):
    """The classes of a jar whose names begin with `prefix`, as bytes: texts in them are preceded by their length."""
    with zipfile.ZipFile(path) as jar:
        names = [name for name in jar.namelist() if name.endswith(".class") and name.startswith(prefix)]
        return b"".join(jar.read(name) for name in names)


def is_constant(text, jars, prefix):
    wanted = struct.pack(">H", len(text)) + text.encode()
    return any(wanted in constants(jar, prefix) for jar in jars)


def spark_jars(*names):
    found = [path for path in Path(os.environ["SPARK_JARS"]).glob("spark-*.jar") if path.name.startswith(names)]
    assert len(found) == len(names), f"{os.environ['SPARK_JARS']} lacks one of {names}"
    return tuple(found)


def spark_knows(key):
    """A setting of Spark: a constant; two constants that Spark puts together; or one of a family such as
    spark.kubernetes.driver.label.*, whose beginning is one."""
    jars = spark_jars("spark-core", "spark-kubernetes", "spark-launcher")

    def is_one(text):
        return is_constant(text, jars, "org/apache/spark/")

    dots = [index for index, letter in enumerate(key) if letter == "."][2:]
    families = (is_one(key[: dot + 1]) for dot in dots)
    pairs = (is_one(key[:dot]) and is_one(key[dot:]) for dot in dots)
    return is_one(key) or any(families) or any(pairs)


def s3a_knows(key):
    jars = tuple(jar for jar in os.environ["S3A_JARS"].split(":") if "/hadoop-aws" in jar)
    return is_constant(key, jars, "org/apache/hadoop/fs/s3a/")


def ours():
    """The settings that the jar reads."""
    found = set()
    for module in ("hadoop", "spark"):
        for source in (ROOT / "client" / module / "src/main").rglob("*.java"):
            found |= set(re.findall(r'"(?:spark\.hadoop\.)?((?:fs|spark)\.cachelet\.[A-Za-z.]+)"', source.read_text()))
    return found


class ExamplesTest(unittest.TestCase):
    def test_every_setting_exists(self):
        known, seen = ours(), set()
        for file, key, _ in settings():
            seen.add(file)
            name = key.removeprefix("spark.hadoop.")
            where = f"{file}: {key}"
            if "cachelet" in name:
                self.assertIn(name, known, where)
            elif name != key:
                self.assertTrue(name in COMPOSED or s3a_knows(name), where)
            else:
                self.assertTrue(spark_knows(key), where)
        self.assertGreaterEqual(len(seen), 8, "examples with settings")

    def test_the_check_of_settings_refuses_what_does_not_exist(self):
        for key in (
            "spark.executor.instance",
            "spark.kubernetes.driver.labels.queue",
            "spark.kubernetes.x",
            "spark.plugin",
        ):
            self.assertFalse(spark_knows(key), key)
        for key in ("spark.executor.instances", "spark.kubernetes.driver.label.queue"):
            self.assertTrue(spark_knows(key), key)
        self.assertFalse(s3a_knows("fs.s3a.endpoints"))
        self.assertTrue(s3a_knows("fs.s3a.endpoint"))

    def test_every_class_that_a_setting_names_is_in_the_jar(self):
        named = {part for _, _, value in settings() for part in re.findall(r"io\.cachelet\.[\w.]+", str(value))}
        self.assertTrue(named)
        for name in named:
            source = f"src/main/java/{name.replace('.', '/')}.java"
            self.assertTrue(any((ROOT / "client" / part / source).exists() for part in ("hadoop", "spark")), name)

    def test_every_option_of_spark_submit_exists(self):
        for file in examples(".sh"):
            flags, _ = options(file)
            self.assertIn("--conf", flags, file.name)
            for flag in set(flags):
                jars = spark_jars("spark-launcher")
                self.assertTrue(
                    is_constant(flag, jars, "org/apache/spark/launcher/SparkSubmitOption"), f"{file.name}: {flag}"
                )

    def test_the_scrape_configuration_and_the_monitors_name_what_the_chart_has(self):
        with Chart.load(ROOT / "charts/cachelet") as chart:
            values = {"stores": [{"name": "lake", "kind": "s3", "region": "eu-central-1"}]}
            rendered = chart.render(values, name="cachelet", namespace="cachelet")
        ports, labels = {}, {}
        for name, part in [("daemonset", "daemon"), ("locality", "locality")]:
            text = rendered[f"cachelet/templates/{name}.yaml"].split("\n---\n")[0]
            template = values_from_yaml(text)["spec"]["template"]
            ports[part] = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
            labels[part] = template["metadata"]["labels"]
        for monitor in documents(EXAMPLES / "prometheus-pod-monitor.yaml"):
            wanted = monitor["spec"]["selector"]["matchLabels"]
            part = wanted["app.kubernetes.io/component"]
            self.assertEqual(wanted, {key: labels[part].get(key) for key in wanted})
            self.assertIn(monitor["spec"]["podMetricsEndpoints"][0]["port"], ports[part])
        scrape = next(documents(EXAMPLES / "prometheus-scrape.yaml"))["scrape_configs"][0]
        keep = scrape["relabel_configs"][0]
        for part, port in [("daemon", "admin"), ("locality", "http")]:
            self.assertIn(port, ports[part])
            self.assertRegex(f"{labels[part]['app.kubernetes.io/name']};{port}", f"^{keep['regex']}$")
        meta = [f"__meta_kubernetes_pod_label_{re.sub('[^a-z]', '_', key)}" for key in labels["daemon"]]
        for rule in scrape["relabel_configs"]:
            for source in rule["source_labels"]:
                if "_label_" in source:
                    self.assertIn(source, meta)

    def test_the_table_lists_every_file_once_and_says_how_it_is_checked(self):
        rows = re.findall(
            r"^\| \[(\S+)\]\((\S+)\) \| [^|]+ \|[^|]*\| ([^|]+) \|$", (EXAMPLES / "README.md").read_text(), re.M
        )
        self.assertEqual(
            sorted(name for name, _, _ in rows), sorted(file.name for file in examples(".yaml", ".sh", ".conf"))
        )
        self.assertEqual({file.suffix for file in EXAMPLES.iterdir()}, {".yaml", ".sh", ".conf", ".md"})
        with_settings = {file for file, _, _ in settings()}
        for name, link, checked in rows:
            self.assertEqual(name, link)
            objects = name.endswith(".yaml") and all("apiVersion" in one for one in documents(EXAMPLES / name))
            self.assertEqual("API server" in checked, objects, name)
            self.assertEqual("settings" in checked, name in with_settings, name)

    def test_values_to_change_are_the_same_everywhere(self):
        for file in examples(".yaml", ".sh", ".conf"):
            text = re.sub(r"^\s*#.*$", "", file.read_text(), flags=re.M)
            self.assertEqual(set(re.findall(r"(?:s3a|oss)://(\w+)", text)) - {"lake"}, set(), file.name)
            self.assertEqual(
                set(re.findall(r"[\w.]+/spark-cachelet\S*", text)) - {"registry.example.com/spark-cachelet:3.5"}, set()
            )
            self.assertTrue(file.read_text().startswith(("#!", "# ")), f"{file.name} does not say what it is for")


if __name__ == "__main__":
    unittest.main()
