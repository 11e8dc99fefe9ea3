package io.cachelet.hadoop;

import io.cachelet.client.ClientStats;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.LongAdder;

/**
 * Where the bytes that this JVM read came from, and why some did not come through Cachelet. Counters only grow; they
 * cover every file system and stream of the JVM.
 */
public final class ReadMetrics {
    private static final LongAdder ORIGIN_BYTES = new LongAdder();
    private static final Map<String, LongAdder> FALLBACKS = new ConcurrentHashMap<>();

    /** Bytes read from held descriptors, or kept with a small object. */
    public final long localBytes;
    /** Bytes that the daemon of this node sent over its socket. */
    public final long inlineBytes;
    /** Bytes that streams of ours read from the origin directly, because Cachelet did not serve them. */
    public final long originBytes;
    /**
     * Times that a read or an open went to the origin, by reason: the words of
     * {@link io.cachelet.client.CacheletException#reason()}, {@code bypassed} (after time-outs), {@code io} and, counted
     * once a stream, why a file was opened with a stock stream: {@code disabled}, {@code no_native_library},
     * {@code encryption}, {@code magic_path}, {@code no_etag}, {@code select}.
     */
    public final Map<String, Long> fallbacks;
    /** Objects opened at the daemon. */
    public final long opens;
    /** Descriptors received from the daemon. */
    public final long grants;

    private ReadMetrics(Iterable<ClientStats> clients) {
        long local = 0;
        long inline = 0;
        long opened = 0;
        long granted = 0;
        for (ClientStats client : clients) {
            local += client.localBytes;
            inline += client.inlineBytes + client.remoteBytes;
            opened += client.opens;
            granted += client.grantsReceived;
        }
        localBytes = local;
        inlineBytes = inline;
        opens = opened;
        grants = granted;
        originBytes = ORIGIN_BYTES.sum();
        Map<String, Long> counts = new TreeMap<>();
        FALLBACKS.forEach((reason, count) -> counts.put(reason, count.sum()));
        fallbacks = counts;
    }

    /** The counters now. */
    public static ReadMetrics snapshot() {
        return new ReadMetrics(NodeDaemon.stats());
    }

    static void readFromOrigin(long bytes) {
        ORIGIN_BYTES.add(bytes);
    }

    static void fellBack(String reason) {
        FALLBACKS.computeIfAbsent(reason, unused -> new LongAdder()).increment();
    }

    @Override
    public String toString() {
        return "local bytes " + localBytes + ", inline bytes " + inlineBytes + ", origin bytes " + originBytes
                + ", opens " + opens + ", grants " + grants + ", fallbacks " + fallbacks;
    }
}
