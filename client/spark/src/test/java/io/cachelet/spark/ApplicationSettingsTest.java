package io.cachelet.spark;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;

import org.apache.hadoop.conf.Configuration;
import org.apache.spark.SparkConf;
import org.junit.Test;

/** What the plug-in sets, and what it leaves alone. */
public class ApplicationSettingsTest {
    private static final String OURS = "io.cachelet.hadoop.CacheletS3AFileSystem";

    private final SparkConf spark = new SparkConf(false).set("spark.master", "local");
    private final Configuration hadoop = new Configuration();

    @Test
    public void whatNobodySetIsSet() {
        ApplicationSettings.apply(spark, hadoop);
        assertEquals("500ms", spark.get("spark.locality.wait.node"));
        assertEquals(OURS, hadoop.get("fs.s3a.impl"));
        assertEquals(OURS, spark.get("spark.hadoop.fs.s3a.impl"));
        assertFalse("only on Kubernetes", spark.contains("spark.kubernetes.executor.pod.featureSteps"));
    }

    @Test
    public void whatTheUserSetStays() {
        spark.set("spark.locality.wait", "1s");
        hadoop.set("fs.s3a.impl", "org.apache.hadoop.fs.s3a.S3AFileSystem");
        ApplicationSettings.apply(spark, hadoop);
        assertFalse(spark.contains("spark.locality.wait.node"));
        assertEquals("org.apache.hadoop.fs.s3a.S3AFileSystem", hadoop.get("fs.s3a.impl"));
        assertFalse(spark.contains("spark.hadoop.fs.s3a.impl"));
    }

    @Test
    public void switchedOffNoFileSystemIsReplaced() {
        hadoop.set("fs.cachelet.enabled", "false");
        ApplicationSettings.apply(spark, hadoop);
        assertEquals("org.apache.hadoop.fs.s3a.S3AFileSystem", hadoop.get("fs.s3a.impl"));
    }

    @Test
    public void onKubernetesTheFeatureStepIsAddedOnce() {
        spark.set("spark.master", "k8s://https://kubernetes.default");
        spark.set("spark.kubernetes.executor.pod.featureSteps", "x.Y");
        ApplicationSettings.apply(spark, hadoop);
        String steps = "x.Y,io.cachelet.spark.CacheletFeatureStep";
        assertEquals(steps, spark.get("spark.kubernetes.executor.pod.featureSteps"));
        ApplicationSettings.apply(spark, hadoop);
        assertEquals(steps, spark.get("spark.kubernetes.executor.pod.featureSteps"));
    }

    @Test
    public void theFeatureStepCanBeSwitchedOff() {
        spark.set("spark.master", "k8s://x").set("spark.cachelet.featureStep.enabled", "false");
        ApplicationSettings.apply(spark, hadoop);
        assertFalse(spark.contains("spark.kubernetes.executor.pod.featureSteps"));
    }
}
