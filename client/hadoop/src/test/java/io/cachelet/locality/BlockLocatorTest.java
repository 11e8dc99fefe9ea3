package io.cachelet.locality;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.hadoop.fs.BlockLocation;
import org.junit.After;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.Timeout;

/** Look-ups against a service that answers well, badly, late or not at all. */
public class BlockLocatorTest {
    private static final long MIB = 1L << 20;

    @Rule
    public final Timeout limit = Timeout.seconds(120);

    private final AtomicLong clock = new AtomicLong();
    private final ExecutorDirectory directory = new ExecutorDirectory();
    /** Patient, so that a slow machine fails no test that is not about waiting. */
    private BlockLocator locator = new BlockLocator(directory, clock::get, TimeUnit.SECONDS.toNanos(20), false);

    private FakeService service;

    private void serve(FakeService.Behaviour behaviour) throws IOException {
        service = new FakeService(behaviour);
        directory.serviceAddress(service.address());
    }

    private void oneExecutorOnEachOfTwoNodes() {
        directory.added("0", "10.0.0.1", "node-1");
        directory.added("1", "10.0.0.2", "node-2");
    }

    @After
    public void stop() {
        if (service != null) {
            service.close();
        }
    }

    /** Checks that the tiles cover the file, and returns their hosts, "|" between tiles. */
    private static String hosts(BlockLocation[] locations, long length) throws IOException {
        StringBuilder all = new StringBuilder();
        long next = 0;
        for (BlockLocation location : locations) {
            assertSame(BlockLocation.class, location.getClass());
            assertEquals(next, location.getOffset());
            next += location.getLength();
            all.append(next == location.getLength() ? "" : "|").append(String.join(",", location.getHosts()));
            assertEquals(location.getHosts().length, location.getNames().length);
            for (int i = 0; i < location.getHosts().length; i++) {
                assertTrue(location.getNames()[i].startsWith(location.getHosts()[i] + ":"));
            }
        }
        assertEquals(length, next);
        return all.toString();
    }

    private String locate(String uri, long length) throws IOException {
        return hosts(locator.locate(uri, "e", length), length);
    }

    @Test
    public void oneRequestAnswersForAllOfAListing() throws Exception {
        serve(FakeService.resident("node-2"));
        oneExecutorOnEachOfTwoNodes();
        for (int i = 0; i < 500; i++) {
            locator.listed("s3a://b/t/" + i, "e", 10);
        }
        for (int i = 0; i < 500; i++) {
            assertEquals("10.0.0.2", locate("s3a://b/t/" + i, 10));
        }
        assertEquals(1, service.requests.size());
        JsonNode request = service.requests.get(0);
        assertEquals("[\"node-1\",\"node-2\"]", request.get("candidates").toString());
        assertEquals(
                "{\"path\":\"s3a://b/t/0\",\"etag\":\"e\",\"size_bytes\":10}",
                request.get("paths").get(0).toString());
        assertEquals(500, request.get("paths").size());
    }

    @Test
    public void theFirstPlanWaitsForAnExecutorThatIsBeingSetUp() throws Exception {
        serve(FakeService.resident("node-2"));
        directory.added("0", "10.0.0.1", "node-1");
        directory.scheduledAs("1", "10.0.0.2");
        FutureTask<String> plan = new FutureTask<>(() -> locate("s3a://b/1", 10));
        new Thread(plan).start();
        directory.added("1", "10.0.0.2", "node-2");
        assertEquals("10.0.0.2", plan.get());
        assertEquals(
                "[\"node-1\",\"node-2\"]",
                service.requests.get(0).get("candidates").toString());
    }

    @Test
    public void aListingIsAskedForBeforeItIsPlanned() throws Exception {
        locator = new BlockLocator(directory, clock::get, 0, true);
        CountDownLatch asked = new CountDownLatch(1);
        serve((exchange, request) -> {
            FakeService.resident("node-1").answer(exchange, request);
            asked.countDown();
        });
        oneExecutorOnEachOfTwoNodes();
        locator.listed("s3a://b/1", "e", 10);
        locator.listed("s3a://b/2", "e", 10);
        assertTrue(asked.await(20, TimeUnit.SECONDS));
        while (locate("s3a://b/2", 10).isEmpty()) {
            Thread.yield();
        }
        assertEquals("10.0.0.1", locate("s3a://b/1", 10));
    }

