package io.cachelet.hadoop;

import io.cachelet.client.CacheletException;
import io.cachelet.client.CacheletObject;
import java.io.IOException;
import java.nio.ByteBuffer;
import org.apache.hadoop.fs.FSDataInputStream;

/** Where the bytes of one read go: a part of an array, or a buffer's remaining part. */
final class Target {
    /** Most bytes one call asks for: a read's deadline is meant for so much. */
    private static final int MOST_AT_ONCE = 8 << 20;

    private static final int COPY_BYTES = 64 << 10;

    private final byte[] array;
    private final int offset;
    private final int length;
    private final ByteBuffer buffer;
    /** Where the buffer stood. */
    private final int start;

    Target(byte[] array, int offset, int length) {
        this.array = array;
        this.offset = offset;
        this.length = Math.min(length, MOST_AT_ONCE);
        this.buffer = null;
        this.start = 0;
    }

    /** The buffer's position moves by what was read. */
    Target(ByteBuffer buffer) {
        this.array = null;
        this.offset = 0;
        this.length = Math.min(buffer.remaining(), MOST_AT_ONCE);
        this.buffer = buffer;
        this.start = buffer.position();
    }

    int length() {
        return length;
    }

    /** What was read is not to be delivered. */
    void undo() {
        if (buffer != null) {
            buffer.position(start);
        }
    }

    int read(CacheletObject object, long position) throws CacheletException {
        return read(object, position, false);
    }

    /** Only from what this process holds; {@link CacheletObject#NOT_HELD} if that is not enough. */
    int readHeld(CacheletObject object, long position) throws CacheletException {
        return read(object, position, true);
    }

    private int read(CacheletObject object, long position, boolean heldOnly) throws CacheletException {
        if (array != null) {
            return heldOnly
                    ? object.readHeld(position, array, offset, length)
                    : object.read(position, array, offset, length);
        }
        int limit = buffer.limit();
        buffer.limit(buffer.position() + length);
        try {
            return heldOnly ? object.readHeld(position, buffer) : object.read(position, buffer);
        } finally {
            buffer.limit(limit);
        }
    }

    /** Reads where the stock stream stands. */
    int read(FSDataInputStream stock) throws IOException {
        if (array != null) {
            return stock.read(array, offset, length);
        }
        byte[] copy = new byte[Math.min(length, COPY_BYTES)];
        int read = stock.read(copy, 0, copy.length);
        if (read > 0) {
            buffer.put(copy, 0, read);
        }
        return read;
    }
}
