package io.cachelet.spark;

import com.codahale.metrics.Gauge;
import io.cachelet.locality.BlockLocator;
import io.cachelet.locality.ExecutorDirectory;
import io.cachelet.locality.Placement;
import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.Collection;
import java.util.Collections;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkContext;
import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.PluginContext;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The plug-in in the driver: keeps the directory of executors by what they say and by what the scheduler says, and sums
 * up what each SQL execution read. Whatever fails here costs locality or figures, never the application.
 */
final class DriverSide implements DriverPlugin {
    static final String SUMMARY_FILE = "spark.cachelet.summary.file";
    static final String SERVICE = "spark.hadoop.fs.cachelet.service";

    /** Summaries, and what else goes wrong, are logged by the package's name. */
    private static final Logger LOG = LoggerFactory.getLogger("io.cachelet.spark");

    private final ByteLedger ledger = new ByteLedger();
    private final Set<String> warnedBuckets = new HashSet<>();
    /** Buckets that executors read past Cachelet. */
    private final Set<String> executorsStockBuckets = Collections.synchronizedSet(new HashSet<>());

    private ScheduledThreadPoolExecutor timer;
    private Executions executions;
    private Reporter reporter;
    private String summaryFile = "";
    private volatile String applicationId = "";

    @Override
    public Map<String, String> init(SparkContext spark, PluginContext context) {
        try {
            SparkConf conf = spark.conf();
            ExecutorDirectory directory = ExecutorDirectory.get();
            directory.clear();
            directory.activate();
            directory.configuredServiceAddress(conf.get(SERVICE, ""));
            ApplicationSettings.apply(conf, spark.hadoopConfiguration());

            summaryFile = conf.get(SUMMARY_FILE, "");
            timer = new ScheduledThreadPoolExecutor(1, work -> {
                Thread thread = new Thread(work, "cachelet-summaries");
                thread.setDaemon(true);
                thread.setContextClassLoader(DriverSide.class.getClassLoader());
                return thread;
            });
            executions = new Executions(ledger, timer, this::write, System.currentTimeMillis());
            spark.addSparkListener(new ApplicationListener(this, ledger, executions));
            reportOwnReads(spark);
            PlacementPaths.start(conf, spark.hadoopConfiguration());
        } catch (RuntimeException | LinkageError e) {
            LOG.warn(
                    "cachelet is not set up in this driver: tasks get no locality from it, and there are no summaries",
                    e);
        }
        return Collections.emptyMap();
    }

    /** What the driver itself reads, such as footers. In local mode its only executor reports it. */
    private void reportOwnReads(SparkContext spark) {
        JvmReads reads = JvmReads.of(spark.hadoopConfiguration());
        if (spark.isLocal()) {
            return;
        }
        reporter = new Reporter(reads, new Reporter.Driver() {
            @Override
            public boolean register() throws Exception {
                // A driver on a node with a daemon learns from it where the service is, before any executor is there.
                if (reads.client() != null) {
                    ExecutorDirectory.get().serviceAddress(reads.client().connect().serviceAddress);
                }
                return true;
            }

            @Override
            public void report(long tasks, Counters counters) {
                ledger.reported("driver", tasks, counters);
            }
        });
        reporter.start();
    }

    @Override
    public void registerMetrics(String id, PluginContext context) {
        applicationId = id;
        try {
            ReadGauges.register(context.metricRegistry(), ledger::total);
            ExecutorDirectory directory = ExecutorDirectory.get();
            context.metricRegistry().register("executors.registered", (Gauge<Integer>) directory::size);
            context.metricRegistry().register("executors.nodes", (Gauge<Integer>)
                    () -> directory.nodes().size());
        } catch (RuntimeException | LinkageError e) {
            LOG.warn("there are no metrics of cachelet in this driver", e);
        }
    }