    @Test
    public void aListingLongerThanARequestIsAskedForInSeveral() throws Exception {
        serve(FakeService.resident("node-1"));
        oneExecutorOnEachOfTwoNodes();
        int files = LocationService.MAX_PATHS + 10;
        for (int i = 0; i < files; i++) {
            locator.listed("s3a://b/t/" + i, "e", 10);
        }
        // Waits of a plan are bounded, so that a slow machine may not have the first answer in time.
        while (!locate("s3a://b/t/" + (files - 1), 10).equals("10.0.0.1")
                || !locate("s3a://b/t/0", 10).equals("10.0.0.1")) {
            Thread.yield();
        }
        assertEquals(2, service.requests.size());
        for (JsonNode request : service.requests) {
            assertTrue(request.get("paths").size() <= LocationService.MAX_PATHS);
        }
    }

    @Test
    public void nobodyIsAskedWithoutExecutorsOrWithoutAService() throws Exception {
        serve(FakeService.resident("node-1"));
        assertEquals("", locate("s3a://b/k", 10));
        directory.added("0", "10.0.0.1", null);
        directory.added("1", "10.0.0.2", "virtual-kubelet-cn-hangzhou-k");
        assertEquals("", locate("s3a://b/k", 10));
        assertEquals(0, service.requests.size());
        directory.clear();
        oneExecutorOnEachOfTwoNodes();
        assertEquals("", locate("s3a://b/k", 10));
        assertEquals(0, service.requests.size());
    }

    @Test
    public void anEmptyFileHasNoLocations() throws Exception {
        serve(FakeService.resident("node-1"));
        oneExecutorOnEachOfTwoNodes();
        assertEquals(0, locator.locate("s3a://b/empty", "e", 0).length);
        assertEquals(0, service.requests.size());
    }

    @Test
    public void answersAreForTheNodesThatExecutorsRunOn() throws Exception {
        serve(FakeService.resident("node-1"));
        oneExecutorOnEachOfTwoNodes();
        assertEquals("10.0.0.1", locate("s3a://b/k", 10));
        directory.removed("0");
        service.behaviour = FakeService.resident("node-2");
        assertEquals("10.0.0.2", locate("s3a://b/k", 10));
        assertEquals("[\"node-2\"]", service.requests.get(1).get("candidates").toString());
        // Another executor on the same node changes the hosts, not the nodes: nobody is asked again.
        directory.added("2", "10.0.0.9", "node-2");
        directory.removed("1");
        assertEquals("10.0.0.9", locate("s3a://b/k", 10));
        assertEquals(2, service.requests.size());
    }

    @Test
    public void anAnswerIsFreshForAWhile() throws Exception {
        serve(FakeService.resident("node-1"));
        oneExecutorOnEachOfTwoNodes();
        assertEquals("10.0.0.1", locate("s3a://b/k", 10));
        service.behaviour = FakeService.resident("node-2");
        clock.addAndGet(BlockLocator.FRESH_NANOS);
        assertEquals("10.0.0.1", locate("s3a://b/k", 10));
        clock.addAndGet(1);
        assertEquals("10.0.0.2", locate("s3a://b/k", 10));
    }

    @Test
    public void anotherGenerationOfAFileIsAskedForAgain() throws Exception {
        serve(FakeService.resident("node-1"));
        oneExecutorOnEachOfTwoNodes();
        assertEquals("10.0.0.1", hosts(locator.locate("s3a://b/k", "old", 10), 10));
        service.behaviour = FakeService.resident("node-2");
        assertEquals("10.0.0.2", hosts(locator.locate("s3a://b/k", "new", 10), 10));
        assertEquals("10.0.0.2", hosts(locator.locate("s3a://b/k", "new", 11), 11));
        assertEquals(3, service.requests.size());
    }

