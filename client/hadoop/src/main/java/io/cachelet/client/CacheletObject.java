package io.cachelet.client;

import java.nio.ByteBuffer;
import java.util.concurrent.atomic.AtomicLong;

/**
 * One generation of one object, read at positions. Safe for many threads, without a lock between them.
 *
 * <p>Each instance is one stream for readahead: open the object again, which costs no message while it is open, to read
 * another part of it sequentially. Reading after {@link #close()}, also one that runs while it closes, ends in
 * {@link CacheletException.Kind#CLOSED} or in the bytes, never in a crash.
 */
public final class CacheletObject implements AutoCloseable {
    /** What {@link #readHeld} says of bytes that this process does not hold. */
    public static final int NOT_HELD = -2;

    private final String uri;
    private final long sizeBytes;
    private final String etag;
    /** 0 once closed. */
    private final AtomicLong handle;

    CacheletObject(String uri, long handle) throws CacheletException {
        this.uri = uri;
        this.handle = new AtomicLong(handle);
        boolean complete = false;
        try {
            sizeBytes = Native.sizeBytes(handle);
            etag = Native.etag(handle);
            complete = true;
        } finally {
            if (!complete) {
                Native.closeObject(handle);
            }
        }
    }

    /**
     * Reads into an array. The bytes pass through a small native buffer; a direct {@link ByteBuffer} saves that copy.
     *
     * @return how many bytes were read: all of {@code length} unless the object ends before; -1 at or behind its end; 0
     *     only where {@code length} is 0
     * @throws IndexOutOfBoundsException if the range is not within the array
     * @throws IllegalArgumentException if {@code position} is negative
     */
    public int read(long position, byte[] buffer, int offset, int length) throws CacheletException {
        return read(position, buffer, offset, length, false);
    }

    /**
     * As {@link #read(long, byte[], int, int)}, but only from what this process holds already: without a message or a
     * wait, whatever the daemon does.
     *
     * @return {@link #NOT_HELD}, if it does not hold all of it; the range's content means nothing then
     */
    public int readHeld(long position, byte[] buffer, int offset, int length) throws CacheletException {
        return read(position, buffer, offset, length, true);
    }

    private int read(long position, byte[] buffer, int offset, int length, boolean heldOnly) throws CacheletException {
        checkPosition(position);
        if ((offset | length | (buffer.length - offset - length)) < 0 || length > buffer.length - offset) {
            throw new IndexOutOfBoundsException(
                    "offset " + offset + " and length " + length + " in an array of " + buffer.length);
        }
        long object = live();
        if (length == 0) {
            return 0;
        }
        if (position >= sizeBytes) {
            return -1;
        }
        return Native.readArray(object, position, buffer, offset, length, heldOnly);
    }

    /**
     * Reads into the remaining part of a buffer, straight from the cached file if the buffer is direct, and moves the
     * buffer's position by what was read.
     *
     * @return as {@link #read(long, byte[], int, int)} with the buffer's remaining length
     * @throws IllegalArgumentException if {@code position} is negative or the buffer read-only
     */
    public int read(long position, ByteBuffer buffer) throws CacheletException {
        return read(position, buffer, false);
    }

    /** As {@link #readHeld(long, byte[], int, int)}; a buffer stays where it is if the bytes are not held. */
    public int readHeld(long position, ByteBuffer buffer) throws CacheletException {
        return read(position, buffer, true);
    }

    /** Whether {@link #readHeld} would give this range now. */
    public boolean holds(long position, long length) throws CacheletException {
        checkPosition(position);
        ClientOptions.notNegative("length", length);
        return Native.holds(live(), position, length);
    }

    private int read(long position, ByteBuffer buffer, boolean heldOnly) throws CacheletException {
        checkPosition(position);
        int start = buffer.position();
        int length = buffer.remaining();
        int read;
        if (buffer.isReadOnly()) {
            throw new IllegalArgumentException("the buffer is read-only");
        } else if (buffer.isDirect()) {
            long object = live();
            if (length == 0) {
                return 0;
            }
            if (position >= sizeBytes) {
                return -1;
            }
            read = Native.readDirect(object, position, buffer, buffer.capacity(), start, length, heldOnly);
        } else {
            read = read(position, buffer.array(), buffer.arrayOffset() + start, length, heldOnly);
        }
        if (read > 0) {
            buffer.position(start + read);
        }
        return read;
    }

    /**
     * Reads many ranges in one call. Range {@code i} is {@code lengths[i]} bytes at {@code positions[i]}, and goes to
     * {@code direct[i]} from its position on, which moves behind it. What is not at hand is asked for all at once.
     *
     * <p>After an exception the buffers' positions are where they were, their contents mean nothing.
     *
     * @throws CacheletException of kind {@code END_OF_OBJECT}, before anything is read, if a range is not within the
     *     object
     * @throws IllegalArgumentException if the arrays differ in length, a position or length is negative, or a buffer is
     *     not direct, read-only or has too little room
     */
    public void readVectored(long[] positions, int[] lengths, ByteBuffer[] direct) throws CacheletException {
        int count = positions.length;
        if (lengths.length != count || direct.length != count) {
            throw new IllegalArgumentException(
                    count + " positions, " + lengths.length + " lengths and " + direct.length + " buffers");
        }
        int[] offsets = new int[count];
        for (int i = 0; i < count; i++) {
            ByteBuffer buffer = direct[i];
            checkPosition(positions[i]);
            if (!buffer.isDirect() || buffer.isReadOnly() || lengths[i] < 0 || lengths[i] > buffer.remaining()) {
                throw new IllegalArgumentException("range " + i + " of " + lengths[i]
                        + " bytes needs a writable direct buffer with that much room, not " + buffer);
            }
            offsets[i] = buffer.position();
        }
        Native.readVectored(live(), positions, lengths, direct, offsets);
        for (int i = 0; i < count; i++) {
            direct[i].position(offsets[i] + lengths[i]);
        }
    }

    /** Asks the daemon to bring in a range that will be read soon. Never waits; on a closed object it does nothing. */
    public void prefetch(long position, long length) {
        checkPosition(position);
        ClientOptions.notNegative("length", length);
        try {
            Native.prefetch(live(), position, length);
        } catch (CacheletException e) {
            // Nobody waits for what a prefetch brings; the read that wants it says what is wrong.
        }
    }

    /** The object's size in bytes. */
    public long sizeBytes() {
        return sizeBytes;
    }

    /** The etag of the generation that is open, without quotes. */
    public String etag() {
        return etag;
    }

    /** Where this object's bytes came from so far, counted over everybody in this process who has it open. */
    public ClientStats stats() {
        try {
            return new ClientStats(Native.objectStats(live()));
        } catch (CacheletException e) {
            throw new IllegalStateException(e.getMessage(), e);
        }
    }

    /** Gives the object back. Reads that run end first or in {@code CLOSED}. Idempotent. */
    @Override
    public void close() {
        long last = handle.getAndSet(0);
        if (last != 0) {
            Native.closeObject(last);
        }
    }

    @Override
    public String toString() {
        return uri + " (etag " + etag + ", " + sizeBytes + " bytes)";
    }

    private long live() throws CacheletException {
        long current = handle.get();
        if (current == 0) {
            throw CacheletException.closed(uri);
        }
        return current;
    }

    private static void checkPosition(long position) {
        if (position < 0) {
            throw new IllegalArgumentException("position " + position + " is negative");
        }
    }
}
