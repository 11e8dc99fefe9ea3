package io.cachelet.client;

import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.atomic.AtomicLong;

/**
 * This process's relation to the daemon of its node: the one place from which objects are opened. Safe for many
 * threads.
 *
 * <p>It connects when something is opened, again after the daemon came back, and after a failed attempt fails at once
 * for a while. It owns the open objects, their descriptors and one thread that receives.
 */
public final class CacheletClient implements AutoCloseable {
    /** 0 once closed. */
    private final AtomicLong handle;

    private CacheletClient(long handle) {
        this.handle = new AtomicLong(handle);
    }

    /**
     * A client that has not connected yet.
     *
     * @throws IllegalStateException if the native library is unavailable; {@link NativeLibrary#whyUnavailable()} says why
     */
    public static CacheletClient create(ClientOptions options) {
        if (!NativeLibrary.isAvailable()) {
            throw new IllegalStateException("the native library is unavailable: " + NativeLibrary.whyUnavailable());
        }
        return new CacheletClient(Native.create(
                options.socketDir.getBytes(StandardCharsets.UTF_8),
                options.application.getBytes(StandardCharsets.UTF_8),
                options.pod.getBytes(StandardCharsets.UTF_8),
                options.podIp.getBytes(StandardCharsets.UTF_8),
                options.connectTimeoutMillis,
                options.requestTimeoutMillis,
                options.maxDescriptors,
                options.readaheadBytes,
                options.keepClosedObjects,
                options.verifyReads));
    }

    /** Connects now, unless connected, and says to whom. */
    public WorkerInfo connect() throws CacheletException {
        return new WorkerInfo(Native.connect(live()));
    }

    /**
     * Opens one generation of an object. Costs no message if it is open already and {@code etag} and {@code sizeBytes}
     * are given.
     *
     * @param uri {@code s3a://bucket/key} or {@code oss://bucket/key}, the key as it is, not URL-encoded
     * @param etag the etag that the caller knows, quoted or not; null: unknown. With {@code sizeBytes} it is the caller's
     *     proof that it may read the object, to a daemon that asks for one
     * @param sizeBytes the object's size that the caller knows; -1: unknown
     * @param versionId the version, on versioned buckets; null: none
     * @param fingerprint {@link StoreFingerprint} of the caller's store; null: the daemon's is taken
     * @param firstOffset where the first read will be, so that its bytes come with the opening
     * @param firstLength how long the first read will be; 0: nothing is fetched yet
     * @throws CacheletException of kind {@code OBJECT_CHANGED} if the daemon knows another generation than the caller;
     *     {@code INVALID} if the names are none that the cache can work with
     */
    public CacheletObject open(
            String uri,
            String etag,
            long sizeBytes,
            String versionId,
            byte[] fingerprint,
            long firstOffset,
            long firstLength)
            throws CacheletException {
        if (sizeBytes < -1 || firstOffset < 0 || firstLength < 0) {
            throw new IllegalArgumentException("sizeBytes " + sizeBytes + ", firstOffset " + firstOffset
                    + " and firstLength " + firstLength + " must not be negative (-1: size unknown)");
        }
        if (fingerprint != null && fingerprint.length != 16) {
            throw new IllegalArgumentException("a store fingerprint has 16 bytes, not " + fingerprint.length);
        }
        return open(uri, etag, sizeBytes, versionId, fingerprint, firstOffset, firstLength, false);
    }

    /**
     * The object of just this generation, if this process has it open already: costs no message and no wait, whatever the
     * daemon does. {@link CacheletObject#readHeld} reads what of it is held.
     *
     * @return null if it is not open
     */
    public CacheletObject openHeld(String uri, String etag, long sizeBytes, String versionId, byte[] fingerprint)
            throws CacheletException {
        return open(uri, etag, sizeBytes, versionId, fingerprint, 0, 0, true);
    }

    private CacheletObject open(
            String uri,
            String etag,
            long sizeBytes,
            String versionId,
            byte[] fingerprint,
            long firstOffset,
            long firstLength,
            boolean heldOnly)
            throws CacheletException {
        long object = Native.open(
                live(),
                utf8("URI", uri),
                etag == null ? null : utf8("etag", etag),
                sizeBytes,
                versionId == null ? null : utf8("version id", versionId),
                fingerprint,
                firstOffset,
                firstLength,
                heldOnly);
        return object == 0 ? null : new CacheletObject(uri, object);
    }

    /** Longest wait for the answer to a request, for those sent from now on. */
    public void setRequestTimeoutMillis(long millis) {
        ClientOptions.positive("millis", millis);
        try {
            Native.setRequestTimeoutMillis(live(), millis);
        } catch (CacheletException e) {
            throw new IllegalStateException(e.getMessage(), e);
        }
    }

    /** Where all bytes came from so far, and how many messages that took. */
    public ClientStats stats() {
        try {
            return new ClientStats(Native.clientStats(live()));
        } catch (CacheletException e) {
            throw new IllegalStateException(e.getMessage(), e);
        }
    }

    /**
     * What the daemon fetched on behalf of this client's session so far; costs a message. A new session, after the daemon
     * was lost, begins at 0.
     */
    public FilledBytes filledBytes() throws CacheletException {
        long[] told = Native.filledBytes(live());
        return new FilledBytes(told[0], told[1]);
    }

    /** Descriptors of cached files held now. */
    public int descriptorsHeld() {
        try {
            return Native.descriptorsHeld(live());
        } catch (CacheletException e) {
            throw new IllegalStateException(e.getMessage(), e);
        }
    }

    /** Closes the connection and every object that is still open; those throw {@code CLOSED} afterwards. Idempotent. */
    @Override
    public void close() {
        long last = handle.getAndSet(0);
        if (last != 0) {
            Native.closeClient(last);
        }
    }

    private long live() throws CacheletException {
        long current = handle.get();
        if (current == 0) {
            throw CacheletException.closed("the client");
        }
        return current;
    }

    /** Refuses text that UTF-8 cannot spell, which would otherwise name another object. */
    private static byte[] utf8(String what, String text) throws CacheletException {
        try {
            ByteBuffer encoded = StandardCharsets.UTF_8.newEncoder().encode(CharBuffer.wrap(text));
            byte[] bytes = new byte[encoded.remaining()];
            encoded.get(bytes);
            return bytes;
        } catch (CharacterCodingException e) {
            throw CacheletException.invalid("invalid", "the " + what + " is no valid Unicode text");
        }
    }
}
