package io.cachelet.spark;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The SQL executions of this application, from their start to their summary.
 *
 * <p>What an execution read is the difference of two {@link ByteLedger.Mark}s. Counters are a JVM's, so that executions
 * that run at the same time cannot be told apart; their summaries say with how many others they shared. Thread-safe.
 */
final class Executions {
    private static final Logger LOG = LoggerFactory.getLogger(Executions.class);

    /** How long a summary waits for the reports of its last tasks. */
    static final long REPORTS_MILLIS = 2_000;

    private static final long LOOK_MILLIS = 50;

    private final ByteLedger ledger;
    private final ScheduledExecutorService timer;
    private final Consumer<ExecutionSummary> summaries;
    private final Map<Long, Execution> running = new HashMap<>();
    private final Map<Long, Execution> ending = new LinkedHashMap<>();
    /** Stage attempts of executions that have no summary yet. */
    private final Map<Long, Execution> stages = new HashMap<>();

    private final Execution application;
    private boolean closed;

    Executions(
            ByteLedger ledger, ScheduledExecutorService timer, Consumer<ExecutionSummary> summaries, long nowMillis) {
        this.ledger = ledger;
        this.timer = timer;
        this.summaries = summaries;
        this.application = new Execution(ExecutionSummary.APPLICATION, null, "application", nowMillis, ledger.mark());
    }

    /** An execution started. {@code root} is the one that it is a part of, or itself. */
    synchronized void started(long id, long root, String description, long millis) {
        Execution parent = root == id ? null : running.get(root);
        Execution execution = new Execution(id, parent, description, millis, ledger.mark());
        for (Execution other : running.values()) {
            if (other.root() != execution.root()) {
                other.shared++;
                execution.shared++;
            }
        }
        running.put(id, execution);
    }

    /**
     * A stage of an execution was submitted.
     *
     * @param cached whether some of its tasks are to run where an executor has cached what they read
     */
    synchronized void stage(long id, int stage, int attempt, boolean cached) {
        Execution execution = running.get(id);
        if (execution != null) {
            long key = key(stage, attempt);
            stages.put(key, execution);
            execution.stages.add(key);
            if (cached) {
                execution.cachedStages.add(key);
            }
        }
    }

    /**
     * A task succeeded.
     *
     * @param locality Spark's name of its locality level
     * @param inputBytes what it read as input, from wherever
     */
    synchronized void task(int stage, int attempt, String executorId, String locality, long inputBytes) {
        ledger.taskSucceeded(executorId);
        if (inputBytes > 0) {
            long key = key(stage, attempt);
            Execution execution = stages.get(key);
            boolean local = locality.equals("NODE_LOCAL");
            // Spark also calls a task PROCESS_LOCAL that had no preference at all.
            boolean cached =
                    locality.equals("PROCESS_LOCAL") && execution != null && execution.cachedStages.contains(key);
            application.read(local, cached);
            for (Execution at = execution; at != null; at = at.parent) {
                at.read(local, cached);
            }
        }
    }

    /** An execution ended. Its summary follows once the reports of its tasks are in, or after a while. */
    void ended(long id, long millis) {
        Execution execution;
        synchronized (this) {
            execution = running.remove(id);
            if (execution == null) {
                return;
            }
            execution.endMillis = millis;
            execution.end = ledger.mark();
            execution.deadlineNanos = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(REPORTS_MILLIS);
            ending.put(id, execution);
        }
        look(execution);
    }

    /** The application ends: what is open is summarised after a wait of at most {@link #REPORTS_MILLIS}. */
    void close(long millis) {
        List<Execution> open;
        synchronized (this) {
            if (closed) {
                return;
            }
            closed = true;
            application.endMillis = millis;
            application.end = ledger.mark();
            for (Execution execution : running.values()) {
                execution.endMillis = millis;
                execution.end = application.end;
                ending.put(execution.id, execution);
            }
            running.clear();
            open = new ArrayList<>(ending.values());
            open.add(application);
        }
        long deadline = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(REPORTS_MILLIS);
        for (Execution execution : open) {
            while (!isSettled(execution) && System.nanoTime() - deadline < 0 && pause()) {
                // Reports come by another thread.
            }
            finish(execution);
        }
    }

    private static boolean pause() {
        try {
            Thread.sleep(LOOK_MILLIS / 5);
            return true;
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            return false;
        }
    }

    private boolean isSettled(Execution execution) {
        return ledger.isSettled(execution.start) && ledger.isSettled(execution.end);
    }

    private void look(Execution execution) {
        if (isSettled(execution) || System.nanoTime() - execution.deadlineNanos >= 0) {
            finish(execution);
            return;
        }
        try {
            timer.schedule(() -> look(execution), LOOK_MILLIS, TimeUnit.MILLISECONDS);
        } catch (RejectedExecutionException e) {
            finish(execution);
        }
    }

    private void finish(Execution execution) {
        ExecutionSummary summary;
        synchronized (this) {
            if (execution.finished) {
                return;
            }
            execution.finished = true;
            ending.remove(execution.id);
            stages.keySet().removeAll(execution.stages);
            summary = new ExecutionSummary(
                    execution.id,
                    execution.description,
                    execution.startMillis,
                    execution.endMillis,
                    ledger.settle(execution.end).minus(ledger.settle(execution.start)),
                    execution.readingTasks,
                    execution.nodeLocalTasks,
                    execution.cachedTasks,
                    execution.shared,
                    execution.end.missing());
        }
        try {
            summaries.accept(summary);
        } catch (RuntimeException e) {
            LOG.warn("cannot write the summary of execution {}", execution.id, e);
        }
    }

    private static long key(int stage, int attempt) {
        return (long) stage << 32 | attempt;
    }

    private static final class Execution {
        final long id;
        final Execution parent;
        final String description;
        final long startMillis;
        final ByteLedger.Mark start;
        final Set<Long> stages = new HashSet<>();
        final Set<Long> cachedStages = new HashSet<>();
        ByteLedger.Mark end;
        long endMillis;
        long deadlineNanos;
        int readingTasks;
        int nodeLocalTasks;
        int cachedTasks;
        int shared;
        boolean finished;

        Execution(long id, Execution parent, String description, long startMillis, ByteLedger.Mark start) {
            this.id = id;
            this.parent = parent;
            this.description = description;
            this.startMillis = startMillis;
            this.start = start;
        }

        Execution root() {
            Execution root = this;
            while (root.parent != null) {
                root = root.parent;
            }
            return root;
        }

        void read(boolean local, boolean cached) {
            readingTasks++;
            nodeLocalTasks += local ? 1 : 0;
            cachedTasks += cached ? 1 : 0;
        }
    }
}
