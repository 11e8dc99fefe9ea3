package io.cachelet.spark;

import static org.junit.Assert.assertEquals;

import java.io.IOException;
import java.net.URI;
import java.util.Collections;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileSystem;
import org.junit.After;
import org.junit.Test;

/** Finding file systems that Hadoop had cached before the settings were there. */
public class StockFileSystemsTest {
    @After
    public void forget() throws IOException {
        FileSystem.closeAll();
    }

    @Test
    public void aBucketWhoseCachedFileSystemIsNotOursIsFound() throws IOException {
        // A file system that connects to nobody until it is used.
        Configuration conf = new Configuration();
        conf.set("fs.s3a.bucket.probe", "0");
        conf.set("fs.s3a.endpoint", "http://127.0.0.1:9");
        conf.set("fs.s3a.endpoint.region", "us-east-1");
        conf.set("fs.s3a.access.key", "nobody");
        conf.set("fs.s3a.secret.key", "nothing");
        assertEquals(Collections.emptySet(), StockFileSystems.buckets());
        FileSystem.get(URI.create("s3a://read-past/x"), conf);
        conf.set("fs.s3a.impl", "io.cachelet.hadoop.CacheletS3AFileSystem");
        FileSystem.get(URI.create("s3a://read-through/x"), conf);
        assertEquals(Collections.singleton("s3a://read-past"), StockFileSystems.buckets());
    }
}
