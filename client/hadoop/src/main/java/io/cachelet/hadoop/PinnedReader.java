package io.cachelet.hadoop;

import io.cachelet.client.CacheletException;
import io.cachelet.client.CacheletObject;
import java.io.EOFException;
import java.io.IOException;
import java.io.InterruptedIOException;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.ReentrantLock;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSExceptionMessages;
import org.apache.hadoop.fs.statistics.StreamStatisticNames;

/**
 * One generation of one object, read at positions: from Cachelet, and from the origin where Cachelet does not serve.
 * Safe for many threads; reads from Cachelet take no lock, those from the origin share one stock stream.
 *
 * <p>Invariants: all bytes are of one generation, because the object was opened as that one at the daemon and the stock
 * stream is pinned to it. Where the origin cannot pin, bytes of the cache never follow bytes of the origin, and bytes
 * of the origin follow those of the cache only if {@link Origin#verify} allows it. A generation that was remembered may
 * be exchanged for the present one before the first bytes are delivered; until then one thread reads at a time.
 * Positions at or behind the end never come here.
 *
 * <p>After a failure that may pass, the stream stays with the origin for {@link #PAUSE_NANOS}, so that a sequential
 * reader does not exchange requests for every read, and then asks the daemon again; after one that will not pass, such
 * as a key that the daemon does not take, it stays there to its end. What this process holds in descriptors is read from
 * them meanwhile: that takes no word with the daemon.
 */
final class PinnedReader {
    /** What {@link #readFromCache} says when it is the origin's turn. */
    static final int ORIGIN_TURN = -2;

    private static final long PAUSE_NANOS = 1_000_000_000L;
    /** How often a read is tried at Cachelet, should other threads let go of the object under it. */
    private static final int ATTEMPTS = 3;

    /** Who delivers bytes. */
    enum Source {
        CACHE,
        ORIGIN
    }

    /** Whom a read may turn to. */
    enum Turn {
        /** The daemon, and what is held. */
        DAEMON,
        /** What is held, then the origin: this stream leaves the daemon alone for a while. */
        PAUSED,
        /** As {@link #PAUSED}, because the daemon hangs. */
        BYPASSED,
        /** The origin alone. */
        ORIGIN
    }

    private final NodeDaemon daemon;
    private final Origin origin;
    private final StreamCounters counters;
    private final AtomicReference<Source> firstSource = new AtomicReference<>();
    private final AtomicLong fillsSeen = new AtomicLong();

    private volatile Generation generation;
    private volatile boolean closed;
    /** Held by the one that reads, until {@link #settled}: the generation will not be exchanged any more. */
    private final Object settling = new Object();

    private volatile boolean settled;

    /** Guards opening and closing of {@link #object}. */
    private final ReentrantLock opening = new ReentrantLock();

    private volatile CacheletObject object;

    /** Whether the origin serves everything: until a time, or for good. */
    private volatile boolean atOrigin;

    private volatile boolean forGood;
    private volatile long atOriginUntil;

    /** Guards the stock stream and what is read from it. */
    private final Object originLock = new Object();

    private FSDataInputStream stock;
    private Long readahead;
    private boolean readaheadSet;

    PinnedReader(NodeDaemon daemon, Origin origin, StreamCounters counters) {
        this.daemon = daemon;
        this.origin = origin;
        this.counters = counters;
        this.generation = origin.generation();
        this.settled = !origin.isRemembered();
    }

    long sizeBytes() {
        return generation.sizeBytes;
    }

    void checkOpen() throws IOException {
        if (closed) {
            throw new IOException(generation.uri + ": " + FSExceptionMessages.STREAM_IS_CLOSED);
        }
    }

    /** Reads at a position before the end: at least one byte. */
    int read(long position, Target target) throws IOException {
        if (settled) {
            return readNow(position, target);
        }
        synchronized (settling) {
            int read = readNow(position, target);
            settled = true;
            return read;
        }
    }

