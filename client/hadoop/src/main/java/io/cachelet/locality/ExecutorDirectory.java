package io.cachelet.locality;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import java.util.function.LongSupplier;

/**
 * The live executors of this application: on which node each runs, and by which host string the scheduler knows it.
 *
 * <p>Invariants: host strings are kept byte for byte, because Spark matches them as strings ({@code [fd00::1]} with its
 * brackets included); an executor whose node is unknown, or a virtual node, is never named; an executor that was
 * removed never comes back, even if its registration arrives late.
 *
 * <p>Thread-safe. Readers take a {@link Snapshot} and never wait, unless they ask to.
 */
public final class ExecutorDirectory {
    private static final ExecutorDirectory INSTANCE = new ExecutorDirectory();

    /** Executor ids are never used twice by an application, but 100,000 of them need not be remembered. */
    private static final int MAX_REMOVED = 10_000;

    /**
     * For so long after the scheduler has named an executor a plan waits for its registration, which it sends while it
     * is set up; later it has no daemon, or will have one some day.
     */
    static final long COMING_NANOS = TimeUnit.SECONDS.toNanos(2);

    private final Map<String, Executor> executors = new HashMap<>();
    private final Map<String, Boolean> removed = new LinkedHashMap<String, Boolean>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
            return size() > MAX_REMOVED;
        }
    };
    /** What the scheduler calls an executor, where that is known; it has the last word. */
    private final Map<String, String> schedulerHosts = new HashMap<>();
    /** Executors that the scheduler knows and that have not registered, and since when. */
    private final Map<String, Long> coming = new HashMap<>();
    /** Whether {@link #coming} has any, for those who ask without a lock. */
    private volatile boolean someAreComing;

    private final LongSupplier clock;

    private volatile Snapshot snapshot = Snapshot.EMPTY;
    private volatile String learntService = "";
    private volatile String configuredService = "";
    private volatile boolean active;

    ExecutorDirectory() {
        this(System::nanoTime);
    }

    /** {@code clock} ages who is coming. What callers wait is measured by the machine's clock. */
    ExecutorDirectory(LongSupplier clock) {
        this.clock = clock;
    }

    /** The directory of this JVM. */
    public static ExecutorDirectory get() {
        return INSTANCE;
    }

    /** Says that this JVM is a driver whose executors will register, so that listings are worth remembering. */
    public void activate() {
        active = true;
    }

    /** Whether executors have registered here, or are expected to. */
    public boolean isActive() {
        return active;
    }

    /**
     * An executor runs. Registering again replaces what was known of it.
     *
     * @param executorId Spark's executor id
     * @param host the scheduler's host string for it, byte for byte
     * @param node the name of its node; null or empty if it has no daemon nearby or runs on a virtual node
     */
    public synchronized void added(String executorId, String host, String node) {
        if (executorId == null || host == null || host.isEmpty() || removed.containsKey(executorId)) {
            return;
        }
        active = true;
        executors.put(executorId, new Executor(host, isRealNode(node) ? node : ""));
        publish();
        hasCome(executorId);
    }

    /**
     * The scheduler's own word on an executor's host string. Where it differs from what the executor said, tasks would
     * wait for a host that does not exist.
     */
    public synchronized void scheduledAs(String executorId, String host) {
        if (executorId == null || host == null || host.isEmpty() || removed.containsKey(executorId)) {
            return;
        }
        schedulerHosts.put(executorId, host);
        if (!executors.containsKey(executorId)) {
            coming.put(executorId, clock.getAsLong());
            someAreComing = true;
        }
        publish();
    }

    /** An executor is gone for good. */
    public synchronized void removed(String executorId) {
        if (executorId == null) {
            return;
        }
        removed.put(executorId, Boolean.TRUE);
        executors.remove(executorId);
        schedulerHosts.remove(executorId);
        publish();
        hasCome(executorId);
    }

    /** The application has ended. Another one in this JVM starts from nothing, with the same executor ids. */
    public synchronized void clear() {
        executors.clear();
        schedulerHosts.clear();
        removed.clear();
        coming.clear();
        someAreComing = false;
        notifyAll();
        learntService = "";
        configuredService = "";
        active = false;
        publish();
    }

    /**
     * Waits for executors that the scheduler has just named and that have not said yet on which node they are, so that
     * the first plan does not crowd onto the quickest. For {@code nanos} at most.
     *
     * @return how long that took
     */
    long awaitThoseComing(long nanos) {
        if (!someAreComing || nanos <= 0) {
            return 0;
        }
        long start = System.nanoTime();
        long waited = 0;
        synchronized (this) {
            try {
                while (waited < nanos && areSomeComing()) {
                    // Rounded up: a wait of 0 would be one without end.
                    wait(TimeUnit.NANOSECONDS.toMillis(nanos - waited) + 1);
                    waited = System.nanoTime() - start;
                }
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }
        return waited;
    }

    /** The caller has the lock. */
    private boolean areSomeComing() {
        long now = clock.getAsLong();
        coming.values().removeIf(since -> now - since >= COMING_NANOS);
        someAreComing = !coming.isEmpty();
        return someAreComing;
    }

    /** The caller has the lock. */
    private void hasCome(String executorId) {
        coming.remove(executorId);
        someAreComing = !coming.isEmpty();
        notifyAll();
    }

    /** Where the locality service is, as a daemon said: {@code host:port} or a URL. Empty or null says nothing. */
    public void serviceAddress(String hostPort) {
        if (hostPort != null && !hostPort.isEmpty()) {
            learntService = hostPort;
        }
    }

    /** Where the locality service is, as the configuration says. It wins over what daemons say. */
    public void configuredServiceAddress(String hostPort) {
        configuredService = hostPort == null ? "" : hostPort;
    }

    /** Where the locality service is: {@code host:port}, a URL, or empty. */
    public String serviceAddress() {
        return configuredService.isEmpty() ? learntService : configuredService;
    }

    /** The nodes on which executors run, in order of their names; virtual nodes and unknown ones are left out. */
    public List<String> nodes() {
        return snapshot.nodes;
    }

    /** How many executors have registered, those without a known node included. */
    public synchronized int size() {
        return executors.size();
    }

    /** The executors at this moment. */
    Snapshot snapshot() {
        return snapshot;
    }

    /** All pods of a virtual node are machines of their own: being on the same one is no locality. */
    static boolean isRealNode(String node) {
        return node != null && !node.isEmpty() && !node.startsWith("virtual-kubelet");
    }

    private void publish() {
        Map<String, TreeSet<String>> hosts = new TreeMap<>();
        for (Map.Entry<String, Executor> entry : executors.entrySet()) {
            Executor executor = entry.getValue();
            if (!executor.node.isEmpty()) {
                String host = schedulerHosts.getOrDefault(entry.getKey(), executor.host);
                hosts.computeIfAbsent(executor.node, node -> new TreeSet<>()).add(host);
            }
        }
        Map<String, String[]> byNode = new HashMap<>();
        hosts.forEach((node, names) -> byNode.put(node, names.toArray(new String[0])));
        List<String> nodes = Collections.unmodifiableList(new ArrayList<>(hosts.keySet()));
        // The same list as before as long as its nodes are: answers are kept for as long as it stays the same object.
        snapshot = new Snapshot(nodes.equals(snapshot.nodes) ? snapshot.nodes : nodes, byNode);
    }

    private static final class Executor {
        final String host;
        final String node;

        Executor(String host, String node) {
            this.host = host;
            this.node = node;
        }
    }

    /** The executors at one moment. Immutable. */
    static final class Snapshot {
        static final Snapshot EMPTY = new Snapshot(Collections.emptyList(), Collections.emptyMap());

        /** Sorted. The same object in all snapshots between which the nodes did not change. */
        final List<String> nodes;

        private final Map<String, String[]> hosts;

        Snapshot(List<String> nodes, Map<String, String[]> hosts) {
            this.nodes = nodes;
            this.hosts = hosts;
        }

        /**
         * The distinct host strings of a node's executors, in a stable order; null if there are none. Not to be
         * changed.
         */
        String[] hosts(String node) {
            return hosts.get(node);
        }
    }
}
