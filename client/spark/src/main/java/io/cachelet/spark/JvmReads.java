package io.cachelet.spark;

import io.cachelet.client.CacheletClient;
import io.cachelet.client.FilledBytes;
import io.cachelet.hadoop.NodeDaemon;
import io.cachelet.hadoop.ReadMetrics;
import java.util.HashMap;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * What this JVM has read, over all of its file systems. The counters only grow.
 *
 * <p>What the daemon fetched on our behalf is known to the daemon, for each of its sessions; a session that begins anew
 * counts from 0, so that sums are kept here. {@link #ask} costs a message and may wait for the daemon; {@link #now}
 * does neither.
 */
final class JvmReads {
    private static final Logger LOG = LoggerFactory.getLogger(JvmReads.class);

    private final CacheletClient client;
    private final SessionSums fetched = new SessionSums();

    private JvmReads(CacheletClient client) {
        this.client = client;
    }

    /** With the client that this JVM's file systems use. Without native library there is none, and nothing to fetch. */
    static JvmReads of(Configuration conf) {
        return new JvmReads(NodeDaemon.client(conf));
    }

    /** The client that is shared with the file systems; null without native library. */
    CacheletClient client() {
        return client;
    }

    /** Asks the daemon what it fetched, and returns {@link #now}. Call it only when a daemon has been there. */
    Counters ask() {
        if (client != null) {
            try {
                FilledBytes told = client.filledBytes();
                synchronized (this) {
                    fetched.told(client.stats().reconnects, told.originBytes, told.peerBytes);
                }
            } catch (Exception e) {
                // What was told last still holds; the daemon may be gone.
                LOG.debug("cannot ask the daemon what it fetched", e);
            }
        }
        return now();
    }

    /** The counters, with what the daemon told last. */
    synchronized Counters now() {
        ReadMetrics reads = ReadMetrics.snapshot();
        Map<String, Long> values = new HashMap<>();
        values.put(Counters.LOCAL, reads.localBytes + reads.inlineBytes);
        values.put(Counters.INLINE, reads.inlineBytes);
        values.put(Counters.DIRECT, reads.originBytes);
        values.put(Counters.ORIGIN, fetched.isUnknown() ? Counters.UNKNOWN : fetched.originBytes() + reads.originBytes);
        values.put(Counters.PEER, fetched.isUnknown() ? Counters.UNKNOWN : fetched.peerBytes());
        long fallbacks = 0;
        for (Map.Entry<String, Long> reason : reads.fallbacks.entrySet()) {
            fallbacks += reason.getValue();
            values.put(Counters.FALLBACKS + "." + reason.getKey(), reason.getValue());
        }
        values.put(Counters.FALLBACKS, fallbacks);
        values.values().removeIf(value -> value == 0);
        return Counters.of(values);
    }
}
