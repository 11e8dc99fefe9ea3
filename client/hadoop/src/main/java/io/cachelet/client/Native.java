package io.cachelet.client;

import java.nio.ByteBuffer;

/**
 * The native library's functions. Text goes in as UTF-8 bytes, because JNI's own encoding of strings is another one.
 *
 * <p>A handle names a client or an object in the library's tables and is never used again after its close: one that is
 * closed, or was made up, ends in {@link CacheletException.Kind#CLOSED}, whatever other threads do meanwhile. Arguments
 * are checked there too, so that no call from here can reach memory that is not its own.
 */
final class Native {
    private Native() {}

    /** The version that the library was built as. */
    static native String version();

    /** The counters' names in the order in which {@link #clientStats} and {@link #objectStats} give them. */
    static native String[] statNames();

    static native long create(
            byte[] socketDir,
            byte[] application,
            byte[] pod,
            byte[] podIp,
            long connectTimeoutMillis,
            long requestTimeoutMillis,
            long maxDescriptors,
            long readaheadBytes,
            long keepClosedObjects,
            boolean verifyReads);

    static native String[] connect(long client) throws CacheletException;

    static native void setRequestTimeoutMillis(long client, long millis) throws CacheletException;

    static native long[] clientStats(long client) throws CacheletException;

    static native int descriptorsHeld(long client) throws CacheletException;

    /** Origin and peer bytes. */
    static native long[] filledBytes(long client) throws CacheletException;

    static native void closeClient(long client);

    /** 0 where {@code heldOnly} and the client does not have the object open. */
    static native long open(
            long client,
            byte[] uri,
            byte[] etag,
            long sizeBytes,
            byte[] versionId,
            byte[] fingerprint,
            long firstOffset,
            long firstLength,
            boolean heldOnly)
            throws CacheletException;

    static native long sizeBytes(long object) throws CacheletException;

    static native String etag(long object) throws CacheletException;

    /** {@link CacheletObject#NOT_HELD} where {@code heldOnly} and the process does not hold the bytes. */
    static native int readArray(long object, long position, byte[] array, int offset, int length, boolean heldOnly)
            throws CacheletException;

    /**
     * As {@link #readArray}.
     *
     * @param capacity the buffer's own: the range is checked against it, and nothing else
     */
    static native int readDirect(
            long object, long position, ByteBuffer direct, int capacity, int offset, int length, boolean heldOnly)
            throws CacheletException;

    static native boolean holds(long object, long position, long length) throws CacheletException;

    static native void readVectored(long object, long[] positions, int[] lengths, ByteBuffer[] direct, int[] offsets)
            throws CacheletException;

    static native void prefetch(long object, long position, long length) throws CacheletException;

    static native long[] objectStats(long object) throws CacheletException;

    static native void closeObject(long object);
}
