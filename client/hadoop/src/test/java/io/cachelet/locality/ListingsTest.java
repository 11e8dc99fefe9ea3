package io.cachelet.locality;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertTrue;

import io.cachelet.locality.Listings.Listed;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.stream.Collectors;
import org.junit.Test;

/** Which files are asked for together, and how long they are remembered. */
public class ListingsTest {
    private static final long PAUSE = 100;

    private final Listings listings = new Listings(10, 4, PAUSE);
    private long now = 1_000;

    private Listed list(String uri) {
        return listings.listed(uri, "e", 1, now);
    }

    private static List<String> together(Listed first) {
        return first.listing().from(first).stream().map(file -> file.uri).collect(Collectors.toList());
    }

    @Test
    public void filesListedInOneGoAreAskedForTogetherFromTheOneThatIsWanted() {
        Listed a = list("a");
        Listed b = list("b");
        list("c");
        now += PAUSE + 1;
        Listed other = list("d");
        assertEquals(Arrays.asList("b", "c", "a"), together(b));
        assertEquals(Arrays.asList("a", "b", "c"), together(a));
        assertEquals(Collections.singletonList("d"), together(other));
        assertNull("a listing that ended goes on nowhere", a.listing().continuedAt());
    }

    @Test
    public void aListingThatFillsARequestGoesOnInTheNext() {
        Listed a = list("a");
        for (String uri : new String[] {"b", "c", "d", "e"}) {
            list(uri);
        }
        assertEquals(4, together(a).size());
        assertEquals("e", a.listing().continuedAt().uri);
    }

    @Test
    public void aFileListedAgainMovesAndKeepsItsAnswer() {
        Listed a = list("a");
        list("b");
        a.answered(Tiles.unknown(1), Collections.emptyList(), now);
        now += PAUSE + 1;
        list("x");
        assertSame(a, list("a"));
        assertEquals(Arrays.asList("a", "x"), together(a));
        assertNotNull(a.tiles(Collections.emptyList(), now, Long.MAX_VALUE));
        assertEquals(Collections.singletonList("b"), together(listings.find("b", "e", 1, now)));
    }

    @Test
    public void anotherGenerationStartsWithoutAnAnswer() {
        Listed old = list("a");
        old.answered(Tiles.unknown(1), Collections.emptyList(), now);
        Listed next = listings.listed("a", "other", 1, now);
        assertNull(next.tiles(Collections.emptyList(), now, Long.MAX_VALUE));
        assertNull(old.listing());
        assertEquals(1, listings.size());
    }

    @Test
    public void theOldestListingsAreForgotten() {
        for (int i = 0; i < 30; i++) {
            list("file-" + i);
            if (i % 3 == 0) {
                now += PAUSE + 1;
            }
        }
        assertTrue("there are " + listings.size(), listings.size() <= 10 && listings.size() >= 6);
        Listed last = listings.find("file-29", "e", 1, now);
        assertTrue(together(last).contains("file-28"));
    }

    @Test
    public void listingATableAgainAndAgainKeepsItOnce() {
        for (int round = 0; round < 1000; round++) {
            for (String uri : new String[] {"a", "b", "c", "d", "e", "f"}) {
                list(uri);
            }
            now += PAUSE + 1;
        }
        assertEquals(6, listings.size());
        assertEquals(Arrays.asList("a", "b", "c", "d"), together(listings.find("a", "e", 1, now)));
    }
}
