package io.cachelet.locality;

/**
 * How long a thread may still wait for locations.
 *
 * <p>A file system is not told where a plan begins or ends: it is asked for one file after the other. So the limit of a
 * plan is a sliding one: a thread waits at most {@link #BUDGET_NANOS} within any {@link #WINDOW_NANOS}. A plan that
 * takes no longer than the window waits no longer than the budget in total, a longer one at most 4 % of its time. It is
 * a thread's and not the JVM's, because threads that plan together wait at the same time, and a query whose service
 * answers must not go without hosts because another one waited. The window is as long as answers are kept: within it, a
 * thread that got its answers does not wait again.
 */
final class PlanBudget {
    static final long BUDGET_NANOS = 200_000_000L;
    static final long WINDOW_NANOS = 5_000_000_000L;

    /** Waits of a thread: pairs of when it ended and how long it was, in a ring. */
    private static final int WAITS = 64;

    private final ThreadLocal<long[]> waits = ThreadLocal.withInitial(() -> new long[2 * WAITS + 1]);

    private final long budgetNanos;

    PlanBudget(long budgetNanos) {
        this.budgetNanos = budgetNanos;
    }

    /** What the calling thread may still wait. */
    long leftNanos(long nowNanos) {
        long[] ring = waits.get();
        long left = budgetNanos;
        for (int i = 0; i < WAITS; i++) {
            if (ring[2 * i + 1] > 0 && nowNanos - ring[2 * i] < WINDOW_NANOS) {
                left -= ring[2 * i + 1];
            }
        }
        return Math.max(left, 0);
    }

    /** The calling thread has waited. */
    void waited(long nanos, long nowNanos) {
        long[] ring = waits.get();
        int next = (int) ring[2 * WAITS];
        if (ring[2 * next + 1] > 0 && nowNanos - ring[2 * next] < WINDOW_NANOS) {
            // More waits than places: the oldest one counts for as long as the newest.
            nanos += ring[2 * next + 1];
        }
        ring[2 * next] = nowNanos;
        ring[2 * next + 1] = nanos;
        ring[2 * WAITS] = (next + 1) % WAITS;
    }
}
