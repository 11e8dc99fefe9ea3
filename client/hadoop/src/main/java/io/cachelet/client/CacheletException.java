package io.cachelet.client;

import java.io.IOException;
import java.util.Locale;

/**
 * Why the cache did not serve an open or a read, and what the caller should do about it.
 *
 * <p>{@link #shouldUseOrigin()} is the question to ask first: it is false only where the origin could not give the
 * bytes that were asked for either.
 */
public class CacheletException extends IOException {

    /** What went wrong. */
    public enum Kind {
        /** The daemon says: go to the origin for this one. {@link CacheletException#reason()} says why. */
        BYPASS,
        /** The object is no longer the generation that was opened. The origin would give bytes of another one. */
        OBJECT_CHANGED,
        /** No such object, says the daemon; the origin is the authority on that. */
        NOT_FOUND,
        /** The origin refused the daemon; the caller's own credentials may do better. */
        PERMISSION_DENIED,
        /** The daemon answered with another failure. */
        FAILED,
        /** No daemon can be reached, or the connection was lost. */
        UNAVAILABLE,
        /** The daemon did not answer in time. */
        TIMEOUT,
        /** The daemon broke the protocol; the connection was given up. */
        PROTOCOL,
        /** This process could not do its own part, such as starting a thread. */
        IO,
        /** A range that must be read whole reaches beyond the object's end. */
        END_OF_OBJECT,
        /** The client or the object was closed. */
        CLOSED,
        /** A path, etag or version id that the cache cannot work with, such as a weak etag. */
        INVALID
    }

    private final Kind kind;
    private final String reason;
    private final boolean useOrigin;
    private final boolean retryable;

    /** Called by the native library, which is why the kind comes by its name. */
    CacheletException(String kind, String reason, String message, boolean useOrigin, boolean retryable) {
        this(Kind.valueOf(kind), reason, message, useOrigin, retryable);
    }

    CacheletException(Kind kind, String reason, String message, boolean useOrigin, boolean retryable) {
        super(message);
        this.kind = kind;
        this.reason = reason;
        this.useOrigin = useOrigin;
        this.retryable = retryable;
    }

    static CacheletException closed(String what) {
        return new CacheletException(Kind.CLOSED, "closed", what + " is closed", false, false);
    }

    static CacheletException invalid(String reason, String message) {
        return new CacheletException(Kind.INVALID, reason, message, true, false);
    }

    /** What went wrong. */
    public Kind kind() {
        return kind;
    }

    /** Whether the same bytes of the same generation may be had from the origin. */
    public boolean shouldUseOrigin() {
        return useOrigin;
    }

    /** Whether the same request may succeed if it is sent again later. */
    public boolean isRetryable() {
        return retryable;
    }

    /**
     * A short word for metrics, in snake case: the daemon's reason for a bypass, its failure code, or the kind. The set
     * of words is small and holds no name of an object.
     */
    public String reason() {
        return reason.isEmpty() ? kind.name().toLowerCase(Locale.ROOT) : reason;
    }
}
