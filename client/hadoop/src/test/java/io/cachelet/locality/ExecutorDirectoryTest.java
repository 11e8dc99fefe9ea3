package io.cachelet.locality;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertTrue;

import java.util.Arrays;
import java.util.Collections;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.Test;

/** Which executors are named, and for how long. */
public class ExecutorDirectoryTest {
    private static final long PATIENT = TimeUnit.SECONDS.toNanos(60);

    private final AtomicLong clock = new AtomicLong();
    private final ExecutorDirectory directory = new ExecutorDirectory(clock::get);

    private String[] hosts(String node) {
        return directory.snapshot().hosts(node);
    }

    @Test
    public void severalExecutorsOfANodeAreOneCandidate() {
        directory.added("1", "10.0.0.1", "b");
        directory.added("2", "10.0.0.2", "a");
        directory.added("3", "10.0.0.3", "b");
        assertEquals(Arrays.asList("a", "b"), directory.nodes());
        assertArrayEquals(new String[] {"10.0.0.1", "10.0.0.3"}, hosts("b"));
        directory.removed("1");
        assertArrayEquals(new String[] {"10.0.0.3"}, hosts("b"));
        directory.removed("3");
        assertNull(hosts("b"));
        assertEquals(Collections.singletonList("a"), directory.nodes());
    }

    @Test
    public void executorsThatShareAHostNameItOnce() {
        directory.added("1", "127.0.0.2", "a");
        directory.added("2", "127.0.0.2", "a");
        directory.removed("1");
        assertArrayEquals(new String[] {"127.0.0.2"}, hosts("a"));
    }

    @Test
    public void aRegistrationThatArrivesAfterTheRemovalIsIgnored() {
        directory.removed("1");
        directory.added("1", "10.0.0.1", "a");
        assertEquals(Collections.emptyList(), directory.nodes());
    }

    @Test
    public void aPlanWaitsForAnExecutorThatTheSchedulerHasJustNamed() throws Exception {
        assertEquals(0, directory.awaitThoseComing(PATIENT));
        directory.scheduledAs("1", "10.0.0.1");
        directory.added("1", "10.0.0.1", "a");
        assertEquals("it has registered", 0, directory.awaitThoseComing(PATIENT));
        directory.scheduledAs("2", "10.0.0.2");
        assertTrue("it has not", directory.awaitThoseComing(1) > 0);
        directory.scheduledAs("3", "10.0.0.3");

        FutureTask<Long> plan = new FutureTask<>(() -> directory.awaitThoseComing(PATIENT));
        Thread planner = new Thread(plan);
        planner.start();
        directory.added("2", "10.0.0.2", "b");
        directory.removed("3");
        assertTrue(plan.get() < PATIENT);
        assertEquals(Arrays.asList("a", "b"), directory.nodes());
    }

    @Test
    public void anExecutorThatDoesNotRegisterIsNotWaitedForLong() {
        directory.scheduledAs("1", "10.0.0.1");
        clock.addAndGet(ExecutorDirectory.COMING_NANOS);
        assertEquals(0, directory.awaitThoseComing(PATIENT));
        directory.scheduledAs("2", "10.0.0.2");
        directory.clear();
        assertEquals("of another application", 0, directory.awaitThoseComing(PATIENT));
    }

    @Test
    public void theNextApplicationUsesTheSameIds() {
        directory.added("1", "10.0.0.1", "a");
        directory.removed("1");
        directory.serviceAddress("x:1");
        directory.clear();
        assertEquals("", directory.serviceAddress());
        directory.added("1", "10.0.0.2", "a");
        assertArrayEquals(new String[] {"10.0.0.2"}, hosts("a"));
    }

    @Test
    public void theSchedulersNameForAnExecutorWins() {
        directory.scheduledAs("1", "[fd00::1]");
        assertEquals(Collections.emptyList(), directory.nodes());
        directory.added("1", "fd00::1", "a");
        assertArrayEquals(new String[] {"[fd00::1]"}, hosts("a"));
    }

    @Test
    public void virtualAndUnknownNodesAreNobody() {
        directory.added("1", "10.0.0.1", "");
        directory.added("2", "10.0.0.2", null);
        directory.added("3", "10.0.0.3", "virtual-kubelet");
        assertEquals(Collections.emptyList(), directory.nodes());
        assertEquals(3, directory.size());
        directory.added("1", "10.0.0.1", "a");
        assertEquals(Collections.singletonList("a"), directory.nodes());
    }

    @Test
    public void theListOfNodesChangesOnlyWhenTheNodesDo() {
        directory.added("1", "10.0.0.1", "a");
        ExecutorDirectory.Snapshot before = directory.snapshot();
        directory.added("2", "10.0.0.2", "a");
        assertSame(before.nodes, directory.snapshot().nodes);
    }

    @Test
    public void aConfiguredServiceWinsOverALearntOne() {
        directory.configuredServiceAddress("configured:1");
        directory.serviceAddress("learnt:1");
        assertEquals("configured:1", directory.serviceAddress());
        directory.configuredServiceAddress("");
        directory.serviceAddress("");
        assertEquals("learnt:1", directory.serviceAddress());
    }
}
