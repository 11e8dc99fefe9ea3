package io.cachelet.spark;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import org.junit.After;
import org.junit.Test;

/** What is attributed to an SQL execution, and when it is summed up. */
public class ExecutionsTest {
    private final ByteLedger ledger = new ByteLedger();
    private final ScheduledThreadPoolExecutor timer = new ScheduledThreadPoolExecutor(1);
    private final BlockingQueue<ExecutionSummary> summaries = new LinkedBlockingQueue<>();
    private final Executions executions = new Executions(ledger, timer, summaries::add, 0);

    @After
    public void stop() {
        timer.shutdownNow();
    }

    private static Counters local(long bytes) {
        return Counters.of(Collections.singletonMap(Counters.LOCAL, bytes));
    }

    private JsonNode next() throws Exception {
        ExecutionSummary summary = summaries.poll(20, TimeUnit.SECONDS);
        assertTrue("there is a summary", summary != null);
        return new ObjectMapper().readTree(summary.toJson("app-1"));
    }

    private void task(int stage, String executor, String locality, long bytes) {
        executions.task(stage, 0, executor, locality, bytes);
    }

    @Test
    public void anExecutionIsSummedUpOnceTheReportsOfItsTasksAreIn() throws Exception {
        ledger.reported("1", 0, local(1000));
        executions.started(3, 3, "count", 100);
        executions.stage(3, 5, 0, false);
        task(5, "1", "NODE_LOCAL", 10);
        task(5, "2", "ANY", 10);
        task(5, "2", "NODE_LOCAL", 0);
        executions.ended(3, 350);
        ledger.reported("1", 1, local(1007));
        ledger.reported("2", 1, local(1));
        // This one covers both tasks of executor 2; the next is somebody else's.
        ledger.reported("2", 2, local(40));
        ledger.reported("2", 2, local(4000));
        JsonNode summary = next();
        assertEquals(3, summary.get("execution").asInt());
        assertEquals(0.25, summary.get("seconds").asDouble(), 0);
        assertEquals(47, summary.get("local_bytes").asLong());
        assertEquals(0, summary.get("peer_bytes").asLong());
        assertEquals(2, summary.get("reading_tasks").asInt());
        assertEquals(0.5, summary.get("node_local_share").asDouble(), 0);
        assertEquals(0, summary.get("shared_with").asInt());
        assertEquals(0, summary.get("missing_reports").asInt());
    }

    @Test
    public void aLateReportOfOneExecutionIsNotTheNextOnes() throws Exception {
        executions.started(1, 1, "first", 0);
        executions.stage(1, 1, 0, false);
        task(1, "1", "NODE_LOCAL", 10);
        executions.ended(1, 10);
        executions.started(2, 2, "second", 10);
        executions.stage(2, 2, 0, false);
        ledger.reported("1", 1, local(10));
        task(2, "1", "NODE_LOCAL", 5);
        executions.ended(2, 20);
        ledger.reported("1", 2, local(15));
        assertEquals(10, next().get("local_bytes").asLong());
        assertEquals(5, next().get("local_bytes").asLong());
    }

    @Test
    public void executionsAtTheSameTimeSayThatTheyShare() throws Exception {
        executions.started(1, 1, "a", 0);
        executions.started(2, 2, "b", 0);
        executions.started(3, 1, "a part of a", 0);
        executions.ended(3, 5);
        executions.ended(2, 10);
        executions.ended(1, 10);
        assertEquals(1, next().get("shared_with").asInt());
        assertEquals(2, next().get("shared_with").asInt());
        assertEquals(1, next().get("shared_with").asInt());
    }

    @Test
    public void thePartsOfAnExecutionCountForItToo() throws Exception {
        executions.started(1, 1, "insert", 0);
        executions.started(2, 1, "its query", 0);
        executions.stage(2, 9, 0, false);
        task(9, "1", "NODE_LOCAL", 10);
        ledger.reported("1", 1, local(10));
        executions.ended(2, 5);
        executions.ended(1, 6);
        assertEquals(1, next().get("reading_tasks").asInt());
        JsonNode whole = next();
        assertEquals(1, whole.get("execution").asInt());
        assertEquals(1, whole.get("reading_tasks").asInt());
        assertEquals(0, whole.get("shared_with").asInt());
    }

