package io.cachelet.hadoop;

import io.cachelet.client.CacheletException;
import io.cachelet.client.CacheletObject;
import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;
import java.util.function.IntFunction;
import org.apache.hadoop.fs.FileRange;

/**
 * Reads many ranges of a file: those for direct buffers in one call of the native client, which asks the daemon for all
 * that is missing at once; the others one after the other. While the daemon is not asked, what this process holds is
 * read from there. What Cachelet does not serve goes to the stock stream's own vectored read.
 *
 * <p>Apart from the stream, so that Hadoop before 3.3.5, which has no {@link FileRange}, never loads it.
 */
final class VectoredRead {
    /** What one call of the native client asks for at most, unless one range is longer: a deadline is meant for it. */
    private static final long BATCH_BYTES = 8 << 20;

    private final PinnedReader reader;
    private final StreamCounters counters;
    private final IntFunction<ByteBuffer> allocate;
    /** Takes buffers back that nobody gets; null where Hadoop, before 3.4.2, has no such thing. */
    private final Consumer<ByteBuffer> release;

    /** What is still to do, and before {@link #done} what is not. */
    private final List<FileRange> ranges;
    /** Ranges before this one have their data. */
    private int done;

    private VectoredRead(
            PinnedReader reader,
            StreamCounters counters,
            List<FileRange> ranges,
            IntFunction<ByteBuffer> allocate,
            Consumer<ByteBuffer> release) {
        this.reader = reader;
        this.counters = counters;
        this.ranges = ranges;
        this.allocate = allocate;
        this.release = release;
    }

    static void read(
            PinnedReader reader,
            StreamCounters counters,
            List<? extends FileRange> asked,
            IntFunction<ByteBuffer> allocate,
            Consumer<ByteBuffer> release)
            throws IOException {
        Objects.requireNonNull(allocate, "allocate");
        List<FileRange> ranges = checkedAndSorted(asked, reader.sizeBytes());
        reader.run(new VectoredRead(reader, counters, ranges, allocate, release)::run);
    }

    /** What Hadoop asks of a list of ranges, in its order of complaints. */
    private static List<FileRange> checkedAndSorted(List<? extends FileRange> asked, long sizeBytes)
            throws EOFException {
        Objects.requireNonNull(asked, "ranges");
        List<FileRange> sorted = new ArrayList<>(asked);
        for (FileRange range : sorted) {
            Objects.requireNonNull(range, "range");
            if (range.getLength() < 0) {
                throw new IllegalArgumentException("the length of " + range + " is negative");
            }
            if (range.getOffset() < 0) {
                throw new EOFException("the position of " + range + " is negative");
            }
        }
        sorted.sort(Comparator.comparingLong(FileRange::getOffset));
        long end = 0;
        for (FileRange range : sorted) {
            if (range.getOffset() < end) {
                throw new IllegalArgumentException(range + " overlaps the range before it");
            }
            end = range.getOffset() + range.getLength();
        }
        if (end > sizeBytes) {
            throw new EOFException("the last range ends at " + end + ", behind the file's " + sizeBytes + " bytes");
        }
        return sorted;
    }

    private void run() throws IOException {
        if (ranges.isEmpty()) {
            return;
        }
        try {
            PinnedReader.Turn turn = reader.turn();
            while (turn == PinnedReader.Turn.DAEMON && readBatch() && done < ranges.size()) {
                turn = reader.turn();
            }
            while (done < ranges.size() && !reader.isPinned()) {
                readFromOrigin(ranges.get(done));
                done++;
            }
            ranges.subList(0, done).clear();
            done = 0;
            if (turn != PinnedReader.Turn.ORIGIN) {
                ranges.removeIf(this::readHeld);
            }
            if (!ranges.isEmpty()) {
                reader.goesToOrigin(turn);
                List<FileRange> rest = ranges;
                reader.withStock(stock -> {
                    if (release == null) {
                        stock.readVectored(rest, allocate);
                    } else {
                        stock.readVectored(rest, allocate, release);
                    }
                    for (FileRange range : rest) {
                        // The stock stream delivers later, by itself.
                        range.getData().thenAccept(buffer -> ReadMetrics.readFromOrigin(range.getLength()));
                    }
                });
                done = ranges.size();
            }
        } catch (IOException e) {
            for (FileRange range : ranges.subList(done, ranges.size())) {
                CompletableFuture<ByteBuffer> failed = new CompletableFuture<>();
                failed.completeExceptionally(e);
                range.setData(failed);
            }
        }
    }

