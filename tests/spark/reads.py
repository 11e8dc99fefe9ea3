"""Reads tables step by step in one Spark application, and tells what it read and where Spark wanted to read it.

    reads.py --steps <file.json> --out <file.json>

In place of a file, --steps takes the JSON itself, and --out - writes one line to standard output.

A step: {"name", "format": "parquet|orc|csv|json|text|rdd|table", "path", "options": {}, "wait_for": <file>, "executors": <n>}.
Its jobs carry its name as their group in the event log. The result, by step: {"rows", "hash" (of all columns of all
rows, in no order), "seconds", "preferred_hosts": [hosts of each partition], "files"}.

`rdd` reads lines through SparkContext.textFile (HadoopRDD). With `wait_for` the step begins when that file is there,
and a file <out>.<name>.waiting says that it waits; then, with `executors`, when so many are registered. Steps with the
same `table` share one relation, which is listed once.

The path of a `table` is its name in a catalog. A step {"name", "sql": [statements]} runs these.

`settings` of a step are set before it, and stay. With {"write": "parquet|...", "rows": <n>, "files": <n>, "path": <uri>,
"partition_by": [columns]} a step writes generated rows instead, in so many files (one a partition directory).
"""

import argparse
import json
import os
import pathlib
import time

from pyspark.sql import SparkSession
from pyspark.sql import functions as f

relations = {}

# A step that waits longer has been forgotten.
PATIENCE_SECONDS = 120
PLUG_IN_SECONDS = 10


def wait_until(what, condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS} s in vain until {what}")
        time.sleep(0.02)


def executors(spark):
    # The driver is in the map too.
    return spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size() - 1


def await_plug_in(spark):
    """Waits until Cachelet's plug-in, if there is one, knows the executors that were asked for: what is planned before
    goes by those that are quickest. Not for long, because an executor without a daemon never tells its node."""
    if "io.cachelet" not in spark.conf.get("spark.plugins", ""):
        return
    directory = spark._jvm.io.cachelet.locality.ExecutorDirectory.get()
    deadline = time.monotonic() + PLUG_IN_SECONDS
    while directory.size() < executors(spark) and time.monotonic() < deadline:
        time.sleep(0.02)


def preferred_hosts(rdd):
    """The hosts that Spark's scheduler is told for each partition of what an RDD reads."""
    while rdd.dependencies().size() > 0:
        rdd = rdd.dependencies().apply(0).rdd()
    hosts = []
    for partition in rdd.partitions():
        preferred = rdd.preferredLocations(partition)
        hosts.append([preferred.apply(i) for i in range(preferred.size())])
    return hosts


def relation(spark, step):
    """The table of a step; with a name ("table") it is listed once for all steps that say so."""
    name = step.get("table")
    if step["format"] == "table":
        return spark.table(step["path"])
    if name is None or name not in relations:
        loaded = spark.read.format(step["format"]).options(**step.get("options", {})).load(step["path"])
        if name is None:
            return loaded
        relations[name] = loaded
    return relations[name]


def read(spark, step):
    if step["format"] == "rdd":
        # In the JVM alone: Python's workers are not what is looked at.
        lines = spark.sparkContext.textFile(step["path"])._jrdd
        # Before anything is read: reading makes copies.
        hosts, files = preferred_hosts(lines.rdd()), 0
        started = time.monotonic()
        rows, digest = lines.count(), None
    else:
        table = relation(spark, step)
        hosts, files = preferred_hosts(table._jdf.queryExecution().toRdd()), len(table.inputFiles())
        columns = [f.col(name) for name in table.columns]
        hashed = table.select(f.xxhash64(*columns).alias("h"))
        started = time.monotonic()
        row = hashed.agg(f.count("h"), f.sum(f.col("h").cast("decimal(38,0)"))).collect()[0]
        rows, digest = row[0], str(row[1])
    seconds = time.monotonic() - started
    return {"rows": rows, "hash": digest, "seconds": seconds, "preferred_hosts": hosts, "files": files}


def write(spark, step):
    rows = spark.range(0, step["rows"], 1, step["files"]).selectExpr(
        "id", "pmod(id, 40) as part", "md5(cast(id as string)) as text", "id * 0.5 as amount"
    )
    if "partition_by" in step:
        rows = rows.repartition(step["files"], *step["partition_by"])
    writer = rows.write.mode("overwrite")
    if "partition_by" in step:
        writer = writer.partitionBy(*step["partition_by"])
    writer.format(step["write"]).save(step["path"])
    return {}


def run(spark, step, out):
    if "wait_for" in step:
        pathlib.Path(f"{out}.{step['name']}.waiting").touch()
        wait_until(f"{step['wait_for']} is there", lambda: os.path.exists(step["wait_for"]))
    if "executors" in step:
        wait_until(f"{step['executors']} executors are registered", lambda: executors(spark) == step["executors"])
    spark.sparkContext.setJobGroup(step["name"], step["name"])
    for key, value in step.get("settings", {}).items():
        spark.conf.set(key, value)
    if "sql" in step:
        for statement in step["sql"]:
            spark.sql(statement)
        return {}
    return write(spark, step) if "write" in step else read(spark, step)


def tell(results, out):
    if out == "-":
        print(json.dumps(results), flush=True)
        return
    # Who waits for the file finds all of it.
    partial = pathlib.Path(f"{out}.partial")
    partial.write_text(json.dumps(results, indent=2), encoding="utf-8")
    os.replace(partial, out)


def main():
    parser = argparse.ArgumentParser(description="Reads tables step by step")
    parser.add_argument("--steps", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    given = arguments.steps
    steps = json.loads(given if given.startswith("[") else pathlib.Path(given).read_text(encoding="utf-8"))
    spark = SparkSession.builder.getOrCreate()
    try:
        await_plug_in(spark)
        results = {step["name"]: run(spark, step, arguments.out) for step in steps}
        tell(results, arguments.out)
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
