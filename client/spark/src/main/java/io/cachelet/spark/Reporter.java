package io.cachelet.spark;

import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Tells the driver what a JVM has read, and first of all on which node it is.
 *
 * <p>One thread does all of it, so that tasks never wait: they only count. It reports when the JVM has run out of
 * tasks, and once a second while it has not; never more often than every 100 ms, and no longer once nothing changes.
 */
final class Reporter {
    private static final Logger LOG = LoggerFactory.getLogger(Reporter.class);

    private static final long LEAST_GAP_NANOS = TimeUnit.MILLISECONDS.toNanos(100);
    private static final long BUSY_GAP_NANOS = TimeUnit.SECONDS.toNanos(1);
    private static final long RETRY_NANOS = TimeUnit.SECONDS.toNanos(1);
    private static final long MAX_RETRY_NANOS = TimeUnit.SECONDS.toNanos(15);

    /** Where a report goes to. Called on the reporter's thread. */
    interface Driver {
        /** Says on which node this JVM is. Returns false if that is to be tried again later. */
        boolean register() throws Exception;

        /** What has been read, and how many tasks had succeeded before that was counted. */
        void report(long tasks, Counters counters) throws Exception;
    }

    private final JvmReads reads;
    private final Driver driver;
    private final AtomicLong started = new AtomicLong();
    private final AtomicLong ended = new AtomicLong();
    private final AtomicLong succeeded = new AtomicLong();
    private final Thread thread;

    private boolean registered;
    private boolean stopped;
    private boolean changed;
    private boolean waiting;
    private long reportedNanos = System.nanoTime() - BUSY_GAP_NANOS;
    private long lastTasks;
    private Counters lastCounters = Counters.NONE;

    Reporter(JvmReads reads, Driver driver) {
        this.reads = reads;
        this.driver = driver;
        thread = new Thread(this::run, "cachelet-reporter");
        thread.setDaemon(true);
        thread.setContextClassLoader(Reporter.class.getClassLoader());
    }

    void start() {
        thread.start();
    }

    /** Waits until the first attempt to register has succeeded, but no longer than that. */
    synchronized void awaitRegistration(long millis) throws InterruptedException {
        long deadline = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(millis);
        long left = millis;
        while (!registered && left > 0) {
            wait(left);
            left = TimeUnit.NANOSECONDS.toMillis(deadline - System.nanoTime());
        }
    }

    void taskStarted() {
        started.incrementAndGet();
    }

    void taskEnded(boolean success) {
        if (success) {
            succeeded.incrementAndGet();
        }
        boolean idle = ended.incrementAndGet() >= started.get();
        changed(idle);
    }

    /** Something was read, or may have been. */
    void changed(boolean urgent) {
        synchronized (this) {
            changed = true;
            // A thread that looks at the clock anyway needs no waking.
            if (urgent || !waiting) {
                notifyAll();
            }
        }
    }

    /** Makes a last report, if the driver is there to take it. Waits for a second at most. */
    void stop() {
        synchronized (this) {
            stopped = true;
            notifyAll();
        }
        try {
            thread.join(TimeUnit.SECONDS.toMillis(1));
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private void run() {
        long retryNanos = RETRY_NANOS;
        long registerNanos = System.nanoTime();
        while (true) {
            if (!registered && System.nanoTime() - registerNanos >= 0) {
                if (!register()) {
                    registerNanos = System.nanoTime() + retryNanos;
                    retryNanos = Math.min(retryNanos * 3 / 2, MAX_RETRY_NANOS);
                }
            }
            boolean last;
            synchronized (this) {
                long now = System.nanoTime();
                long dueNanos = changed ? dueNanos() : Long.MAX_VALUE;
                if (!stopped && dueNanos > now - reportedNanos) {
                    long untilReport = changed ? dueNanos - (now - reportedNanos) : Long.MAX_VALUE;
                    long untilRegistration = registered ? Long.MAX_VALUE : registerNanos - now;
                    await(Math.min(untilReport, untilRegistration));
                    continue;
                }
                changed = false;
                last = stopped;
                reportedNanos = now;
            }
            report();
            if (last) {
                return;
            }
        }
    }

    /** How long after the last report the next one is due: at once, more or less, if the tasks have ended. */
    private long dueNanos() {
        return ended.get() >= started.get() ? LEAST_GAP_NANOS : BUSY_GAP_NANOS;
    }

    private void await(long nanos) {
        try {
            waiting = changed;
            if (nanos == Long.MAX_VALUE) {
                wait();
            } else {
                wait(Math.max(1, TimeUnit.NANOSECONDS.toMillis(nanos)));
            }
        } catch (InterruptedException e) {
            stopped = true;
        } finally {
            waiting = false;
        }
    }

    private boolean register() {
        try {
            boolean done = driver.register();
            synchronized (this) {
                registered = done;
                notifyAll();
            }
            return done;
        } catch (Exception | LinkageError e) {
            LOG.debug("cannot register with the driver", e);
            return false;
        }
    }

    private void report() {
        try {
            // In this order: the counters cover at least these tasks.
            long tasks = succeeded.get();
            Counters counters = registered ? reads.ask() : reads.now();
            if (tasks != lastTasks || !counters.equals(lastCounters)) {
                driver.report(tasks, counters);
                if (!counters.equals(lastCounters)) {
                    // Readahead goes on for a little after the last task: look again until nothing changes.
                    changed(false);
                }
                lastTasks = tasks;
                lastCounters = counters;
            }
        } catch (Exception | LinkageError e) {
            LOG.debug("cannot report to the driver", e);
        }
    }
}