    @Override
    public Object receive(Object message) {
        if (!(message instanceof Map)) {
            return null;
        }
        Map<?, ?> map = (Map<?, ?>) message;
        String executor = Messages.text(map, Messages.EXECUTOR);
        switch (Messages.text(map, Messages.KIND)) {
            case Messages.REGISTRATION:
                registered(executor, map);
                return Boolean.TRUE;
            case Messages.REPORT:
                ledger.reported(
                        executor,
                        Messages.number(map, Messages.TASKS),
                        Counters.fromMessage(map.get(Messages.COUNTERS)));
                Object stock = map.get(Messages.STOCK_BUCKETS);
                if (stock instanceof Collection) {
                    ((Collection<?>) stock).forEach(bucket -> executorsStockBuckets.add(String.valueOf(bucket)));
                }
                break;
            default:
                LOG.debug("an executor sent what this version does not know: {}", map.get(Messages.KIND));
        }
        // Nobody waits for an answer to a report.
        return null;
    }

    private void registered(String executor, Map<?, ?> message) {
        String host = Messages.text(message, Messages.HOST);
        String node = Messages.text(message, Messages.NODE);
        ExecutorDirectory directory = ExecutorDirectory.get();
        directory.serviceAddress(Messages.text(message, Messages.SERVICE));
        directory.added(executor, host, node);
        LOG.info(
                "cachelet: executor {} ({}) reads through worker {} (version {}) on node {}",
                executor,
                host,
                Messages.text(message, Messages.WORKER),
                Messages.text(message, Messages.VERSION),
                node.isEmpty() ? "unknown" : node);
    }

    /** Something may have been read by the driver. */
    void changed() {
        if (reporter != null) {
            reporter.changed(true);
        }
    }

    /**
     * Warns of buckets that a query reads past Cachelet.
     *
     * @param plan the query's plan, as text: it names what is read
     */
    void warnOfStockFileSystems(String plan) {
        if (plan == null) {
            return;
        }
        for (String bucket : StockFileSystems.buckets()) {
            warnOfStockFileSystem(plan, bucket, "lists", "its tasks get no locality");
        }
        synchronized (executorsStockBuckets) {
            for (String bucket : executorsStockBuckets) {
                warnOfStockFileSystem(plan, bucket, "reads in executors", "nothing of it is cached");
            }
        }
    }

    private void warnOfStockFileSystem(String plan, String bucket, String does, String consequence) {
        if (plan.contains(bucket + "/") && warnedBuckets.add(bucket + " " + does)) {
            LOG.warn(
                    "cachelet: Spark {} {} past cachelet, so that {}: Hadoop made this bucket's file system before cachelet's"
                            + " settings were there, to fetch the application's main file or jars. Put cachelet-spark.jar into"
                            + " Spark's jars/ and set spark.hadoop.fs.{}.impl, or keep main file and jars in another bucket.",
                    does,
                    bucket,
                    consequence,
                    bucket.substring(0, bucket.indexOf(':')));
        }
    }

    /** The application has ended, or the listener bus says so; whichever comes first. */
    void close() {
        if (executions != null) {
            changed();
            executions.close(System.currentTimeMillis());
        }
        ExecutorDirectory.get().clear();
        BlockLocator.get().clear();
        Placement.get().clear();
    }

    @Override
    public void shutdown() {
        try {
            close();
            if (reporter != null) {
                reporter.stop();
            }
            if (timer != null) {
                timer.shutdown();
            }
        } catch (RuntimeException | LinkageError e) {
            LOG.warn("cachelet did not shut down in order", e);
        }
    }

    private synchronized void write(ExecutionSummary summary) {
        LOG.info("cachelet: {}", summary.toLine());
        if (summaryFile.isEmpty()) {
            return;
        }
        try (BufferedWriter file = Files.newBufferedWriter(
                Paths.get(summaryFile), StandardCharsets.UTF_8, StandardOpenOption.CREATE, StandardOpenOption.APPEND)) {
            file.write(summary.toJson(applicationId) + "\n");
        } catch (IOException | RuntimeException e) {
            LOG.warn("cannot append to {} ({}): summaries are in this log only", SUMMARY_FILE, summaryFile, e);
            summaryFile = "";
        }
    }
}
