package io.cachelet.hadoop;

import static org.junit.Assert.assertEquals;

import org.junit.Test;

public class WaitTimesTest {
    @Test
    public void theDeadlineIsTheMinimumUntilEnoughWasSeen() {
        WaitTimes times = new WaitTimes(500);
        for (int i = 0; i < 19; i++) {
            assertEquals(500, times.took(2_000));
        }
        assertEquals(6_000, times.took(2_000));
    }

    @Test
    public void itIsThreeTimesThe95thPercentileWithinBounds() {
        WaitTimes times = new WaitTimes(500);
        for (int i = 0; i < 96; i++) {
            times.took(300);
        }
        for (int i = 0; i < 4; i++) {
            times.took(60_000);
        }
        assertEquals(900, times.deadlineMillis());
        for (int i = 0; i < 128; i++) {
            times.took(60_000);
        }
        assertEquals(10_000, times.deadlineMillis());
        for (int i = 0; i < 128; i++) {
            times.took(10);
        }
        assertEquals(500, times.deadlineMillis());
    }
}
