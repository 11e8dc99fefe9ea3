package io.cachelet.hadoop;

/**
 * The settings a user may put into the Hadoop configuration (with {@code spark.hadoop.} before them in Spark's). Each
 * has a default that works. A value that cannot be understood fails the file system's initialisation, with the key and
 * the value in the message.
 *
 * <p>Durations are a number and a unit: {@code ms}, {@code s}, {@code m}, {@code h} or {@code d}.
 */
public final class SettingKeys {
    /** Whether reads go through Cachelet at all. {@code false}: the file system is the stock one. Default: true. */
    public static final String ENABLED = "fs.cachelet.enabled";

    /**
     * The directory in which the daemon of this node has its socket. Default: the environment's
     * {@code CACHELET_SOCKET_DIR}, else {@code /var/run/cachelet}.
     */
    public static final String SOCKET_DIR = "fs.cachelet.socket.dir";

    /** The directory that the native library is unpacked to. Default: the system property {@code java.io.tmpdir}. */
    public static final String NATIVE_DIR = "fs.cachelet.native.dir";

    /** A library file to load in place of the jar's. Default: none. */
    public static final String NATIVE_PATH = "fs.cachelet.native.path";

    /**
     * How old an answer of the origin about a file may be: a comma list of {@code uri-prefix=duration}, such as
     * {@code s3a://lake/tpch/=60s}; the longest prefix that fits counts. Under such a prefix the status of a file is
     * remembered by the file system that asked for it or listed it, and opened without asking again. Directories,
     * absence, names that begin with {@code _} or {@code .}, {@code metadata} directories and checkpoints are always
     * asked for. Default: none, so that every {@code getFileStatus} asks; an {@code open} asks unless the same thread
     * asked for the status of the same path within the last second.
     */
    public static final String MAX_STALENESS = "fs.cachelet.max.staleness";

    /**
     * Files that are never overwritten, because their names are unique: a comma list of glob patterns for URIs, such as
     * {@code s3a://lake/iceberg/**&#47;data/*.parquet} ({@code *} also matches {@code /}). As
     * {@link #MAX_STALENESS} of 24 h. Default: none.
     */
    public static final String WRITE_ONCE = "fs.cachelet.write.once";

    /**
     * The least time that a read waits for the daemon before it goes to the origin: a read waits for the greater of this
     * and three times the 95th percentile of recent reads that the origin had to serve, at most 10 s. Default: 500ms.
     */
    public static final String REQUEST_TIMEOUT_MIN = "fs.cachelet.request.timeout.min";

    /**
     * How long this JVM passes the daemon by after two reads in a row had waited in vain; one read tries then. Default:
     * 30s.
     */
    public static final String BYPASS_PERIOD = "fs.cachelet.bypass.period";

    /** Whether every byte read from a cached file is compared with its checksum. Default: false. */
    public static final String VERIFY_READS = "fs.cachelet.verify.reads";

    /** How far ahead of a sequential reader the daemon fetches at most, in bytes ({@code 8m}); 0: not at all. Default: 8m. */
    public static final String READAHEAD = "fs.cachelet.readahead";

    private SettingKeys() {}
}
