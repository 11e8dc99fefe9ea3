package io.cachelet.client;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Arrays;

/**
 * What a caller's store configuration comes to in 16 bytes: a daemon that has another store configured for the bucket
 * answers {@link CacheletException.Kind#BYPASS} instead of another store's bytes.
 *
 * <p>The first 16 bytes of SHA-256 over the fields, each behind its length (docs/protocol.md, "Ids").
 */
public final class StoreFingerprint {
    private static final String DOMAIN = "cachelet-store-fingerprint-v1";

    private StoreFingerprint() {}

    /**
     * The fingerprint of a store as the caller is configured for it.
     *
     * @param scheme {@code s3} (also {@code s3a} and {@code s3n}, which mean the same), {@code oss} or {@code file}
     * @param hostPort the endpoint as {@code host[:port]} in lower case; empty: the scheme's default for the region
     * @param region the region, or empty
     * @param bucket the bucket's name or ARN
     * @param requesterPays whether the caller pays for requests
     */
    public static byte[] of(String scheme, String hostPort, String region, String bucket, boolean requesterPays) {
        MessageDigest digest = sha256();
        field(digest, DOMAIN);
        field(digest, canonical(scheme));
        field(digest, hostPort);
        field(digest, region);
        field(digest, bucket);
        field(digest, new byte[] {(byte) (requesterPays ? 1 : 0)});
        return Arrays.copyOf(digest.digest(), 16);
    }

    private static String canonical(String scheme) {
        switch (scheme) {
            case "s3":
            case "s3a":
            case "s3n":
                return "s3";
            case "oss":
            case "file":
                return scheme;
            default:
                throw new IllegalArgumentException(
                        "unknown scheme '" + scheme + "'; known are s3, s3a, s3n, oss and file");
        }
    }

    private static void field(MessageDigest digest, String text) {
        field(digest, text.getBytes(StandardCharsets.UTF_8));
    }

    private static void field(MessageDigest digest, byte[] bytes) {
        digest.update(ByteBuffer.allocate(8)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putLong(bytes.length)
                .array());
        digest.update(bytes);
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("every Java platform has SHA-256", e);
        }
    }
}
