package io.cachelet.spark;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import com.sun.net.httpserver.HttpServer;
import io.cachelet.locality.ExecutorDirectory;
import io.cachelet.locality.Placement;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.TimeUnit;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RawLocalFileSystem;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.hadoop.util.functional.RemoteIterators;
import org.apache.spark.SparkConf;
import org.junit.After;
import org.junit.Test;

/** The nodes that the first executors are wanted on are known before these are requested. */
public class PlacementPathsTest {
    /** A first listing takes this long: a cold S3A on a busy node. */
    private static final long LISTING_MILLIS = 1_500;

    private final SparkConf spark = new SparkConf(false).set("spark.master", "k8s://x");
    private final Configuration hadoop = new Configuration();
    private HttpServer service;

    @After
    public void stop() {
        if (service != null) {
            service.stop(0);
        }
        ExecutorDirectory.get().clear();
        Placement.get().clear();
    }

    @Test
    public void aSlowFirstListingIsWaitedFor() throws Exception {
        String located = "{\"locations\":[{\"path\":\"slow:/table/file\",\"known\":true,\"size_bytes\":8,\"blocks\":"
                + "[{\"index\":0,\"offset\":0,\"length\":8,\"nodes\":[{\"node\":\"node-7\",\"state\":\"resident\"}]}]}]}";
        service = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        service.createContext("/v1/locations", exchange -> {
            byte[] body = located.getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        service.start();
        ExecutorDirectory.get()
                .configuredServiceAddress("127.0.0.1:" + service.getAddress().getPort());
        hadoop.setClass("fs.slow.impl", Slow.class, FileSystem.class);
        spark.set(PlacementPaths.PATHS, "slow:/table");
        PlacementPaths.start(spark, hadoop);
        assertEquals("[node-7=8]", Placement.get().nodes().toString());
    }

    @Test
    public void aServiceThatNobodyKnowsIsNotWaitedForLong() {
        spark.set(PlacementPaths.PATHS, "slow:/table");
        long start = System.nanoTime();
        PlacementPaths.start(spark, hadoop);
        long seconds = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - start);
        assertTrue(seconds + " s", seconds < 8);
        assertTrue(Placement.get().nodes().isEmpty());
    }

    /** One file, whose listing takes its time. */
    public static final class Slow extends RawLocalFileSystem {
        @Override
        public URI getUri() {
            return URI.create("slow:///");
        }

        @Override
        public RemoteIterator<LocatedFileStatus> listFiles(Path path, boolean recursive) throws IOException {
            try {
                TimeUnit.MILLISECONDS.sleep(LISTING_MILLIS);
            } catch (InterruptedException e) {
                throw new IOException(e);
            }
            FileStatus file = new FileStatus(8, false, 1, 8, 0, new Path(path, "file"));
            return RemoteIterators.remoteIteratorFromSingleton(new LocatedFileStatus(file, null));
        }
    }
}