    /** Reads the next few ranges; says whether Cachelet served them. */
    private boolean readBatch() throws IOException {
        List<ByteBuffer> buffers = new ArrayList<>();
        boolean allocated = false;
        boolean delivered = false;
        long started = System.nanoTime();
        CacheletObject object = null;
        try {
            FileRange first = ranges.get(done);
            object = reader.open(first.getOffset(), first.getLength());
            boolean direct = allocateBatch(buffers);
            allocated = true;
            if (direct) {
                readDirect(object, buffers);
            } else {
                readOneByOne(object, buffers);
            }
            reader.served(object, System.nanoTime() - started);
            delivered = reader.mayDeliver(PinnedReader.Source.CACHE);
        } catch (CacheletException e) {
            return reader.isWorthAnotherTry(e, object);
        } catch (IllegalStateException e) {
            if (!allocated) {
                throw e;
            }
            reader.panicked(e);
            return false;
        } finally {
            if (!delivered && release != null) {
                buffers.forEach(release);
            }
        }
        if (!delivered) {
            return false;
        }
        for (ByteBuffer buffer : buffers) {
            FileRange range = ranges.get(done++);
            buffer.flip();
            counters.delivered(range.getLength(), range.getLength());
            range.setData(CompletableFuture.completedFuture(buffer));
        }
        return true;
    }

    /** Reads a range from what this process holds; says whether that was all of it. */
    private boolean readHeld(FileRange range) {
        if (!reader.holds(range.getOffset(), range.getLength())) {
            return false;
        }
        ByteBuffer buffer = allocate.apply(range.getLength());
        buffer.limit(buffer.position() + range.getLength());
        long at = range.getOffset();
        while (buffer.hasRemaining()) {
            int read = reader.fromHeld(at, new Target(buffer));
            if (read < 0) {
                // It was let go of just now.
                if (release != null) {
                    release.accept(buffer);
                }
                return false;
            }
            at += read;
        }
        buffer.flip();
        counters.delivered(range.getLength(), range.getLength());
        range.setData(CompletableFuture.completedFuture(buffer));
        return true;
    }

    private void readFromOrigin(FileRange range) throws IOException {
        ByteBuffer buffer = allocate.apply(range.getLength());
        buffer.limit(buffer.position() + range.getLength());
        long at = range.getOffset();
        while (buffer.hasRemaining()) {
            at += reader.readAlone(at, new Target(buffer));
        }
        buffer.flip();
        range.setData(CompletableFuture.completedFuture(buffer));
    }

    /** Buffers for the next ranges, up to a batch; says whether all are direct. */
    private boolean allocateBatch(List<ByteBuffer> buffers) {
        int end = done;
        long bytes = 0;
        boolean direct = true;
        do {
            int length = ranges.get(end++).getLength();
            ByteBuffer buffer = allocate.apply(length);
            buffers.add(buffer);
            direct &= buffer.isDirect();
            bytes += length;
        } while (end < ranges.size() && bytes + ranges.get(end).getLength() <= BATCH_BYTES);
        return direct;
    }

    private void readDirect(CacheletObject object, List<ByteBuffer> buffers) throws CacheletException {
        int count = buffers.size();
        long[] positions = new long[count];
        int[] lengths = new int[count];
        for (int i = 0; i < count; i++) {
            positions[i] = ranges.get(done + i).getOffset();
            lengths[i] = ranges.get(done + i).getLength();
        }
        object.readVectored(positions, lengths, buffers.toArray(new ByteBuffer[0]));
    }

    private void readOneByOne(CacheletObject object, List<ByteBuffer> buffers) throws CacheletException {
        for (int i = 1; i < buffers.size(); i++) {
            object.prefetch(
                    ranges.get(done + i).getOffset(), ranges.get(done + i).getLength());
        }
        for (int i = 0; i < buffers.size(); i++) {
            FileRange range = ranges.get(done + i);
            ByteBuffer buffer = buffers.get(i);
            buffer.limit(buffer.position() + range.getLength());
            if (range.getLength() > 0) {
                object.read(range.getOffset(), buffer);
            }
        }
    }
}
