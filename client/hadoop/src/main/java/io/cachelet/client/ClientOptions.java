package io.cachelet.client;

import java.util.Objects;

/**
 * How a {@link CacheletClient} is set up. Every setting has a default that suits an executor; each setter returns this.
 */
public final class ClientOptions {
    /** Stands for the native client's own default. */
    static final long DEFAULT = -1;

    String socketDir = "";
    String application = "";
    String pod = "";
    String podIp = "";
    long connectTimeoutMillis = DEFAULT;
    long requestTimeoutMillis = DEFAULT;
    long maxDescriptors = DEFAULT;
    long readaheadBytes = DEFAULT;
    long keepClosedObjects = DEFAULT;
    boolean verifyReads;

    /** The directory that the daemon's socket is in; default {@code /var/run/cachelet}. */
    public ClientOptions socketDir(String directory) {
        socketDir = Objects.requireNonNull(directory, "directory");
        return this;
    }

    /** The application, such as Spark's application id, for the daemon's logs. */
    public ClientOptions application(String application) {
        this.application = Objects.requireNonNull(application, "application");
        return this;
    }

    /** The pod's name, for the daemon's logs. */
    public ClientOptions pod(String pod) {
        this.pod = Objects.requireNonNull(pod, "pod");
        return this;
    }

    /** The pod's IP, for the daemon's logs. */
    public ClientOptions podIp(String podIp) {
        this.podIp = Objects.requireNonNull(podIp, "podIp");
        return this;
    }

    /** Longest wait for a connection and its welcome; default 2 s. */
    public ClientOptions connectTimeoutMillis(long millis) {
        connectTimeoutMillis = positive("connectTimeoutMillis", millis);
        return this;
    }

    /** Longest wait for the answer to a request; default 30 s; see {@link CacheletClient#setRequestTimeoutMillis}. */
    public ClientOptions requestTimeoutMillis(long millis) {
        requestTimeoutMillis = positive("requestTimeoutMillis", millis);
        return this;
    }

    /** Most descriptors of cached files held at once; default a quarter of the process's limit, at most 1024. */
    public ClientOptions maxDescriptors(int count) {
        maxDescriptors = positive("maxDescriptors", count);
        return this;
    }

    /** How far a sequential reader's readahead goes, in bytes; default 8 MiB; 0 turns it off. */
    public ClientOptions readaheadBytes(long bytes) {
        readaheadBytes = notNegative("readaheadBytes", bytes);
        return this;
    }

    /** Whether the checksum of every chunk read from a held descriptor is checked; default false. */
    public ClientOptions verifyReads(boolean verify) {
        verifyReads = verify;
        return this;
    }

    /** Objects that stay open, with their descriptors, after their last user closed them; default 64. */
    public ClientOptions keepClosedObjects(int count) {
        keepClosedObjects = notNegative("keepClosedObjects", count);
        return this;
    }

    static long positive(String name, long value) {
        if (value <= 0) {
            throw new IllegalArgumentException(name + " must be positive, not " + value);
        }
        return value;
    }

    static long notNegative(String name, long value) {
        if (value < 0) {
            throw new IllegalArgumentException(name + " must not be negative, not " + value);
        }
        return value;
    }
}