    @Test
    public void whatAnExecutorHadCachedItselfIsNeitherLocalNorAMiss() throws Exception {
        executions.started(1, 1, "cached", 0);
        executions.stage(1, 1, 0, true);
        task(1, "1", "PROCESS_LOCAL", 10);
        ledger.reported("1", 1, Counters.NONE);
        executions.ended(1, 1);
        JsonNode summary = next();
        assertEquals(1, summary.get("executor_cached_tasks").asInt());
        assertTrue(summary.get("node_local_share").isNull());
    }

    @Test
    public void aTaskWithoutPreferenceIsNotLocalAlthoughSparkCallsItSo() throws Exception {
        executions.started(1, 1, "q", 0);
        executions.stage(1, 1, 0, false);
        task(1, "1", "PROCESS_LOCAL", 10);
        task(1, "1", "NODE_LOCAL", 10);
        ledger.reported("1", 2, Counters.NONE);
        executions.ended(1, 1);
        JsonNode summary = next();
        assertEquals(0, summary.get("executor_cached_tasks").asInt());
        assertEquals(0.5, summary.get("node_local_share").asDouble(), 0);
    }

    @Test
    public void anExecutorThatIsLostBeforeItReportsIsMissed() throws Exception {
        executions.started(1, 1, "q", 0);
        executions.stage(1, 1, 0, false);
        task(1, "1", "NODE_LOCAL", 10);
        executions.ended(1, 1);
        ledger.removed("1");
        assertEquals(1, next().get("missing_reports").asInt());
        // The next one does not wait for it.
        executions.started(2, 2, "q", 0);
        executions.ended(2, 1);
        assertEquals(0, next().get("missing_reports").asInt());
    }

    @Test
    public void theApplicationIsSummedUpAtItsEndWithWhatIsOpen() throws Exception {
        executions.started(1, 1, "open", 0);
        executions.stage(1, 1, 0, false);
        task(1, "1", "NODE_LOCAL", 10);
        task(77, "1", "ANY", 10);
        ledger.reported("1", 2, local(25));
        executions.close(9);
        executions.close(10);
        assertEquals(25, next().get("local_bytes").asLong());
        JsonNode application = next();
        assertEquals("application", application.get("kind").asText());
        assertEquals(0.5, application.get("node_local_share").asDouble(), 0);
        assertEquals(25, application.get("local_bytes").asLong());
        assertTrue(summaries.isEmpty());
    }

    @Test
    public void whatWasNotMeasuredIsUnknown() throws Exception {
        Map<String, Long> values = new HashMap<>();
        values.put(Counters.LOCAL, 3L << 20);
        values.put(Counters.ORIGIN, Counters.UNKNOWN);
        values.put(Counters.FALLBACKS, 2L);
        values.put(Counters.FALLBACKS + ".no_grant", 2L);
        executions.started(1, 1, "select\n  1", 0);
        ledger.reported("1", 0, Counters.of(values));
        ledger.reported("2", 0, local(0));
        executions.ended(1, 1500);
        ExecutionSummary summary = summaries.poll(20, TimeUnit.SECONDS);
        assertEquals(
                "execution 1 \"select 1\" took 1.500 s: 3.0 MiB local, 0 B from peers, unknown from the origin; 0 of 0 reading"
                        + " tasks NODE_LOCAL; 2 fallbacks {no_grant=2}",
                summary.toLine());
        JsonNode json = new ObjectMapper().readTree(summary.toJson("app-1"));
        assertTrue(json.get("origin_bytes").isNull());
        assertEquals(2, json.get("fallback_reasons").get("no_grant").asInt());
    }

    @Test
    public void countersSurviveTheWayToTheDriver() {
        Counters counters = local(7).plus(Counters.of(Collections.singletonMap(Counters.PEER, Counters.UNKNOWN)));
        assertEquals(counters, Counters.fromMessage(counters.toMessage()));
        List<Object> other = new ArrayList<>();
        assertEquals(Counters.NONE, Counters.fromMessage(other));
        assertEquals(Counters.UNKNOWN, counters.minus(Counters.NONE).get(Counters.PEER));
        assertEquals(Counters.UNKNOWN, Counters.NONE.minus(counters).get(Counters.PEER));
    }
}
