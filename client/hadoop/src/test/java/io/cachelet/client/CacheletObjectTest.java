package io.cachelet.client;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import io.cachelet.client.CacheletException.Kind;
import java.io.File;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.AfterClass;
import org.junit.BeforeClass;
import org.junit.Test;
import org.junit.function.ThrowingRunnable;

/** Reads through the native library from a real daemon. */
public class CacheletObjectTest {
    private static final int MIB = 1 << 20;
    private static DevCluster cluster;

    @BeforeClass
    public static void start() throws Exception {
        assertTrue(NativeLibrary.whyUnavailable(), NativeLibrary.isAvailable());
        cluster = new DevCluster("--block-bytes", "4MiB");
    }

    @AfterClass
    public static void stop() throws Exception {
        if (cluster != null) {
            cluster.close();
        }
    }

    private static CacheletObject open(CacheletClient client, String uri) throws CacheletException {
        return client.open(uri, null, -1, null, null, 0, 0);
    }

    private static CacheletException thrown(ThrowingRunnable runnable) {
        return assertThrows(CacheletException.class, runnable);
    }

    @Test
    public void readsOfAllKindsGiveTheObjectsBytesColdAndWarm() throws Exception {
        Random random = new Random(1);
        for (int size : new int[] {0, 1, 9_000, MIB, 13 * MIB + 77}) {
            byte[] content = Content.of(size, size);
            String uri = cluster.put("all-kinds-" + size, content);
            try (CacheletClient client = cluster.client();
                    CacheletObject object = open(client, uri)) {
                assertEquals(size, object.sizeBytes());
                for (int i = 0; i < 40; i++) {
                    Content.assertRange(
                            content, object, random.nextInt(size + 10), random.nextInt(1 << random.nextInt(22)));
                }
                Content.assertRange(content, object, 0, size);
                Content.assertRange(content, object, size, 10);
                Content.assertRange(content, object, Math.max(0, size - 5), 10);
                Content.assertRange(content, object, size / 2, 0);
                if (size > 9_000) {
                    assertTrue("it was read from descriptors", client.descriptorsHeld() > 0);
                    assertEquals(0, client.stats().inlineBytes);
                }
            }
        }
    }

    @Test
    public void whatIsHeldIsOpenedAndReadWithoutAMessageAndNothingElseIs() throws Exception {
        byte[] content = Content.of(12, 6 * MIB);
        String uri = cluster.put("held", content);
        try (CacheletClient client = CacheletClient.create(cluster.options().readaheadBytes(0));
                CacheletObject object = open(client, uri)) {
            assertFalse(object.holds(0, 1));
            assertEquals(CacheletObject.NOT_HELD, object.readHeld(0, new byte[10], 0, 10));
            // The first of two blocks.
            object.read(0, new byte[4 * MIB], 0, 4 * MIB);
            long sent = client.stats().messagesSent;
            assertNull(client.openHeld(uri, "another", content.length, null, null));
            try (CacheletObject held = client.openHeld(uri, object.etag(), content.length, null, null)) {
                assertTrue(held.holds(0, 4 * MIB));
                assertFalse(held.holds(4 * MIB - 1, 2));
                byte[] array = new byte[MIB + 2];
                assertEquals(MIB, held.readHeld(77, array, 1, MIB));
                assertEquals(ByteBuffer.wrap(content, 77, MIB), ByteBuffer.wrap(array, 1, MIB));
                ByteBuffer direct = ByteBuffer.allocateDirect(MIB);
                assertEquals(CacheletObject.NOT_HELD, held.readHeld(4 * MIB - 1, direct));
                assertEquals(MIB, direct.remaining());
                assertEquals(MIB, held.readHeld(77, direct));
                direct.flip();
                assertEquals(ByteBuffer.wrap(content, 77, MIB), direct);
                assertEquals(-1, held.readHeld(content.length, array, 0, 1));
            }
            assertEquals(sent, client.stats().messagesSent);
        }
    }

