package io.cachelet.locality;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assume.assumeTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.apache.hadoop.fs.BlockLocation;
import org.junit.After;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;
import org.junit.rules.Timeout;

/**
 * Look-ups in a real cluster of two nodes, whose objects are files. The system property {@code cachelet.bin} names the
 * directory with Cachelet's programs; without it these tests are left out.
 */
public class RealServiceTest {
    private static final long MIB = 1L << 20;

    @Rule
    public final Timeout limit = Timeout.seconds(120);

    @Rule
    public final TemporaryFolder directory = new TemporaryFolder();

    private final ExecutorDirectory executors = new ExecutorDirectory();
    private final BlockLocator locator =
            new BlockLocator(executors, System::nanoTime, TimeUnit.SECONDS.toNanos(20), true);
    private Process cluster;

    @Before
    public void start() throws Exception {
        String programs = System.getProperty("cachelet.bin", "");
        assumeTrue("cachelet.bin is not set", !programs.isEmpty());
        File ready = new File(directory.getRoot(), "ready.json");
        File log = new File(directory.getRoot(), "dev.log");
        ProcessBuilder dev = new ProcessBuilder(
                programs + "/cachelet",
                "dev",
                "--nodes",
                "2",
                "--store",
                "file",
                "--unprotected",
                "--block-bytes",
                "32MiB",
                "--root",
                directory.newFolder("objects").toString(),
                "--dir",
                directory.newFolder("cluster").toString(),
                "--ready-file",
                ready.toString());
        dev.redirectErrorStream(true).redirectOutput(log);
        cluster = dev.start();
        while (!ready.exists() || ready.length() == 0) {
            assertTrue("the cluster runs", cluster.isAlive());
            Thread.yield();
        }
        JsonNode addresses = new ObjectMapper().readTree(ready);
        executors.serviceAddress(addresses.get("service").get("http").asText());
        executors.added("0", "127.0.0.2", "node-1");
        executors.added("1", "127.0.0.3", "node-2");
    }

    @After
    public void stop() throws Exception {
        if (cluster != null) {
            cluster.destroy();
            assertTrue("the cluster ends", cluster.waitFor(30, TimeUnit.SECONDS));
        }
    }

    private List<String> hosts(String uri, long length) throws IOException {
        // Workers may not all have registered with the service yet.
        BlockLocation[] locations;
        do {
            locations = locator.locate(uri, null, length);
        } while (locations.length == 1 && length > 32 * MIB);
        List<String> hosts = new ArrayList<>();
        long next = 0;
        for (BlockLocation location : locations) {
            assertEquals(next, location.getOffset());
            next += location.getLength();
            assertEquals("planned on one of the two nodes", 1, location.getHosts().length);
            hosts.add(location.getHosts()[0]);
        }
        assertEquals(length, next);
        return hosts;
    }

    @Test
    public void anObjectThatNobodyHasReadIsPlannedBlockByBlockWithinTheCandidates() throws Exception {
        String uri = "file://lake/t/part-0";
        List<String> hosts = hosts(uri, 500 * MIB + 1);
        assertEquals(16, hosts.size());
        assertTrue("both nodes have blocks: " + hosts, hosts.contains("127.0.0.2") && hosts.contains("127.0.0.3"));
        executors.removed("0");
        assertEquals(Collections.nCopies(16, "127.0.0.3"), hosts(uri, 500 * MIB + 1));
    }

    @Test
    public void anotherStoresObjectHasNoHosts() throws Exception {
        hosts("file://lake/x", 33 * MIB);
        assertArrayEquals(new String[0], locator.locate("s3a://elsewhere/x", "e", 5)[0].getHosts());
    }

    @Test
    public void placementNeedsNoCandidates() throws Exception {
        hosts("file://lake/x", 33 * MIB);
        Placement placement = new Placement(executors);
        placement.enable();
        placement.configured("file://lake/t/part-0", null, 500 * MIB);
        placement.refresh();
        List<Placement.NodeBytes> nodes = placement.nodes();
        assertEquals(2, nodes.size());
        assertEquals(500 * MIB, nodes.get(0).bytes + nodes.get(1).bytes);
        assertTrue(nodes.get(0).bytes >= nodes.get(1).bytes);
    }
}
