package io.cachelet.hadoop;

import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.function.Consumer;
import java.util.function.IntFunction;
import org.apache.hadoop.fs.ByteBufferPositionedReadable;
import org.apache.hadoop.fs.ByteBufferReadable;
import org.apache.hadoop.fs.CanSetReadahead;
import org.apache.hadoop.fs.CanUnbuffer;
import org.apache.hadoop.fs.FSExceptionMessages;
import org.apache.hadoop.fs.FSInputStream;
import org.apache.hadoop.fs.FileRange;
import org.apache.hadoop.fs.StreamCapabilities;
import org.apache.hadoop.fs.statistics.IOStatistics;
import org.apache.hadoop.fs.statistics.IOStatisticsSource;
import org.apache.hadoop.fs.statistics.StreamStatisticNames;

/**
 * A file as Hadoop reads it: a position, and reads at any other position beside it.
 *
 * <p>What the bytes come from is {@link PinnedReader}'s. Here: the position, and a small buffer for small sequential
 * reads, both under this stream's lock. Positioned reads take no lock and see neither.
 */
public final class CacheletInputStream extends FSInputStream
        implements ByteBufferReadable,
                ByteBufferPositionedReadable,
                CanSetReadahead,
                CanUnbuffer,
                StreamCapabilities,
                IOStatisticsSource {
    /** Smaller sequential reads go through the buffer. */
    private static final int BUFFER_BYTES = 64 << 10;
    /** What is buffered at first: a reader of a few bytes here and there wants no more. */
    private static final int FIRST_BUFFER_BYTES = 4 << 10;

    private static final String VECTORED = "in:readvectored";
    private static final boolean HAS_FILE_RANGE = hasFileRange();

    private final PinnedReader reader;
    private final StreamCounters counters;

    private long position;
    private byte[] buffer = new byte[0];
    /** The file's bytes [bufferStart, bufferEnd) are at the buffer's beginning. */
    private long bufferStart;

    private long bufferEnd;

    CacheletInputStream(PinnedReader reader, StreamCounters counters) {
        this.reader = reader;
        this.counters = counters;
    }

    // The position.

    @Override
    public synchronized long getPos() {
        return position;
    }

    @Override
    public synchronized void seek(long target) throws IOException {
        reader.checkOpen();
        if (target < 0) {
            throw new EOFException(FSExceptionMessages.NEGATIVE_SEEK + " " + target);
        }
        if (target != position) {
            counters.sought(position, target);
            position = target;
        }
    }

    @Override
    public boolean seekToNewSource(long target) {
        return false;
    }

    @Override
    public synchronized long skip(long count) throws IOException {
        reader.checkOpen();
        long skipped = Math.max(0, Math.min(count, reader.sizeBytes() - position));
        position += skipped;
        return skipped;
    }

    @Override
    public synchronized int available() throws IOException {
        reader.checkOpen();
        return (int) Math.max(0, Math.min(Integer.MAX_VALUE, reader.sizeBytes() - position));
    }

    // Reads at the position.

    @Override
    public synchronized int read() throws IOException {
        reader.checkOpen();
        if (position >= reader.sizeBytes()) {
            return -1;
        }
        if (position >= bufferStart && position < bufferEnd) {
            int value = buffer[(int) (position - bufferStart)] & 0xff;
            advance(1, 1);
            return value;
        }
        byte[] one = new byte[1];
        return read(one, 0, 1) < 1 ? -1 : one[0] & 0xff;
    }

    @Override
    public synchronized int read(byte[] target, int offset, int length) throws IOException {
        reader.checkOpen();
        validatePositionedReadArgs(position, target, offset, length);
        if (length == 0) {
            return 0;
        }
        if (position >= reader.sizeBytes()) {
            return -1;
        }
        if (length < BUFFER_BYTES && (isBuffered() || fillBuffer(length))) {
            int count = (int) Math.min(length, bufferEnd - position);
            System.arraycopy(buffer, (int) (position - bufferStart), target, offset, count);
            return advance(count, length);
        }
        return advancePast(reader.read(position, new Target(target, offset, length)));
    }

    @Override
    public synchronized int read(ByteBuffer target) throws IOException {
        reader.checkOpen();
        int length = target.remaining();
        if (length == 0) {
            return 0;
        }
        if (position >= reader.sizeBytes()) {
            return -1;
        }
        if (length < BUFFER_BYTES && (isBuffered() || fillBuffer(length))) {
            int count = (int) Math.min(length, bufferEnd - position);
            target.put(buffer, (int) (position - bufferStart), count);
            return advance(count, length);
        }
        return advancePast(reader.read(position, new Target(target)));
    }

    private boolean isBuffered() {
        return position >= bufferStart && position < bufferEnd;
    }

    /**
     * Brings the bytes at the position into the buffer: more at each time that the reader goes straight on. Says whether
     * it did; bytes of the origin are not buffered here, because the stock stream counts them as read.
     */
    private boolean fillBuffer(int wanted) throws IOException {
        boolean sequential = position == bufferEnd && bufferEnd > 0;
        int held = (int) (bufferEnd - bufferStart);
        int size = sequential ? Math.min(2 * Math.max(held, FIRST_BUFFER_BYTES), BUFFER_BYTES) : FIRST_BUFFER_BYTES;
        size = (int) Math.min(Math.max(size, wanted), reader.sizeBytes() - position);
        if (buffer.length < size) {
            buffer = new byte[Math.max(size, FIRST_BUFFER_BYTES)];
        }
        bufferStart = position;
        bufferEnd = position;
        int read = reader.readFromCache(position, new Target(buffer, 0, size));
        if (read <= 0) {
            return false;
        }
        bufferEnd = position + read;
        return true;
    }

    /** The reader takes bytes out of the buffer: now they count. */
    private int advance(int count, int asked) {
        counters.delivered(count, asked);
        position += count;
        return count;
    }

    private int advancePast(int read) {
        if (read > 0) {
            position += read;
        }
        return read;
    }

    // Reads at another position: no lock, no buffer.

    @Override
    public int read(long at, byte[] target, int offset, int length) throws IOException {
        reader.checkOpen();
        validatePositionedReadArgs(at, target, offset, length);
        if (length == 0) {
            return 0;
        }
        return at >= reader.sizeBytes() ? -1 : reader.read(at, new Target(target, offset, length));
    }

    @Override
    public void readFully(long at, byte[] target, int offset, int length) throws IOException {
        reader.checkOpen();
        validatePositionedReadArgs(at, target, offset, length);
        counters.happened(StreamStatisticNames.STREAM_READ_FULLY_OPERATIONS);
        int done = 0;
        while (done < length) {
            int read = read(at + done, target, offset + done, length - done);
            if (read < 0) {
                throw new EOFException(FSExceptionMessages.EOF_IN_READ_FULLY);
            }
            done += read;
        }
    }

    @Override
    public int read(long at, ByteBuffer target) throws IOException {
        reader.checkOpen();
        if (at < 0) {
            throw new EOFException(FSExceptionMessages.NEGATIVE_SEEK + " " + at);
        }
        if (target.remaining() == 0) {
            return 0;
        }
        return at >= reader.sizeBytes() ? -1 : reader.read(at, new Target(target));
    }

    @Override
    public void readFully(long at, ByteBuffer target) throws IOException {
        long next = at;
        while (target.hasRemaining()) {
            int read = read(next, target);
            if (read < 0) {
                throw new EOFException(FSExceptionMessages.EOF_IN_READ_FULLY);
            }
            next += read;
        }
    }

    /**
     * Reads many ranges, each into a buffer that {@code allocate} gives. Hadoop has this since 3.3.5; nothing here is
     * linked to its classes until it is called. The ranges' futures are complete when it returns.
     *
     * @throws IllegalArgumentException if ranges overlap or a length is negative
     * @throws EOFException if a range begins before the file or ends behind it; nothing is read then
     */
    public void readVectored(List<? extends FileRange> ranges, IntFunction<ByteBuffer> allocate) throws IOException {
        reader.checkOpen();
        VectoredRead.read(reader, counters, ranges, allocate, null);
    }

    /** As the other, and gives {@code release} the buffers that it allocated in vain. Hadoop has this since 3.4.2. */
    public void readVectored(
            List<? extends FileRange> ranges, IntFunction<ByteBuffer> allocate, Consumer<ByteBuffer> release)
            throws IOException {
        reader.checkOpen();
        VectoredRead.read(reader, counters, ranges, allocate, Objects.requireNonNull(release, "release"));
    }

    // The rest of the contract.

    /** A hint for reads that the origin serves; the daemon's readahead is the configuration's. */
    @Override
    public void setReadahead(Long readahead) {
        if (readahead != null && readahead < 0) {
            throw new IllegalArgumentException("Negative readahead value");
        }
        reader.setReadahead(readahead);
    }

    /** Gives back what is held; the next read takes it again. */
    @Override
    public synchronized void unbuffer() {
        buffer = new byte[0];
        bufferStart = 0;
        bufferEnd = 0;
        counters.happened(StreamStatisticNames.STREAM_READ_UNBUFFERED);
        reader.letGo();
    }

    @Override
    public boolean hasCapability(String capability) {
        switch (capability.toLowerCase(Locale.ROOT)) {
            case StreamCapabilities.IOSTATISTICS:
            case StreamCapabilities.READAHEAD:
            case StreamCapabilities.UNBUFFER:
            case StreamCapabilities.READBYTEBUFFER:
            case StreamCapabilities.PREADBYTEBUFFER:
                return true;
            case VECTORED:
                return HAS_FILE_RANGE;
            default:
                return false;
        }
    }

    @Override
    public IOStatistics getIOStatistics() {
        return counters.live();
    }

    @Override
    public synchronized void close() throws IOException {
        if (reader.close()) {
            buffer = new byte[0];
            bufferStart = 0;
            bufferEnd = 0;
            counters.close();
        }
    }

    @Override
    public String toString() {
        return "CacheletInputStream{" + reader + "}";
    }

    private static boolean hasFileRange() {
        try {
            Class.forName("org.apache.hadoop.fs.FileRange", false, CacheletInputStream.class.getClassLoader());
            return true;
        } catch (ClassNotFoundException | LinkageError e) {
            return false;
        }
    }
}
