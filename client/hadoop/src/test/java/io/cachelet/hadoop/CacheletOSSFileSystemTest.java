package io.cachelet.hadoop;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.cachelet.client.NativeLibrary;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.Path;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;

/** Against a server that speaks what hadoop-aliyun reads with, and no daemon. */
public class CacheletOSSFileSystemTest {
    private final Map<String, byte[]> objects = new ConcurrentHashMap<>();
    private HttpServer server;
    private FileSystem fs;

    @Before
    public void start() throws IOException {
        server = HttpServer.create(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), 0), 0);
        server.createContext("/", this::answer);
        server.start();
        Configuration conf = new Configuration();
        conf.set("fs.oss.impl", CacheletOSSFileSystem.class.getName());
        conf.set("fs.oss.endpoint", "http://127.0.0.1:" + server.getAddress().getPort());
        conf.set("fs.oss.connection.secure.enabled", "false");
        conf.set("fs.oss.attempts.maximum", "1");
        conf.set("fs.oss.accessKeyId", "key");
        conf.set("fs.oss.accessKeySecret", "secret");
        conf.set("fs.cachelet.socket.dir", "/nonexistent/cachelet-oss");
        fs = FileSystem.newInstance(URI.create("oss://lake/"), conf);
    }

    @After
    public void stop() throws IOException {
        fs.close();
        server.stop(0);
    }

    private void answer(HttpExchange exchange) throws IOException {
        String key = exchange.getRequestURI().getPath().replaceFirst("^/(lake/)?", "");
        if (exchange.getRequestMethod().equals("GET") && key.isEmpty()) {
            list(exchange);
            return;
        }
        byte[] object = objects.get(key);
        if (object == null) {
            exchange.sendResponseHeaders(404, -1);
            exchange.close();
            return;
        }
        exchange.getResponseHeaders().set("ETag", "\"" + Integer.toHexString(java.util.Arrays.hashCode(object)) + "\"");
        exchange.getResponseHeaders().set("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT");
        exchange.getResponseHeaders().set("x-oss-request-id", "1");
        if (exchange.getRequestMethod().equals("HEAD")) {
            exchange.getResponseHeaders().set("Content-Length", Integer.toString(object.length));
            exchange.sendResponseHeaders(200, -1);
        } else {
            String[] range = exchange.getRequestHeaders()
                    .getFirst("Range")
                    .replace("bytes=", "")
                    .split("-");
            int from = Integer.parseInt(range[0]);
            int to = range.length < 2 ? object.length - 1 : Math.min(Integer.parseInt(range[1]), object.length - 1);
            exchange.getResponseHeaders().set("Content-Range", "bytes " + from + "-" + to + "/" + object.length);
            exchange.sendResponseHeaders(206, to - from + 1);
            exchange.getResponseBody().write(object, from, to - from + 1);
        }
        exchange.close();
    }

    private void list(HttpExchange exchange) throws IOException {
        StringBuilder xml = new StringBuilder("<?xml version=\"1.0\"?><ListBucketResult><Name>lake</Name>");
        xml.append("<Prefix></Prefix><KeyCount>").append(objects.size()).append("</KeyCount><MaxKeys>1000</MaxKeys>");
        xml.append("<Delimiter>/</Delimiter><IsTruncated>false</IsTruncated>");
        objects.forEach((key, object) -> xml.append("<Contents><Key>")
                .append(key)
                .append("</Key><Size>")
                .append(object.length)
                .append("</Size><ETag>\"e\"</ETag><LastModified>2026-11-01T00:00:00.000Z</LastModified>")
                .append("<StorageClass>Standard</StorageClass></Contents>"));
        byte[] body = xml.append("</ListBucketResult>").toString().getBytes("UTF-8");
        exchange.getResponseHeaders().set("Content-Type", "application/xml");
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    @Test
    public void withoutADaemonEveryByteComesFromOss() throws IOException {
        byte[] object = new byte[2_000_003];
        new Random(1).nextBytes(object);
        objects.put("t/a", object);
        long before = ReadMetrics.snapshot().originBytes;
        try (FSDataInputStream in = fs.open(new Path("/t/a"))) {
            byte[] all = new byte[object.length];
            in.readFully(all);
            assertArrayEquals(object, all);
            assertEquals(-1, in.read());
            byte[] some = new byte[1000];
            in.readFully(1_234_567, some);
            assertArrayEquals(java.util.Arrays.copyOfRange(object, 1_234_567, 1_235_567), some);
            in.seek(17);
            assertEquals(object[17] & 0xff, in.read());
        }
        if (NativeLibrary.isAvailable()) {
            assertTrue("our stream read", ReadMetrics.snapshot().originBytes - before >= object.length);
        }
    }

    @Test
    public void bytesAreCountedOnce() throws IOException {
        objects.put("t/a", new byte[300_000]);
        FileSystem.Statistics statistics = FileSystem.getStatistics("oss", CacheletOSSFileSystem.class);
        long before = statistics.getBytesRead();
        try (FSDataInputStream in = fs.open(new Path("/t/a"))) {
            in.readFully(new byte[300_000]);
        }
        assertEquals(300_000, statistics.getBytesRead() - before);
    }

    @Test
    public void whatIsMissingFailsAsWithTheStockClass() {
        assertThrows(FileNotFoundException.class, () -> fs.open(new Path("/t/missing")));
    }

    @Test
    public void listedFilesSayWhereTheyAreWhenTheyAreAskedAndNameNoHostThatNobodyHas() throws IOException {
        objects.put("a", new byte[10]);
        FileStatus listed = fs.listStatus(new Path("/"))[0];
        assertTrue(listed.getClass().toString(), listed instanceof LazyFileStatus);
        BlockLocation[] locations = ((LocatedFileStatus) listed).getBlockLocations();
        assertEquals(10, locations[0].getLength());
        assertEquals(0, locations[0].getHosts().length);
        assertEquals(0, fs.getFileBlockLocations(listed, 3, 2)[0].getHosts().length);
        assertEquals(0, fs.getFileBlockLocations(listed, 10, 2).length);
    }
}