    @Test
    public void manyRangesAreReadInOneCall() throws Exception {
        byte[] content = Content.of(2, 17 * MIB);
        String uri = cluster.put("ranges", content);
        try (CacheletClient client = cluster.client();
                CacheletObject object = open(client, uri)) {
            for (int round = 0; round < 2; round++) {
                Random random = new Random(round);
                int count = 100;
                long[] positions = new long[count];
                int[] lengths = new int[count];
                ByteBuffer[] buffers = new ByteBuffer[count];
                for (int i = 0; i < count; i++) {
                    lengths[i] = random.nextInt(200_000);
                    positions[i] = random.nextInt(content.length - lengths[i]);
                    buffers[i] = ByteBuffer.allocateDirect(lengths[i] + 20);
                    buffers[i].position(i % 10);
                }
                long before = client.stats().messagesSent;
                object.readVectored(positions, lengths, buffers);
                for (int i = 0; i < count; i++) {
                    assertEquals(i % 10 + lengths[i], buffers[i].position());
                    buffers[i].flip();
                    buffers[i].position(i % 10);
                    assertEquals(ByteBuffer.wrap(content, (int) positions[i], lengths[i]), buffers[i]);
                }
                object.readVectored(positions, lengths, rewound(buffers));
                assertTrue(round == 0 || client.stats().messagesSent - before < count);
            }
            object.readVectored(new long[0], new int[0], new ByteBuffer[0]);
            CacheletException beyond =
                    thrown(() -> object.readVectored(new long[] {0, 17 * MIB - 1}, new int[] {1, 2}, new ByteBuffer[] {
                        ByteBuffer.allocateDirect(1), ByteBuffer.allocateDirect(2)
                    }));
            assertEquals(Kind.END_OF_OBJECT, beyond.kind());
            assertFalse(beyond.shouldUseOrigin());
        }
    }

    private static ByteBuffer[] rewound(ByteBuffer[] buffers) {
        for (ByteBuffer buffer : buffers) {
            buffer.clear();
        }
        return buffers;
    }

    @Test
    public void aKeyIsItsBytesWhateverTheyAre() throws Exception {
        byte[] content = Content.of(3, 50_000);
        String key = "\u00fc \ud83d\ude00%20+&?#\u0001.bin";
        String uri = cluster.put(key, content);
        try (CacheletClient client = cluster.client();
                CacheletObject object = open(client, uri)) {
            Content.assertRange(content, object, 100, 20_000);
            CacheletException noText = thrown(() -> open(client, "file://lake/\ud83d"));
            assertEquals(Kind.INVALID, noText.kind());
            assertTrue(noText.shouldUseOrigin());
        }
    }

    @Test
    public void readAfterCloseIsAnErrorAndNoCrash() throws Exception {
        String uri = cluster.put("closed", Content.of(4, MIB));
        try (CacheletClient client = cluster.client()) {
            CacheletObject object = open(client, uri);
            object.close();
            object.close();
            byte[] array = new byte[10];
            ByteBuffer direct = ByteBuffer.allocateDirect(10);
            for (ThrowingRunnable read : new ThrowingRunnable[] {
                () -> object.read(0, array, 0, 10),
                () -> object.read(0, array, 0, 0),
                () -> object.read(0, direct),
                () -> object.readVectored(new long[] {0}, new int[] {1}, new ByteBuffer[] {direct})
            }) {
                CacheletException error = thrown(read);
                assertEquals(Kind.CLOSED, error.kind());
                assertFalse(error.isRetryable());
                assertEquals("closed", error.reason());
            }
            object.prefetch(0, 10);
            assertThrows(IllegalStateException.class, object::stats);
            assertEquals(MIB, object.sizeBytes());
        }
    }

    @Test
    public void aClosedClientClosesWhatWasOpenedThroughIt() throws Exception {
        String uri = cluster.put("of-a-closed-client", Content.of(5, MIB));
        CacheletClient client = cluster.client();
        CacheletObject object = open(client, uri);
        client.close();
        client.close();
        assertEquals(
                Kind.CLOSED, thrown(() -> object.read(0, new byte[1], 0, 1)).kind());
        assertEquals(Kind.CLOSED, thrown(() -> open(client, uri)).kind());
        assertEquals(Kind.CLOSED, thrown(client::connect).kind());
        object.close();
    }