    /** As {@link #read}, within {@link #run}. */
    int readAlone(long position, Target target) throws IOException {
        return readNow(position, target);
    }

    private int readNow(long position, Target target) throws IOException {
        int read = fromCache(position, target);
        if (read != ORIGIN_TURN) {
            counters.delivered(read, target.length());
            return read;
        }
        return readFromOrigin(position, target);
    }

    /** As {@link #read}, but counts nothing, and says {@link #ORIGIN_TURN} where Cachelet does not serve. */
    int readFromCache(long position, Target target) throws IOException {
        if (settled) {
            return fromCache(position, target);
        }
        synchronized (settling) {
            int read = fromCache(position, target);
            settled |= read != ORIGIN_TURN;
            return read;
        }
    }

    /** Runs a read that delivers by itself; alone, as long as the generation may be exchanged. */
    void run(ReadOperation operation) throws IOException {
        if (settled) {
            operation.run();
            return;
        }
        synchronized (settling) {
            operation.run();
            settled = true;
        }
    }

    /** A read of a kind of its own. */
    interface ReadOperation {
        void run() throws IOException;
    }

    private int fromCache(long position, Target target) throws IOException {
        for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
            Turn turn = turn();
            if (turn != Turn.DAEMON) {
                int read = turn == Turn.ORIGIN ? ORIGIN_TURN : fromHeld(position, target);
                if (read == ORIGIN_TURN) {
                    goesToOrigin(turn);
                }
                return read;
            }
            CacheletObject opened = null;
            try {
                long started = System.nanoTime();
                opened = open(position, target.length());
                int read = target.read(opened, position);
                served(opened, System.nanoTime() - started);
                if (mayDeliver(Source.CACHE)) {
                    return read;
                }
                target.undo();
                return ORIGIN_TURN;
            } catch (CacheletException e) {
                if (!isWorthAnotherTry(e, opened)) {
                    return ORIGIN_TURN;
                }
                checkWithin(position);
            } catch (IllegalStateException e) {
                panicked(e);
                return ORIGIN_TURN;
            }
        }
        return ORIGIN_TURN;
    }

    /** Whose turn it is. One who is told the daemon's, reports how that went. */
    Turn turn() throws IOException {
        checkOpen();
        if (atOrigin) {
            if (forGood) {
                return Turn.ORIGIN;
            }
            if (System.nanoTime() - atOriginUntil < 0) {
                return Turn.PAUSED;
            }
            atOrigin = false;
            letGoOfOrigin();
        }
        if (firstSource.get() == Source.ORIGIN && !origin.pinsGeneration()) {
            return Turn.ORIGIN;
        }
        return daemon.mayAsk() ? Turn.DAEMON : Turn.BYPASSED;
    }

    /** A read that the daemon might have served goes to the origin. */
    void goesToOrigin(Turn turn) {
        if (turn == Turn.BYPASSED) {
            ReadMetrics.fellBack("bypassed");
        }
    }

    /** Reads without a word to the daemon, if this process holds all of the read; else {@link #ORIGIN_TURN}. */
    int fromHeld(long position, Target target) {
        try {
            CacheletObject held = openHeld();
            int read = held == null ? CacheletObject.NOT_HELD : target.readHeld(held, position);
            if (read != CacheletObject.NOT_HELD) {
                if (mayDeliver(Source.CACHE)) {
                    return read;
                }
                target.undo();
            }
        } catch (CacheletException e) {
            // Another thread let go of the object, or the name is none that the cache takes.
        } catch (IllegalStateException e) {
            panicked(e);
        }
        return ORIGIN_TURN;
    }

    /** Whether {@link #fromHeld} may give a range now. */
    boolean holds(long position, long length) {
        try {
            CacheletObject held = openHeld();
            return held != null && held.holds(position, length);
        } catch (CacheletException e) {
            return false;
        } catch (IllegalStateException e) {
            panicked(e);
            return false;
        }
    }

    /** The object, if this process has it open; null also while another thread opens it, for that may take long. */
    private CacheletObject openHeld() throws CacheletException {
        if (forGood) {
            return null;
        }
        CacheletObject opened = object;
        if (opened != null || !opening.tryLock()) {
            return opened;
        }
        try {
            if (object == null && !closed) {
                object = daemon.openHeld(generation);
                if (object != null) {
                    counters.happened(StreamStatisticNames.STREAM_READ_OPENED);
                }
            }
            return object;
        } finally {
            opening.unlock();
        }
    }

    /** The object, opened if it is not; with its first bytes, so that a cold read is one round trip. */
    CacheletObject open(long firstOffset, int firstLength) throws IOException {
        CacheletObject opened = object;
        if (opened != null) {
            return opened;
        }
        opening.lock();
        try {
            checkOpen();
            if (object == null) {
                long length = Math.min(firstLength, generation.sizeBytes - firstOffset);
                CacheletObject now = daemon.open(generation, firstOffset, length);
                counters.happened(StreamStatisticNames.STREAM_READ_OPENED);
                object = now;
            }
            return object;
        } finally {
            opening.unlock();
        }
    }

    /** The daemon answered, or need not be asked, after so long; the reader may have been interrupted meanwhile. */
    void served(CacheletObject opened, long nanos) throws IOException {
        if (!daemon.served(nanos)) {
            return;
        }
        long fills = opened.stats().fillsWaited;
        if (fillsSeen.getAndSet(fills) < fills) {
            daemon.filled(nanos);
        }
        checkInterrupted();
    }

    /**
     * Decides what a failure of Cachelet means.
     *
     * @return whether to ask Cachelet once more; false: the origin's turn
     * @throws IOException if nobody may serve this read
     */
    boolean isWorthAnotherTry(CacheletException failure, CacheletObject opened) throws IOException {
        daemon.failed(failure);
        checkInterrupted();
        switch (failure.kind()) {
            case OBJECT_CHANGED:
                if (refresh()) {
                    return true;
                }
                counters.happened(StreamStatisticNames.STREAM_READ_VERSION_MISMATCHES);
                throw origin.changed("read", failure.getMessage(), failure);
            case CLOSED:
                checkOpen();
                // Another thread let go of the object under this read.
                forget(opened);
                return true;
            case END_OF_OBJECT:
                throw (EOFException) new EOFException(failure.getMessage()).initCause(failure);
            default:
                break;
        }
        counters.happened(StreamStatisticNames.STREAM_READ_EXCEPTIONS);
        if (failure.reason().equals("unknown_store")) {
            origin.storeIsUnknown();
        }
        goToOrigin(failure.reason(), failure, !failure.isRetryable() && isAboutTheObject(failure));
        return false;
    }

    /** The native library panicked: this stream leaves it alone. */
    void panicked(IllegalStateException failure) {
        goToOrigin("native_failure", failure, true);
    }

    private static boolean isAboutTheObject(CacheletException failure) {
        switch (failure.kind()) {
            case UNAVAILABLE:
            case TIMEOUT:
            case PROTOCOL:
            case IO:
                return false;
            default:
                return true;
        }
    }

    private void goToOrigin(String reason, Exception failure, boolean lasting) {
        ReadMetrics.fellBack(reason);
        OnceLog.warn(
                reason,
                "reading from the origin, because Cachelet does not serve (" + reason + "): " + failure.getMessage()
                        + " [first seen with " + generation.uri + "; said once for this reason]");
        atOriginUntil = System.nanoTime() + PAUSE_NANOS;
        forGood = lasting;
        atOrigin = true;
    }

    private void forget(CacheletObject gone) {
        opening.lock();
        try {
            if (object == gone) {
                object = null;
            }
        } finally {
            opening.unlock();
        }
    }

    /** Takes the present generation for a remembered one, unless bytes were delivered. The caller is the one reader. */
    private boolean refresh() throws IOException {
        if (settled || !origin.refresh()) {
            return false;
        }
        letGo();
        synchronized (originLock) {
            closeStock();
        }
        generation = origin.generation();
        return true;
    }

    private void checkWithin(long position) throws EOFException {
        if (position >= generation.sizeBytes) {
            throw new EOFException("position " + position + " is behind the end of " + generation + ", which is new");
        }
    }

    private void checkInterrupted() throws InterruptedIOException {
        if (Thread.currentThread().isInterrupted()) {
            throw new InterruptedIOException("interrupted while reading " + generation.uri);
        }
    }

    /**
     * Whether a source may deliver bytes that it has read: any, where the origin pins the generation; else the one that
     * delivered first.
     */
    boolean mayDeliver(Source source) {
        return origin.pinsGeneration() || firstSource.compareAndSet(null, source) || firstSource.get() == source;
    }

    // The origin.

    private int readFromOrigin(long position, Target target) throws IOException {
        synchronized (originLock) {
            checkOpen();
            long started = System.nanoTime();
            int read;
            try {
                read = readStock(position, target);
            } catch (IOException e) {
                if (!origin.isChange(e) || !refresh()) {
                    throw e;
                }
                checkWithin(position);
                read = readStock(position, target);
            }
            if (read < 0) {
                throw new EOFException(
                        "the origin's stream of " + generation + " ended at " + position + ", before the object's end");
            }
            if (!mayDeliver(Source.ORIGIN)) {
                origin.verify();
            }
            ReadMetrics.readFromOrigin(read);
            daemon.originTook(System.nanoTime() - started);
            return read;
        }
    }

    private int readStock(long position, Target target) throws IOException {
        FSDataInputStream in = stock();
        in.seek(position);
        return target.read(in);
    }

    /** The stock stream, opened. The caller has {@link #originLock}. */
    private FSDataInputStream stock() throws IOException {
        if (stock == null) {
            stock = origin.open();
            if (readaheadSet) {
                hintReadahead();
            }
            counters.readsFrom(stock);
        }
        return stock;
    }

    /** Runs an operation on the stock stream, which delivers by itself and therefore must be pinned. */
    void withStock(StockOperation operation) throws IOException {
        synchronized (originLock) {
            checkOpen();
            operation.run(stock());
        }
    }

    boolean isPinned() {
        return origin.pinsGeneration();
    }

    /** Something done with a stock stream. */
    interface StockOperation {
        void run(FSDataInputStream stock) throws IOException;
    }

    void setReadahead(Long bytes) {
        synchronized (originLock) {
            readahead = bytes;
            readaheadSet = true;
            if (stock != null) {
                hintReadahead();
            }
        }
    }

    private void hintReadahead() {
        try {
            stock.setReadahead(readahead);
        } catch (IOException | UnsupportedOperationException e) {
            // A hint, which this stock stream does not take.
            readaheadSet = false;
        }
    }

    /** Gives back descriptors and connections; the next read takes them again. */
    void letGo() {
        CacheletObject held;
        opening.lock();
        try {
            held = object;
            object = null;
        } finally {
            opening.unlock();
        }
        if (held != null) {
            held.close();
        }
        letGoOfOrigin();
    }

    private void letGoOfOrigin() {
        synchronized (originLock) {
            if (stock != null) {
                stock.unbuffer();
            }
        }
    }

    private void closeStock() throws IOException {
        if (stock != null) {
            FSDataInputStream open = stock;
            stock = null;
            counters.readsFrom(null);
            open.close();
        }
    }

    /** Ends all reading; says whether it had not ended before. */
    boolean close() throws IOException {
        CacheletObject held;
        opening.lock();
        try {
            if (closed) {
                return false;
            }
            closed = true;
            held = object;
            object = null;
        } finally {
            opening.unlock();
        }
        if (held != null) {
            held.close();
        }
        synchronized (originLock) {
            if (stock != null) {
                // Kept, for whoever asks for the counters of a closed stream.
                stock.close();
            }
        }
        return true;
    }

    @Override
    public String toString() {
        return generation + (atOrigin ? ", at the origin" : "");
    }
}
