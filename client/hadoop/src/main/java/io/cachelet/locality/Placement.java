package io.cachelet.locality;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Which nodes hold what this application wants to read, wherever its executors are: where new executors would be best.
 *
 * <p>What it wants is what the driver planned lately, and what its configuration names. A background thread asks the
 * locality service, without naming candidates; callers get what was answered last and never wait. Does nothing until
 * {@link #enable}. Thread-safe.
 */
public final class Placement {
    private static final Logger LOG = LoggerFactory.getLogger(Placement.class);
    private static final Placement INSTANCE = new Placement(ExecutorDirectory.get());

    /** Files that are kept in mind; the service answers for as many at once. */
    private static final int MAX_FILES = LocationService.MAX_PATHS;
    /** A ranking older than this is made again the next time that somebody asks. */
    private static final long FRESH_NANOS = TimeUnit.SECONDS.toNanos(10);

    private final ExecutorDirectory directory;
    private final LocationService service = new LocationService();
    private final Map<String, LocationService.Path> planned =
            new LinkedHashMap<String, LocationService.Path>(16, 0.75f, true) {
                @Override
                protected boolean removeEldestEntry(Map.Entry<String, LocationService.Path> eldest) {
                    return size() > MAX_FILES;
                }
            };
    private List<LocationService.Path> configured = Collections.emptyList();
    private volatile boolean enabled;
    private volatile List<NodeBytes> ranking = Collections.emptyList();
    private boolean refreshing;
    private boolean asked;
    private long askedNanos;

    Placement(ExecutorDirectory directory) {
        this.directory = directory;
    }

    /** The placement of this JVM. */
    public static Placement get() {
        return INSTANCE;
    }

    /** Somebody will ask for {@link #nodes}: plans are remembered from now on. */
    public void enable() {
        enabled = true;
    }

    /** The driver plans to read this file. */
    public void planned(String uri, String etag, long length) {
        if (!enabled) {
            return;
        }
        synchronized (this) {
            LocationService.Path known = planned.get(uri);
            if (known == null || known.length != length) {
                planned.put(uri, new LocationService.Path(uri, etag, length));
            }
        }
    }

    /** The configuration names this file. Counts for as long as the application runs. */
    public synchronized void configured(String uri, String etag, long length) {
        if (configured.size() < MAX_FILES) {
            List<LocationService.Path> more = new ArrayList<>(configured);
            more.add(new LocationService.Path(uri, etag, length));
            configured = more;
        }
    }

    /**
     * The nodes that hold, or are to hold, what is wanted, most bytes first, as the service said last. Does not wait;
     * what is old is asked for in the background.
     */
    public List<NodeBytes> nodes() {
        synchronized (this) {
            boolean old = !asked || System.nanoTime() - askedNanos > FRESH_NANOS;
            if (enabled && old && !refreshing && !directory.serviceAddress().isEmpty() && !wanted().isEmpty()) {
                refreshing = true;
                Thread thread = new Thread(this::refresh, "cachelet-placement");
                thread.setDaemon(true);
                thread.setContextClassLoader(Placement.class.getClassLoader());
                thread.start();
            }
        }
        return ranking;
    }

    /** Asks the service now, on the calling thread. */
    public void refresh() {
        List<LocationService.Path> files;
        synchronized (this) {
            files = wanted();
            asked = true;
            askedNanos = System.nanoTime();
        }
        try {
            if (!files.isEmpty() && !directory.serviceAddress().isEmpty()) {
                ranking = rank(service.locate(directory.serviceAddress(), null, files)
                        .answers
                        .values());
            }
        } catch (IOException | RuntimeException | Error e) {
            LOG.debug("cannot find out which nodes hold {} files", files.size(), e);
        } finally {
            synchronized (this) {
                refreshing = false;
            }
        }
    }

    /** The application has ended. */
    public synchronized void clear() {
        enabled = false;
        asked = false;
        planned.clear();
        configured = Collections.emptyList();
        ranking = Collections.emptyList();
    }

    private List<LocationService.Path> wanted() {
        Map<String, LocationService.Path> files = new LinkedHashMap<>();
        configured.forEach(file -> files.put(file.uri, file));
        files.putAll(planned);
        return new ArrayList<>(files.values());
    }

    private static List<NodeBytes> rank(Collection<LocationService.Answer> answers) {
        Map<String, Long> bytes = new HashMap<>();
        answers.forEach(answer -> answer.tiles.forEachNode((node, length) -> bytes.merge(node, length, Long::sum)));
        List<NodeBytes> nodes = new ArrayList<>();
        bytes.forEach((node, sum) -> {
            if (ExecutorDirectory.isRealNode(node)) {
                nodes.add(new NodeBytes(node, sum));
            }
        });
        nodes.sort((a, b) -> a.bytes != b.bytes ? Long.compare(b.bytes, a.bytes) : a.node.compareTo(b.node));
        return Collections.unmodifiableList(nodes);
    }

    /** A node and what it holds of what is wanted. */
    public static final class NodeBytes {
        /** The node's name. */
        public final String node;
        /** Bytes that it holds, or is to hold. */
        public final long bytes;

        /** Of {@code bytes} on {@code node}. */
        public NodeBytes(String node, long bytes) {
            this.node = node;
            this.bytes = bytes;
        }

        @Override
        public String toString() {
            return node + "=" + bytes;
        }
    }
}
