package io.cachelet.hadoop;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.statistics.IOStatistics;
import org.apache.hadoop.fs.statistics.IOStatisticsAggregator;
import org.apache.hadoop.fs.statistics.StreamStatisticNames;
import org.apache.hadoop.fs.statistics.impl.DynamicIOStatisticsBuilder;
import org.apache.hadoop.fs.statistics.impl.IOStatisticsBinding;

/**
 * What one stream tells Hadoop about itself, under the names that S3A uses.
 *
 * <p>Bytes are counted where they are handed to the reader, on its thread, and once: what a stock stream delivers, it
 * counts itself, here it is only added for who asks this stream.
 */
final class StreamCounters {
    /** The names S3A's streams have in every supported version; those that cannot happen here stay 0. */
    private static final String[] NAMES = {
        StreamStatisticNames.STREAM_READ_ABORTED,
        StreamStatisticNames.STREAM_READ_BYTES,
        StreamStatisticNames.STREAM_READ_BYTES_DISCARDED_ABORT,
        StreamStatisticNames.STREAM_READ_BYTES_DISCARDED_CLOSE,
        StreamStatisticNames.STREAM_READ_CLOSED,
        StreamStatisticNames.STREAM_READ_CLOSE_OPERATIONS,
        StreamStatisticNames.STREAM_READ_EXCEPTIONS,
        StreamStatisticNames.STREAM_READ_FULLY_OPERATIONS,
        StreamStatisticNames.STREAM_READ_OPENED,
        StreamStatisticNames.STREAM_READ_OPERATIONS,
        StreamStatisticNames.STREAM_READ_OPERATIONS_INCOMPLETE,
        StreamStatisticNames.STREAM_READ_SEEK_BACKWARD_OPERATIONS,
        StreamStatisticNames.STREAM_READ_SEEK_BYTES_BACKWARDS,
        StreamStatisticNames.STREAM_READ_SEEK_BYTES_DISCARDED,
        StreamStatisticNames.STREAM_READ_SEEK_BYTES_SKIPPED,
        StreamStatisticNames.STREAM_READ_SEEK_FORWARD_OPERATIONS,
        StreamStatisticNames.STREAM_READ_SEEK_OPERATIONS,
        StreamStatisticNames.STREAM_READ_SEEK_POLICY_CHANGED,
        StreamStatisticNames.STREAM_READ_TOTAL_BYTES,
        StreamStatisticNames.STREAM_READ_UNBUFFERED,
        StreamStatisticNames.STREAM_READ_VERSION_MISMATCHES,
    };

    private final FileSystem.Statistics fileSystem;
    private final IOStatisticsAggregator ofFileSystem;
    private final Map<String, AtomicLong> counts = new LinkedHashMap<>();
    private final AtomicLong bytes;
    private final AtomicLong totalBytes;
    private final AtomicLong operations;
    private final AtomicLong incomplete;
    private volatile FSDataInputStream origin;

    StreamCounters(FileSystem.Statistics fileSystem, IOStatisticsAggregator ofFileSystem) {
        this.fileSystem = fileSystem;
        this.ofFileSystem = ofFileSystem;
        for (String name : NAMES) {
            counts.put(name, new AtomicLong());
        }
        bytes = counts.get(StreamStatisticNames.STREAM_READ_BYTES);
        totalBytes = counts.get(StreamStatisticNames.STREAM_READ_TOTAL_BYTES);
        operations = counts.get(StreamStatisticNames.STREAM_READ_OPERATIONS);
        incomplete = counts.get(StreamStatisticNames.STREAM_READ_OPERATIONS_INCOMPLETE);
    }

    /** The reader got {@code read} bytes of the {@code asked} from Cachelet. */
    void delivered(int read, int asked) {
        bytes.addAndGet(read);
        totalBytes.addAndGet(read);
        operations.incrementAndGet();
        if (read < asked) {
            incomplete.incrementAndGet();
        }
        if (fileSystem != null) {
            fileSystem.incrementBytesRead(read);
        }
    }

    /** One more of something; {@code name} is one of {@link StreamStatisticNames} above. */
    void happened(String name) {
        counts.get(name).incrementAndGet();
    }

    void sought(long from, long to) {
        happened(StreamStatisticNames.STREAM_READ_SEEK_OPERATIONS);
        if (to > from) {
            happened(StreamStatisticNames.STREAM_READ_SEEK_FORWARD_OPERATIONS);
            counts.get(StreamStatisticNames.STREAM_READ_SEEK_BYTES_SKIPPED).addAndGet(to - from);
        } else {
            happened(StreamStatisticNames.STREAM_READ_SEEK_BACKWARD_OPERATIONS);
            counts.get(StreamStatisticNames.STREAM_READ_SEEK_BYTES_BACKWARDS).addAndGet(from - to);
        }
    }

    /** A stock stream serves some of this stream's reads, and counts them. */
    void readsFrom(FSDataInputStream stock) {
        origin = stock;
    }

    /** This stream's counters and its stock stream's, as they are when they are asked. */
    IOStatistics live() {
        DynamicIOStatisticsBuilder builder = IOStatisticsBinding.dynamicIOStatistics();
        counts.forEach((name, count) -> builder.withLongFunctionCounter(name, key -> count.get() + fromOrigin(key)));
        return builder.build();
    }

    private long fromOrigin(String name) {
        FSDataInputStream stock = origin;
        IOStatistics statistics = stock == null ? null : stock.getIOStatistics();
        Long count = statistics == null ? null : statistics.counters().get(name);
        return count == null ? 0 : count;
    }

    /** Adds what Cachelet delivered to the file system's totals; a stock stream adds its own part when it is closed. */
    void close() {
        happened(StreamStatisticNames.STREAM_READ_CLOSE_OPERATIONS);
        if (ofFileSystem != null) {
            DynamicIOStatisticsBuilder builder = IOStatisticsBinding.dynamicIOStatistics();
            counts.forEach(builder::withAtomicLongCounter);
            ofFileSystem.aggregate(builder.build());
        }
    }
}
