package io.cachelet.client;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import io.cachelet.client.CacheletException.Kind;
import java.nio.ByteBuffer;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** What Java is told when the daemon does not serve: a kind, a reason, and whether the origin may. */
public class CacheletFaultsTest {
    private static final int MIB = 1 << 20;
    private DevCluster cluster;

    @Before
    public void start() throws Exception {
        assertTrue(NativeLibrary.whyUnavailable(), NativeLibrary.isAvailable());
        cluster = new DevCluster();
    }

    @After
    public void stop() throws Exception {
        cluster.close();
    }

    private static CacheletException thrown(ThrowingRunnable runnable) {
        return assertThrows(CacheletException.class, runnable);
    }

    @Test
    public void whatTheDaemonDoesNotServeIsLeftToTheOrigin() throws Exception {
        String uri = cluster.put("a", Content.of(1, MIB));
        try (CacheletClient client = cluster.client()) {
            CacheletException unknownStore = thrown(() -> client.open("s3a://nowhere/key", "abc", 5, null, null, 0, 0));
            assertEquals(Kind.BYPASS, unknownStore.kind());
            assertEquals("unknown_store", unknownStore.reason());
            assertTrue(unknownStore.shouldUseOrigin());
            byte[] otherStore = StoreFingerprint.of("file", "", "", "another", false);
            assertEquals(
                    "unknown_store",
                    thrown(() -> client.open(uri, null, -1, null, otherStore, 0, 0))
                            .reason());
            CacheletException missing = thrown(() -> client.open(cluster.uri("missing"), null, -1, null, null, 0, 0));
            assertEquals(Kind.NOT_FOUND, missing.kind());
            assertTrue(missing.shouldUseOrigin());
            for (String name : new String[] {"nonsense", "http://a/b", "s3a://bucket"}) {
                CacheletException invalid = thrown(() -> client.open(name, null, -1, null, null, 0, 0));
                assertEquals(Kind.INVALID, invalid.kind());
                assertTrue(invalid.shouldUseOrigin());
            }
            assertEquals(
                    Kind.INVALID,
                    thrown(() -> client.open(uri, "W/\"weak\"", 5, null, null, 0, 0))
                            .kind());
            CacheletException otherSize = thrown(() -> client.open(uri, null, 5, null, null, 0, 0));
            assertEquals("other_size", otherSize.reason());
            assertTrue(otherSize.shouldUseOrigin());
        }
    }

    @Test
    public void anotherGenerationThanTheCallersIsTheTypedError() throws Exception {
        String uri = cluster.put("changes", Content.of(2, 3 * MIB));
        try (CacheletClient client = CacheletClient.create(cluster.options().readaheadBytes(0))) {
            CacheletObject before = client.open(uri, null, -1, null, null, 0, 0);
            String etag = before.etag();
            CacheletObject same = client.open(uri, '"' + etag + '"', 3 * MIB, null, null, 0, 0);
            assertEquals(etag, same.etag());
            assertEquals("a generation that is open costs no message", 1, client.stats().opensShared);
            assertEquals(
                    Kind.OBJECT_CHANGED,
                    thrown(() -> client.open(uri, "another", -1, null, null, 0, 0))
                            .kind());
            before.read(0, new byte[10], 0, 10);
            byte[] changed = Content.of(3, 3 * MIB);
            cluster.put("changes", changed);
            CacheletException error = thrown(() -> before.read(2 * MIB, new byte[10], 0, 10));
            assertEquals(error.toString(), Kind.OBJECT_CHANGED, error.kind());
            assertFalse(error.shouldUseOrigin());
            try (CacheletObject after = client.open(uri, null, -1, null, null, 0, 0)) {
                Content.assertRange(changed, after, 2 * MIB, 1000);
            }
        }
    }

    @Test
    public void aKilledDaemonIsUnavailableAndWhatIsHeldIsReadOn() throws Exception {
        byte[] content = Content.of(4, 3 * MIB);
        String uri = cluster.put("held", content);
        try (CacheletClient client = CacheletClient.create(cluster.options().readaheadBytes(0))) {
            CacheletObject object = client.open(uri, null, -1, null, null, 0, 0);
            Content.assertRange(content, object, 0, MIB);
            cluster.signal("KILL");
            Content.assertRange(content, object, 0, MIB);
            CacheletException error = thrown(() -> object.read(2 * MIB, new byte[10], 0, 10));
            assertEquals(error.toString(), Kind.UNAVAILABLE, error.kind());
            assertTrue(error.shouldUseOrigin());
            assertTrue(error.isRetryable());
            assertEquals("unavailable", error.reason());
            Content.assertRange(content, object, 0, MIB);
        }
    }

    @Test
    public void aStoppedDaemonCostsTheRequestTimeoutAndWhatIsHeldNothing() throws Exception {
        byte[] content = Content.of(5, 3 * MIB);
        String uri = cluster.put("held", content);
        String other = cluster.put("other", content);
        try (CacheletClient client = CacheletClient.create(cluster.options().readaheadBytes(0))) {
            CacheletObject object = client.open(uri, null, -1, null, null, 0, 0);
            Content.assertRange(content, object, 0, MIB);
            client.setRequestTimeoutMillis(200);
            cluster.signal("STOP");
            Content.assertRange(content, object, 0, MIB);
            for (ThrowingRunnable request : new ThrowingRunnable[] {
                () -> object.read(2 * MIB, ByteBuffer.allocateDirect(10)),
                () -> client.open(other, null, -1, null, null, 0, 0),
                client::filledBytes
            }) {
                long began = System.nanoTime();
                CacheletException error = thrown(request);
                long tookMillis = (System.nanoTime() - began) / 1_000_000;
                assertEquals(Kind.TIMEOUT, error.kind());
                assertTrue(error.shouldUseOrigin());
                assertTrue("it took " + tookMillis + " ms", tookMillis >= 200 && tookMillis < 2_000);
            }
            cluster.signal("CONT");
            client.setRequestTimeoutMillis(30_000);
            Content.assertRange(content, object, 2 * MIB, 1000);
            assertEquals(0, client.stats().reconnects);
        }
    }

    @Test
    public void aDirectoryWithoutADaemonIsUnavailableAtOnce() throws Exception {
        try (CacheletClient client = CacheletClient.create(new ClientOptions().socketDir("/nowhere/at/all"))) {
            CacheletException error = thrown(client::connect);
            assertEquals(Kind.UNAVAILABLE, error.kind());
            assertTrue(error.getMessage(), error.getMessage().contains("/nowhere/at/all"));
        }
    }
}
