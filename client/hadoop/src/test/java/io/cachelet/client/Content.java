package io.cachelet.client;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Random;

/** Bytes that differ from place to place, and every way to read them. */
final class Content {
    private Content() {}

    static byte[] of(long seed, int length) {
        byte[] bytes = new byte[length];
        new Random(seed).nextBytes(bytes);
        return bytes;
    }

    /** Reads a range by an array, a heap buffer and a direct buffer, and compares it with the content. */
    static void assertRange(byte[] content, CacheletObject object, int position, int length) throws CacheletException {
        int there = Math.max(0, Math.min(length, content.length - position));
        byte[] expected = there == 0 ? new byte[0] : Arrays.copyOfRange(content, position, position + there);
        int read = there == 0 && length > 0 ? -1 : there;
        String where = length + " bytes at " + position + " of " + content.length;

        byte[] array = new byte[length + 7];
        assertEquals(where, read, object.read(position, array, 5, length));
        assertArrayEquals(where, expected, Arrays.copyOfRange(array, 5, 5 + there));
        assertEquals("nothing before the range is touched", 0, array[4]);
        assertEquals("nor behind", 0, array[5 + length]);

        ByteBuffer[] buffers = {
            ByteBuffer.allocate(length + 5),
            ByteBuffer.allocateDirect(length + 5),
            slice(ByteBuffer.allocate(length + 9)),
            slice(ByteBuffer.allocateDirect(length + 9))
        };
        for (ByteBuffer buffer : buffers) {
            buffer.position(3);
            buffer.limit(3 + length);
            assertEquals(where, read, object.read(position, buffer));
            assertEquals(where, 3 + there, buffer.position());
            buffer.flip();
            buffer.position(3);
            assertEquals(where, ByteBuffer.wrap(expected), buffer);
        }
    }

    private static ByteBuffer slice(ByteBuffer buffer) {
        buffer.position(4);
        return buffer.slice();
    }
}
