package io.cachelet.spark;

import java.util.Arrays;
import org.apache.hadoop.conf.Configuration;
import org.apache.spark.SparkConf;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * What the plug-in sets where the user has not: before the scheduler exists and before executors ask for their
 * settings, so that one setting turns everything on. Nothing that the user has set is changed.
 */
final class ApplicationSettings {
    static final String LOCALITY_WAIT = "spark.locality.wait";
    static final String LOCALITY_WAIT_NODE = "spark.locality.wait.node";
    static final String FEATURE_STEPS = "spark.kubernetes.executor.pod.featureSteps";
    static final String FEATURE_STEP_ENABLED = "spark.cachelet.featureStep.enabled";

    private static final Logger LOG = LoggerFactory.getLogger(ApplicationSettings.class);

    private static final String S3A_STOCK = "org.apache.hadoop.fs.s3a.S3AFileSystem";
    private static final String S3A_OURS = "io.cachelet.hadoop.CacheletS3AFileSystem";
    private static final String OSS_STOCK = "org.apache.hadoop.fs.aliyun.oss.AliyunOSSFileSystem";
    private static final String OSS_OURS = "io.cachelet.hadoop.CacheletOSSFileSystem";

    private ApplicationSettings() {}

    static void apply(SparkConf spark, Configuration hadoop) {
        // Tasks are short beside the default of 3 s: waiting that long for a busy node costs more than a read over the
        // network saves.
        if (!spark.contains(LOCALITY_WAIT) && !spark.contains(LOCALITY_WAIT_NODE)) {
            spark.set(LOCALITY_WAIT_NODE, "500ms");
        }
        if (hadoop.getBoolean("fs.cachelet.enabled", true)) {
            fileSystem(spark, hadoop, "fs.s3a.impl", S3A_STOCK, S3A_OURS);
            fileSystem(spark, hadoop, "fs.oss.impl", OSS_STOCK, OSS_OURS);
        }
        if (onKubernetes(spark) && spark.getBoolean(FEATURE_STEP_ENABLED, true)) {
            String step = CacheletFeatureStep.class.getName();
            String steps = spark.get(FEATURE_STEPS, "");
            if (Arrays.stream(steps.split(",")).noneMatch(named -> named.trim().equals(step))) {
                spark.set(FEATURE_STEPS, steps.trim().isEmpty() ? step : steps + "," + step);
            }
        }
    }

    static boolean onKubernetes(SparkConf spark) {
        return spark.get("spark.master", "").startsWith("k8s://");
    }

    private static void fileSystem(SparkConf spark, Configuration hadoop, String key, String stock, String ours) {
        if (isSet(hadoop, key) || !isLoadable(stock) || !isLoadable(ours)) {
            return;
        }
        // For this driver's file systems, and for those of executors, which begin with the driver's SparkConf.
        hadoop.set(key, ours, CacheletPlugin.class.getName());
        spark.set("spark.hadoop." + key, ours);
        LOG.info("{} is {}, because it was not set", key, ours);
    }

    /** Whether somebody has set it; Hadoop's own default does not count. */
    private static boolean isSet(Configuration hadoop, String key) {
        String[] sources = hadoop.get(key) == null ? null : hadoop.getPropertySources(key);
        return sources != null && !(sources.length > 0 && sources[sources.length - 1].endsWith("core-default.xml"));
    }

    private static boolean isLoadable(String name) {
        try {
            Class.forName(name, false, Thread.currentThread().getContextClassLoader());
            return true;
        } catch (ClassNotFoundException | LinkageError e) {
            return false;
        }
    }
}
