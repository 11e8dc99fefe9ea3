package io.cachelet.hadoop;

import java.util.Arrays;

/**
 * How long recent reads took that the origin had to serve, through the daemon or not, and the deadline that follows.
 */
final class WaitTimes {
    /** Reads remembered. */
    private static final int CAPACITY = 128;
    /** Fewer say nothing about the tail. */
    private static final int ENOUGH = 20;

    private static final long MAX_DEADLINE_MILLIS = 10_000;

    private final long minMillis;
    private final long[] millis = new long[CAPACITY];
    private int count;
    private int next;

    WaitTimes(long minMillis) {
        this.minMillis = minMillis;
    }

    /** Takes note of one read and says the deadline for the next ones, in milliseconds. */
    synchronized long took(long readMillis) {
        millis[next] = readMillis;
        next = (next + 1) % CAPACITY;
        count = Math.min(count + 1, CAPACITY);
        return deadlineMillis();
    }

    /** The deadline: three times the 95th percentile, within bounds. */
    synchronized long deadlineMillis() {
        if (count < ENOUGH) {
            return minMillis;
        }
        long[] sorted = Arrays.copyOf(millis, count);
        Arrays.sort(sorted);
        long p95 = sorted[(int) Math.ceil(0.95 * count) - 1];
        return Math.max(minMillis, Math.min(3 * p95, MAX_DEADLINE_MILLIS));
    }
}
