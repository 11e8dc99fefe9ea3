package io.cachelet.hadoop;

import io.cachelet.client.StoreFingerprint;
import java.util.Locale;
import org.apache.hadoop.conf.Configuration;

/** Which store an S3A configuration is about. */
final class S3Store {
    private S3Store() {}

    /**
     * The fingerprint of a bucket's store (docs/protocol.md, "Ids"). A part that the configuration leaves to the SDK is
     * empty, which a daemon takes for its own only where that cannot mean another store.
     *
     * @param conf the file system's own, in which settings for the bucket have replaced the general ones
     * @param bucket the bucket's name, or the access point's ARN in its place
     */
    static byte[] fingerprint(Configuration conf, String bucket) {
        return StoreFingerprint.of(
                "s3",
                hostPort(
                        conf.getTrimmed("fs.s3a.endpoint", ""), conf.getBoolean("fs.s3a.connection.ssl.enabled", true)),
                region(conf.getTrimmed("fs.s3a.endpoint.region", "")),
                bucket,
                conf.getBoolean("fs.s3a.requester.pays.enabled", false));
    }

    /** {@code host[:port]} in lower case of an endpoint, which may have a scheme and a path; without a default port. */
    static String hostPort(String endpoint, boolean secure) {
        String rest = endpoint.toLowerCase(Locale.ROOT);
        boolean https = secure;
        int scheme = rest.indexOf("://");
        if (scheme >= 0) {
            https = rest.startsWith("https");
            rest = rest.substring(scheme + 3);
        }
        int slash = rest.indexOf('/');
        if (slash >= 0) {
            rest = rest.substring(0, slash);
        }
        String port = https ? ":443" : ":80";
        return rest.endsWith(port) ? rest.substring(0, rest.length() - port.length()) : rest;
    }

    /** A region's name; empty for the words with which S3A leaves it to the SDK. */
    private static String region(String region) {
        return region.equals("sdk") || region.equals("ec2") || region.equals("external") ? "" : region;
    }
}
