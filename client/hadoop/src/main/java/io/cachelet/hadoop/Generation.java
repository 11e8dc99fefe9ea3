package io.cachelet.hadoop;

/** One generation of one object, as its reader got it from the origin: what a stream reads. Immutable. */
final class Generation {
    /** {@code s3a://bucket/key} or {@code oss://bucket/key}, the key as it is, not URL-encoded. */
    final String uri;
    /** The etag as the origin gave it. */
    final String etag;

    final long sizeBytes;
    /** On versioned buckets; else null. */
    final String versionId;
    /** The store that the reader is configured for. */
    final byte[] fingerprint;

    Generation(String uri, String etag, long sizeBytes, String versionId, byte[] fingerprint) {
        this.uri = uri;
        this.etag = etag;
        this.sizeBytes = sizeBytes;
        this.versionId = versionId;
        this.fingerprint = fingerprint;
    }

    /** Whether an etag names a generation: there is one, and it is not weak. */
    static boolean isStrong(String etag) {
        return etag != null && !etag.isEmpty() && !etag.startsWith("W/");
    }

    /** An etag without the quotes that some SDKs leave on it. */
    static String canonical(String etag) {
        boolean quoted = etag != null && etag.length() >= 2 && etag.startsWith("\"") && etag.endsWith("\"");
        return quoted ? etag.substring(1, etag.length() - 1) : etag;
    }

    @Override
    public String toString() {
        return uri + " (etag " + etag + ", " + sizeBytes + " bytes)";
    }
}
