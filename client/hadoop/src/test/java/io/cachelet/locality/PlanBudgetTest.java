package io.cachelet.locality;

import static org.junit.Assert.assertEquals;

import org.junit.Test;

/** What a thread may wait within a window. */
public class PlanBudgetTest {
    private final PlanBudget budget = new PlanBudget(100);

    @Test
    public void waitsCountUntilTheyLeaveTheWindow() {
        long t = 1_000_000;
        assertEquals(100, budget.leftNanos(t));
        budget.waited(60, t);
        assertEquals(40, budget.leftNanos(t));
        budget.waited(70, t + 10);
        assertEquals(0, budget.leftNanos(t + 10));
        assertEquals(30, budget.leftNanos(t + PlanBudget.WINDOW_NANOS));
        assertEquals(100, budget.leftNanos(t + 10 + PlanBudget.WINDOW_NANOS));
    }

    @Test
    public void anyNumberOfShortWaitsAddsUp() {
        for (int i = 0; i < 1000; i++) {
            budget.waited(1, i);
        }
        assertEquals(0, budget.leftNanos(1000));
    }

    @Test
    public void eachThreadHasItsOwn() throws InterruptedException {
        budget.waited(100, 0);
        long[] left = new long[1];
        Thread other = new Thread(() -> left[0] = budget.leftNanos(0));
        other.start();
        other.join();
        assertEquals(100, left[0]);
    }
}
