package io.cachelet.hadoop;

import java.util.concurrent.atomic.AtomicLong;

/**
 * The task, such as one attempt of a Spark task, for which a thread works. Whoever runs tasks says on their threads
 * where they begin and end; a thread of which nothing was said works for none.
 */
public final class TaskScope {
    /** No task. */
    static final long NONE = 0;

    private static final AtomicLong LAST = new AtomicLong(NONE);
    private static final ThreadLocal<Long> CURRENT = new ThreadLocal<>();

    private TaskScope() {}

    /** This thread begins another task. */
    public static void begin() {
        CURRENT.set(LAST.incrementAndGet());
    }

    /** This thread works for no task any more. */
    public static void end() {
        CURRENT.remove();
    }

    /** The task for which this thread works, which is never the number of another one; {@link #NONE}. */
    static long current() {
        Long task = CURRENT.get();
        return task == null ? NONE : task;
    }
}