    @Test
    public void aHandleThatWasClosedOrMadeUpFindsNothing() throws Exception {
        ByteBuffer direct = ByteBuffer.allocateDirect(10);
        for (long handle : new long[] {0, -1, 1, Long.MIN_VALUE, Long.MAX_VALUE, 1L << 24, (1L << 60) + 5}) {
            assertEquals(
                    Kind.CLOSED,
                    thrown(() -> Native.readDirect(handle, 0, direct, 10, 0, 1, false))
                            .kind());
            assertEquals(Kind.CLOSED, thrown(() -> Native.connect(handle)).kind());
            Native.closeObject(handle);
            Native.closeClient(handle);
        }
    }

    @Test
    public void aRangeOutsideItsBufferIsRefusedByTheLibraryToo() throws Exception {
        String uri = cluster.put("ranges-checked-twice", Content.of(6, MIB));
        try (CacheletClient client = cluster.client()) {
            long handle = Native.create(
                    cluster.socketDir().getBytes(), new byte[0], new byte[0], new byte[0], -1, -1, -1, -1, -1, false);
            long object = Native.open(handle, uri.getBytes(), null, -1, null, null, 0, 0, false);
            ByteBuffer direct = ByteBuffer.allocateDirect(10);
            int[][] wrong = {{-1, 1}, {0, -1}, {0, 11}, {11, 0}, {10, 1}, {5, 6}, {Integer.MAX_VALUE, Integer.MAX_VALUE}
            };
            for (int[] range : wrong) {
                assertThrows(
                        IllegalArgumentException.class,
                        () -> Native.readDirect(object, 0, direct, 10, range[0], range[1], false));
                assertThrows(
                        IllegalArgumentException.class,
                        () -> Native.readArray(object, 0, new byte[10], range[0], range[1], false));
                assertThrows(
                        IllegalArgumentException.class,
                        () -> Native.readVectored(
                                object, new long[] {0}, new int[] {range[1]}, new ByteBuffer[] {direct}, new int[] {
                                    range[0]
                                }));
            }
            ThrowingRunnable[] others = {
                () -> Native.readDirect(object, -1, direct, 10, 0, 1, false),
                () -> Native.readArray(object, -1, new byte[1], 0, 1, false),
                () -> Native.readDirect(object, 0, ByteBuffer.allocate(10), 10, 0, 1, false),
                () -> Native.readDirect(object, 0, direct, -1, 0, 1, false),
                () -> Native.readVectored(object, new long[2], new int[1], new ByteBuffer[] {direct}, new int[1]),
                () -> Native.prefetch(object, -1, 1),
                () -> Native.holds(object, -1, 1),
                () -> Native.open(handle, new byte[] {(byte) 0xff}, null, -1, null, null, 0, 0, false),
                () -> Native.open(handle, uri.getBytes(), null, -1, null, new byte[15], 0, 0, false)
            };
            for (ThrowingRunnable other : others) {
                assertThrows(IllegalArgumentException.class, other);
            }
            ThrowingRunnable[] nulls = {
                () -> Native.readDirect(object, 0, null, 10, 0, 1, false),
                () -> Native.readArray(object, 0, null, 0, 1, false),
                () -> Native.readVectored(object, new long[1], new int[1], new ByteBuffer[1], new int[1]),
                () -> Native.readVectored(object, null, null, null, null),
                () -> Native.open(handle, null, null, -1, null, null, 0, 0, false)
            };
            for (ThrowingRunnable nothing : nulls) {
                assertThrows(RuntimeException.class, nothing);
            }
            Native.closeClient(handle);
        }
    }

