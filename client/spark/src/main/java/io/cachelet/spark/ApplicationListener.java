package io.cachelet.spark;

import io.cachelet.locality.ExecutorDirectory;
import java.lang.reflect.Method;
import java.util.Properties;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerApplicationEnd;
import org.apache.spark.scheduler.SparkListenerEvent;
import org.apache.spark.scheduler.SparkListenerExecutorAdded;
import org.apache.spark.scheduler.SparkListenerExecutorRemoved;
import org.apache.spark.scheduler.SparkListenerStageSubmitted;
import org.apache.spark.scheduler.SparkListenerTaskEnd;
import org.apache.spark.scheduler.StageInfo;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import scala.collection.Iterable;
import scala.collection.Iterator;

/**
 * Follows executors, stages and SQL executions. Reads only what is the same in the classes of Spark 3.5 and 4; the SQL
 * events, whose classes belong to another module, by reflection.
 */
final class ApplicationListener extends SparkListener {
    private static final Logger LOG = LoggerFactory.getLogger(ApplicationListener.class);

    private static final String SQL_START = "org.apache.spark.sql.execution.ui.SparkListenerSQLExecutionStart";
    private static final String SQL_END = "org.apache.spark.sql.execution.ui.SparkListenerSQLExecutionEnd";
    private static final String EXECUTION_ID = "spark.sql.execution.id";

    private final DriverSide driver;
    private final ByteLedger ledger;
    private final Executions executions;

    ApplicationListener(DriverSide driver, ByteLedger ledger, Executions executions) {
        this.driver = driver;
        this.ledger = ledger;
        this.executions = executions;
    }

    @Override
    public void onExecutorAdded(SparkListenerExecutorAdded event) {
        ExecutorDirectory.get()
                .scheduledAs(event.executorId(), event.executorInfo().executorHost());
    }

    @Override
    public void onExecutorRemoved(SparkListenerExecutorRemoved event) {
        ExecutorDirectory.get().removed(event.executorId());
        ledger.removed(event.executorId());
    }

    @Override
    public void onStageSubmitted(SparkListenerStageSubmitted event) {
        Properties properties = event.properties();
        String id = properties == null ? null : properties.getProperty(EXECUTION_ID);
        if (id != null) {
            try {
                StageInfo stage = event.stageInfo();
                executions.stage(
                        Long.parseLong(id), stage.stageId(), stage.attemptNumber(), readsExecutorCaches(stage));
            } catch (NumberFormatException e) {
                LOG.debug("a stage belongs to the SQL execution {}", id);
            }
        }
    }

    @Override
    public void onTaskEnd(SparkListenerTaskEnd event) {
        if (event.taskInfo() == null || !event.taskInfo().successful()) {
            return;
        }
        long input = event.taskMetrics() == null
                ? 0
                : event.taskMetrics().inputMetrics().bytesRead();
        executions.task(
                event.stageId(),
                event.stageAttemptId(),
                event.taskInfo().executorId(),
                event.taskInfo().taskLocality().toString(),
                input);
    }

    @Override
    public void onOtherEvent(SparkListenerEvent event) {
        try {
            switch (event.getClass().getName()) {
                case SQL_START:
                    long id = (Long) value(event, "executionId");
                    driver.changed();
                    driver.warnOfStockFileSystems((String) value(event, "physicalPlanDescription"));
                    executions.started(
                            id, root(event, id), (String) value(event, "description"), (Long) value(event, "time"));
                    break;
                case SQL_END:
                    driver.changed();
                    executions.ended((Long) value(event, "executionId"), (Long) value(event, "time"));
                    break;
                default:
            }
        } catch (ReflectiveOperationException | RuntimeException e) {
            LOG.debug("cannot read the event {}", event, e);
        }
    }

    @Override
    public void onApplicationEnd(SparkListenerApplicationEnd event) {
        driver.close();
    }

    /**
     * Whether a task of the stage prefers an executor, which it does for what that executor has cached, and not a host.
     */
    private static boolean readsExecutorCaches(StageInfo stage) {
        try {
            // The type of this collection differs between Scala 2.12 and 2.13; what it extends does not.
            Iterator<?> tasks = ((Iterable<?>) value(stage, "taskLocalityPreferences")).iterator();
            while (tasks.hasNext()) {
                Iterator<?> locations = ((Iterable<?>) tasks.next()).iterator();
                while (locations.hasNext()) {
                    if (locations.next().getClass().getSimpleName().equals("ExecutorCacheTaskLocation")) {
                        return true;
                    }
                }
            }
        } catch (ReflectiveOperationException | RuntimeException | LinkageError e) {
            LOG.debug("cannot read what the tasks of a stage prefer", e);
        }
        return false;
    }

    /** The execution that this one is a part of; itself where Spark does not say. */
    private static long root(Object event, long id) {
        try {
            Object option = value(event, "rootExecutionId");
            return (Boolean) value(option, "isDefined") ? (Long) value(option, "get") : id;
        } catch (ReflectiveOperationException | RuntimeException e) {
            return id;
        }
    }

    private static Object value(Object object, String name) throws ReflectiveOperationException {
        Method method = object.getClass().getMethod(name);
        // Scala's Some and None are public classes of their own, and so are the events.
        return method.invoke(object);
    }
}
