package io.cachelet.hadoop;

import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.Path;

/**
 * What one file system was told about files by the origin, for as long as that may be believed: one second by the
 * thread that asked for a status and then opens the file, once; one second by the {@link TaskScope task} that asked, as
 * often as it asks; and as the user's {@link Freshness} says by everybody. Bounded. Safe for many threads.
 *
 * <p>Only files are remembered, never directories or absence. What this file system changes is forgotten, before and
 * after; an answer that was under way meanwhile is not taken. A path that it writes is never remembered again, because
 * the moment at which the written file appears is not seen from here.
 */
final class RememberedStatuses<S extends FileStatus> {
    private static final long BELIEVED_NANOS = 1_000_000_000L;
    private static final long NOBODY = -1;
    private static final int MOST_STATUSES = 10_000;
    private static final int MOST_WRITTEN = 16_384;

    private final Freshness freshness;
    private final Map<Path, Known<S>> entries;
    private final Set<Path> written = new HashSet<>();
    private boolean off;
    private long changes;

    RememberedStatuses(Freshness freshness) {
        this.freshness = freshness;
        this.entries = new LinkedHashMap<Path, Known<S>>(64, 0.75f, true) {
            @Override
            protected boolean removeEldestEntry(Map.Entry<Path, Known<S>> eldest) {
                return size() > MOST_STATUSES;
            }
        };
    }

    /** To be called before a request, and given to {@link #remember} with its answer. */
    synchronized long changesSoFar() {
        return changes;
    }

    /**
     * Takes note of an answer.
     *
     * @param changesBefore what {@link #changesSoFar} said before the request was sent
     * @param asked when the request was sent, as {@link System#nanoTime()}
     */
    void remember(Path path, S status, long changesBefore, long asked) {
        if (freshness.maxAgeNanos(path) > 0) {
            remember(path, changesBefore, new Known<>(status, asked, asked, NOBODY, TaskScope.NONE));
        }
    }

    /** As the other, of a status that this thread asked for by itself, and may open the file with once. */
    void rememberForOpen(Path path, S status, long changesBefore, long asked, long answered) {
        long thread = Thread.currentThread().getId();
        remember(path, changesBefore, new Known<>(status, asked, answered, thread, taskFor(path)));
    }

    /** As the other, of a status that this thread asked for in order to open the file: it serves its task alone. */
    void rememberOpened(Path path, S status, long changesBefore, long asked, long answered) {
        long task = taskFor(path);
        if (task != TaskScope.NONE) {
            remember(path, changesBefore, new Known<>(status, asked, answered, NOBODY, task));
        } else {
            remember(path, status, changesBefore, asked);
        }
    }

    /** The task that may go on believing what it is told about a path. */
    private static long taskFor(Path path) {
        return Freshness.changesByDesign(path) ? TaskScope.NONE : TaskScope.current();
    }

    private synchronized void remember(Path path, long changesBefore, Known<S> known) {
        if (!off && changes == changesBefore && known.status.isFile() && !written.contains(path)) {
            entries.put(path, known);
        }
    }

    /** What may be given to somebody who asks for the status now; null: ask the origin. */
    S forStatus(Path path, long now) {
        long task = TaskScope.current();
        long maxAge = freshness.maxAgeNanos(path);
        if (task == TaskScope.NONE && maxAge == 0) {
            return null;
        }
        synchronized (this) {
            Known<S> entry = entries.get(path);
            return entry != null && (now - entry.asked < maxAge || entry.serves(task, now)) ? entry.status : null;
        }
    }

    /** What may be opened now by this thread; null: ask the origin. */
    S forOpen(Path path, long now) {
        S status = forStatus(path, now);
        if (status != null) {
            return status;
        }
        synchronized (this) {
            Known<S> entry = entries.get(path);
            if (entry == null || entry.thread != Thread.currentThread().getId()) {
                return null;
            }
            entry.thread = NOBODY;
            return entry.isRecent(now) ? entry.status : null;
        }
    }

    /** Forgets a path that turned out to be another generation. */
    synchronized void forget(Path path) {
        entries.remove(path);
    }

    /** This file system is about to change, or has changed, something at or below a path. */
    synchronized void changed(Path path) {
        changes++;
        String below = path.toString() + (path.isRoot() ? "" : "/");
        entries.keySet()
                .removeIf(known -> known.equals(path) || known.toString().startsWith(below));
    }

    /** This file system begins to write a file, which will appear later. */
    synchronized void writes(Path path) {
        changed(path);
        if (written.size() >= MOST_WRITTEN) {
            stop();
        } else {
            written.add(path);
        }
    }

    /** From now on nothing is remembered: files appear in ways, or numbers, that are not followed here. */
    synchronized void stop() {
        off = true;
        entries.clear();
        written.clear();
    }

    /** How many statuses are remembered. */
    synchronized int size() {
        return entries.size();
    }

    /** The paths remembered, for tests. */
    synchronized Set<Path> paths() {
        return Collections.unmodifiableSet(new HashSet<>(entries.keySet()));
    }

    private static final class Known<S> {
        final S status;
        final long asked;
        final long answered;
        /** The task that asked. */
        final long task;
        /** Who may open the file with it; {@link #NOBODY} once that was done. */
        long thread;

        Known(S status, long asked, long answered, long thread, long task) {
            this.status = status;
            this.asked = asked;
            this.answered = answered;
            this.thread = thread;
            this.task = task;
        }

        boolean isRecent(long now) {
            return now - answered < BELIEVED_NANOS;
        }

        boolean serves(long someTask, long now) {
            return someTask != TaskScope.NONE && someTask == task && isRecent(now);
        }
    }
}
