#!/usr/bin/env bash
# Client mode, from a pod of the cluster (a notebook, a scheduler's worker): the driver is this process. Executors must reach it,
# so its pod's address is given; outside of a pod, give an address that they can connect to.
#
# The jar and hadoop-aws are in jars/ of the Spark that runs here, and of the executors' image. $POD_IP and $POD_NAME come from
# the downward API. With the socket mounted in this pod (see pod-template-driver.yaml) the driver reads through Cachelet as well,
# and fs.cachelet.service is not needed.
set -euo pipefail

spark-submit \
    --master k8s://https://kubernetes.default.svc \
    --deploy-mode client \
    --name notebook \
    --conf spark.driver.host="$POD_IP" \
    --conf spark.kubernetes.driver.pod.name="$POD_NAME" \
    --conf spark.kubernetes.namespace=spark \
    --conf spark.kubernetes.container.image=registry.example.com/spark-cachelet:3.5 \
    --conf spark.kubernetes.executor.secretKeyRef.AWS_ACCESS_KEY_ID=lake-keys:AWS_ACCESS_KEY_ID \
    --conf spark.kubernetes.executor.secretKeyRef.AWS_SECRET_ACCESS_KEY=lake-keys:AWS_SECRET_ACCESS_KEY \
    --conf spark.executor.instances=4 \
    --conf spark.plugins=io.cachelet.spark.CacheletPlugin \
    --conf spark.hadoop.fs.cachelet.service=cachelet-locality.cachelet.svc:7070 \
    report.py