    @Test
    public void whatTilesAFileWronglyIsOneTileWithoutHosts() throws Exception {
        String[] wrong = {
            FakeService.location("s3a://b/k", 10),
            FakeService.location("s3a://b/k", 10, FakeService.block(0, 9, "resident", "node-1")),
            FakeService.location("s3a://b/k", 11, FakeService.block(0, 11, "resident", "node-1")),
            FakeService.location("s3a://b/k", 10, FakeService.block(1, 9, "resident", "node-1")),
            FakeService.location(
                    "s3a://b/k",
                    10,
                    FakeService.block(0, 6, "resident", "node-1"),
                    FakeService.block(5, 5, "resident", "node-1")),
            FakeService.location(
                    "s3a://b/k",
                    10,
                    FakeService.block(0, 4, "resident", "node-1"),
                    FakeService.block(5, 5, "resident", "node-1")),
            FakeService.location("s3a://b/k", 10, FakeService.block(0, Long.MAX_VALUE, "resident", "node-1")),
            FakeService.location("s3a://b/k", 10, FakeService.block(-1, 11, "resident", "node-1")),
            FakeService.location(
                    "s3a://b/k",
                    10,
                    FakeService.block(0, 10, "resident", "node-1"),
                    FakeService.block(10, 0, "resident", "node-1")),
            "{\"path\":\"s3a://b/k\",\"known\":false,\"reason\":\"unknown_store\",\"blocks\":[]}",
            FakeService.location("s3a://b/other", 10, FakeService.block(0, 10, "resident", "node-1")),
            "{\"path\":\"s3a://b/k\",\"known\":false,\"error\":{\"code\":\"invalid_path\"},\"blocks\":[]}",
        };
        serve(null);
        oneExecutorOnEachOfTwoNodes();
        for (String location : wrong) {
            service.behaviour = FakeService.saying(200, "{\"locations\":[" + location + "]}");
            assertEquals(location, "", locate("s3a://b/k", 10));
            assertEquals(location, 1, locator.locate("s3a://b/k", "e", 10).length);
            clock.addAndGet(BlockLocator.FRESH_NANOS + 1);
        }
        assertEquals("each answer was taken, none was a failure", wrong.length, service.requests.size());
    }

    @Test
    public void smallBlocksAreJoinedAndLargeOnesAreNot() throws Exception {
        serve((exchange, request) -> {
            StringBuilder blocks = new StringBuilder();
            for (int i = 0; i < 40; i++) {
                // 24 of the first 32 are on node-2, which is not where the first one is; the rest belongs to node-1.
                String state = i < 32 ? "resident" : "planned";
                blocks.append(i == 0 ? "" : ",")
                        .append(FakeService.block(i * MIB, MIB, state, i < 32 && i % 4 != 0 ? "node-2" : "node-1"));
            }
            FakeService.send(
                    exchange,
                    200,
                    "{\"locations\":["
                            + FakeService.location("s3a://b/small", 40 * MIB, blocks.toString()) + ","
                            + FakeService.location(
                                    "s3a://b/large",
                                    65 * MIB,
                                    FakeService.block(0, 32 * MIB, "planned", "node-2"),
                                    FakeService.block(32 * MIB, 32 * MIB, "resident", "node-1", "node-2"),
                                    FakeService.block(64 * MIB, MIB, "resident"))
                            + "]}");
        });
        oneExecutorOnEachOfTwoNodes();
        locator.listed("s3a://b/small", "e", 40 * MIB);
        locator.listed("s3a://b/large", "e", 65 * MIB);
        assertEquals("10.0.0.2,10.0.0.1|10.0.0.1", locate("s3a://b/small", 40 * MIB));
        assertEquals("10.0.0.2|10.0.0.1,10.0.0.2|", locate("s3a://b/large", 65 * MIB));
    }