    @Test
    public void badArgumentsAreRefusedInJava() throws Exception {
        String uri = cluster.put("arguments", Content.of(7, MIB));
        try (CacheletClient client = cluster.client();
                CacheletObject object = open(client, uri)) {
            byte[] array = new byte[10];
            ByteBuffer direct = ByteBuffer.allocateDirect(10);
            for (int[] range :
                    new int[][] {{-1, 1}, {0, -1}, {0, 11}, {11, 0}, {10, 1}, {Integer.MAX_VALUE, Integer.MAX_VALUE}}) {
                assertThrows(IndexOutOfBoundsException.class, () -> object.read(0, array, range[0], range[1]));
            }
            ThrowingRunnable[] wrong = {
                () -> object.read(-1, array, 0, 1),
                () -> object.read(-1, direct),
                () -> object.prefetch(-1, 1),
                () -> object.prefetch(0, -1),
                () -> object.read(0, ByteBuffer.wrap(array).asReadOnlyBuffer()),
                () -> object.read(0, direct.asReadOnlyBuffer()),
                () -> object.readVectored(new long[] {-1}, new int[] {1}, new ByteBuffer[] {direct}),
                () -> object.readVectored(new long[] {0}, new int[] {-1}, new ByteBuffer[] {direct}),
                () -> object.readVectored(new long[] {0}, new int[] {11}, new ByteBuffer[] {direct}),
                () -> object.readVectored(new long[] {0}, new int[] {1}, new ByteBuffer[] {ByteBuffer.allocate(1)}),
                () -> object.readVectored(new long[] {0}, new int[] {1}, new ByteBuffer[] {direct.asReadOnlyBuffer()}),
                () -> object.readVectored(new long[] {0, 1}, new int[] {1}, new ByteBuffer[] {direct}),
                () -> client.open(uri, null, -2, null, null, 0, 0),
                () -> client.open(uri, null, -1, null, null, -1, 0),
                () -> client.open(uri, null, -1, null, null, 0, -1),
                () -> client.open(uri, null, -1, null, new byte[3], 0, 0),
                () -> client.setRequestTimeoutMillis(0),
                () -> new ClientOptions().maxDescriptors(0)
            };
            for (ThrowingRunnable each : wrong) {
                assertThrows(IllegalArgumentException.class, each);
            }
            assertEquals(-1, object.read(Long.MAX_VALUE, array, 0, 1));
            assertEquals(-1, object.read(Long.MAX_VALUE, direct));
        }
    }

    @Test
    public void closingBesideReadersEndsInTheBytesOrInAnError() throws Exception {
        byte[] content = Content.of(8, 6 * MIB);
        String uri = cluster.put("hammered", content);
        AtomicBoolean done = new AtomicBoolean();
        AtomicLong read = new AtomicLong();
        AtomicLong refused = new AtomicLong();
        ExecutorService threads = Executors.newFixedThreadPool(6);
        try (CacheletClient client = cluster.client()) {
            AtomicReference<CacheletObject> current = new AtomicReference<>(open(client, uri));
            List<Future<?>> readers = new ArrayList<>();
            for (int i = 0; i < 4; i++) {
                int seed = i;
                readers.add(threads.submit(() -> {
                    Random random = new Random(seed);
                    ByteBuffer direct = ByteBuffer.allocateDirect(70_000);
                    byte[] array = new byte[70_000];
                    while (!done.get()) {
                        int position = random.nextInt(content.length - array.length);
                        try {
                            if (random.nextBoolean()) {
                                direct.clear();
                                current.get().read(position, direct);
                                direct.flip();
                                assertEquals(ByteBuffer.wrap(content, position, array.length), direct);
                            } else {
                                current.get().read(position, array, 0, array.length);
                                assertEquals(ByteBuffer.wrap(content, position, array.length), ByteBuffer.wrap(array));
                            }
                            read.incrementAndGet();
                        } catch (CacheletException e) {
                            assertEquals(e.toString(), Kind.CLOSED, e.kind());
                            refused.incrementAndGet();
                        }
                    }
                    return null;
                }));
            }
            // Two threads close each object, while it is read.
            for (int round = 0; round < 3_000 || read.get() < 500; round++) {
                CacheletObject old = current.getAndSet(open(client, uri));
                Future<?> other = threads.submit(old::close);
                old.close();
                other.get(60, TimeUnit.SECONDS);
            }
            done.set(true);
            for (Future<?> reader : readers) {
                reader.get(60, TimeUnit.SECONDS);
            }
        } finally {
            done.set(true);
            threads.shutdownNow();
        }
        assertTrue(read + " reads, " + refused + " refused", read.get() > 0);
    }

