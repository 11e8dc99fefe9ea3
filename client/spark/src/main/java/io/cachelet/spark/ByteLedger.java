package io.cachelet.spark;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;

/**
 * What the executors of this application have read, as they report it.
 *
 * <p>Reports are cumulative and come a little after the tasks that they cover; each says how many tasks had succeeded
 * on its executor when it was made. So a {@link Mark} knows when its counters are in: an executor's are, as soon as a
 * report covers as many tasks as the driver had seen succeed there when the mark was made. Thread-safe.
 */
final class ByteLedger {
    private final Map<String, Executor> executors = new HashMap<>();
    private final List<Mark> open = new ArrayList<>();

    /** The driver saw a task succeed. */
    synchronized void taskSucceeded(String executorId) {
        executor(executorId).succeeded++;
    }

    /**
     * An executor reports.
     *
     * @param tasks how many tasks had succeeded there before the counters were read
     */
    synchronized void reported(String executorId, long tasks, Counters counters) {
        Executor executor = executor(executorId);
        executor.tasksReported = Math.max(executor.tasksReported, tasks);
        executor.counters = counters;
        settle(executorId, executor, false);
    }

    /** An executor is gone, and with it what it did not report. */
    synchronized void removed(String executorId) {
        Executor executor = executors.get(executorId);
        if (executor != null) {
            settle(executorId, executor, true);
            executor.succeeded = executor.tasksReported;
        }
    }

    /** What was read up to now. It is known once the reports are in. */
    synchronized Mark mark() {
        Mark mark = new Mark();
        executors.forEach((id, executor) -> {
            if (executor.tasksReported >= executor.succeeded) {
                mark.sum = mark.sum.plus(executor.counters);
            } else {
                mark.awaited.put(id, executor.succeeded);
            }
        });
        if (!mark.awaited.isEmpty()) {
            open.add(mark);
        }
        return mark;
    }

    /** What was reported up to now. */
    synchronized Counters total() {
        Counters total = Counters.NONE;
        for (Executor executor : executors.values()) {
            total = total.plus(executor.counters);
        }
        return total;
    }

    /** Whether all reports of a mark are in. */
    synchronized boolean isSettled(Mark mark) {
        return mark.awaited.isEmpty();
    }

    /** What was read up to a mark; reports that are still out are taken as they were last. */
    synchronized Counters settle(Mark mark) {
        for (String id : mark.awaited.keySet()) {
            mark.sum = mark.sum.plus(executor(id).counters);
            mark.missing++;
        }
        mark.awaited.clear();
        open.remove(mark);
        return mark.sum;
    }

    private Executor executor(String id) {
        return executors.computeIfAbsent(id, unknown -> new Executor());
    }

    private void settle(String id, Executor executor, boolean gone) {
        Iterator<Mark> marks = open.iterator();
        while (marks.hasNext()) {
            Mark mark = marks.next();
            Long target = mark.awaited.get(id);
            if (target != null && (gone || executor.tasksReported >= target)) {
                mark.awaited.remove(id);
                mark.sum = mark.sum.plus(executor.counters);
                mark.missing += executor.tasksReported >= target ? 0 : 1;
                if (mark.awaited.isEmpty()) {
                    marks.remove();
                }
            }
        }
    }

    /** One moment in what the executors read. */
    static final class Mark {
        /** Executors whose report is out, with the tasks that it must cover. */
        private final Map<String, Long> awaited = new HashMap<>();

        private Counters sum = Counters.NONE;
        private int missing;

        private Mark() {}

        /** How many executors never reported up to this moment. */
        int missing() {
            return missing;
        }
    }

    private static final class Executor {
        private long succeeded;
        private long tasksReported;
        private Counters counters = Counters.NONE;
    }
}
