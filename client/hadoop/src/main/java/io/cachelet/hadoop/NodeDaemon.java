package io.cachelet.hadoop;

import io.cachelet.client.CacheletClient;
import io.cachelet.client.CacheletException;
import io.cachelet.client.CacheletObject;
import io.cachelet.client.ClientOptions;
import io.cachelet.client.ClientStats;
import io.cachelet.client.NativeLibrary;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.hadoop.conf.Configuration;

/**
 * This JVM's relation to the daemon of its node: the one client, how long to wait for an answer, and whether to ask.
 *
 * <p>One a JVM and socket directory, for the life of the JVM: file systems come and go, streams outlive them. The first
 * file system's settings hold.
 */
public final class NodeDaemon {
    private static final Map<String, NodeDaemon> BY_SOCKET_DIR = new ConcurrentHashMap<>();
    /** Reads below this did not wait for anybody. */
    private static final long WAITED_NANOS = 5_000_000;

    private static final long CONNECT_TIMEOUT_MILLIS = 1_000;

    private final CacheletClient client;
    private final Breaker breaker;
    private final WaitTimes waitTimes;
    private final AtomicLong deadlineMillis;
    private volatile long answersAtTrouble;

    private NodeDaemon(ReadSettings settings) {
        breaker = new Breaker(settings.bypassPeriodMillis * 1_000_000);
        waitTimes = new WaitTimes(settings.requestTimeoutMinMillis);
        deadlineMillis = new AtomicLong(waitTimes.deadlineMillis());
        client = CacheletClient.create(new ClientOptions()
                .socketDir(settings.socketDir)
                .application(environment("SPARK_APPLICATION_ID"))
                .pod(environment("HOSTNAME"))
                .podIp(environment("SPARK_EXECUTOR_POD_IP"))
                .connectTimeoutMillis(Math.max(CONNECT_TIMEOUT_MILLIS, settings.requestTimeoutMinMillis))
                .requestTimeoutMillis(deadlineMillis.get())
                .readaheadBytes(settings.readaheadBytes)
                .verifyReads(settings.verifyReads));
    }

    /**
     * The client that the file systems with this configuration read through; null where the native library is
     * unavailable. It belongs to the JVM and is never closed.
     *
     * @throws IllegalArgumentException if a setting cannot be understood
     */
    public static CacheletClient client(Configuration conf) {
        NodeDaemon daemon = of(new ReadSettings(conf));
        return daemon == null ? null : daemon.client;
    }

    /** The daemon that these settings name; null where the native library is unavailable. */
    static NodeDaemon of(ReadSettings settings) {
        if (!NativeLibrary.load(settings.nativePath, settings.nativeDir)) {
            return null;
        }
        return BY_SOCKET_DIR.computeIfAbsent(settings.socketDir, unused -> new NodeDaemon(settings));
    }

    /** The counters of the JVM's clients: one, unless a JVM has several socket directories. */
    static List<ClientStats> stats() {
        List<ClientStats> stats = new ArrayList<>();
        for (NodeDaemon daemon : BY_SOCKET_DIR.values()) {
            stats.add(daemon.client.stats());
        }
        return stats;
    }

    private static String environment(String name) {
        String value = System.getenv(name);
        return value == null ? "" : value;
    }

    /** Whether to ask the daemon now. Who gets true, reports with one of the methods below. */
    boolean mayAsk() {
        return breaker.mayAsk(System.nanoTime());
    }

    CacheletObject open(Generation generation, long firstOffset, long firstLength) throws CacheletException {
        return client.open(
                generation.uri,
                generation.etag,
                generation.sizeBytes,
                generation.versionId,
                generation.fingerprint,
                firstOffset,
                firstLength);
    }

    /** The object as far as this process holds it, without a word to the daemon; null if it is not open. */
    CacheletObject openHeld(Generation generation) throws CacheletException {
        return client.openHeld(
                generation.uri, generation.etag, generation.sizeBytes, generation.versionId, generation.fingerprint);
    }

    /** A request was answered; {@code nanos} is how long it took. Says whether the caller waited for something. */
    boolean served(long nanos) {
        if (!breaker.isQuiet()) {
            if (answers() > answersAtTrouble) {
                breaker.answered();
            } else {
                breaker.learntNothing();
            }
        }
        return nanos >= WAITED_NANOS;
    }

    /** A request failed; what that says about the daemon. */
    void failed(CacheletException failure) {
        if (failure.kind() == CacheletException.Kind.TIMEOUT) {
            answersAtTrouble = answers();
            if (breaker.timedOut(System.nanoTime())) {
                OnceLog.warn(
                        "bypassed",
                        "the cachelet daemon did not answer twice in a row (" + failure.getMessage()
                                + "); reads go to the origin for a while, then one tries again");
            }
        } else if (!breaker.isQuiet()) {
            breaker.answered();
        }
    }

    /** The daemon brought in what a read waited for: it answers, and the origin had to serve. */
    void filled(long nanos) {
        if (!breaker.isQuiet()) {
            breaker.answered();
        }
        originTook(nanos);
    }

    /** A read was served by the origin, through the daemon or not, in this time. */
    void originTook(long nanos) {
        if (nanos < WAITED_NANOS) {
            return;
        }
        long deadline = waitTimes.took(nanos / 1_000_000);
        if (deadlineMillis.getAndSet(deadline) != deadline) {
            client.setRequestTimeoutMillis(deadline);
        }
    }

    /** What only an answering daemon makes grow. */
    private long answers() {
        ClientStats stats = client.stats();
        return stats.opens + stats.grantsReceived + stats.inlineBytes + stats.remoteBytes;
    }
}
