package io.cachelet.spark;

import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.SparkPlugin;

/**
 * Cachelet's plug-in: {@code spark.plugins=io.cachelet.spark.CacheletPlugin}.
 *
 * <p>Makes {@code s3a://} and {@code oss://} read through Cachelet, gives tasks the hosts of executors that are near
 * their data, and says what each SQL execution read and from where. One class for Spark 3.5 and 4: it touches no Scala
 * collection, whose types differ between the two.
 */
public final class CacheletPlugin implements SparkPlugin {
    /** For Spark. */
    public CacheletPlugin() {}

    @Override
    public DriverPlugin driverPlugin() {
        return new DriverSide();
    }

    @Override
    public ExecutorPlugin executorPlugin() {
        return new ExecutorSide();
    }
}