    @Test
    public void executorsOfANodeTakeTurns() throws Exception {
        serve(FakeService.resident("node-1"));
        for (int i = 0; i < 8; i++) {
            directory.added("e" + i, "10.0.0." + i, "node-1");
        }
        for (int i = 0; i < 64; i++) {
            locator.listed("s3a://b/part-" + i, "e", 10);
        }
        Set<String> first = new HashSet<>();
        for (int i = 0; i < 64; i++) {
            String[] hosts = locator.locate("s3a://b/part-" + i, "e", 10)[0].getHosts();
            assertEquals(3, new HashSet<>(Arrays.asList(hosts)).size());
            assertArrayEquals(hosts, locator.locate("s3a://b/part-" + i, "e", 10)[0].getHosts());
            first.add(hosts[0]);
        }
        assertEquals("all executors are named first for some file", 8, first.size());
    }

    @Test
    public void eachNodeIsNamedBeforeASecondExecutorOfOne() throws Exception {
        serve(FakeService.resident("node-2", "node-3", "node-1"));
        directory.added("0", "a", "node-1");
        directory.added("1", "b", "node-1");
        directory.added("2", "c", "node-2");
        String[] hosts = locator.locate("s3a://b/k", "e", 10)[0].getHosts();
        assertEquals("c", hosts[0]);
        assertEquals(new HashSet<>(Arrays.asList("a", "b", "c")), new HashSet<>(Arrays.asList(hosts)));
    }

    @Test
    public void hostStringsAreKeptByteForByte() throws Exception {
        serve(FakeService.resident("node-1"));
        directory.added("7", "[fd00::1]", "node-1");
        BlockLocation location = locator.locate("s3a://b/k", "e", 10)[0];
        assertArrayEquals(new String[] {"[fd00::1]"}, location.getHosts());
        assertArrayEquals(new String[] {"[fd00::1]:0"}, location.getNames());
    }

    @Test
    public void aServiceThatStallsCostsAPlanItsBudgetOnce() throws Exception {
        locator = new BlockLocator(directory, clock::get, PlanBudget.BUDGET_NANOS, false);
        CountDownLatch release = new CountDownLatch(1);
        serve((exchange, request) -> {
            release.await();
            FakeService.resident("node-1").answer(exchange, request);
        });
        oneExecutorOnEachOfTwoNodes();
        for (int i = 0; i < 1000; i++) {
            locator.listed("s3a://b/t/" + i, "e", 10);
        }
        long start = System.nanoTime();
        for (int i = 0; i < 1000; i++) {
            assertEquals("", locate("s3a://b/t/" + i, 10));
        }
        long millis = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - start);
        assertTrue("waited " + millis + " ms", millis >= 150 && millis < 1_000);

