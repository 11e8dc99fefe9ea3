package io.cachelet.locality;

import io.cachelet.locality.Listings.Listed;
import io.cachelet.locality.Listings.Listing;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Iterator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.function.LongSupplier;
import org.apache.hadoop.fs.BlockLocation;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Tells a scheduler which executors are near a file's blocks. One a JVM; thread-safe.
 *
 * <p>A background thread asks the locality service, in batches: the first file of a plan brings the answers for all
 * files that were listed with it. Callers wait for it only as long as {@link PlanBudget} lets them; what arrives later
 * serves the next plan. An answer is good for {@link #FRESH_NANOS} and for exactly the nodes that executors run on;
 * while the service is slow or down, one of up to {@link #STALE_NANOS} does. Otherwise a file has no hosts, which costs
 * a task no wait.
 *
 * <p>Nothing is asked before an executor has said on which node it runs, and nothing here throws.
 */
public final class BlockLocator {
    static final long FRESH_NANOS = TimeUnit.SECONDS.toNanos(5);
    static final long STALE_NANOS = TimeUnit.SECONDS.toNanos(60);

    private static final Logger LOG = LoggerFactory.getLogger(BlockLocator.class);

    /** A request that takes this long is waited for by nobody new. */
    private static final long STALL_NANOS = TimeUnit.MILLISECONDS.toNanos(500);
    /** Files that are listed this long after the one before begin another listing. */
    private static final long PAUSE_NANOS = TimeUnit.SECONDS.toNanos(1);
    /** A listing is asked for this long after its last file, so that the plan that follows finds the answers there. */
    private static final long SETTLED_NANOS = TimeUnit.MILLISECONDS.toNanos(20);
    /** The thread ends after having had nothing to do for this long. */
    private static final long IDLE_MILLIS = 60_000;
    /** Files waiting to be asked for; mostly one brings all of the others. */
    private static final int MAX_WANTED = 1_000;

    private static final BlockLocator INSTANCE =
            new BlockLocator(ExecutorDirectory.get(), System::nanoTime, PlanBudget.BUDGET_NANOS, true);

    private final ExecutorDirectory directory;
    /** Ages answers and failures. What callers wait is measured by the machine's clock. */
    private final LongSupplier clock;

    private final LocationService service = new LocationService();
    private final PlanBudget budget;
    private final boolean ahead;

    /** Guards everything below; the thread and those who wait for it meet here. */
    private final Object lock = new Object();

    private final Listings listings = new Listings(Listings.CAPACITY, LocationService.MAX_PATHS, PAUSE_NANOS);
    private final Breaker breaker = new Breaker();
    /** Files to ask for, in that order, each together with its listing. */
    private final Set<Listed> wanted = new LinkedHashSet<>();

    /** The file that was listed last, until its listing is asked for; null if there is nothing to ask. */
    private Listed settling;

    private long listedNanos;
    private Thread thread;
    private boolean asking;
    private long askingSinceNanos;
    private long failures;

    /** {@code ahead} asks for listings as soon as they have settled, before anybody plans to read them. */
    BlockLocator(ExecutorDirectory directory, LongSupplier clock, long budgetNanos, boolean ahead) {
        this.directory = directory;
        this.ahead = ahead;
        this.budget = new PlanBudget(budgetNanos);
        this.clock = clock;
    }

    /** The locator of this JVM. */
    public static BlockLocator get() {
        return INSTANCE;
    }

    /**
     * Remembers that this file was listed, so that one request answers for all of a listing, in the background and as
     * soon as the listing has settled. Cheap: takes a lock, waits for nobody. Does nothing in a JVM that is no driver.
     *
     * @param uri {@code s3a://bucket/key} or {@code oss://bucket/key}, the key not URL-encoded
     * @param etag of the generation that was listed; null if unknown
     * @param length in bytes
     */
    public void listed(String uri, String etag, long length) {
        if (uri == null || length <= 0 || !directory.isActive()) {
            return;
        }
        synchronized (lock) {
            Listed file = listings.listed(uri, etag, length, clock.getAsLong());
            if (ahead && !directory.nodes().isEmpty() && breaker.allows(clock.getAsLong())) {
                boolean first = settling == null;
                settling = file;
                listedNanos = System.nanoTime();
                if (first) {
                    wake();
                }
            }
        }
    }

    /**
     * Tiles [0, length), each with at most three host strings of executors that live on the nodes to read it on, or
     * none. Waits for no longer than what is left of {@link PlanBudget}; never throws.
     *
     * @param uri as in {@link #listed}
     * @param etag of the generation; null if unknown
     * @param length in bytes; an empty file has no locations
     */
    public BlockLocation[] locate(String uri, String etag, long length) {
        awaitThoseComing();
        ExecutorDirectory.Snapshot executors = directory.snapshot();
        Tiles tiles = null;
        if (uri != null && length > 0) {
            Placement.get().planned(uri, etag, length);
        }
        if (uri != null
                && length > 0
                && !executors.nodes.isEmpty()
                && !directory.serviceAddress().isEmpty()) {
            try {
                tiles = tiles(uri, etag, length, executors.nodes);
            } catch (RuntimeException | LinkageError e) {
                LOG.warn("cannot locate {}; it is read without locality", uri, e);
            }
        }
        return (tiles == null ? Tiles.unknown(length) : tiles).toBlockLocations(String.valueOf(uri), executors);
    }

    /** Forgets everything, as when an application ends. */
    public void clear() {
        synchronized (lock) {
            listings.clear();
            wanted.clear();
            settling = null;
            breaker.succeeded();
        }
    }

    private void awaitThoseComing() {
        long waited = directory.awaitThoseComing(budget.leftNanos(System.nanoTime()));
        if (waited > 0) {
            budget.waited(waited, System.nanoTime());
        }
    }

    private Tiles tiles(String uri, String etag, long length, List<String> candidates) {
        synchronized (lock) {
            Listed file = listings.find(uri, etag, length, clock.getAsLong());
            Tiles fresh = file.tiles(candidates, clock.getAsLong(), FRESH_NANOS);
            if (fresh == null && breaker.allows(clock.getAsLong())) {
                if (wanted.size() < MAX_WANTED) {
                    wanted.add(file);
                }
                wake();
                await(file, candidates);
                fresh = file.tiles(candidates, clock.getAsLong(), FRESH_NANOS);
            }
            return fresh != null ? fresh : file.tiles(candidates, clock.getAsLong(), STALE_NANOS);
        }
    }

    /** Until the answer is there, a request has failed, or the caller has waited long enough. */
    private void await(Listed file, List<String> candidates) {
        long before = failures;
        long start = System.nanoTime();
        long now = start;
        long deadline = start + budget.leftNanos(start);
        try {
            while (failures == before
                    && file.tiles(candidates, clock.getAsLong(), FRESH_NANOS) == null
                    && now - deadline < 0
                    && !(asking && now - askingSinceNanos > STALL_NANOS)) {
                // Rounded up: a wait of 0 would be one without end.
                lock.wait(TimeUnit.NANOSECONDS.toMillis(deadline - now) + 1);
                now = System.nanoTime();
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        if (now != start) {
            budget.waited(now - start, now);
        }
    }

    private void wake() {
        if (thread == null) {
            thread = new Thread(this::run, "cachelet-locations");
            thread.setDaemon(true);
            // The creator's class loader may be that of a session which is to be unloaded.
            thread.setContextClassLoader(BlockLocator.class.getClassLoader());
            thread.start();
        }
        lock.notifyAll();
    }

    private void run() {
        while (true) {
            Batch batch;
            synchronized (lock) {
                batch = next();
                if (batch == null) {
                    thread = null;
                    return;
                }
                asking = true;
                askingSinceNanos = System.nanoTime();
            }
            LocationService.Reply reply = null;
            Throwable failure = null;
            try {
                reply = service.locate(batch.service, batch.candidates, batch.files);
            } catch (IOException | RuntimeException | Error e) {
                failure = e;
            }
            synchronized (lock) {
                asking = false;
                if (failure == null) {
                    answered(batch, reply);
                } else {
                    failed(batch, failure);
                }
                lock.notifyAll();
            }
        }
    }

    /** What to ask for next; null after a while in which nobody wanted anything. */
    private Batch next() {
        long idleUntil = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(IDLE_MILLIS);
        while (true) {
            while (!wanted.isEmpty()) {
                Iterator<Listed> first = wanted.iterator();
                Batch batch = batch(first.next());
                first.remove();
                if (!batch.files.isEmpty() && !batch.candidates.isEmpty() && !batch.service.isEmpty()) {
                    return batch;
                }
            }
            long now = System.nanoTime();
            long left = TimeUnit.NANOSECONDS.toMillis(idleUntil - now);
            if (settling != null && now - listedNanos >= SETTLED_NANOS) {
                Listing listing = settling.listing();
                settling = null;
                if (listing != null && listing.first() != null) {
                    wanted.add(listing.first());
                }
                continue;
            }
            if (settling != null) {
                left = TimeUnit.NANOSECONDS.toMillis(SETTLED_NANOS - (now - listedNanos)) + 1;
            }
            if (left <= 0) {
                return null;
            }
            try {
                lock.wait(left);
            } catch (InterruptedException e) {
                return null;
            }
        }
    }

    private Batch batch(Listed first) {
        List<String> candidates = directory.snapshot().nodes;
        List<Listed> files = new ArrayList<>();
        // A file that was listed as another generation since is in no listing.
        List<Listed> listing = first.listing() == null
                ? Collections.emptyList()
                : first.listing().from(first);
        for (Listed file : listing) {
            if (files.size() == service.maxPaths()) {
                break;
            }
            if (file.tiles(candidates, clock.getAsLong(), FRESH_NANOS) == null) {
                files.add(file);
            }
        }
        return new Batch(directory.serviceAddress(), candidates, files);
    }

    private void answered(Batch batch, LocationService.Reply reply) {
        breaker.succeeded();
        long now = clock.getAsLong();
        Listed rest = null;
        for (int i = 0; i < batch.files.size(); i++) {
            Listed file = batch.files.get(i);
            LocationService.Answer answer = reply.answers.get(file.uri);
            if (i >= reply.asked || answer != null && answer.askAgain) {
                rest = rest == null ? file : rest;
            } else {
                file.answered(answer == null ? Tiles.unknown(file.length) : answer.tiles, batch.candidates, now);
            }
        }
        Listing listing = batch.files.get(0).listing();
        Listed next = rest != null || listing == null ? rest : listing.continuedAt();
        if (next != null) {
            wanted.add(next);
        }
    }

    private void failed(Batch batch, Throwable failure) {
        failures++;
        boolean opened = breaker.failed(clock.getAsLong());
        wanted.clear();
        if (opened) {
            LOG.warn(
                    "the locality service at {} failed {} times in a row, the last time with: {}. Files have no"
                            + " preferred hosts until it answers; it is asked again in {} s. Check that the driver"
                            + " reaches it.",
                    batch.service,
                    Breaker.FAILURES,
                    failure.toString(),
                    TimeUnit.NANOSECONDS.toSeconds(Breaker.REST_NANOS));
        } else {
            LOG.debug("cannot locate {} files", batch.files.size(), failure);
        }
    }

    /** A request to come. */
    private static final class Batch {
        final String service;
        final List<String> candidates;
        final List<Listed> files;

        Batch(String service, List<String> candidates, List<Listed> files) {
            this.service = service;
            this.candidates = candidates;
            this.files = files;
        }
    }
}
