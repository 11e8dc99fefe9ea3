package io.cachelet.locality;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The files that were listed, in the order of their listing, with what is known of each.
 *
 * <p>Files that were listed in one go are located in one go: the first look-up of a plan brings the answers for all of
 * them. A listing ends with a pause, or when it fills a request; then the next one continues it.
 *
 * <p>At most {@link #CAPACITY} files; whole listings are forgotten, the oldest first. Not thread-safe.
 */
final class Listings {
    /** About 40 MB of heap, if names are 200 characters long. */
    static final int CAPACITY = 100_000;

    private final Map<String, Listed> byUri = new HashMap<>();
    /** In the order in which they began. */
    private final Set<Listing> order = new LinkedHashSet<>();

    private Listing last;
    private final int capacity;
    private final int listingSize;
    private final long pauseNanos;
    private long lastListedNanos;

    Listings(int capacity, int listingSize, long pauseNanos) {
        this.capacity = capacity;
        this.listingSize = listingSize;
        this.pauseNanos = pauseNanos;
    }

    /** A file was listed. A generation that is new is unknown again. */
    Listed listed(String uri, String etag, long length, long nowNanos) {
        boolean paused = nowNanos - lastListedNanos > pauseNanos;
        lastListedNanos = nowNanos;
        Listed file = byUri.get(uri);
        if (file == null || !file.isGeneration(etag, length)) {
            if (file != null) {
                leave(file);
            }
            file = new Listed(uri, etag, length);
            byUri.put(uri, file);
        } else if (file.listing == last && !paused) {
            return file;
        } else {
            leave(file);
        }
        if (last == null || paused || last.files.size() >= listingSize) {
            Listing next = new Listing();
            if (last != null && !paused) {
                last.continued = next;
            }
            order.add(next);
            last = next;
        }
        last.enter(file);
        forgetOldest();
        return file;
    }

    /** A file as it was listed, or as it is listed now because it was forgotten or is another generation. */
    Listed find(String uri, String etag, long length, long nowNanos) {
        Listed file = byUri.get(uri);
        return file != null && file.isGeneration(etag, length) ? file : listed(uri, etag, length, nowNanos);
    }

    int size() {
        return byUri.size();
    }

    void clear() {
        byUri.clear();
        order.clear();
        last = null;
    }

    private void leave(Listed file) {
        Listing left = file.listing;
        left.leave(file);
        if (left.live == 0 && left != last) {
            order.remove(left);
        }
    }

    private void forgetOldest() {
        Iterator<Listing> oldest = order.iterator();
        while (byUri.size() > capacity) {
            Listing listing = oldest.next();
            if (listing == last) {
                return;
            }
            for (Listed file : listing.files) {
                if (file.listing == listing) {
                    byUri.remove(file.uri);
                }
            }
            oldest.remove();
        }
    }

    /** Files that were listed in one go. */
    static final class Listing {
        private final List<Listed> files = new ArrayList<>();
        /** Those of {@link #files} that have not moved to a later listing. */
        private int live;

        private Listing continued;

        /** Those that are still listed here, the one at {@code first} first, then what follows it, then the rest. */
        List<Listed> from(Listed first) {
            int start = first.listing == this ? first.place : 0;
            List<Listed> rotated = new ArrayList<>(live);
            for (int i = 0; i < files.size(); i++) {
                Listed file = files.get((start + i) % files.size());
                if (file.listing == this) {
                    rotated.add(file);
                }
            }
            return rotated;
        }

        /** The first file that is still listed here; null if there is none. */
        Listed first() {
            return files.stream()
                    .filter(file -> file.listing == this)
                    .findFirst()
                    .orElse(null);
        }

        /** Where the listing went on when this one was full: its first file; null if it ended. */
        Listed continuedAt() {
            return continued == null ? null : continued.first();
        }

        private void enter(Listed file) {
            file.listing = this;
            file.place = files.size();
            files.add(file);
            live++;
        }

        private void leave(Listed file) {
            file.listing = null;
            live--;
            if (live < files.size() / 2) {
                // Files move to the listing that named them last; what they leave behind is not kept.
                List<Listed> stayed = new ArrayList<>(files);
                stayed.removeIf(other -> other.listing != this);
                files.clear();
                live = 0;
                stayed.forEach(this::enter);
            }
        }
    }

    /** A file of a listing. */
    static final class Listed extends LocationService.Path {
        private Listing listing;
        private int place;
        /** What a service answered; null if none has. */
        private Tiles tiles;

        private List<String> candidates;
        private long answeredNanos;

        Listed(String uri, String etag, long length) {
            super(uri, etag, length);
        }

        /** Null once another generation of the file was listed. */
        Listing listing() {
            return listing;
        }

        void answered(Tiles answer, List<String> answeredFor, long nowNanos) {
            tiles = answer;
            candidates = answeredFor;
            answeredNanos = nowNanos;
        }

        /** The answer for exactly these candidates, if it is no older than that; else null. */
        Tiles tiles(List<String> wanted, long nowNanos, long maxAgeNanos) {
            return tiles != null && candidates == wanted && nowNanos - answeredNanos <= maxAgeNanos ? tiles : null;
        }

        private boolean isGeneration(String otherEtag, long otherLength) {
            return length == otherLength && (etag == null ? otherEtag == null : etag.equals(otherEtag));
        }
    }
}
