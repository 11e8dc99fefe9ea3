package io.cachelet.hadoop;

/**
 * Decides whether to ask the daemon at all. Two time-outs in a row open it; while it is open nobody asks; when the
 * period is over one reader at a time tries, and the daemon's answer closes it.
 *
 * <p>A state machine without a clock: callers pass the time, as {@link System#nanoTime()}.
 */
final class Breaker {
    private static final int TIMEOUTS_TO_OPEN = 2;

    private final long periodNanos;
    private int timeoutsInARow;
    private long openUntil;
    private boolean open;
    private boolean probing;
    private long probingSince;

    /** Whether nothing is wrong; read without the lock, on every read. */
    private volatile boolean quiet = true;

    Breaker(long periodNanos) {
        this.periodNanos = periodNanos;
    }

    /** Whether the last thing heard of the daemon was an answer. */
    boolean isQuiet() {
        return quiet;
    }

    /** Whether this reader may ask. One that may, tells how it went. */
    boolean mayAsk(long now) {
        return quiet || mayAskSlowly(now);
    }

    private synchronized boolean mayAskSlowly(long now) {
        if (!open) {
            return true;
        }
        // A probe that never reported, because its thread was killed, holds the place for one period.
        if (now - openUntil < 0 || probing && now - probingSince < periodNanos) {
            return false;
        }
        probing = true;
        probingSince = now;
        return true;
    }

    /** The daemon did not answer in time. Says whether that opened the breaker just now. */
    synchronized boolean timedOut(long now) {
        quiet = false;
        probing = false;
        timeoutsInARow++;
        boolean opened = !open && timeoutsInARow >= TIMEOUTS_TO_OPEN;
        if (open || opened) {
            open = true;
            openUntil = now + periodNanos;
        }
        return opened;
    }

    /** The daemon answered something, or is known to be gone, which also costs no wait. */
    synchronized void answered() {
        timeoutsInARow = 0;
        open = false;
        probing = false;
        quiet = true;
    }

    /** A read ended without any sign of the daemon, such as one from a descriptor held already. */
    synchronized void learntNothing() {
        probing = false;
    }
}
