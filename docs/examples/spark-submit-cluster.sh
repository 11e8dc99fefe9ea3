#!/usr/bin/env bash
# Cluster mode: the driver is a pod, too. Only the three settings with `cachelet` in them are Cachelet's.
#
# The image holds cachelet-spark-0.1.0.jar beside hadoop-aws in Spark's jars/. `fs.s3a.impl` is set because the program itself
# lies in the bucket, and is fetched before there is a plug-in. The last setting tells a driver without a daemon's socket
# where the locality service is: release `cachelet` in namespace `cachelet`.
# In claims mode: --conf spark.cachelet.socket.claim=cachelet-socket
set -euo pipefail

spark-submit \
    --master k8s://https://kubernetes.example.com:6443 \
    --deploy-mode cluster \
    --name report \
    --conf spark.kubernetes.namespace=spark \
    --conf spark.kubernetes.authenticate.driver.serviceAccountName=spark \
    --conf spark.kubernetes.container.image=registry.example.com/spark-cachelet:3.5 \
    --conf spark.kubernetes.driver.secretKeyRef.AWS_ACCESS_KEY_ID=lake-keys:AWS_ACCESS_KEY_ID \
    --conf spark.kubernetes.driver.secretKeyRef.AWS_SECRET_ACCESS_KEY=lake-keys:AWS_SECRET_ACCESS_KEY \
    --conf spark.kubernetes.executor.secretKeyRef.AWS_ACCESS_KEY_ID=lake-keys:AWS_ACCESS_KEY_ID \
    --conf spark.kubernetes.executor.secretKeyRef.AWS_SECRET_ACCESS_KEY=lake-keys:AWS_SECRET_ACCESS_KEY \
    --conf spark.executor.instances=4 \
    --conf spark.plugins=io.cachelet.spark.CacheletPlugin \
    --conf spark.hadoop.fs.s3a.impl=io.cachelet.hadoop.CacheletS3AFileSystem \
    --conf spark.hadoop.fs.cachelet.service=cachelet-locality.cachelet.svc:7070 \
    s3a://lake/programs/report.py
