package io.cachelet.spark;

import io.cachelet.client.CacheletException;
import io.cachelet.client.WorkerInfo;
import io.cachelet.hadoop.TaskScope;
import java.util.ArrayList;
import java.util.Map;
import org.apache.spark.SparkEnv;
import org.apache.spark.TaskFailedReason;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.PluginContext;
import org.apache.spark.deploy.SparkHadoopUtil;
import org.apache.spark.storage.BlockManagerId;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The plug-in in an executor: connects to the node's daemon, tells the driver on which node the executor is, and then
 * what it reads. Whatever fails here costs locality or figures, never a task.
 */
final class ExecutorSide implements ExecutorPlugin {
    private static final Logger LOG = LoggerFactory.getLogger(ExecutorSide.class);

    /**
     * Spark offers no task before {@link #init} returns, so that a registration that arrives until then counts for the
     * first task. A daemon that answers does so in a few milliseconds.
     */
    private static final long REGISTRATION_MILLIS = 300;

    private PluginContext context;
    private Reporter reporter;
    private JvmReads reads;
    private boolean saidWhyNot;

    @Override
    public void init(PluginContext pluginContext, Map<String, String> extraConf) {
        try {
            context = pluginContext;
            reads = JvmReads.of(SparkHadoopUtil.get().newConfiguration(context.conf()));
            ReadGauges.register(context.metricRegistry(), reads::now);
            reporter = new Reporter(reads, new ToDriver());
            reporter.start();
            if (host() != null && reads.client() != null) {
                reporter.awaitRegistration(REGISTRATION_MILLIS);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        } catch (RuntimeException | LinkageError e) {
            LOG.warn("this executor tells the driver neither its node nor what it reads", e);
            reporter = null;
        }
    }

    // Spark calls these three on the task's thread.

    @Override
    public void onTaskStart() {
        TaskScope.begin();
        if (reporter != null) {
            reporter.taskStarted();
        }
    }

    @Override
    public void onTaskSucceeded() {
        TaskScope.end();
        if (reporter != null) {
            reporter.taskEnded(true);
        }
    }

    @Override
    public void onTaskFailed(TaskFailedReason reason) {
        TaskScope.end();
        if (reporter != null) {
            reporter.taskEnded(false);
        }
    }

    @Override
    public void shutdown() {
        if (reporter != null) {
            reporter.stop();
        }
    }

    /**
     * The scheduler's own name of this executor's host; null in local mode, until its only executor is set up.
     * {@code PluginContext.hostname()} fails in executors, which have no RPC address.
     */
    private static String host() {
        BlockManagerId id = SparkEnv.get().blockManager().blockManagerId();
        return id == null ? null : id.host();
    }

    private final class ToDriver implements Reporter.Driver {
        @Override
        public boolean register() throws Exception {
            String host = host();
            if (host == null) {
                return false;
            }
            if (reads.client() == null) {
                // The file systems have said why. Nothing will change that.
                return true;
            }
            WorkerInfo worker;
            try {
                worker = reads.client().connect();
            } catch (CacheletException e) {
                if (!saidWhyNot) {
                    saidWhyNot = true;
                    LOG.info(
                            "no cachelet daemon answers yet, reads go to the origin; trying again: {}", e.getMessage());
                }
                return false;
            }
            context.ask(Messages.registration(context.executorID(), host, realNode(worker.node), worker));
            LOG.info("reads through {}", worker);
            return true;
        }

        @Override
        public void report(long tasks, Counters counters) throws Exception {
            context.send(Messages.report(
                    context.executorID(), tasks, counters, new ArrayList<>(StockFileSystems.buckets())));
        }
    }

    /** The pod's own word on its node, where it is given, shows that a worker's node is not that of a virtual one. */
    private static String realNode(String node) {
        String own = System.getenv("NODE_NAME");
        return own != null && own.startsWith("virtual-kubelet") ? "" : node;
    }
}
