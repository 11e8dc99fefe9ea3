package io.cachelet.locality;

/**
 * Keeps callers from waiting for a service that is down: after {@link #FAILURES} failures in a row it is not asked for
 * {@link #REST_NANOS}, then once, and again only if that succeeds. Not thread-safe.
 */
final class Breaker {
    static final int FAILURES = 3;
    static final long REST_NANOS = 10_000_000_000L;

    private int failures;
    private long lastFailureNanos;

    boolean allows(long nowNanos) {
        return failures < FAILURES || nowNanos - lastFailureNanos >= REST_NANOS;
    }

    void succeeded() {
        failures = 0;
    }

    /** Returns whether this failure is the one that opens it. */
    boolean failed(long nowNanos) {
        lastFailureNanos = nowNanos;
        failures = Math.min(failures + 1, FAILURES + 1);
        return failures == FAILURES;
    }
}