    @Test
    public void closingTheClientBesideReadersEndsInTheBytesOrInAnError() throws Exception {
        byte[] content = Content.of(9, 2 * MIB);
        String uri = cluster.put("hammered-by-client", content);
        ExecutorService threads = Executors.newFixedThreadPool(3);
        try {
            for (int round = 0; round < 30; round++) {
                CacheletClient client = cluster.client();
                CacheletObject object = open(client, uri);
                List<Future<Boolean>> readers = new ArrayList<>();
                for (int i = 0; i < 3; i++) {
                    readers.add(threads.submit(() -> {
                        byte[] array = new byte[100_000];
                        try {
                            while (true) {
                                object.read(MIB, array, 0, array.length);
                                assertEquals(ByteBuffer.wrap(content, MIB, array.length), ByteBuffer.wrap(array));
                            }
                        } catch (CacheletException e) {
                            // A fill that was under way ends with the connection.
                            return e.kind() == Kind.CLOSED || e.kind() == Kind.UNAVAILABLE;
                        }
                    }));
                }
                object.read(0, new byte[10], 0, 10);
                client.close();
                for (Future<Boolean> reader : readers) {
                    assertTrue(reader.get(60, TimeUnit.SECONDS));
                }
            }
        } finally {
            threads.shutdownNow();
        }
    }

    @Test
    public void openingAndClosingLeaksNoDescriptor() throws Exception {
        byte[] content = Content.of(10, 3 * MIB);
        String uri = cluster.put("leaks", content);
        cycle(uri);
        int before = descriptors();
        for (int round = 0; round < 20; round++) {
            cycle(uri);
        }
        // The reader threads of closed sessions end on their own time.
        long deadline = System.currentTimeMillis() + 30_000;
        while (descriptors() > before && System.currentTimeMillis() < deadline) {
            Thread.yield();
        }
        assertTrue(descriptors() + " descriptors are open, " + before + " were before", descriptors() <= before);
    }

    private static void cycle(String uri) throws CacheletException {
        try (CacheletClient client = cluster.client()) {
            for (int i = 0; i < 10; i++) {
                CacheletObject object = open(client, uri);
                object.read(i * 1000, ByteBuffer.allocateDirect(100));
                if (i % 2 == 0) {
                    object.close();
                }
            }
        }
    }

    private static int descriptors() {
        return new File("/proc/self/fd").list().length;
    }

    @Test
    public void theCountersAreThoseOfTheLibrary() throws Exception {
        String[] names = Native.statNames();
        java.lang.reflect.Field[] fields = ClientStats.class.getFields();
        assertEquals(names.length, fields.length);
        for (int i = 0; i < names.length; i++) {
            StringBuilder camel = new StringBuilder();
            for (String word : names[i].split("_")) {
                camel.append(camel.length() == 0 ? word : word.substring(0, 1).toUpperCase() + word.substring(1));
            }
            assertEquals(camel.toString(), fields[i].getName());
        }
        byte[] content = Content.of(11, 3 * MIB);
        String uri = cluster.put("counted", content);
        try (CacheletClient client = CacheletClient.create(cluster.options().readaheadBytes(0));
                CacheletObject object = open(client, uri)) {
            object.read(0, new byte[3 * MIB], 0, 3 * MIB);
            object.read(5, ByteBuffer.allocateDirect(100));
            assertEquals(3 * MIB + 100, client.stats().localBytes);
            assertEquals(3 * MIB + 100, object.stats().localBytes);
            assertEquals(1, client.stats().opens);
            assertEquals(1, client.descriptorsHeld());
            assertEquals(3 * MIB, client.filledBytes().originBytes);
            assertEquals(0, client.filledBytes().peerBytes);
        }
    }

    @Test
    public void theWorkerSaysWhoItIs() throws Exception {
        try (CacheletClient client = cluster.client()) {
            WorkerInfo worker = client.connect();
            assertEquals("node-1", worker.node);
            assertEquals(4 * MIB, worker.blockBytes);
            assertEquals(NativeLibrary.version(), worker.version);
            assertTrue(worker.serviceAddress, worker.serviceAddress.startsWith("127.0.0.1:"));
            assertTrue(worker.grants + worker.grantsDisabledReason, !worker.grants.equals("disabled"));
        }
    }
}
