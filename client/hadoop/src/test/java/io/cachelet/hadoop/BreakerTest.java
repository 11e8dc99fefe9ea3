package io.cachelet.hadoop;

import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import org.junit.Test;

public class BreakerTest {
    private static final long PERIOD = 1_000;
    private final Breaker breaker = new Breaker(PERIOD);

    @Test
    public void oneTimeoutChangesNothingAndTwoInARowOpenIt() {
        assertFalse(breaker.timedOut(0));
        assertTrue(breaker.mayAsk(1));
        assertTrue(breaker.timedOut(2));
        assertFalse(breaker.mayAsk(3));
    }

    @Test
    public void anAnswerBetweenTwoTimeoutsKeepsItClosed() {
        breaker.timedOut(0);
        breaker.answered();
        assertFalse(breaker.timedOut(1));
        assertTrue(breaker.mayAsk(2));
    }

    @Test
    public void afterThePeriodOneReaderTriesAndTheOthersWaitForWhatItLearns() {
        open(0);
        assertTrue(breaker.mayAsk(PERIOD));
        assertFalse(breaker.mayAsk(PERIOD + 1));
        breaker.answered();
        assertTrue(breaker.mayAsk(PERIOD + 2));
        assertTrue(breaker.isQuiet());
    }

    @Test
    public void aProbeThatTimesOutBuysAnotherPeriod() {
        open(0);
        assertTrue(breaker.mayAsk(PERIOD));
        assertFalse(breaker.timedOut(PERIOD + 500));
        assertFalse(breaker.mayAsk(2 * PERIOD));
        assertTrue(breaker.mayAsk(2 * PERIOD + 500));
    }

    @Test
    public void aProbeThatLearntNothingLetsTheNextReaderTry() {
        open(0);
        assertTrue(breaker.mayAsk(PERIOD));
        breaker.learntNothing();
        assertTrue(breaker.mayAsk(PERIOD + 1));
        assertFalse(breaker.mayAsk(PERIOD + 2));
    }

    @Test
    public void aProbeThatNeverReportsHoldsThePlaceForOnePeriod() {
        open(0);
        assertTrue(breaker.mayAsk(PERIOD));
        assertFalse(breaker.mayAsk(2 * PERIOD - 1));
        assertTrue(breaker.mayAsk(2 * PERIOD));
    }

    private void open(long now) {
        breaker.timedOut(now);
        breaker.timedOut(now);
    }
}
