package io.cachelet.hadoop.contract;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.contract.AbstractBondedFSContract;

/** One file system to be tested: which class, on which bucket, with which daemon. */
final class Setup {
    /** The one that the suites run on now; JUnit makes their instances. */
    static Setup current;

    private static final String ENDPOINT = "cachelet.test.s3.endpoint";

    final String name;
    private final String implementation;
    private final String bucket;
    private final String socketDir;
    /** The suites' names; none: all. */
    private final List<String> suites;

    private Setup(String name, String implementation, String bucket, String socketDir, List<String> suites) {
        this.name = name;
        this.suites = suites;
        this.implementation = implementation;
        this.bucket = bucket;
        this.socketDir = socketDir;
    }

    /** Parses {@code name=class,bucket,socket directory}, and perhaps a comma and suites joined with {@code +}. */
    static Setup parse(String text) {
        String[] parts = text.substring(text.indexOf('=') + 1).split(",");
        List<String> suites = parts.length > 3 ? Arrays.asList(parts[3].split("\\+")) : Collections.emptyList();
        return new Setup(text.substring(0, text.indexOf('=')), parts[0], parts[1], parts[2], suites);
    }

    /** Whether a suite is to run. */
    boolean has(String suite) {
        return suites.isEmpty() || suites.contains(suite);
    }

    Configuration configure(Configuration conf) {
        conf.set("fs.s3a.impl", implementation);
        conf.set("fs.contract.test.fs.s3a", "s3a://" + bucket + "/");
        conf.set("fs.s3a.endpoint", System.getProperty(ENDPOINT));
        conf.set("fs.s3a.endpoint.region", "us-east-1");
        conf.set("fs.s3a.access.key", System.getenv("AWS_ACCESS_KEY_ID"));
        conf.set("fs.s3a.secret.key", System.getenv("AWS_SECRET_ACCESS_KEY"));
        conf.set("fs.s3a.path.style.access", "true");
        conf.set("fs.s3a.connection.ssl.enabled", "false");
        conf.set("fs.s3a.etag.checksum.enabled", "true");
        // What a small S3 server cannot do, such as a file below a file, it cannot do at the tenth time either.
        conf.set("fs.s3a.attempts.maximum", "1");
        conf.set("fs.s3a.retry.limit", "1");
        conf.set("fs.s3a.retry.interval", "10ms");
        conf.set("fs.s3a.buffer.dir", System.getProperty("java.io.tmpdir"));
        conf.set("fs.cachelet.socket.dir", socketDir);
        // Who serves is asserted, on a machine that may be busy.
        conf.set("fs.cachelet.request.timeout.min", "20s");
        return conf;
    }

    /** S3A's contract on this setup. */
    static final class Contract extends AbstractBondedFSContract {
        Contract(Configuration conf) {
            super(current.configure(conf));
            addConfResource("contract/s3a.xml");
        }

        @Override
        public String getScheme() {
            return "s3a";
        }

        @Override
        public Path getTestPath() {
            return new Path("/test");
        }
    }
}
