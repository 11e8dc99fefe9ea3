package io.cachelet.hadoop;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;

import io.cachelet.client.StoreFingerprint;
import org.apache.hadoop.conf.Configuration;
import org.junit.Test;

public class S3StoreTest {
    @Test
    public void anEndpointIsHostAndPortHoweverItIsSpelt() {
        assertEquals("127.0.0.1:9000", S3Store.hostPort("http://127.0.0.1:9000", true));
        assertEquals("127.0.0.1:9000", S3Store.hostPort("HTTP://127.0.0.1:9000/", true));
        assertEquals("minio.example.com", S3Store.hostPort("MinIO.example.com", false));
        assertEquals("minio.example.com", S3Store.hostPort("http://minio.example.com:80", true));
        assertEquals("minio.example.com:80", S3Store.hostPort("https://minio.example.com:80", false));
        assertEquals("minio.example.com", S3Store.hostPort("minio.example.com:443", true));
        assertEquals("", S3Store.hostPort("", true));
    }

    @Test
    public void whatTheConfigurationLeavesToTheSdkIsEmpty() {
        Configuration conf = new Configuration(false);
        assertArrayEquals(StoreFingerprint.of("s3", "", "", "lake", false), S3Store.fingerprint(conf, "lake"));
        conf.set("fs.s3a.endpoint", "https://s3.eu-west-1.amazonaws.com");
        conf.set("fs.s3a.endpoint.region", "eu-west-1");
        conf.set("fs.s3a.requester.pays.enabled", "true");
        assertArrayEquals(
                StoreFingerprint.of("s3", "s3.eu-west-1.amazonaws.com", "eu-west-1", "lake", true),
                S3Store.fingerprint(conf, "lake"));
        conf.set("fs.s3a.endpoint.region", "sdk");
        assertArrayEquals(
                StoreFingerprint.of("s3", "s3.eu-west-1.amazonaws.com", "", "lake", true),
                S3Store.fingerprint(conf, "lake"));
    }
}