        // The answer that comes too late serves the next plan, without another request.
        release.countDown();
        while (locate("s3a://b/t/0", 10).isEmpty()) {
            Thread.yield();
        }
        for (int i = 0; i < 1000; i++) {
            assertEquals("10.0.0.1", locate("s3a://b/t/" + i, 10));
        }
        assertEquals(1, service.requests.size());
    }

    @Test
    public void anOldAnswerServesWhileTheServiceIsSlow() throws Exception {
        locator = new BlockLocator(directory, clock::get, PlanBudget.BUDGET_NANOS, false);
        serve(FakeService.resident("node-1"));
        oneExecutorOnEachOfTwoNodes();
        assertEquals("10.0.0.1", locate("s3a://b/k", 10));
        service.behaviour = (exchange, request) -> new CountDownLatch(1).await();
        clock.addAndGet(BlockLocator.STALE_NANOS);
        assertEquals("10.0.0.1", locate("s3a://b/k", 10));
        clock.addAndGet(1);
        assertEquals("", locate("s3a://b/k", 10));
    }

    @Test
    public void garbageIsNeverTaken() throws Exception {
        StringBuilder deep = new StringBuilder("{\"locations\":");
        for (int i = 0; i < 100_000; i++) {
            deep.append('[');
        }
        String[] garbage = {
            "",
            "not json",
            "[]",
            "{\"locations\":",
            "{\"locations\":[7]}",
            "{\"locations\":[{\"path\":\"s3a://b/k\",\"known\":true,\"blocks\":[{\"offset\":1e400}]",
            "{\"locations\":[{\"path\":\"s3a://b/k\",\"known\":true,\"blocks\":[{\"offset\":9999999999999999999}]}]}",
            "{\"locations\":[]} and more",
            deep.toString(),
        };
        serve(null);
        oneExecutorOnEachOfTwoNodes();
        for (String body : garbage) {
            service.behaviour = FakeService.saying(200, body);
            assertEquals("", locate("s3a://b/k", 10));
            clock.addAndGet(Breaker.REST_NANOS);
        }
        for (int status : new int[] {204, 301, 400, 404, 413, 500, 503}) {
            service.behaviour = FakeService.saying(status, "");
            assertEquals("", locate("s3a://b/k", 10));
            clock.addAndGet(Breaker.REST_NANOS);
        }
        service.behaviour = FakeService.resident("node-1");
        assertEquals("10.0.0.1", locate("s3a://b/k", 10));
    }

    @Test
    public void anAnswerWithoutEndIsGivenUp() throws Exception {
        locator = new BlockLocator(directory, clock::get, PlanBudget.BUDGET_NANOS, false);
        CountDownLatch gaveUp = new CountDownLatch(1);
        serve((exchange, request) -> {
            exchange.sendResponseHeaders(200, 0);
            byte[] zeros = new byte[1 << 16];
            Arrays.fill(zeros, (byte) ' ');
            try {
                while (true) {
                    exchange.getResponseBody().write(zeros);
                }
            } catch (IOException e) {
                gaveUp.countDown();
            }
        });
        oneExecutorOnEachOfTwoNodes();
        assertEquals("", locate("s3a://b/k", 10));
        assertTrue(gaveUp.await(30, TimeUnit.SECONDS));
    }

    @Test
    public void aServiceThatIsDownIsNotAskedForAWhile() throws Exception {
        try (ServerSocket reserved = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            directory.serviceAddress("127.0.0.1:" + reserved.getLocalPort());
        }
        oneExecutorOnEachOfTwoNodes();
        for (int i = 0; i < Breaker.FAILURES; i++) {
            assertEquals("", locate("s3a://b/k", 10));
        }
        serve(FakeService.resident("node-1"));
        assertEquals("", locate("s3a://b/k", 10));
        assertEquals(0, service.requests.size());
        clock.addAndGet(Breaker.REST_NANOS);
        assertEquals("10.0.0.1", locate("s3a://b/k", 10));
    }

    @Test
    public void aServiceThatTakesFewerPathsIsAskedInSmallerRequests() throws Exception {
        locator = new BlockLocator(directory, clock::get, PlanBudget.BUDGET_NANOS, false);
        serve((exchange, request) -> {
            if (request.get("paths").size() > 100) {
                FakeService.send(exchange, 400, "{\"error\":{\"code\":\"too_many_paths\"}}");
            } else {
                FakeService.resident("node-1").answer(exchange, request);
            }
        });
        oneExecutorOnEachOfTwoNodes();
        for (int i = 0; i < 300; i++) {
            locator.listed("s3a://b/t/" + i, "e", 10);
        }
        assertEquals("", locate("s3a://b/t/0", 10));
        for (int i = 0; i < 300; i++) {
            while (locate("s3a://b/t/" + i, 10).isEmpty()) {
                Thread.yield();
            }
        }
        assertTrue("the rest of a listing is asked for too", service.requests.size() <= 1 + 300 / 75);
    }

    @Test
    public void anInterruptEndsTheWaitAndIsKept() throws Exception {
        serve((exchange, request) -> new CountDownLatch(1).await());
        oneExecutorOnEachOfTwoNodes();
        Thread.currentThread().interrupt();
        assertEquals("", locate("s3a://b/k", 10));
        assertTrue(Thread.interrupted());
    }
}
