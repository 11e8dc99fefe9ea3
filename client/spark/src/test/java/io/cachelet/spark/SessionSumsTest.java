package io.cachelet.spark;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import org.junit.Test;

/** Adding up what daemons fetched, across their restarts. */
public class SessionSumsTest {
    private final SessionSums sums = new SessionSums();

    @Test
    public void aSessionThatBeginsAnewCountsFromZero() {
        sums.told(0, 10, 1);
        sums.told(0, 15, 1);
        assertEquals(15, sums.originBytes());
        sums.told(1, 15, 2);
        assertEquals(30, sums.originBytes());
        assertEquals(3, sums.peerBytes());
        // Fewer than before is another session too, if the client noticed or not.
        sums.told(1, 4, 0);
        assertEquals(34, sums.originBytes());
        assertEquals(3, sums.peerBytes());
        assertFalse(sums.isUnknown());
    }

    @Test
    public void aDaemonThatDoesNotTellMakesTheSumUnknownForGood() {
        sums.told(0, 10, 1);
        sums.told(1, -1, -1);
        sums.told(2, 10, 1);
        assertTrue(sums.isUnknown());
    }
}
